"""Writes in one round trip: the script does what the transaction does, in memory and on servers, or nothing."""

from __future__ import annotations

from typing import Any, ClassVar
from unittest import skipUnless

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, ensureDeferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.errors import StoreUnavailable
from taba.shard import router as router_module
from taba.shard.buckets import dirty_key, lease_key, owner_key, prefix_of
from taba.shard.keys import at_once, writing
from taba.shard.keys.amounts import INT_LIMIT
from taba.shard.keys.at_once import MOST_WORDS, AtOnce, beginning, command, counted, in_full
from taba.shard.keys.places import done_key, names_key
from taba.shard.memory.router import MemoryConnection, MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.shard.router import Router
from taba.shard.servers.connection import Connection, ErrorReply, TransactionRefused
from taba.shard.transaction import NotReplicated
from tests.examples import examples
from tests.shard.pieces import connect
from tests.shard.test_failovers import REDIS
from tests.stores import borrow
from tests.valkey import EphemeralValkey

NAMES = st.sampled_from(["a", "b"])
PARTS = st.sampled_from(["x", "y", b"\xff\r\n"])
VALUES = st.sampled_from(["", "1", "-7", "x", " 1", str(INT_LIMIT - 1), str(2**53), b"\x00"])
AMOUNTS = st.sampled_from([1, -1, 2**53 + 1, INT_LIMIT - 1, -INT_LIMIT])
SOME = st.lists(PARTS, min_size=0, max_size=3)
WRITES: st.SearchStrategy[tuple[Any, ...]] = st.one_of(
    st.tuples(st.just("set"), NAMES, VALUES, st.sampled_from([None, 50.0]), st.booleans()),
    st.tuples(st.just("incr"), NAMES, AMOUNTS),
    st.tuples(st.just("delete"), NAMES, NAMES),
    st.tuples(st.just("expire"), NAMES, st.sampled_from([None, 50.0])),
    st.tuples(st.just("hset"), NAMES, st.dictionaries(PARTS, VALUES, max_size=3)),
    st.tuples(st.just("hincrby"), NAMES, PARTS, AMOUNTS),
    st.tuples(st.just("zadd"), NAMES, st.dictionaries(PARTS, st.sampled_from([0.5, -1, float("inf")]), max_size=3)),
    st.tuples(st.sampled_from(["hdel", "sadd", "srem", "zrem", "rpush", "lpush"]), NAMES, SOME),
    st.tuples(st.just("ltrim"), NAMES, st.sampled_from([0, 1, -2]), st.sampled_from([0, -1, 5])),
    st.tuples(st.just("lpop"), NAMES),
)
TAKE_MANY = ("hdel", "sadd", "srem", "zrem", "rpush", "lpush")


def call(router: Any, write: tuple[Any, ...]) -> Any:
    operation, name, *rest = write
    return getattr(router, operation)(name, *(rest[0] if operation in TAKE_MANY else rest))


class SameTests(SynchronousTestCase):
    @examples(100)
    @given(st.lists(WRITES, max_size=12))
    def test_a_script_answers_and_leaves_what_a_transaction_does(self, writes: list[tuple[Any, ...]]) -> None:
        clock = Clock()
        found = []
        for scripts_from in (0.0, float("inf")):
            server = MemoryServer(clock)
            router = MemoryRouter([server], 1, clock)
            self.successResultOf(ensureDeferred(router.connect()))
            router.atlas.pools[0].servers[0].scripts_from = scripts_from
            outcomes: list[Any] = []
            for write in writes:
                done = ensureDeferred(call(router, write))
                done.addCallbacks(outcomes.append, lambda failure, outcomes=outcomes: outcomes.append((failure.type, str(failure.value))))
                self.assertTrue(done.called)
            kept = {key: value for key, value in server._values.items() if b":done" not in key and b":doers" not in key}
            kept.pop(b"taba:store", None), kept.pop(b"taba:map", None), kept.pop(b"taba:initialised", None)
            found.append((outcomes, kept, dict(server._expires)))
        self.assertEqual(*found)


class OnceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.server = MemoryServer(self.clock)
        self.router = MemoryRouter([self.server], 1, self.clock)
        self.get(self.router.connect())
        self.sent: list[Any] = []
        original = MemoryConnection.execute

        def execute(connection: Any, commands: Any, *more: Any) -> Any:
            self.sent.append(commands)
            return original(connection, commands, *more)

        self.patch(MemoryConnection, "execute", execute)
        self.assertEqual(self.get(self.router.incr("n")), 1)
        self.assertEqual(self.words(), [b"WATCH", b"MULTI"])  # only now is it known which write of ours was the last
        self.assertEqual(self.get(self.router.incr("n")), 2)
        self.assertEqual(self.words(), [b"EVALSHA", b"EVAL"])

    def get(self, work: Any) -> Any:
        return self.successResultOf(ensureDeferred(work))

    def words(self) -> list[bytes]:
        """What each write to the server began with, since this was asked last."""
        words = [commands[0][0] for commands in self.sent]
        self.sent.clear()
        return words

    def test_a_write_is_one_round_trip_once_the_bucket_was_written_to(self) -> None:
        for write in (
            *(self.router.incr("n"), self.router.set("s", "x"), self.router.hset("h", {"a": "1"}), self.router.hincrby("h", "n")),
            *(self.router.hdel("h", "a"), self.router.sadd("m", "a"), self.router.srem("m", "a"), self.router.zadd("z", {"a": 1})),
            *(self.router.zrem("z", "a"), self.router.rpush("l", "a"), self.router.lpush("l", "b"), self.router.ltrim("l", 0, 0)),
            *(self.router.expire("s", 5), self.router.delete("s")),
        ):
            self.get(write)
            self.assertEqual(self.words(), [b"EVALSHA"])
        self.get(self.router.lpop("l"))  # what it answers would have to be kept
        self.assertEqual(self.words(), [b"WATCH", b"MULTI"])
        self.get(self.router.rpush("l", *["x"] * (MOST_WORDS - 1)))
        self.assertEqual(self.words(), [b"EVALSHA"])
        self.get(self.router.rpush("l", *["x"] * MOST_WORDS))
        self.assertEqual(self.words(), [b"WATCH", b"MULTI"])
        self.assertEqual(self.router.counts["not_at_once"], 0)

    def test_one_that_comes_late_writes_nothing(self) -> None:
        self.get(self.router.incr("n"))
        [[late]] = self.sent
        self.assertEqual(self.server.run(late), at_once.OTHER)  # the very same again
        self.get(self.router.incr("n"))
        self.assertEqual(self.server.run(late), at_once.OTHER)
        self.server.run((b"DEL", done_key(0, self.router._token.encode())))  # forgotten as one of many who write no more
        self.assertEqual(self.server.run(late), at_once.OTHER)
        self.assertEqual(self.get(self.router.get("n")), b"4")
        self.words()
        self.assertEqual(self.get(self.router.incr("n")), 5)  # and who was forgotten writes again
        self.assertEqual(self.words(), [b"EVALSHA", b"WATCH", b"MULTI"])

    def lose(self, is_done: bool) -> None:
        """The next script's answer is lost, after it was carried out or before it comes; then it comes as well."""
        original = MemoryServer.run
        lost: list[Any] = []

        def run(server: Any, command: Any) -> Any:
            if command[0] == b"EVALSHA" and not lost:
                if is_done:
                    original(server, command)
                lost.append(command)
                raise StoreUnavailable("lost")
            if command[0] == b"SET" and b":done:" in command[1] and not is_done and len(lost) == 1:
                reply = original(server, command)
                lost.append(original(server, lost[0]))
                return reply
            return original(server, command)

        self.lost = lost
        self.patch(MemoryServer, "run", run)

    def test_one_whose_answer_is_lost_is_done_once_and_its_answer_is_read(self) -> None:
        self.lose(True)
        self.assertEqual(self.get(self.router.incr("n", 2**53)), 2**53 + 2)
        self.assertEqual(self.words(), [b"EVALSHA", b"WATCH", b"MULTI"])
        self.assertEqual(self.get(self.router.incr("n")), 2**53 + 3)
        self.assertEqual(self.words(), [b"EVALSHA"])

    def test_one_that_is_carried_out_after_the_transaction_that_took_its_place_writes_nothing(self) -> None:
        self.lose(False)
        self.assertEqual(self.get(self.router.incr("n", 5)), 7)
        self.assertEqual(self.lost[1:], [at_once.OTHER])
        self.assertEqual(self.get(self.router.get("n")), b"7")

    def test_one_that_is_carried_out_after_a_transaction_that_had_nothing_to_write_writes_nothing(self) -> None:
        original = MemoryServer.run
        for answer, write, then in (
            (0, lambda: self.router.hdel("h", "f"), (b"HSET", b"taba:{0}:key:h", b"f", b"another's")),
            (False, lambda: self.router.set("n", "mine", new=True), (b"DEL", b"taba:{0}:key:n")),
            (False, lambda: self.router.expire("no", 5), (b"SET", b"taba:{0}:key:no", b"another's")),
        ):
            lost: list[Any] = []

            def run(server: Any, command: Any, lost: list[Any] = lost) -> Any:
                if command[0] == b"EVALSHA" and not lost:
                    lost.append(command)
                    raise StoreUnavailable("lost")
                return original(server, command)

            self.patch(MemoryServer, "run", run)
            self.assertEqual(self.get(write()), answer)
            self.server.run(then)
            self.assertEqual([self.server.run(late) for late in lost], [at_once.OTHER])
            self.words()
            self.get(self.router.incr("m"))
            self.assertEqual(self.words(), [b"EVALSHA"])  # it knows its own number

    def test_what_is_not_as_it_was_is_left_to_a_transaction(self) -> None:
        owner = self.server.run((b"GET", owner_key(0)))
        assert isinstance(owner, bytes)
        # the bucket begins to move: what is written is noted
        self.server.run((b"SET", owner_key(0), owner + b":moving:s1.x"))
        self.assertEqual(self.get(self.router.incr("n")), 3)
        self.assertEqual(self.get(self.router.set("m", "x")), True)
        self.assertEqual(self.words(), [b"EVALSHA", b"WATCH", b"MULTI", b"WATCH", b"MULTI"])
        notes = self.server.run((b"SMEMBERS", dirty_key(0)))
        assert isinstance(notes, list)
        self.assertTrue({b"k%d:%b" % (len(key), key) for key in (prefix_of(0) + b"key:n", prefix_of(0) + b"key:m")} <= set(notes))
        self.server.run((b"SET", owner_key(0), owner))
        self.get(self.router.incr("n"))
        # another holds the lease
        self.server.run((b"SET", lease_key(0), b"another"))
        waiting = ensureDeferred(self.router.incr("n"))
        self.assertNoResult(waiting)
        self.server.run((b"DEL", lease_key(0)))
        self.clock.pump([0.01] * 5)
        self.assertEqual(self.successResultOf(waiting), 5)
        # sealed
        self.server.run((b"SET", owner_key(0), b"sealed:2:s1.x"))
        waiting = ensureDeferred(self.router.incr("n"))
        self.clock.pump([0.01] * 5)
        self.assertNoResult(waiting)
        self.server.run((b"SET", owner_key(0), owner))
        self.clock.pump([0.01] * 5)
        self.assertEqual(self.successResultOf(waiting), 6)
        # of another kind
        self.failureResultOf(ensureDeferred(self.router.sadd("n", "x")), TransactionRefused)
        self.assertEqual(self.get(self.router.incr("n")), 7)

    def test_done_without_replicas_is_not_replicated_with_its_result(self) -> None:
        self.router._who.wait_replicas = 1
        self.server.replicas = {"10.0.0.1:6379": 10**9}
        self.assertEqual(self.get(self.router.incr("n")), 3)
        self.server.replicas = {"10.0.0.1:6379": 0}
        for total, words in ((4, [b"EVALSHA", b"WAIT"]), (5, [b"EVALSHA", b"WAIT"])):
            self.words()
            failure = self.failureResultOf(ensureDeferred(self.router.incr("n")), NotReplicated)
            self.assertEqual((failure.value.result, self.words()), (total, words))
        failure = self.failureResultOf(ensureDeferred(self.router.lpop("l")), NotReplicated)
        self.assertEqual(failure.value.result, [])
        failure = self.failureResultOf(ensureDeferred(self.router.together(lambda r: [r.incr("a"), r.incr("n")])), NotReplicated)
        self.assertEqual(failure.value.result, 1)

    def test_what_no_replica_has_is_waited_for_and_not_done_again(self) -> None:
        self.router._who.wait_replicas = 1
        self.server.replicas = {"10.0.0.1:6379": 0}
        self.failureResultOf(ensureDeferred(self.router.incr("n")), NotReplicated)
        for _ in range(2):
            self.failureResultOf(ensureDeferred(self.router.replicated("n")), NotReplicated)
        self.server.replicas = {"10.0.0.1:6379": 10**9}
        self.assertIsNone(self.get(self.router.replicated("n", "m")))
        self.assertEqual(self.get(self.router.get("n")), b"3")

    def test_a_lock_that_no_replica_has_is_given_back_and_whoever_comes_next_has_it_at_once(self) -> None:
        self.router._who.wait_replicas = 1
        self.server.replicas = {"10.0.0.1:6379": 0}
        lock = self.router.lock("job", ttl=600)
        self.failureResultOf(ensureDeferred(lock.acquire()), NotReplicated)
        self.assertFalse(lock.is_held)
        other = MemoryRouter([self.server], 1, self.clock)
        self.get(other.connect())
        self.assertEqual(self.get(other.lock("job", ttl=600).acquire()), 2)

    def test_a_sealed_bucket_costs_one_script_however_many_write_and_none_where_a_read_has_seen_it(self) -> None:
        owner = self.server.run((b"GET", owner_key(0)))
        assert isinstance(owner, bytes)

        def tried(*works: Any) -> list[bytes]:
            """How each write began, of those that `works` made until they were given up, one after the other."""
            self.server.run((b"SET", owner_key(0), b"sealed:2:s2.x"))
            self.words()
            for work in works:
                waiting = ensureDeferred(work)
                self.clock.advance(0.001)
                waiting.cancel()
                self.failureResultOf(waiting, CancelledError)
            words = self.words()
            self.server.run((b"SET", owner_key(0), owner))
            return words

        words = tried(*(self.router.incr("n") for _ in range(3)))
        self.assertEqual((words[0], words.count(b"EVALSHA")), (b"EVALSHA", 1))
        self.assertGreaterEqual(words.count(b"WATCH"), 3)
        self.assertEqual(self.get(self.router.incr("n")), 3)  # by a transaction: what the owner key says is known again
        self.assertEqual(self.get(self.router.incr("n")), 4)
        self.assertEqual(self.words()[-1], b"EVALSHA")
        words = tried(self.router.get("n"), self.router.incr("n"))
        self.assertEqual((words[0], words.count(b"EVALSHA")), (b"GET", 0))
        self.assertIn(b"WATCH", words)
        self.assertEqual(self.get(self.router.incr("n")), 5)


class ServerTests(TestCase):
    """The same on real servers."""

    timeout = 300
    settings: ClassVar[dict[str, Any]] = {}

    async def routed(self, **options: Any) -> tuple[Router, EphemeralValkey]:
        valkey = borrow(self, tcp=True, appendfsync="no", **self.settings)
        return await connect(self, valkey.url, 1, **options), valkey

    def be_impatient(self) -> None:
        for module in (router_module, writing):
            self.patch(module, "TRANSACT_SECONDS", 0.3)

    async def test_the_script_answers_and_leaves_on_a_server_what_it_does_in_memory(self) -> None:
        router, _ = await self.routed()
        pool = router.atlas.pools[0]
        server = MemoryServer(Clock())
        prefix = b"taba:{0}:"
        keys = [prefix + name for name in (b"o", b"l", b"d", b"names", b"k")]
        start = [(b"SET", keys[0], b"open:1:s1"), (b"SET", keys[2], b"7:0:")]
        big = b"%d" % (INT_LIMIT - 1)
        cases: list[tuple[list[tuple[bytes, ...]], AtOnce, str]] = []
        for held in (
            [],
            [(b"SET", keys[4], b"5")],
            [(b"SET", keys[4], big)],
            [(b"HSET", keys[4], b"f", big, b"g", b"1")],
            [(b"SADD", keys[4], b"f")],
        ):
            for words, read in (
                *(([b"INCRBY", b"-3"], b"GET"), ([b"INCRBY", big], b"GET"), ([b"HINCRBY", b"f", b"-1"], b"HGET")),
                *(([b"SET", b"\xff\r\n:"], b""), ([b"SET", b"x", b"NX"], b""), ([b"SET", b"x", b"PX", b"60000"], b"")),
                *(([b"HSET", b"f", b"1", b"h", b""], b""), ([b"HDEL", b"f", b"x"], b""), ([b"SADD", b"f", b"x"], b"")),
                *(([b"SREM", b"f"], b""), ([b"ZADD", b"0.5", b"f"], b""), ([b"ZREM", b"f"], b""), ([b"RPUSH", b"a", b"b"], b"")),
                *(([b"LTRIM", b"0", b"0"], b""), ([b"PEXPIRE", b"60000"], b""), ([b"PERSIST"], b""), ([b"DEL"], b"")),
            ):
                cases += [([*start, *held], AtOnce(words, counted, read), after) for after in ("there", "maybe", "gone")]
        for change in (
            [(b"SET", keys[0], b"open:2:s1")],
            [(b"SET", keys[1], b"")],
            [(b"SET", keys[2], b"77:0:")],
            [(b"DEL", keys[2])],
            [(b"DEL", keys[0])],
        ):
            cases.append(([*start, *change], AtOnce([b"INCRBY", b"1"], counted, b"GET"), "there"))
        for made, how, after in cases:
            asked = command(beginning(keys[:4]), keys[4], b"open:1:s1", 7, 8, after, b"k", how)
            told = []
            for run in (server.run, None):
                commands = [(b"DEL", *keys), *made, in_full(asked), asked, (b"GET", keys[2])]
                commands += [(b"ZRANGEBYLEX", keys[3], b"-", b"+", b"LIMIT", b"0", b"9"), (b"GET", keys[4]), (b"HGETALL", keys[4])]
                replies = [run(command) for command in commands] if run is not None else await pool.execute(commands)
                told.append([str(one).partition(" ")[0] if isinstance(one, Exception) else one for one in replies])
            self.assertEqual(told[0], told[1], (made, how, after))
        self.assertIsInstance(server.run((b"EVALSHA", b"0" * 40, b"0")), ErrorReply)

    async def test_a_server_that_forgot_the_script_is_told_it_again(self) -> None:
        router, valkey = await self.routed()
        for total in range(1, 4):
            self.assertEqual(await router.incr("n"), total)
        valkey.call("SCRIPT", "FLUSH")
        self.assertEqual(await router.incr("n"), 4)
        self.assertEqual((router.counts["not_at_once"], router.counts["scripts_refused"]), (0, 0))

    async def test_many_at_once_wait_for_connections_and_are_one_round_trip_each(self) -> None:
        router, _ = await self.routed()
        names = [f"n{number}" for number in range(40)]
        await router.mset(dict.fromkeys(names, "0"))  # in the one bucket they go one after the other
        self.assertEqual(await gatherResults([ensureDeferred(router.incr(name)) for name in names]), [1] * len(names))
        self.assertEqual(router.counts["not_at_once"], 0)
        valkey = borrow(self, tcp=True, appendfsync="no", **self.settings)
        many = await connect(self, valkey.url, 64)
        for _ in range(2):
            await gatherResults([ensureDeferred(many.incr(name)) for name in names])
        self.assertEqual(many.counts["not_at_once"], 0)
        self.assertEqual(await many.mget(names), [b"2"] * len(names))

    async def test_many_at_once_go_in_few_writes_and_each_is_done_once_whatever_is_forgotten_or_lost(self) -> None:
        valkey = borrow(self, tcp=True, appendfsync="no", **self.settings)
        router = await connect(self, valkey.url, 256)
        by_bucket = {router.bucket_of(name): name for name in map("n{}".format, range(300))}
        names = list(by_bucket.values())  # none waits for the turn of another
        await router.mset(dict.fromkeys(names, "0"))
        sent: list[int] = []
        original = Connection.execute

        def execute(connection: Any, commands: Any, *more: Any) -> Any:
            sent.append(len(commands))
            return original(connection, commands, *more)

        async def write() -> None:
            sent.clear()
            await gatherResults([ensureDeferred(router.incr(name)) for name in names])

        self.patch(Connection, "execute", execute)
        for _ in range(2):  # at first owner keys are not known
            await write()
        self.assertLess(len(sent), len(names) / 5)
        self.assertEqual(router.counts["not_at_once"], 0)
        valkey.call("SCRIPT", "FLUSH")
        await write()
        self.assertEqual(router.counts["not_at_once"], 0)
        writing = [ensureDeferred(router.incr(name)) for name in names]
        valkey.call("CLIENT", "KILL", "TYPE", "normal")
        await gatherResults(writing)
        self.assertGreater(router.counts["not_at_once"], 0)
        self.assertEqual(await router.mget(names), [b"4"] * len(names))

    async def test_a_user_who_may_run_no_scripts_writes_as_before_and_the_server_is_asked_once(self) -> None:
        valkey = borrow(self, tcp=True, appendfsync="no", **self.settings)
        valkey.call("ACL", "SETUSER", "plain", "on", ">secret", "~*", "&*", "+@all", "-@scripting")
        router = await connect(self, f"redis://plain:secret@127.0.0.1:{valkey.port}", 1)
        for total in range(1, 6):
            self.assertEqual(await router.incr("n"), total)
        self.assertEqual(router.counts["scripts_refused"], 1)
        valkey.call("ACL", "SETUSER", "plain", "+@scripting")
        router.atlas.pools[0].servers[0].scripts_from = 0.0  # a minute later
        for total in range(6, 9):
            self.assertEqual(await router.incr("n"), total)
        self.assertEqual(router.counts["scripts_refused"], 1)

    async def test_what_a_full_server_refuses_is_not_done_in_part(self) -> None:
        router, valkey = await self.routed()
        self.be_impatient()
        await router.rpush("l", "a")
        await router.set("kept", "x")
        valkey.call("CONFIG", "SET", "maxmemory", "1")
        for write in (router.incr("new"), router.rpush("l", "b"), router.set("kept", "y")):
            await self.assertFailure(ensureDeferred(write), StoreUnavailable)
        valkey.call("CONFIG", "SET", "maxmemory", "0")
        self.assertEqual((await router.lrange("l"), await router.mget(["kept", "new"])), ([b"a"], [b"x", None]))
        self.assertEqual(valkey.call("ZRANGE", names_key(0), "0", "-1"), [b"kept", b"l"])
        self.assertEqual(await router.incr("new"), 1)

    async def test_a_server_that_must_have_replicas_and_has_none_takes_no_script(self) -> None:
        router, valkey = await self.routed()
        self.be_impatient()
        self.assertEqual([await router.incr("n") for _ in range(2)], [1, 2])
        valkey.call("CONFIG", "SET", "min-replicas-to-write", "1")
        await self.assertFailure(ensureDeferred(router.incr("n")), StoreUnavailable)
        valkey.call("CONFIG", "SET", "min-replicas-to-write", "0")
        self.assertEqual(await router.incr("n"), 3)

    async def test_a_prefix_changes_keys_and_nothing_that_looks_like_one(self) -> None:
        valkey = borrow(self, tcp=True, appendfsync="no", **self.settings)
        router = await connect(self, f"{valkey.url}?prefix=other", 1)
        await router.set("taba:{0}:key:a", "x")
        self.assertTrue(await router.set("taba:{0}:key:a", "taba:{0}:key:b"))
        await router.rpush("l", "taba:store")
        self.assertEqual(router.counts["not_at_once"], 0)
        self.assertEqual(await router.get("taba:{0}:key:a"), b"taba:{0}:key:b")
        self.assertEqual(await router.lrange("l"), [b"taba:store"])
        self.assertEqual(sorted((await router.scan()).names), [b"l", b"taba:{0}:key:a"])


@pytest.mark.real
@skipUnless(REDIS, "no redis-server of version 7 on this machine: apt-get install redis-server")
class RedisTests(ServerTests):
    """… and on Redis 7."""

    settings: ClassVar[dict[str, Any]] = {"binary": REDIS}
