"""The store in memory does what a real one does: the same commands given to both, and the contract of every Router."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard.buckets import owner_key
from taba.shard.memory.router import MemoryConnection, MemoryRouter
from taba.shard.memory.server import COMMANDS, MemoryServer
from taba.shard.moving.mover import Replication, identity_of
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import parse_store
from taba.shard.transaction import Writes
from tests.examples import examples
from tests.shard.contract import Contract
from tests.shard.operations_contract import OperationsContract
from tests.stores import borrow


def key(bucket: int, name: str = "a") -> bytes:
    return f"taba:{{{bucket}}}:{name}".encode()


def named(name: bytes, arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[bytes, ...]]:
    """Commands of this name with such arguments."""
    return arguments.map(lambda some: (name, *some))


class WithoutWaitingTests(SynchronousTestCase):
    """With a Clock for reactor."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.server = MemoryServer(self.clock)
        self.router = MemoryRouter([self.server], 4, self.clock, random.Random(1))
        self.successResultOf(ensureDeferred(self.router.connect()))

    def test_what_meets_no_conflict_has_its_result_at_once(self) -> None:
        done = self.router.transact(0, [], lambda _: Writes([(b"SET", key(0), b"1")], "done"))
        self.assertEqual(self.successResultOf(ensureDeferred(done)), "done")
        self.assertEqual(self.successResultOf(ensureDeferred(self.router.read(0, [(b"GET", key(0))]))), [b"1"])

    def test_a_store_that_is_away_is_tried_until_the_deadline(self) -> None:
        self.server.is_away = True
        reading = ensureDeferred(self.router.read(0, [(b"GET", key(0))]))
        self.assertNoResult(reading)
        self.assertFalse(self.router.is_ready)
        self.clock.pump([0.5] * 20)
        self.failureResultOf(reading, StoreUnavailable)

    def test_a_sealed_bucket_is_waited_for(self) -> None:
        self.server.run((b"SET", owner_key(0), b"sealed:1:token"))
        reading = ensureDeferred(self.router.read(0, [(b"GET", key(0))]))
        self.clock.pump([0.01] * 20)
        self.assertNoResult(reading)
        self.server.run((b"SET", owner_key(0), b"open:2:s1"))
        self.clock.pump([0.01] * 20)
        self.assertEqual(self.successResultOf(reading), [None])

    def test_another_number_of_buckets_is_refused(self) -> None:
        other = MemoryRouter([self.server], 5, self.clock)
        self.failureResultOf(ensureDeferred(other.connect()), ConfigurationError)

    def test_a_watched_key_that_expires_is_a_conflict(self) -> None:
        connection = MemoryConnection(self.server, "test")
        self.server.run((b"SET", b"k", b"v", b"PX", b"100"))
        self.successResultOf(connection.execute([(b"WATCH", b"k")]))
        self.clock.advance(0.2)
        self.assertEqual(self.successResultOf(connection.execute([(b"MULTI",), (b"SET", b"k", b"w"), (b"EXEC",)]))[-1], None)


KEYS = st.sampled_from([b"k1", b"k2", b"k3"])
WORDS = st.sampled_from([b"", b"1", b"-7", b"x", b"0", b"\xff\r\n", b"2", b"9223372036854775807", b" 1"])
INDICES = st.sampled_from([b"0", b"1", b"-1", b"-2", b"5", b"-9", b"x"])


def commands() -> st.SearchStrategy[tuple[bytes, ...]]:
    """Any command that MemoryServer knows, mostly with as many arguments as it takes."""
    kinds = []
    for name, (least, most, _) in COMMANDS.items():
        if name in (b"INFO", b"TIME", b"CONFIG", b"PTTL", b"PEXPIRE", b"ZRANDMEMBER", b"WAIT", b"MEMORY"):
            continue
        if name in (b"SCAN", b"HSCAN", b"SSCAN", b"ZSCAN", b"SPOP"):
            continue  # each server has an order of its own: `WalkTests`
        if name in (b"EVALSHA", b"EVAL"):
            continue  # only Taba's own scripts are known: `keys.test_at_once`
        if name in (b"ZADD", b"ZRANGEBYLEX"):  # as Taba uses them
            ends = st.sampled_from([b"-", b"+", b"[1", b"(1", b"[", b"(x", b"[\xff\r\n"])
            limit = st.tuples(st.just(b"LIMIT"), st.sampled_from([b"0", b"1"]), st.sampled_from([b"1", b"5"]))
            kinds.append(
                st.tuples(KEYS, st.lists(WORDS, min_size=1, max_size=3)).map(
                    lambda pair: (b"ZADD", pair[0], *(part for word in pair[1] for part in (b"0", word)))
                )
                if name == b"ZADD"
                else st.tuples(KEYS, ends, ends, limit).map(lambda parts: (b"ZRANGEBYLEX", *parts[:3], *parts[3]))
            )
            continue
        second = INDICES if name in (b"LRANGE", b"LTRIM", b"LINDEX", b"LSET", b"LREM", b"GETRANGE") else WORDS
        if name == b"SET":
            kinds.append(st.tuples(st.just(name), KEYS, WORDS))
            kinds.append(st.tuples(st.just(name), KEYS, WORDS, st.sampled_from([b"NX", b"xx"])))
        elif name == b"RENAME":
            kinds.append(st.tuples(st.just(name), KEYS, KEYS))
        elif name in (b"MGET", b"DEL", b"UNLINK", b"EXISTS"):
            kinds.append(named(name, st.lists(KEYS, min_size=1, max_size=3)))
        elif least == 0:
            kinds.append(st.just((name,)))
        else:
            size = st.lists(second, min_size=max(least - 1, 0), max_size=most - 1 if most is not None else least + 1)
            kinds.append(named(name, st.tuples(KEYS, size).map(lambda pair: (pair[0], *pair[1]))))
        kinds.append(named(name, st.lists(KEYS, max_size=4)).filter(lambda command: len(command) - 1 < 9))
    return st.one_of(kinds)


class ContractTests(Contract, OperationsContract, TestCase):
    """What every Router keeps, this one too: what tests learn from it holds elsewhere."""

    timeout = 300

    async def routers(self, count: int) -> list[MemoryRouter]:
        servers = [MemoryServer(reactor) for _ in range(2)]
        found = [MemoryRouter(servers, 4, reactor) for _ in range(count)]
        for router in found:
            await router.connect()
        return found


class SameAnswersTests(TestCase):
    timeout = 300

    async def compare(self, real: Pool, lots: list[list[tuple[bytes, ...]]]) -> None:
        server = MemoryServer(reactor)
        connection = MemoryConnection(server, "memory")
        await real.execute([(b"FLUSHALL",)])
        async with real.connection() as wire:
            for lot in lots:
                ours, theirs = await connection.execute(lot), await wire.execute(lot)
                for command, our, their in zip(lot, ours, theirs, strict=True):
                    self.assertEqual(plain(command, our), plain(command, their), (command, lot))

    def test_the_same_commands_get_the_same_answers(self) -> Deferred[None]:
        valkey = borrow(self, appendfsync="no")
        pool = Pool(reactor, parse_store(valkey.url).addresses[0], size=1)
        self.addCleanup(lambda: ensureDeferred(pool.close()))
        pool.start()
        lots: list[list[list[tuple[bytes, ...]]]] = []

        @examples(500)
        @given(st.lists(commands(), max_size=25), st.booleans())
        def collect(some: list[tuple[bytes, ...]], as_transaction: bool) -> None:
            lots.append([[(b"WATCH", b"k1"), *some[:3], (b"MULTI",), *some[3:], (b"EXEC",)]] if as_transaction else [some])

        collect()  # the reactor runs only after: Hypothesis is not asynchronous

        async def compare_all() -> None:
            for lot in lots:
                await self.compare(pool, lot)

        return ensureDeferred(compare_all())


class WalkTests(TestCase):
    """What a move needs of a walk over keys and elements holds here and there: nothing that stays is passed over."""

    timeout = 300
    names = tuple(b"n%d" % number for number in range(400))

    async def walk(self, connection: Any, command: tuple[bytes, ...], between: list[tuple[bytes, ...]]) -> list[bytes]:
        """All that a walk meets, while others change what is walked over."""
        cursor, met = b"0", []
        for _ in range(10_000):
            [[cursor, some]] = await connection.execute([(*command, cursor, b"COUNT", b"20")])
            met += some
            if between:
                await connection.execute([between.pop()])
            if cursor == b"0":
                return met
        raise AssertionError("a walk without end")

    async def compare(self, connection: Any) -> None:
        pairs = [part for name in self.names for part in (name, b"v" * 80)]
        scores = [part for name in self.names for part in (b"1", name)]
        filled: list[tuple[bytes, ...]] = [(b"HSET", b"h", *pairs), (b"SADD", b"s", *self.names), (b"ZADD", b"z", *scores)]
        await connection.execute([*filled, *((b"SET", name, b"v") for name in self.names)])
        staying = set(self.names[:200])
        for command, key, removing, stride in ((b"HSCAN", b"h", b"HDEL", 2), (b"SSCAN", b"s", b"SREM", 1), (b"ZSCAN", b"z", b"ZREM", 2)):
            gone: list[tuple[bytes, ...]] = [(removing, key, name) for name in self.names[200:]]
            met = (await self.walk(connection, (command, key), gone))[::stride]
            self.assertEqual((staying - set(met), set(met) - set(self.names)), (set(), set()), command)
        gone = [(b"DEL", name) for name in self.names[200:]]
        self.assertEqual(staying - set(await self.walk(connection, (b"SCAN",), gone)), set())
        found: list[bytes] = []
        cursor = b"0"
        while cursor != b"0" or not found:
            [[cursor, some]] = await connection.execute([(b"SCAN", cursor, b"MATCH", b"n1[01]?", b"COUNT", b"1000")])
            found += some
        self.assertEqual(set(found), {b"n%d" % number for number in range(100, 120)})
        [popped, left, size, nothing] = await connection.execute(
            [(b"SPOP", b"s", b"150"), (b"SCARD", b"s"), (b"MEMORY", b"USAGE", b"h"), (b"MEMORY", b"USAGE", b"no")]
        )
        self.assertEqual((len(set(popped)), left + len(popped) >= 200, size > 80, nothing), (150, True, True, None))
        [rest, is_there] = await connection.execute([(b"SPOP", b"s", b"1000"), (b"EXISTS", b"s")])
        self.assertEqual((len(rest), is_there), (left, 0))
        errors = [
            (b"SCAN", b"x"),
            (b"SCAN", b"0", b"COUNT", b"0"),
            (b"SCAN", b"0", b"ODD", b"1"),
            (b"SPOP", b"z", b"1"),
            (b"RENAME", b"q", b"r"),
        ]
        replies = await connection.execute(errors)
        self.assertEqual([str(reply).partition(" ")[0] for reply in replies], ["ERR", "ERR", "ERR", "WRONGTYPE", "ERR"])

    async def test_in_memory(self) -> None:
        await self.compare(MemoryConnection(MemoryServer(Clock()), "memory"))

    async def test_in_a_real_store(self) -> None:
        valkey = borrow(self, appendfsync="no")
        pool = Pool(reactor, parse_store(valkey.url).addresses[0], size=1)
        self.addCleanup(lambda: ensureDeferred(pool.close()))
        pool.start()
        async with pool.connection() as connection:
            await self.compare(connection)

    async def test_a_server_in_memory_says_who_it_is_and_which_replicas_it_has(self) -> None:
        server, other = MemoryServer(Clock()), MemoryServer(Clock())
        asked = [(b"INFO", b"server"), (b"INFO", b"replication")]
        first, second = [identity_of(await MemoryConnection(one, "memory").execute(asked)) for one in (server, other)]
        self.assertEqual(len({first.run, second.run, first.stream, second.stream}), 4)
        server.run((b"SET", b"k", b"v"))
        server.replicas = {"10.0.0.1:6379": server.offset, "10.0.0.2:6379": server.offset - 1}
        told = Replication.parse(server.run((b"INFO", b"replication")))
        self.assertEqual(
            (told.offset, told.replicas), (server.offset, {("10.0.0.1", 6379): server.offset, ("10.0.0.2", 6379): server.offset - 1})
        )
        self.assertEqual(server.run((b"WAIT", b"2", b"0")), 1)


def plain(command: tuple[bytes, ...], reply: Any) -> Any:
    """A reply, comparable: errors by their first word, what has no order sorted."""
    if isinstance(reply, Exception):
        return str(reply).partition(" ")[0]
    if isinstance(reply, list):
        name = command[0].upper()
        parts = [plain((b"SMEMBERS" if name == b"EXEC" else b"",), part) for part in reply]
        return sorted(parts, key=repr) if name in (b"HKEYS", b"HVALS", b"SMEMBERS", b"HGETALL") else parts
    return reply
