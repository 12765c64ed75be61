"""Store addresses: what `--store` takes.

1. Text in, values out; nothing is connected or looked up.
2. A password is never in a message, a `repr` or a `text`.
3. What is wrong raises ConfigurationError, one line.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from taba.errors import ConfigurationError

DEFAULT_PORT = 6379
MAX_SHARDS = 1000  # addresses in one URL; each is several connections of every Server
TAKES = (
    "takes embedded:[DIR], redis://[user:pass@]host:port[,host:port…] or rediss://… for TLS; for example redis://127.0.0.1:6379"
)


@attrs.frozen
class Address:
    """Where one server of a store listens, and what it wants to hear first. Either `path` or `host` and `port`."""

    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False
    username: str = attrs.field(default="", repr=False)
    password: str = attrs.field(default="", repr=False)

    @property
    def text(self) -> str:
        """The address as a URL without user and password."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}"


@attrs.frozen
class StoreURL:
    """A store: the servers in `addresses`; or, `is_embedded`, one that the Server runs itself, in `directory`.

    An embedded store has no address before it runs: `directory` is "" where the state directory decides.
    """

    addresses: tuple[Address, ...] = ()
    is_embedded: bool = False
    directory: str = ""

    @property
    def text(self) -> str:
        """The URL without user and password; what `/v1/status` shows."""
        if self.is_embedded:
            return f"embedded:{self.directory}"
        first = self.addresses[0]
        if first.path:
            return ",".join(address.text for address in self.addresses)
        return f"{'rediss' if first.tls else 'redis'}://" + ",".join(address.text.partition("://")[2] for address in self.addresses)


def parse_store(text: str, option: str = "--store") -> StoreURL:
    """The store that `text` names. Raises ConfigurationError, which names `option`, for anything else.

    `unix:PATH[,unix:PATH…]` is for Taba's own use: how workers reach their parent's embedded store.
    """
    shown = _without_password(text)
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if colon and scheme == "embedded":
        if "\0" in rest:
            raise ConfigurationError(option, shown, TAKES)
        return StoreURL(is_embedded=True, directory=rest)
    if colon and scheme == "unix":
        paths = [part.removeprefix("unix:") for part in text.split(",unix:")]
        if not all(path.startswith("/") and "\0" not in path for path in paths):
            raise ConfigurationError(option, shown, "takes an absolute path after unix:")
        return _checked(StoreURL(tuple(Address(path=path) for path in paths)), option, shown)
    if re.fullmatch(r"rediss?\+(sentinel|cluster)", scheme):
        raise ConfigurationError(option, shown, f"{scheme}:// is not there in this version; {TAKES}")
    if scheme not in ("redis", "rediss") or not rest.startswith("//"):
        raise ConfigurationError(option, shown, TAKES)
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ConfigurationError(option, shown, TAKES) from None
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigurationError(option, shown, "takes no path, query or fragment after the port; " + TAKES)
    return _checked(_servers(parts, scheme == "rediss", option, shown), option, shown)


def _servers(parts: SplitResult, tls: bool, option: str, shown: str) -> StoreURL:
    account, at, hosts = parts.netloc.rpartition("@")
    user, _, password = account.partition(":")
    if at and not password:
        raise ConfigurationError(option, shown, "takes user:pass@ or :pass@ before the host")
    addresses = []
    for part in hosts.split(","):
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", part)
        if match is None:
            raise ConfigurationError(option, shown, TAKES)
        port = int(match[3] or DEFAULT_PORT)
        if not 1 <= port <= 65535:
            raise ConfigurationError(option, shown, "takes a port from 1 to 65535")
        host = match[1] or match[2].lower()
        addresses.append(Address(host=host, port=port, tls=tls, username=unquote(user), password=unquote(password)))
    return StoreURL(tuple(addresses))


def _checked(store: StoreURL, option: str, shown: str) -> StoreURL:
    if len(store.addresses) > MAX_SHARDS:
        raise ConfigurationError(option, shown[:200], f"takes at most {MAX_SHARDS} servers, not {len(store.addresses)}")
    if len(set(store.addresses)) != len(store.addresses):
        raise ConfigurationError(option, shown, "takes each server once")
    return store


def _without_password(text: str) -> str:
    # greedy up to the last @: a password may hold any character when somebody forgot to quote it
    return re.sub(r"(//)(.*)@", r"\1…@", text, flags=re.DOTALL)
