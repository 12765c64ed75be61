"""What an asker shows of itself, and whom it believes: its token, its client certificate, the authorities that it trusts."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import NamedTuple

from taba.tokens import is_token, read_token

TOKEN_VARIABLE = "TABA_TOKEN"


class Shown(NamedTuple):
    """`token`: the token itself, or a file with it; without one TABA_TOKEN counts, which says either. Files of certificates are PEM."""

    token: str | None = None
    cacert: str | None = None
    certificate: str | None = None
    key: str | None = None

    def headers(self) -> dict[str, str]:
        """The headers of a question. Raises ValueError for what is neither a token nor a file with one, and a key without certificate."""
        if self.key is not None and self.certificate is None:
            raise ValueError(f"--tls-key: {self.key!r}: takes --tls-cert beside it")
        text = self.token if self.token is not None else os.environ.get(TOKEN_VARIABLE)
        if not text:
            return {}
        return {"Authorization": f"Bearer {text if is_token(text) else _read(text)}"}

    def context(self) -> ssl.SSLContext:
        """What verifies the peer, always. Raises ValueError for files that cannot be read."""
        try:
            context = ssl.create_default_context(cafile=self.cacert)
        except OSError as error:  # an SSLError is one
            raise ValueError(f"--cacert: {self.cacert!r}: takes a file with certificates, as PEM: {error.strerror or error}") from None
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=lambda: b"")  # nobody is asked for one
            except OSError as error:
                files = "" if self.key is None else f" and --tls-key {self.key!r}"
                takes = f"--tls-cert: {self.certificate!r}{files}: takes a file with a certificate and one with its key, as PEM"
                raise ValueError(f"{takes}: {error.strerror or error}") from None
        return context

    @property
    def has_certificates(self) -> bool:
        """Whether there is more to it than the system's authorities."""
        return self.cacert is not None or self.certificate is not None


def _read(text: str) -> str:
    path = text.removeprefix("@")
    try:
        return read_token(Path(path).expanduser())
    except ValueError as error:
        # a token that is mistyped looks like a file that is not there: it is not shown
        shown = "the token" if text.startswith("taba_") else f"{path[:200]!r}"
        raise ValueError(f"--token: {shown}: takes a token (taba_…) or a file with one: {error}") from None
