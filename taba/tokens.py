"""Tokens: what a stranger must show, and what it may then do. Text in, grants out; standard library only.

1. A token is 256 random bits with its kind in front: nobody guesses one, so its plain SHA-256 may lie in a file.
2. The file of tokens has hashes alone: who reads it can ask nothing. Several tokens of a kind live at once, so that one is
   replaced by adding the new one first and removing the old one last.
3. A token that is offered is compared with all that are known, in a time that tells nothing of them.

4. A token to read or write may be bound to Clients, to names of Tabs, or to both: of what is beyond, nothing is said and nothing is taken.

A line of the file is `KIND sha256:HEX [client=ID …] [prefix=NAME …]`; an ID may end with `*`, which stands for any text. What follows a
`#` is for people.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from taba.bounds import KiB, MiB

READ, WRITE, ADMIN = "read", "write", "admin"
KINDS = (READ, WRITE, ADMIN)
OPEN, ANY = "open", "any"  # what a route may ask for instead: no token at all; a token of whichever kind

TOKEN_BYTES = 32  # of randomness: what makes guessing hopeless, and a plain hash enough
MAX_TOKENS = 256  # each offered token is compared with all: 50 µs
MAX_TOKENS_BYTES = 1 * MiB  # of the file: far more than MAX_TOKENS lines take
MAX_SCOPE = 64  # Clients, and prefixes of names, that one token is bound to: each column that it sends is compared with them
MAX_TOKEN_FILE_BYTES = 4 * KiB  # of a file with one token

_TOKEN = re.compile(rf"taba_({'|'.join(KINDS)})_[A-Za-z0-9_-]{{43}}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_CLIENT_BOUND = re.compile(r"[A-Za-z0-9_./:@+-]{1,200}\*?")
_PREFIX = re.compile(r"[A-Za-z0-9_./:@+~%-]{1,200}")


class Scope(NamedTuple):
    """Which Clients (ids, or beginnings with `*` behind them) and Tabs (by how their names begin) a token is bound to; empty: to none."""

    clients: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    @property
    def is_bound(self) -> bool:
        """Whether there is anything that is beyond it."""
        return bool(self.clients or self.prefixes)

    def covers_client(self, client: str) -> bool:
        """Whether this Client is within it."""
        return not self.clients or any(client.startswith(bound[:-1]) if bound.endswith("*") else client == bound for bound in self.clients)

    def covers_tab(self, tab: str) -> bool:
        """Whether this Tab is within it, by its canonical name."""
        return not self.prefixes or tab.startswith(self.prefixes)

    def of_tabs(self, tabs: Sequence[str]) -> Sequence[str]:
        """Those of `tabs`, which are sorted, that are within it, sorted; does not look at the others."""
        if not self.prefixes:
            return tabs
        found: list[str] = []
        for prefix in sorted(self.prefixes):
            start = bisect_left(tabs, prefix)
            if found and start < len(tabs) and tabs[start] <= found[-1]:
                start = bisect_right(tabs, found[-1], start)  # a longer prefix of names that are there already
            found += tabs[start : bisect_left(tabs, prefix + "\U0010ffff", start)]
        return found

    def sentence(self) -> str:
        """What it is bound to, for people."""
        bounds = [("Clients", self.clients), ("names that begin with", self.prefixes)]
        return " and ".join(f"{what} {', '.join(of)[:200]}" for what, of in bounds if of)

    def fields(self) -> str:
        """As a line of the file has it, with a space before each."""
        return "".join([f" client={bound}" for bound in self.clients] + [f" prefix={prefix}" for prefix in self.prefixes])

    def why(self, reason: str) -> str:
        """Why the store, or a part of it, does not answer, as the bearer is told it: it names shards and where they are."""
        return UNTOLD if self.is_bound else reason

    def shown(self, problems: Sequence[str] | None) -> list[str] | None:
        """Problems as the bearer is told them: they name Clients and Tabs of all, so who is bound hears only how many there are."""
        if problems is None or not self.is_bound:
            return None if problems is None else [*problems]
        return [f"{len(problems)} of what needs a person: a token that is bound to nothing is told which"] if problems else []


UNBOUND = Scope()
UNTOLD = "the store, or a part of it, does not answer now: a token that is bound to nothing is told which, and why"


class Grant(NamedTuple):
    """What the bearer of a token may do."""

    kind: str
    scope: Scope = UNBOUND

    def allows(self, wanted: str) -> bool:
        """Whether a route that asks for a token of the kind `wanted` answers this bearer. An administrator may do everything."""
        return wanted in (OPEN, ANY, self.kind) or self.kind == ADMIN


EVERYTHING = Grant(ADMIN)  # what everybody may where no tokens are asked for
NOBODY = Grant(OPEN)  # what anybody may where they are, who shows none


class Tokens:
    """The tokens that are known, by their hashes alone."""

    def __init__(self, grants: dict[bytes, Grant]):
        self._grants = grants

    def __len__(self) -> int:
        return len(self._grants)

    def grant_of(self, offered: str) -> Grant | None:
        """What the bearer of `offered` may do; None for a token that is none of these."""
        digest, found = digest_of(offered), None
        for known, grant in self._grants.items():  # all of them, whatever was found: the time says nothing
            if hmac.compare_digest(known, digest):
                found = grant
        return found


def digest_of(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def new_token(kind: str, randomness: Callable[[int], str] = secrets.token_urlsafe) -> str:
    """A token of `kind` that nobody has seen."""
    return f"taba_{kind}_{randomness(TOKEN_BYTES)}"


def line_of(token: str, scope: Scope = UNBOUND) -> str:
    """The line for the file of tokens. Raises ValueError for what is no token, or cannot be bound so."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise ValueError("takes a token as `taba token new` makes it")
    line = f"{match[1]} sha256:{digest_of(token).hex()}{scope.fields()}"
    if parse_tokens(line).grant_of(token) != Grant(match[1], scope):  # else something in it would be read as another thing
        raise ValueError("takes client ids, or beginnings of names, without spaces, commas or #")
    return line


def is_token(text: str) -> bool:
    """Whether `text` has the form of a token."""
    return _TOKEN.fullmatch(text) is not None


def parse_tokens(text: str) -> Tokens:
    """The tokens of a file. Raises ValueError, which names the line and never what may be a token."""
    grants: dict[bytes, Grant] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        kind, *rest = line.partition("#")[0].split() or [""]
        if not kind:
            continue
        match = _HASH.fullmatch(rest[0]) if rest else None
        if kind not in KINDS or match is None:
            raise ValueError(f"line {number}: takes {', '.join(KINDS)} and sha256:… as `taba token new` prints them")
        digest = bytes.fromhex(match[1])
        if digest in grants:
            raise ValueError(f"line {number}: has the same token as a line before it")
        try:
            scope = _scope_of(rest[1:])
            if scope.is_bound and kind == ADMIN:
                raise ValueError("an administrator's token is bound to nothing")
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        grants[digest] = Grant(kind, scope)
        if len(grants) > MAX_TOKENS:
            raise ValueError(f"line {number}: there are more than {MAX_TOKENS} tokens")
    if not grants:
        raise ValueError("there is no token in it; make one with: taba token new")
    return Tokens(grants)


def _scope_of(fields: Sequence[str]) -> Scope:
    bounds: dict[str, list[str]] = {"client": [], "prefix": []}
    for field in fields:
        what, equals, bound = field.partition("=")
        if not equals or what not in bounds:
            raise ValueError("takes client=ID and prefix=NAME behind the hash")  # never shown: it may be a token
        if what == "client" and _CLIENT_BOUND.fullmatch(bound) is None:
            raise ValueError("client= takes a client id, or the beginning of some with * behind it")
        if what == "prefix" and _PREFIX.fullmatch(bound) is None:
            raise ValueError("prefix= takes how names of Tabs begin, without labels")
        bounds[what].append(bound)
        if len(bounds[what]) > MAX_SCOPE:
            raise ValueError(f"{what}= stands more than {MAX_SCOPE} times")
    return Scope(*(tuple(dict.fromkeys(of)) for of in bounds.values()))


# --- files with secrets ---


def read_tokens(path: Path) -> Tokens:
    """The tokens of a file that only its owner can read. Raises ValueError with what the file takes."""
    return parse_tokens(read_owned(path, MAX_TOKENS_BYTES))


def read_token(path: Path) -> str:
    """The one token in a file that only its owner can read. Raises ValueError with what the file takes, never with what is in it."""
    token = read_owned(path, MAX_TOKEN_FILE_BYTES).strip()
    if not is_token(token):
        raise ValueError("takes a file with one token, as `taba token new` prints it, and nothing else")
    return token


def read_owned(path: Path, most: int) -> str:
    """The text of a file of at most `most` bytes that its owner alone (this user, or root) can read and write. Raises ValueError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise ValueError(f"takes a file that can be read: {(error.strerror or str(error)).lower()}") from None
    try:
        # after opening: what was looked at is what is read
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("takes a regular file")
        if status.st_uid not in (os.geteuid(), 0):
            raise ValueError(f"takes a file of this user's own; it belongs to uid {status.st_uid}")
        if status.st_mode & 0o077:
            raise ValueError(f"takes a file that only its owner can read (chmod 600); its mode is {status.st_mode & 0o777:o}")
        content = b""
        while len(content) <= most and (more := os.read(descriptor, most + 1 - len(content))):
            content += more
    except OSError as error:
        raise ValueError(f"takes a file that can be read: {(error.strerror or str(error)).lower()}") from None
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise ValueError(f"takes a file of at most {most} bytes")
    try:
        return content.decode("utf-8-sig")  # some editors begin with a mark that nobody sees
    except UnicodeDecodeError:
        raise ValueError("takes a file of UTF-8 text") from None
