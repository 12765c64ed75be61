"""The guard of a listener: which token and which certificate a peer must show, before anything is done for it.

1. A request without a token, or with one that is not known, is refused before its body is read; the answer takes a while, and keeps its
   connection for as long, so that tries are as many as connections are. How long grows with the tries of one address.
2. A token that is known is never slowed by those that are not, whoever sent them.
3. Nothing of a token is ever logged, shown or kept, other than its hash.
4. A connection's certificate counts for as long as the authorities are those that were asked when it was shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from taba.errors import ConfigurationError
from taba.options import Listen
from taba.tokens import EVERYTHING, KINDS, OPEN, Grant, Tokens, digest_of, read_tokens
from taba.tries import FAILED_SECONDS, Tries

_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/=-]{1,512}) *", re.I)
NAME_LETTERS = 16  # of a token's hash, by which its bearer is known


class Refused(Exception):
    """A peer that may not ask this: status, error and detail of the answer, what it takes (`WWW-Authenticate`), and how long the answer
    takes where nobody knows this peer."""

    def __init__(self, status: int, error: str, detail: str, challenge: str | None = None, wait_seconds: float = 0.0):
        super().__init__(detail)
        self.status, self.error, self.detail, self.challenge, self.wait_seconds = status, error, detail, challenge, wait_seconds


class TokenFile:
    """The tokens of --tokens; `reload` reads the file again. Raises ConfigurationError."""

    def __init__(self, path: Path):
        self.path = path
        self.reload()

    def reload(self) -> None:
        """Read the file again. Raises ConfigurationError, and keeps the tokens that were known."""
        try:
            self.tokens: Tokens = read_tokens(self.path)
        except ValueError as error:
            raise ConfigurationError("--tokens", str(self.path), str(error)) from None


class Guard:
    """Decides who may ask, by `tokens` and by `tls` where they are given (None: everybody may). `seconds` is a monotonic clock."""

    def __init__(self, tokens: TokenFile | None, tls: Any, listen: Listen, seconds: Callable[[], float]):
        self._tokens, self._tls, self._listen = tokens, tls, listen
        self.refused = 0  # requests: no token, an unknown one, no certificate, or a token of another kind
        self.tries = Tries(seconds)  # of tokens that nobody gave out
        self._failures: dict[str, str] = {}  # option → why its file could not be read again
        self.told: list[Callable[[], None]] = []
        """Who is called when there are other authorities: what was shown before counts no more."""

    @property
    def has_tokens(self) -> bool:
        """Whether tokens are asked for."""
        return self._tokens is not None

    @property
    def authorities(self) -> int:
        """Which authorities certificates are asked of now: another number, other ones."""
        return 0 if self._tls is None else int(self._tls.changes)

    @property
    def is_closed(self) -> bool:
        """Whether strangers are refused at all."""
        return self._tokens is not None or self._asks_for_certificates

    @property
    def _asks_for_certificates(self) -> bool:
        return self._tls is not None and bool(self._tls.asks_for_certificates)

    def identify(self, authorizations: Iterable[str], has_certificate: bool, peer: str) -> Grant:
        """What the bearer of these Authorization headers may do. Raises Refused for whom nothing is allowed."""
        if self._asks_for_certificates and not has_certificate:
            raise self._refuse(403, "no_certificate", "this takes a client certificate: --tls-cert and --tls-key")
        if self._tokens is None:
            return EVERYTHING
        offered = list(authorizations)
        if not offered:
            raise self._refuse(401, "no_token", "this takes a token: Authorization: Bearer taba_…", 'Bearer realm="taba"')
        bearer = _BEARER.fullmatch(offered[0]) if len(offered) == 1 else None
        if bearer is None:
            challenge = 'Bearer realm="taba", error="invalid_request"'
            raise self._refuse(401, "no_token", "takes one Authorization header, Bearer and a token", challenge)
        return self.grant_of(bearer[1], peer)

    def name_of(self, authorizations: Iterable[str]) -> str | None:
        """What the bearer of these Authorization headers, once identified, is known by: a part of the token's hash; None where none is
        asked for."""
        bearer = _BEARER.fullmatch(next(iter(authorizations), "")) if self._tokens is not None else None
        return None if bearer is None else f"token {digest_of(bearer[1]).hex()[:NAME_LETTERS]}"

    def grant_of(self, token: str, peer: str) -> Grant:
        """What the bearer of this token may do, wherever it was shown: each way counts failed tries in one place. Raises Refused."""
        if self._tokens is None:
            return EVERYTHING
        grant = self._tokens.tokens.grant_of(token)
        if grant is None:
            challenge = 'Bearer realm="taba", error="invalid_token"'
            detail = "this token is not known here; get one that is in the file of --tokens"
            raise self._refuse(401, "unknown_token", detail, challenge, self.tries.failed(peer))
        return grant

    def admit(self, grant: Grant, wanted: str) -> None:
        """Raises Refused where a route asks for a kind of token that this is not."""
        if not grant.allows(wanted):
            challenge = f'Bearer realm="taba", error="insufficient_scope", scope="{wanted}"'
            raise self._refuse(403, "other_token", f"this takes a token for {wanted}; yours is for {grant.kind}", challenge, 0.0)

    def admit_bound(self, grant: Grant, is_scoped: bool, wanted: str) -> None:
        """Raises Refused for a token that is bound, where a route that asks for a kind of token knows no bounds."""
        if grant.scope.is_bound and not is_scoped and wanted in KINDS:
            challenge = 'Bearer realm="taba", error="insufficient_scope"'
            detail = f"this takes a token that is bound to nothing; yours is bound to {grant.scope.sentence()}"
            raise self._refuse(403, "other_token", detail, challenge, 0.0)

    def needs_token(self, wanted: str) -> bool:
        """Whether a route that asks for `wanted` must know who asks."""
        return self.is_closed and wanted != OPEN

    def reload(self) -> list[str]:
        """Read tokens and certificates again; what failed, in sentences. What cannot be read stays as it was."""
        self._failures = {}
        before = self.authorities
        for part in (self._tokens, self._tls):
            if part is not None:
                try:
                    part.reload()
                except ConfigurationError as error:
                    self._failures[error.option] = f"{error}; what was read before stays in force: mend it and send SIGHUP"
        if self.authorities != before:
            for tell in self.told:
                tell()
        return list(self._failures.values())

    def problems(self, unix_now: float) -> list[str]:
        """What needs a person, in sentences."""
        found = list(self._failures.values())
        if not self._listen.is_local and self._tls is None:
            found.append(
                f"--listen: {self._listen.text!r} is reached from other hosts without TLS (--insecure): tokens and events travel for all to"
                " read; give --tls-cert and --tls-key"
            )
        if self._tls is not None:
            found += self._tls.problems(unix_now)
        return found + self.tries.problems()

    def describe(self) -> dict[str, Any]:
        """What a status tells of this."""
        tokens = None if self._tokens is None else len(self._tokens.tokens)
        tries = {"unknown_tokens": self.tries.count, "tried_from": len(self.tries.recent()), "tries_forgotten": self.tries.forgotten}
        return {"tokens": tokens, "tls": self._tls is not None, "refused": self.refused, **tries}

    def _refuse(self, status: int, error: str, detail: str, challenge: str | None = None, wait: float | None = None) -> Refused:
        self.refused += 1
        return Refused(status, error, detail, challenge, FAILED_SECONDS if wait is None else wait)
