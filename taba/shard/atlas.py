"""Where everything is: the pools of a store's servers, the newest map that any of them told, and what owner keys said since.

1. A map is a hint: nothing is believed about a bucket that its owner key, on the very shard, does not confirm.
2. A shard that is away holds up nobody who does not need it, and what is known of it stands.
3. Many callers that want to know at once share one look.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

import attrs
from twisted.internet.defer import Deferred, ensureDeferred

from taba.errors import ConfigurationError, StoreUnavailable
from taba.plural import many
from taba.shard.buckets import STORE_KEY, BucketMap, MalformedMap, Shard, decode_owner, decode_record, is_moving, owner_key
from taba.shard.initialise import ASK_SECONDS, StoreLost, learn, settings_problems
from taba.shard.maps import newer_map, told_by_all
from taba.shard.patience import LAST_PAUSE_SECONDS, Deadline, Pauses, Standing
from taba.shard.servers.cluster import ClusterPool, ShardPool
from taba.shard.servers.connection import Command, Connection, Redirected, Reply, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import Pool
from taba.shard.servers.sentinel import MasterPool, shared_sentinels
from taba.shard.servers.url import CLUSTER, SENTINEL, Address, StoreURL, parse_store

LAGGING_SECONDS = 30.0  # for which replicas that did not keep up are a problem, if nothing is heard of them
GONE_BACK_SECONDS = 3600.0  # for which a map that went back is a problem: nobody can mend it later
SETTINGS_SECONDS = 60.0  # for which what a server said of its settings stands: a bucket that moves makes every Router look at the map
LEARN_SECONDS = 5.0  # one look at what the shards say of themselves

NewPool = Callable[[Address], ShardPool]


class NotHere(Exception):
    """The bucket is not open on the server that was asked; `is_sealed`: it is on its way. `redirection`: a cluster's words.

    `is_forwarded`: the server said where it went, and the map says so by now: nobody else need be asked.
    """

    def __init__(self, bucket: int, is_sealed: bool, text: str, redirection: str = "", is_forwarded: bool = False):
        super().__init__(f"bucket {bucket} is {text}")
        self.is_sealed, self.is_forwarded = is_sealed, is_forwarded
        self.redirection = redirection


class OtherStore(StoreUnavailable):
    """Behind the address is another store than the one that was served until now, and it does not say that it follows that one."""


class Hand(NamedTuple):
    """Where a bucket is: its server, the shard, what its owner key says while that holds, and what reads it."""

    server: Pool
    shard: str
    owner: bytes
    reads: Command
    is_whole: bool  # the server is all of its shard
    buckets: int  # of the map
    is_moving: bool  # who writes there notes what


class Atlas:
    """The servers of `store` and what they say of it. `new_pool` makes connections where others than the usual are wanted.

    `pinned`: the id of the store that it must be, or one that says that it succeeds that; the first that is found is pinned,
    where none is given. Only where nothing is pinned, and with `may_make`, is a new store made of empty servers.

    `counts` has what happened, for whoever shares this Atlas: a Router and its transactions.
    """

    def __init__(
        self,
        store: StoreURL,
        buckets: int | None,
        reactor: Any,
        random: Random,
        option: str,
        connections: int,
        new_pool: NewPool | None = None,
        pinned: str | None = None,
        pinned_at: str = "",
        may_make: bool = True,
    ):
        self.pinned = pinned
        self._pinned_at = f" at {pinned_at}" if pinned_at else ""
        self.succeeded: frozenset[str] = frozenset()  # ids of the stores that this one follows
        self._may_make = may_make
        self._mistaken = ""  # why this is not the store that it must be
        self.url = store.text
        self.reactor = reactor
        self.random = random
        self.counts: Counter[str] = Counter()
        self.pauses = Pauses(reactor)
        self.standing = Standing(reactor)  # leases and locks of others, and movers' signs of life
        self.account = store.addresses[0]
        self.by_name: dict[str, ShardPool] = {}
        self.in_hand: dict[int, str] = {}  # met in a move: bucket → the shard that it leaves, "" where we do not know; for `moving.mending`
        self.on_in_hand: Callable[[], None] = lambda: None  # called when one is met
        self._lagging: dict[str, tuple[float, str]] = {}  # server → when its replicas were waited for in vain, and what to say of it
        self._problems: list[str] = []
        self._gone_back: tuple[float, str] | None = None  # when all shards told an older map than was known, and what to say of it
        self._told: BucketMap | None = None  # the newest map that a server told when it was last learned; what we remember may be newer
        self._settings: dict[Pool, tuple[float, list[str]]] = {}  # when each server was asked, and what is wrong with its settings
        self._wanted_buckets = buckets
        self._option = option
        self._connections = connections
        self._sentinels_of = shared_sentinels(reactor, random)
        self.new_pool: NewPool = new_pool or self._new_pool
        self.pools = [self.new_pool(address) for address in store.addresses]
        self._map: BucketMap | None = None
        self.is_certain = False  # nothing was heard, since the map was learned, that it may be another store
        self._is_closed = False
        self._good_owners: dict[int, tuple[str, bytes]] = {}
        self.hands: dict[int, Hand] = {}  # made of these and of the map; empty while that is not certain, or not all of it is in the map
        self._forwarded: dict[int, dict[str, tuple[int, str]]] = {}  # bucket → which shard said, of what epoch, where it went
        self._has_news = False  # in `_forwarded`, which the map does not say yet
        self._learning: list[Deferred[None]] | None = None

    # --- the store as a whole ---

    @property
    def is_ready(self) -> bool:
        """The map is known and every shard is connected."""
        return self._map is not None and self.is_certain and all(pool.is_connected for pool in self.by_name.values())

    @property
    def problems(self) -> list[str]:
        """What is wrong with the store, in sentences: shards that are away now, settings that may lose events, strangers."""
        away = [f"shard {name} is away: {pool.last_error}" for name, pool in self.by_name.items() if not pool.is_connected]
        now = self.reactor.seconds()
        lagging = [problem for when, problem in self._lagging.values() if now - when < LAGGING_SECONDS]  # it may be no primary any more
        gone_back = [self._gone_back[1]] if self._gone_back is not None and now - self._gone_back[0] < GONE_BACK_SECONDS else []
        return ([self._mistaken] if self._mistaken else []) + away + lagging + gone_back + self._problems

    @property
    def known(self) -> BucketMap | None:
        """The map as last learned, if it was; where owner keys have said since that a bucket went elsewhere, it says so."""
        if self._has_news and self._map is not None:
            self._has_news = False
            self._map = self._corrected(self._map)
            self.hands.clear()
        return self._map

    @property
    def map(self) -> BucketMap:
        """The map as last learned. Raises StoreUnavailable before `connect` has ended."""
        map = self.known if self._has_news else self._map
        if map is None:
            raise StoreUnavailable(f"{self.url}: not reached yet: {self.pools[0].last_error}")
        return map

    def start(self) -> None:
        """Begin to connect, and go on trying for ever."""
        for pool in self.pools:
            pool.start()

    async def connect(self) -> None:
        """Wait until the store was reached and its map is known, however long that takes; raises as `Router.connect`."""
        self.start()
        while True:
            try:
                await self.learn(LEARN_SECONDS)
                return
            except (OtherStore, StoreLost) as error:
                raise ConfigurationError(self._option, self.url, str(error).removeprefix(f"{self.url}: ")) from None
            except StoreUnavailable as error:
                if self._is_closed:
                    raise
                self._problems = [f"the store is away: {error}"]
            await self.pauses.wait(LAST_PAUSE_SECONDS * (0.5 + self.random.random()))

    async def close(self) -> None:
        """Close all connections. Whoever still waits gets StoreUnavailable."""
        self._is_closed = True
        self.pauses.close()
        for pool in {id(pool): pool for pool in [*self.pools, *self.by_name.values()]}.values():
            await pool.close()

    def deadline(self, seconds: float) -> Deadline:
        """A deadline so far away, for something that begins now."""
        return Deadline(self.reactor, self.random, seconds, self.pauses)

    # --- servers ---

    def _new_pool(self, address: Address) -> ShardPool:
        if address.topology == CLUSTER:
            return ClusterPool(self.reactor, address, self._new_node, self.random)
        if address.topology == SENTINEL:
            sentinels = self._sentinels_of(address)
            return MasterPool(self.reactor, address, sentinels, self._greet, self._connections, self.random)
        return Pool(self.reactor, address, self._greet, self._connections, self.random)

    def _new_node(self, address: Address) -> Pool:
        # nothing of a store as a whole can be asked of one node
        return Pool(self.reactor, address, None, self._connections, self.random)

    def pool_of(self, name: str) -> ShardPool:
        """The connections to the shard `name`. Raises StoreUnavailable where the map has none of that name."""
        pool = self.by_name.get(name)
        if pool is None:
            raise StoreUnavailable(f"shard {name} is not known")
        return pool

    def server_of(self, map: BucketMap, bucket: int) -> Pool | None:
        """The server that has `bucket`, as far as we know; None where nobody is known to."""
        try:
            return self.pool_of(map.shard_of(bucket)).holding(bucket)
        except StoreUnavailable:
            return None

    def at_hand(self, bucket: int) -> Hand | None:
        """What reading or writing `bucket` needs, where all of it is known, and certain, and nothing need be looked up for it."""
        return self.hands.get(bucket) or self._take_in_hand(bucket)

    def _take_in_hand(self, bucket: int) -> Hand | None:
        map = self._map
        if map is None or bucket >= len(map.owners) or not self.is_certain or self._has_news:
            return None
        server, owner = self.server_of(map, bucket), self._good_owners.get(bucket)
        if server is None or owner is None or owner[0] != map.shard_of(bucket):
            return None
        hand = Hand(
            server, owner[0], owner[1], (b"GET", owner_key(bucket)), self.is_whole(map, bucket, server), map.buckets, is_moving(owner[1])
        )
        if hand.is_whole:  # else it may be with another of the shard's servers the next time
            self.hands[bucket] = hand
        return hand

    def by_server(self, map: BucketMap, buckets: Iterable[int]) -> dict[Pool | None, list[int]]:
        """`buckets` by `server_of`, in order. Raises ValueError for one that the map has not."""
        found: dict[Pool | None, list[int]] = {}
        whole: dict[int, list[int]] = {}  # by the place in the map of a shard that is one server
        owners, shards = map.owners, map.shards
        for bucket in buckets:
            if bucket >= len(owners):
                raise ValueError(f"bucket {bucket} of {map.buckets}")
            here = whole.get(owners[bucket])
            if here is None:
                server = self.server_of(map, bucket)
                here = found.setdefault(server, [])
                if server is not None and server is self.by_name.get(shards[owners[bucket]].name):
                    whole[owners[bucket]] = here
            here.append(bucket)
        return found

    def is_whole(self, map: BucketMap, bucket: int, server: Pool) -> bool:
        """Whether `server`, which has `bucket`, is all of its shard: it takes commands on keys of many buckets."""
        return self.by_name.get(map.shard_of(bucket)) is server

    def where_of(self, map: BucketMap, bucket: int) -> str:
        """What to say where `server_of` knows none."""
        return f"bucket {bucket}: no server of shard {map.shard_of(bucket)} is known to have it"

    def believe(self, map: BucketMap, outcomes: Mapping[int, list[Any] | NotHere]) -> None:
        """What servers said about where these buckets are, which may be newer than what others have heard."""
        for bucket, outcome in outcomes.items():
            if isinstance(outcome, NotHere) and outcome.redirection:
                self.pool_of(map.shard_of(bucket)).redirected(bucket, outcome.redirection)

    async def _greet(self, connection: Connection) -> None:
        # another store, or none, behind a known address: whoever was about to use it must look again
        replies = await connection.execute([(b"GET", STORE_KEY)])
        try:
            if isinstance(replies[0], Exception):
                raise_for(replies[0], connection.where)
        except Redirected:
            raise StoreUnavailable(f"{connection.where}: a node of a cluster, which takes redis+cluster://…") from None
        if self._map is None:
            return
        content = replies[0]
        try:
            known = decode_record(content).store if isinstance(content, bytes) else None
        except MalformedMap:
            known = None
        if known != self._map.store:
            self._doubt()

    def _doubt(self) -> None:
        """It may be another store: nothing is believed of it until the map was learned again."""
        self.is_certain = False
        self.hands.clear()

    # --- the map ---

    async def current_map(self, deadline: Deadline) -> BucketMap:
        """The map, learned first where it is not, or where the store may be another. Raises StoreUnavailable at the deadline."""
        while self._map is None or not self.is_certain:
            try:
                await self.learn(deadline.left)
            except StoreUnavailable as error:
                await deadline.pause(error)
        return self.map

    async def refresh(self, deadline: Deadline) -> None:
        """Look for a newer map; where nobody tells one, the old one stands."""
        try:
            await self.learn(min(deadline.left, LEARN_SECONDS))
        except StoreUnavailable:
            self.counts["retries"] += 1  # the old map stands; the next try will tell

    async def newest_told(self, seconds: float) -> BucketMap:
        """The newest map that servers tell, after a look: for who changes it, as what we alone remember is none of the store's.

        A shard that took itself out may be the only one that says so: who learned the map from it has forgotten it by the next look,
        and the others name it still. It is asked again.
        """
        await self.learn(seconds)
        told = self._told
        assert told is not None
        while True:
            left = [self._mapped_pool(shard) for shard in told.shards if shard.name not in self.by_name]
            try:
                newer = await newer_map(left, told, min(seconds, ASK_SECONDS))
            finally:
                self._dismiss(left)
            if newer is told:
                return told
            told = newer

    async def learn(self, seconds: float) -> None:
        """Ask the shards; many callers at once share one look."""
        if self._learning is not None:
            mine: Deferred[None] = Deferred(lambda _: None)
            self._learning.append(mine)
            await mine
            return
        waiting: list[Deferred[None]] = []
        self._learning = waiting
        error: BaseException | None = None
        try:
            await self._learn_alone(min(seconds, LEARN_SECONDS))
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._learning = None
            for one in waiting:
                if one.called:
                    continue
                if error is None:
                    one.callback(None)
                else:
                    one.errback(error if isinstance(error, (StoreUnavailable, ConfigurationError)) else StoreUnavailable(str(error)))

    async def _learn_alone(self, seconds: float) -> None:
        for refreshed in await gather([pool.refresh(seconds) for pool in self.pools]):
            # one that does not tell holds up nobody: what is known of it stands
            if isinstance(refreshed, Exception) and not isinstance(refreshed, StoreUnavailable):
                raise refreshed
        may_make = self.pinned is None and self._may_make
        try:
            new_id = (lambda: os.urandom(16).hex()) if may_make else None
            learned = await learn(self.pools, self._wanted_buckets, new_id, seconds, self._option)
            if self.pinned not in (None, learned.map.store) and self.pinned not in learned.succeeds:
                raise OtherStore(f"is store {learned.map.store}")
        except (OtherStore, StoreLost) as error:
            self._doubt()
            meant = f"; until now this served {self.pinned}{self._pinned_at}. If that is meant: taba store --accept" if self.pinned else ""
            self._mistaken = f"{self.url}: {str(error).removeprefix(f'{self.url}: ')}{meant}"
            raise type(error)(self._mistaken) from None
        except ConfigurationError as error:
            if self._map is None:
                raise
            # who serves already does not end for it: nothing is taken until a person has put that right
            self._doubt()
            self._mistaken = str(error)
            raise StoreUnavailable(self._mistaken) from None
        self.pinned, self.succeeded, self._mistaken = learned.map.store, learned.succeeds, ""
        there: dict[str, ShardPool] = {name: self.pools[number] for number, name in learned.names.items()}
        told = map = learned.map
        before = self.by_name
        remembered = self._map if self._map is not None and self._map.store == map.store and self._map.epoch > map.epoch else None
        if remembered is not None:
            map = await self._newest_from(remembered, there, seconds)
            told = map if map is not remembered else told
        if map is remembered:
            # also those that only the other map names; they are let go of below
            self.by_name = {**self._pools_of(told, there), **self.by_name}
            shards = {**self._pools_of(told, there), **self._pools_of(map, there)}
            all_tell = await told_by_all(list(shards.values()), map.store, min(seconds, ASK_SECONDS))
            told = all_tell or told
            if all_tell is not None and all_tell.epoch < map.epoch:
                self._went_back(map, all_tell)
                map = all_tell
        if map is not remembered:
            told = map = await self._newest_from(map, there, seconds)
        by_name = self._pools_of(map, there)
        problems = list(learned.problems)
        problems += await self._settings_problems(by_name, seconds)
        passed, self.by_name = {**before, **self.by_name}, by_name
        self._dismiss(passed.values())
        self._map, self._has_news = self._corrected(map), False
        self._told = told
        self._good_owners.clear()
        self.hands.clear()
        self._problems = problems
        self.is_certain = True

    def _pools_of(self, map: BucketMap, there: Mapping[str, ShardPool]) -> dict[str, ShardPool]:
        return {shard.name: there.get(shard.name) or self._mapped_pool(shard) for shard in map.shards}

    async def _newest_from(self, map: BucketMap, there: Mapping[str, ShardPool], seconds: float) -> BucketMap:
        """`map`, or the newest to which its shards lead: one that was drained stays behind, and those that it names know better."""
        while True:
            by_name = self._pools_of(map, there)
            self.by_name = {**self.by_name, **by_name}
            newer = await newer_map([pool for pool in by_name.values() if pool not in self.pools], map, min(seconds, ASK_SECONDS))
            if newer is map:
                return map
            map = newer

    def _went_back(self, before: BucketMap, told: BucketMap) -> None:
        """No shard tells the map any more that we remember, and none is away that may: the store is older than we knew it.

        Who went by memory would ask for ever where buckets were moved to since; what shards said of that holds no more, either.
        """
        self._forwarded.clear()
        self.counts["maps_gone_back"] += 1
        moved = sum(
            bucket >= told.buckets or told.shard_of(bucket) != before.shard_of(bucket) or told.epochs[bucket] != before.epochs[bucket]
            for bucket in range(before.buckets)
        )
        said = (
            f"the store's map went back in time, from number {before.epoch} to {told.epoch}, on all shards: of {many(moved, 'bucket')} "
            "that moved meanwhile, what lies on shards that the older map does not name for them is not looked for. Restore all shards to "
            "one moment, none alone, and see taba check"
        )
        self._gone_back = float(self.reactor.seconds()), said

    async def _settings_problems(self, by_name: Mapping[str, ShardPool], seconds: float) -> list[str]:
        """What is wrong with the settings of all servers; each is asked once a minute."""
        servers = {server: bool(pool.address.topology) for pool in by_name.values() for server in pool.servers}
        now = self.reactor.seconds()
        self._settings = {one: told for one, told in self._settings.items() if one in servers and now - told[0] < SETTINGS_SECONDS}
        asked = [server for server in servers if server not in self._settings]
        answers = await gather([settings_problems(server, seconds, self._option, servers[server]) for server in asked])
        for server, answer in zip(asked, answers, strict=True):
            if isinstance(answer, StoreUnavailable):
                continue  # `problems` tells for as long as it is true
            if isinstance(answer, ConfigurationError) and self._map is not None:
                answer = [str(answer)]  # who serves already goes on, and says so
            if isinstance(answer, Exception):
                raise answer
            self._settings[server] = (now, answer)
        return [problem for server in servers for problem in self._settings.get(server, (now, []))[1]]

    def _corrected(self, map: BucketMap) -> BucketMap:
        """`map`, where a shard that it names for a bucket has said where that went: the shard knows better."""
        places = {shard.name: place for place, shard in enumerate(map.shards)}
        owners = list(map.owners)
        for bucket, hops in list(self._forwarded.items()):
            if bucket >= map.buckets or map.shard_of(bucket) not in hops:
                del self._forwarded[bucket]
                continue
            name = _led(map, bucket, hops)
            if name in places:
                owners[bucket] = places[name]
        return attrs.evolve(map, owners=tuple(owners)) if self._forwarded else map

    def _mapped_pool(self, shard: Shard) -> ShardPool:
        # a shard that the map names and --store does not: added later, or away; the user is the same for all shards
        known = self.by_name.get(shard.name)
        if known is not None and (known in self.pools or known.address.text == shard.url):
            return known
        for pool in self.pools:
            if pool.address.text == shard.url:
                return pool
        pool = self.new_pool(parse_store(shard.url).addresses[0].with_account_of(self.account))
        pool.start()
        return pool

    def _dismiss(self, pools: Iterable[ShardPool]) -> None:
        """Close those of `pools` that neither --store nor the map names any more."""
        wanted = {id(pool) for pool in [*self.pools, *self.by_name.values()]}
        for pool in pools:
            if id(pool) not in wanted:
                ensureDeferred(pool.close())

    def are_open(self, map: BucketMap, buckets: Collection[int], replies: Sequence[Reply]) -> bool:
        """Whether `replies`, the owner keys, all say what they said before: that the shards of `map` have `buckets` open.

        False where one says anything else, or the store may be another: then `check_owner` tells.
        """
        shards, owners = map.shards, map.owners
        said = [(shards[owners[bucket]].name, reply) for bucket, reply in zip(buckets, replies, strict=True)]
        return self.is_certain and said == [self._good_owners.get(bucket) for bucket in buckets]

    def check_owner(self, bucket: int, name: str, reply: Reply, where: str) -> None:
        """Raise NotHere unless `reply`, the owner key, says that the shard `name` has the bucket open; asked was the server at `where`."""
        if isinstance(reply, Exception):
            raise_for(reply, f"{where}: bucket {bucket}")
        if (name, reply) == self._good_owners.get(bucket):
            return
        # what was known of it holds no more: nobody need be asked on the strength of that
        self._good_owners.pop(bucket, None)
        self.hands.pop(bucket, None)
        if not isinstance(reply, bytes):
            # whoever said that it went there may have gone back in time since: it is asked again
            self._forwarded.pop(bucket, None)
            raise NotHere(bucket, False, f"not on shard {name}, at {where}")
        try:
            owner = decode_owner(reply)
        except MalformedMap as error:
            raise NotHere(bucket, False, str(error)) from None
        if owner.token:
            # where we were led to what has not arrived, a failover may have taken it from there: who knows where it is
            self.in_hand[bucket] = self.in_hand.get(bucket, "") if owner.state == "arriving" else name
            self.on_in_hand()
        is_forwarded = False
        if owner.state == "moved":
            hops = self._forwarded.setdefault(bucket, {})
            hops[name] = (owner.epoch, owner.name)
            # one reply may say so of each of its buckets: the map, which has them all, is made anew once, when it is asked for next
            self._has_news = True
            self.hands.clear()
            if self._map is not None and bucket < self._map.buckets:
                led = _led(self._map, bucket, hops)
                is_known = any(shard.name == led for shard in self._map.shards)
                is_forwarded = (led if is_known else self._map.shard_of(bucket)) != name
        if owner.state != "open" or owner.name != name:
            where = f"{owner.state} ({owner.name}) on shard {name}, at {where}"
            raise NotHere(bucket, owner.state == "sealed", where, is_forwarded=is_forwarded)
        self._good_owners[bucket] = (name, reply)

    # --- replicas ---

    def lagged(self, where: str, problem: str) -> None:
        """The replicas of the server at `where` were waited for in vain."""
        self._lagging[where] = (float(self.reactor.seconds()), problem)

    def kept_up(self, where: str) -> None:
        """The replicas of the server at `where` acknowledged what they should."""
        self._lagging.pop(where, None)


def _led(map: BucketMap, bucket: int, hops: Mapping[str, tuple[int, str]]) -> str:
    """The shard to which `bucket` went from the one that `map` names, by what shards said: from which, in what epoch, whereto."""
    epoch, name = map.epochs[bucket], map.shard_of(bucket)
    while name in hops and hops[name][0] > epoch:
        epoch, name = hops[name]
    return name
