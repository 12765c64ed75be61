"""Store addresses: what `--store` takes.

1. Text in, values out; nothing is connected or looked up.
2. A password is never in a message, a `repr` or a `text`.
3. What is wrong raises ConfigurationError, one line.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote

import attrs

from taba.errors import ConfigurationError
from taba.shard.servers.prefix import USUAL

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
MAX_SHARDS = 1000  # addresses in one URL; each is several connections of every Server
SENTINEL = "sentinel"
CLUSTER = "cluster"
TAKES = (
    "takes embedded:[DIR], redis://[user:pass@]host:port[,host:port…][/DB][?prefix=NAME], "
    "redis+sentinel://[user:pass@]host:port[,…]/[DB]?shards=name[,name…], "
    "redis+cluster://[user:pass@]host:port[,…], or rediss… for TLS; for example redis://127.0.0.1:6379"
)
TAKES_SENTINELS = "takes ?shards=name[,name…], the masters as the sentinels know them, and perhaps &sentinels=[user]:pass"
TAKES_PREFIX = "takes ?prefix=NAME of letters, digits, dots, _ and -, up to 64: what the keys begin with instead of taba"
FILES = {"cert": "certificate", "key": "key", "cacert": "authorities"}
TAKES_FILES = "takes ?cert=FILE&key=FILE, and cacert=FILE, with rediss: what is shown to servers that ask, and whom to trust"


@attrs.frozen
class Address:
    """Where one shard of a store is found, and what it wants to hear first.

    A server has `path`, or `host` and `port`. A `master` is where the sentinels in `via` say that it is; without a
    name, the servers in `via` are nodes of the cluster that is the shard.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False
    username: str = attrs.field(default="", repr=False)
    password: str = attrs.field(default="", repr=False)
    via: tuple[Address, ...] = ()
    master: str = ""
    database: int = 0
    certificate: str = ""  # with `key`, the files of what we show of ourselves; whose certificates we trust are in `authorities`
    key: str = ""
    authorities: str = ""
    prefix: str = USUAL  # that its keys begin with

    @property
    def topology(self) -> str:
        """SENTINEL, CLUSTER, or "" for a plain server."""
        return (SENTINEL if self.master else CLUSTER) if self.via else ""

    @property
    def text(self) -> str:
        """The address as a URL without user and password."""
        if self.path:
            return f"unix:{self.path}"
        if self.via:
            servers = ",".join(one.text.partition("://")[2] for one in self.via)
            end = f"{self._path or '/'}?shards={self.master}" if self.master else ""
            return f"{'rediss' if self.tls else 'redis'}+{self.topology}://{servers}{_query(end, self.prefix)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return _query(f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}{self._path}", self.prefix)

    @property
    def _path(self) -> str:
        return f"/{self.database}" if self.database else ""

    def with_account_of(self, other: Address) -> Address:
        """This address with the users, passwords and certificates of `other`, another shard of the same store."""
        via = tuple(one.with_account_of(other.via[0] if other.via else other) for one in self.via)
        account = attrs.evolve(self, username=other.username, password=other.password, via=via)
        return attrs.evolve(account, certificate=other.certificate, key=other.key, authorities=other.authorities)


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
        if first.via:
            masters = ",".join(address.master for address in self.addresses)
            return _query(first.text.partition("?")[0] + (f"?shards={masters}" if first.master else ""), first.prefix)
        servers = [attrs.evolve(address, database=0, prefix=USUAL).text.partition("://")[2] for address in self.addresses]
        scheme = "rediss" if first.tls else "redis"
        return _query(f"{scheme}://{','.join(servers)}" + (f"/{first.database}" if first.database else ""), first.prefix)


def _query(text: str, prefix: str) -> str:
    return text if prefix == USUAL else f"{text}{'&' if '?' in text else '?'}prefix={prefix}"


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
    form = re.fullmatch(r"redis(s?)(?:\+(sentinel|cluster))?", scheme)
    if form is None or not rest.startswith("//"):
        raise ConfigurationError(option, shown, TAKES)
    # not urlsplit: it takes the whole list for one host, whose brackets some of its versions then refuse
    authority, path, query, fragment = re.findall(r"//([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?", rest, re.DOTALL)[0]
    tls, topology = bool(form[1]), form[2] or ""
    number = re.fullmatch(r"/?([0-9]{0,5})", path)
    if number is None or fragment:
        raise ConfigurationError(option, shown, "takes a database's number, and no other path or fragment after the port; " + TAKES)
    fields = _fields(query, topology, option, shown)
    files = _files(fields, tls, option, shown)
    prefix = fields.get("prefix", USUAL)
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", prefix):
        raise ConfigurationError(option, shown, TAKES_PREFIX)
    database = int(number[1] or 0)
    if database and topology == CLUSTER:
        raise ConfigurationError(option, shown, f"takes no database's number: a Cluster has database 0 alone, not {database}")
    port = DEFAULT_SENTINEL_PORT if topology == SENTINEL else DEFAULT_PORT
    servers = tuple(attrs.evolve(one, **files) for one in _servers(authority, tls, port, option, shown))
    if not topology:
        return _checked(StoreURL(tuple(attrs.evolve(one, database=database, prefix=prefix) for one in servers)), option, shown)
    # in one order, whatever the order in the text: an address is how a shard is known to all Servers
    _checked(StoreURL(servers), option, shown)
    via = tuple(sorted(servers, key=lambda one: one.text))
    account = Address(tls=tls, username=via[0].username, password=via[0].password, prefix=prefix, **files)
    if topology == CLUSTER:
        return StoreURL((attrs.evolve(account, via=via),))
    masters, via = _masters(fields, via, option, shown)
    found = [attrs.evolve(account, via=via, master=master, database=database) for master in masters]
    return _checked(StoreURL(tuple(found)), option, shown)


def _fields(query: str, topology: str, option: str, shown: str) -> dict[str, str]:
    """What stands behind the question mark."""
    known = {"prefix", *FILES, *(("shards", "sentinels") if topology == SENTINEL else ())}
    takes = (
        f"{TAKES_SENTINELS}, and {TAKES_FILES}"
        if topology == SENTINEL
        else f"{TAKES_FILES}, or prefix=NAME after the question mark; {TAKES}"
    )
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=len(known)) if query else []
    except ValueError:
        raise ConfigurationError(option, shown, takes) from None
    if len(pairs) != len(dict(pairs)) or not dict(pairs).keys() <= known:
        raise ConfigurationError(option, shown, takes)
    return dict(pairs)


def _files(fields: dict[str, str], tls: bool, option: str, shown: str) -> dict[str, Any]:
    """The files of `fields`, by their names in an Address."""
    files = {name: fields.pop(field) for field, name in FILES.items() if field in fields}
    if files and (not tls or not all(files.values()) or ("certificate" in files) != ("key" in files) or "\0" in "".join(files.values())):
        raise ConfigurationError(option, shown, TAKES_FILES)
    return files


def _masters(fields: dict[str, str], via: tuple[Address, ...], option: str, shown: str) -> tuple[list[str], tuple[Address, ...]]:
    """The names of the masters, and the sentinels with their own user and password where `fields` has them."""
    masters = fields.get("shards", "").split(",")
    user, colon, password = fields.get("sentinels", ":").partition(":")
    if not all(re.fullmatch(r"[A-Za-z0-9._-]+", master) for master in masters):
        raise ConfigurationError(option, shown, TAKES_SENTINELS)
    if not colon or (user and not password):
        raise ConfigurationError(option, shown, TAKES_SENTINELS)
    if password:
        via = tuple(attrs.evolve(one, username=user, password=password) for one in via)
    return masters, via


def _servers(authority: str, tls: bool, default_port: int, option: str, shown: str) -> tuple[Address, ...]:
    account, at, hosts = authority.rpartition("@")
    user, _, password = account.partition(":")
    if at and not password:
        raise ConfigurationError(option, shown, "takes user:pass@ or :pass@ before the host")
    addresses = []
    for part in hosts.split(","):
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", part)
        if match is None:
            raise ConfigurationError(option, shown, TAKES)
        port = int(match[3] or default_port)
        if not 1 <= port <= 65535:
            raise ConfigurationError(option, shown, "takes a port from 1 to 65535")
        host = match[1] or match[2].lower()
        addresses.append(Address(host=host, port=port, tls=tls, username=unquote(user), password=unquote(password)))
    return tuple(addresses)


def _checked(store: StoreURL, option: str, shown: str) -> StoreURL:
    if len(store.addresses) > MAX_SHARDS:
        raise ConfigurationError(option, shown[:200], f"takes at most {MAX_SHARDS} servers, not {len(store.addresses)}")
    if len(set(store.addresses)) != len(store.addresses):
        raise ConfigurationError(option, shown, "takes each server once")
    return store


def _without_password(text: str) -> str:
    # greedy up to the last @: a password may hold any character when somebody forgot to quote it
    return re.sub(r"(sentinels=).*", r"\1…", re.sub(r"(//)(.*)@", r"\1…@", text, flags=re.DOTALL), flags=re.DOTALL)
