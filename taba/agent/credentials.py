"""What an Agent shows to Servers, and how it knows them: its token, its client certificate, and whose certificates it trusts."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from taba.errors import ConfigurationError
from taba.options import ServiceOptions, is_loopback
from taba.tls import SendingTls, TlsFiles
from taba.tokens import read_token


class Credentials:
    """The token of --token, and `tls`, which verifies Servers. Raises ConfigurationError. `reload` reads the files again."""

    def __init__(self, token: Path | None = None, authorities: Path | None = None, shown: TlsFiles | None = None):
        self._path = token
        self._token = self._read()
        self.tls = SendingTls(authorities, shown)
        self._failures: list[str] = []

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request that show who asks."""
        return {} if self._token is None else {"Authorization": f"Bearer {self._token}"}

    def reload(self) -> list[str]:
        """Read the files again; what is wrong with them, in sentences. What cannot be read stays as it was."""
        self._failures = []
        try:
            self._token = self._read()
        except ConfigurationError as error:
            self._failures.append(f"{error}; the token that was read before is shown: mend it and send SIGHUP")
        try:
            self.tls.reload()
        except ConfigurationError as error:
            self._failures.append(f"{error}; what was read before stays in force: mend it and send SIGHUP")
        return self._failures

    def problems(self, urls: list[str]) -> list[str]:
        """What needs a person, in sentences, where these are the Servers."""
        clear = [url for url in urls if url.startswith("http:") and not is_loopback(urlsplit(url).hostname or "")]
        if self._token is None or not clear:
            return self._failures
        return [*self._failures, f"Server {clear[0]}: the token and all events travel there for all to read; use an https: address"]

    def _read(self) -> str | None:
        if self._path is None:
            return None
        try:
            return read_token(self._path)
        except ValueError as error:
            raise ConfigurationError("--token", str(self._path), str(error)) from None


def credentials_of(options: ServiceOptions) -> Credentials:
    """What these options say. Raises ConfigurationError."""
    certificate, key = options["tls-cert"], options["tls-key"]
    shown = None if certificate is None else TlsFiles(certificate, key or certificate)
    return Credentials(options["token"], options["cacert"], shown)
