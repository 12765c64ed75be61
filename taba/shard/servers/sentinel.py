"""Shards behind sentinels: where a master is, and what happens when it changes.

1. All sentinels that answer are asked, and the newest answer (by its configuration's epoch, as sentinels decide among
   themselves) stands: one that was cut off from the others cannot lead us back.
2. A server is used only if it says itself that it is a primary.
3. A connection to what is no longer the primary is closed: by the server when sentinels demote it, by us when it says
   READONLY or when the sentinels, asked once a second, name another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from taba.errors import StoreUnavailable
from taba.shard.servers.connection import Connection, ErrorReply, Reply, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import CONNECT_SECONDS, POOL_CONNECTIONS, Greeting, Pool, authentication, endpoint_of
from taba.shard.servers.url import Address

LOOK_SECONDS = 1.0  # how often the sentinels are asked for every master; a primary cut off alone is left within it
ASK_SECONDS = 0.5  # for one sentinel's answer; the others stand in for it
PROMOTED_DOWN_TIMES = 10  # of down-after-milliseconds: a replica whose link was broken for longer is not promoted
LAST_RETRY_SECONDS = 0.4  # between tries to reach a master: sentinels name the next one after a second or two


class Succession(NamedTuple):
    """What the sentinels say of a master: who may come after it, and whether it is the master still.

    `heirs`: (host, port) of the replicas that any of them would promote; `others`: the names of those that none would.
    `problem`: why what this server confirms may not be kept; "" where it is the master, and is not being replaced.
    """

    heirs: frozenset[tuple[str, int]]
    others: frozenset[str]
    problem: str


class _SentinelPool(Pool):
    """Connections to one sentinel. It has its own users, or none; what opens the servers is tried on it too."""

    async def _introduce(self, connection: Connection) -> None:
        replies = await connection.execute([*authentication(self.address), (b"PING",)], CONNECT_SECONDS)
        if isinstance(replies[-1], ErrorReply):
            # only the last: a sentinel without password refuses any, and works
            raise_for(replies[-1], connection.where)


class Sentinels:
    """The sentinels at `addresses`, and what they say. Shared by all shards behind them."""

    def __init__(self, reactor: Any, addresses: Sequence[Address], random: Random | None = None):
        self._pools = [_SentinelPool(reactor, address, size=1, random=random) for address in addresses]
        self._followers: list[MasterPool] = []
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def follow(self, pool: MasterPool) -> None:
        """From now on tell `pool` where its master is."""
        for sentinel in self._pools:
            sentinel.start()
        self._followers.append(pool)
        if not self._looking.running:
            self._looking.start(LOOK_SECONDS, now=False)

    async def leave(self, pool: MasterPool) -> None:
        """`pool` is closed; after the last one, the connections are too."""
        if pool in self._followers:
            self._followers.remove(pool)
        if not self._followers:
            if self._looking.running:
                self._looking.stop()
            for sentinel in self._pools:
                await sentinel.close()

    async def locate(self, master: Address) -> Address:
        """The server that is `master` now. Raises StoreUnavailable when no sentinel knows."""
        name = master.master.encode()
        # one that is away costs nobody the wait for it, as long as another is there
        asked = [pool for pool in self._pools if pool.is_connected] or self._pools
        question = [(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name), (b"SENTINEL", b"MASTER", name)]
        answers = await gather([pool.execute(question, ASK_SECONDS, ASK_SECONDS) for pool in asked])
        found: list[tuple[int, Address]] = []
        why = ""
        for pool, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                why = str(answer)
                continue
            try:
                found.append(_parse(master, answer))
            except ValueError as error:
                why = f"{pool.address.text}: {error}"
        if not found:
            raise StoreUnavailable(f"{master.text}: no sentinel knows where it is: {why}")
        return max(found, key=lambda one: one[0])[1]

    async def succession(self, master: Address, where: str) -> Succession:
        """Who may come after the server at `where`, which was the `master`. Raises StoreUnavailable when no sentinel tells.

        Whoever leads a failover knows of it before the others do, so all are asked, and most must answer: a failover takes most of them.
        """
        name = master.master.encode()
        question = [(b"SENTINEL", b"REPLICAS", name), (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name), (b"SENTINEL", b"MASTER", name)]
        # one that is away costs nobody the wait for it, as long as most are there
        connected = [pool for pool in self._pools if pool.is_connected]
        asked = connected if len(connected) * 2 > len(self._pools) else self._pools
        answers = await gather([pool.execute(question, ASK_SECONDS, ASK_SECONDS) for pool in asked])
        heirs: set[tuple[str, int]] = set()
        known: set[tuple[str, int]] = set()
        named: list[tuple[int, Address]] = []
        problem, why = "", "none was asked"
        for pool, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                why = str(answer)
                continue
            told, *place = answer
            try:
                named.append(_parse(master, place))
            except ValueError as error:
                why = f"{pool.address.text}: {error}"
                continue
            described = _pairs(place[1])
            if b"failover_in_progress" in described.get(b"flags", b"").split(b","):
                problem = f"{pool.address.text} is replacing {where}"
            patience = _number(described, b"down-after-milliseconds", 30_000) * PROMOTED_DOWN_TIMES
            for one in told if isinstance(told, list) else []:
                fields = _pairs(one)
                replica = (fields.get(b"ip", b"").decode(errors="replace"), _number(fields, b"port", 0))
                known.add(replica)
                if _may_be_promoted(fields, patience):
                    heirs.add(replica)
        if not named:
            raise StoreUnavailable(f"{master.text}: no sentinel tells its replicas: {why}")
        newest = max(named, key=lambda one: one[0])[1]
        if newest.text != where:
            problem = f"{newest.text} is the master now"
        if len(named) * 2 <= len(self._pools):
            problem = problem or f"{len(named)} of {len(self._pools)} sentinels answer ({why}): the others may be replacing {where}"
        return Succession(frozenset(heirs), frozenset(f"{host}:{port}" for host, port in known - heirs), problem)

    async def _look(self) -> None:
        # all at once: a hundred masters, one after the other, would be looked at every hundred waits
        followers = list(self._followers)
        for pool, found in zip(followers, await gather([self.locate(pool.address) for pool in followers]), strict=True):
            if isinstance(found, StoreUnavailable):
                pool.last_error = str(found)  # what we know stands
            elif isinstance(found, Exception):
                raise found
            else:
                pool.found(found)


def _pairs(reply: Reply) -> dict[bytes, bytes]:
    return dict(zip(reply[::2], reply[1::2], strict=False)) if isinstance(reply, list) else {}


def _number(fields: dict[bytes, bytes], name: bytes, otherwise: int) -> int:
    text = fields.get(name, b"")
    return int(text) if text.isdigit() else otherwise


def _may_be_promoted(fields: dict[bytes, bytes], link_milliseconds: int) -> bool:
    """As sentinels choose: not down, of a priority, its link to the primary not broken for long.

    One that a sentinel just lost its connection to may be the very one that another is promoting, which cuts all connections.
    """
    flags = set(fields.get(b"flags", b"").split(b","))
    if flags & {b"s_down", b"o_down"} or _number(fields, b"slave-priority", 100) == 0:
        return False
    return _number(fields, b"master-link-down-time", 0) <= link_milliseconds


def _parse(master: Address, answer: Sequence[Reply]) -> tuple[int, Address]:
    """(epoch of the configuration, server). ValueError for anything else."""
    place, described = answer
    for reply in answer:
        if isinstance(reply, Exception):
            raise ValueError(str(reply))
    if not isinstance(place, list) or len(place) != 2 or not isinstance(described, list):
        raise ValueError(f"it does not know {master.master}")
    fields = dict(zip(described[::2], described[1::2], strict=False))
    host, port = place
    try:
        server = Address(host=host.decode(), port=int(port), tls=master.tls).with_account_of(master)
        return int(fields.get(b"config-epoch", b"0")), server
    except (AttributeError, ValueError):
        raise ValueError(f"it answers {place!r}") from None


@implementer(IStreamClientEndpoint)
class _MasterEndpoint:
    """Asks where the master is, each time, and connects there."""

    def __init__(self, reactor: Any, pool: MasterPool):
        self._reactor = reactor
        self._pool = pool

    def connect(self, factory: Any) -> Deferred[Any]:
        return ensureDeferred(self._connect(factory))

    async def _connect(self, factory: Any) -> Any:
        server = await self._pool.sentinels.locate(self._pool.address)
        protocol = await endpoint_of(self._reactor, server).connect(factory)
        protocol.itself().where = server.text
        return protocol


class MasterPool(Pool):
    """Connections to whichever server is the master at `address` now."""

    last_retry_seconds = LAST_RETRY_SECONDS

    def __init__(
        self,
        reactor: Any,
        address: Address,
        sentinels: Sentinels,
        greet: Greeting | None = None,
        size: int = POOL_CONNECTIONS,
        random: Random | None = None,
    ):
        super().__init__(reactor, address, greet, size, random)
        self.sentinels = sentinels

    def start(self) -> None:
        if not self._services:
            self.sentinels.follow(self)
        super().start()

    async def close(self) -> None:
        await super().close()
        await self.sentinels.leave(self)

    def found(self, server: Address) -> None:
        """The sentinels say that it is `server` now."""
        for connection in list(self._open):
            if connection.where != server.text:
                connection.abort(f"{self.address.master} is at {server.text} now")

    def _endpoint(self) -> Any:
        return _MasterEndpoint(self._reactor, self)

    async def _introduce(self, connection: Connection) -> None:
        await super()._introduce(connection)
        (role,) = await connection.execute([(b"ROLE",)], CONNECT_SECONDS)
        if isinstance(role, ErrorReply):
            raise_for(role, connection.where)
        if not isinstance(role, list) or not role or role[0] != b"master":
            raise StoreUnavailable(f"{connection.where}: a replica, where the sentinels say that {self.address.master} is")


def shared_sentinels(reactor: Any, random: Random | None) -> Callable[[Address], Sentinels]:
    """`sentinels_of(address)`, which gives the same Sentinels for all masters behind the same servers."""
    known: dict[tuple[Address, ...], Sentinels] = {}

    def sentinels_of(address: Address) -> Sentinels:
        if address.via not in known:
            known[address.via] = Sentinels(reactor, address.via, random)
        return known[address.via]

    return sentinels_of
