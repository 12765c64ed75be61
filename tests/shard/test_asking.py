"""Single questions that overlap go together: each hears its own answer, in its own time, and the owner key is read after all of them."""

from __future__ import annotations

from typing import Any

from hiredis import Reader
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred, gatherResults
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.errors import StoreUnavailable
from taba.places import ASKER, NOBODY
from taba.shard.buckets import owner_key
from taba.shard.router import Router
from taba.shard.servers import asking as asking_module
from taba.shard.servers.asking import ASKED_AT_ONCE, MOST_JOINED, MOST_JOINED_BYTES, MOST_QUEUED, Joiner
from taba.shard.servers.connection import Connection, TransactionRefused, encode
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import parse_store
from tests.shard.load import until
from tests.shard.pieces import connect
from tests.stores import borrow
from tests.valkey import EphemeralValkey

SECONDS, QUIET = 8.0, 2.0


class StrictClock(Clock):
    """Takes no time that is over, as no reactor does."""

    def callLater(self, delay: float, callable: Any, *args: Any, **kw: Any) -> Any:
        assert delay >= 0, delay
        return super().callLater(delay, callable, *args, **kw)


class AskingTests(SynchronousTestCase):
    """One connection, whose other end is the test."""

    def setUp(self) -> None:
        self.clock = StrictClock()
        self.pool = Pool(self.clock, parse_store("redis://127.0.0.1:1").addresses[0], size=0)
        self.transport = StringTransport()
        self.connection = Connection(self.clock, "here")
        self.connection.makeConnection(self.transport)
        self.pool.release(self.connection)
        self.asking = self.pool.asking
        self.asking.under_way = ASKED_AT_ONCE  # others are asked for

    def question(self, number: int, is_whole: bool = True) -> Joiner:
        command, owner = (b"GET", b"k%d" % number), (b"GET", owner_key(number % 3))
        return Joiner(command, owner, is_whole, self.clock.seconds(), SECONDS, QUIET)

    def join(self, number: int, is_whole: bool = True) -> Deferred[Any]:
        return self.asking.join(self.question(number, is_whole))

    def sent(self) -> list[list[bytes]]:
        """The commands that were written since this was asked last."""
        reader = Reader()
        reader.feed(self.transport.value())
        self.transport.clear()
        commands: list[list[bytes]] = []
        while (command := reader.gets()) is not False:
            commands.append(command)
        return commands

    def answer(self, *replies: bytes | list[bytes]) -> None:
        for reply in replies:
            # an array on the wire looks as a command does
            self.connection.dataReceived(encode([tuple(reply)]) if isinstance(reply, list) else b"$%d\r\n%b\r\n" % (len(reply), reply))

    def test_what_is_asked_meanwhile_is_one_write_with_the_owner_keys_at_its_end(self) -> None:
        asked = [self.join(number) for number in (0, 1, 4, 5)]
        self.assertEqual(self.sent(), [])
        self.asking.go_on()
        owners = [owner_key(number) for number in (0, 1, 2)]
        self.assertEqual(self.sent(), [*([b"GET", b"k%d" % number] for number in (0, 1, 4, 5)), [b"MGET", *owners]])
        later = self.join(6)
        self.answer(b"zero", b"one", b"four", b"five", [b"o0", b"o1", b"o2"])
        found = [self.successResultOf(one) for one in asked]
        self.assertEqual(found, [[b"zero", b"o0"], [b"one", b"o1"], [b"four", b"o1"], [b"five", b"o2"]])
        self.assertEqual(self.sent(), [[b"GET", b"k6"], [b"MGET", owners[0]]])
        self.answer(b"six", [b"o0"])
        self.assertEqual(self.successResultOf(later), [b"six", b"o0"])
        self.assertEqual(self.asking.under_way, ASKED_AT_ONCE - 1)

    def test_what_is_asked_together_waits_for_a_connection_in_nobodys_line_whoever_came_first(self) -> None:
        connection, had = self.pool.idle(), 0
        self.asking.under_way = 0

        async def have() -> None:
            nonlocal had
            ASKER.set("many")
            taken = await self.pool.take(SECONDS)
            had += 1
            self.pool.release(taken)

        async def ask(number: int) -> Any:
            ASKER.set("many")
            return await self.join(number)

        waiting = [ensureDeferred(have()) for _ in range(40)]
        asked = [ensureDeferred(ask(number)) for number in range(2)]
        assert connection is not None
        self.pool.release(connection)
        self.assertEqual((had, self.sent()), (1, [[b"GET", b"k0"], [b"MGET", owner_key(0)]]))
        self.assertEqual(ASKER.get(), NOBODY)
        self.answer(b"zero", [b"o0"])
        self.answer(b"one", [b"o1"])
        self.assertEqual([self.successResultOf(one)[0] for one in asked], [b"zero", b"one"])
        for one in waiting:
            self.successResultOf(one)

    def test_where_owner_keys_are_not_of_one_slot_each_is_read_by_itself(self) -> None:
        asked = [self.join(0, is_whole=False), self.join(1, is_whole=False), self.join(3, is_whole=False)]
        self.asking.go_on()
        self.assertEqual(self.sent()[3:], [[b"GET", owner_key(0)], [b"GET", owner_key(1)]])
        self.answer(b"zero", b"one", b"three", b"o0", b"o1")
        self.assertEqual([self.successResultOf(one) for one in asked], [[b"zero", b"o0"], [b"one", b"o1"], [b"three", b"o0"]])

    def test_an_error_is_the_answer_of_whose_it_is_and_of_all_where_owner_keys_cannot_be_read(self) -> None:
        asked = [self.join(0), self.join(1)]
        self.asking.go_on()
        self.connection.dataReceived(b"-WRONGTYPE no\r\n$1\r\nx\r\n")
        self.answer([b"o0", b"o1"])
        wrong, right = (self.successResultOf(one) for one in asked)
        self.assertIsInstance(wrong[0], Exception)
        self.assertEqual((wrong[1], right), (b"o0", [b"x", b"o1"]))
        asked = [self.join(0), self.join(1)]
        self.asking.under_way += 1
        self.asking.go_on()
        self.connection.dataReceived(b"$1\r\nx\r\n$1\r\ny\r\n-NOPERM no\r\n")
        self.assertEqual([self.successResultOf(one) for one in asked], [None, None])

    def test_who_gives_up_harms_nobody_before_and_after_it_was_asked(self) -> None:
        asked = [self.join(number) for number in range(4)]
        asked[1].cancel()
        self.asking.go_on()
        self.assertEqual([words[1] for words in self.sent()[:-1]], [b"k0", b"k2", b"k3"])
        asked[2].cancel()
        self.answer(b"zero", b"two", b"three", [b"o0", b"o2"])
        for number in (1, 2):
            self.failureResultOf(asked[number], CancelledError)
        self.assertEqual([self.successResultOf(asked[number])[0] for number in (0, 3)], [b"zero", b"three"])
        self.assertTrue(self.connection.is_idle)

    def test_a_server_that_says_nothing_is_away_for_all_within_their_own_time(self) -> None:
        first = self.join(0)
        self.clock.advance(1.5)
        second = self.join(1)
        self.asking.go_on()
        third = self.join(2)
        self.assertEqual(len(self.sent()), 3)
        self.clock.advance(0.6)
        for one in (first, second):  # asked together: the second comes again, in the time that it has left
            self.failureResultOf(one, StoreUnavailable)
        self.assertNoResult(third)  # others are asked for, whom it follows
        self.asking.go_on()
        self.assertNoResult(third)  # no connection is left, and none comes
        self.clock.advance(QUIET)
        self.failureResultOf(third, StoreUnavailable)
        self.assertEqual(self.asking.under_way, 0)
        self.assertFalse(self.connection.is_open)

    def test_who_waited_until_its_time_was_over_is_not_asked_for(self) -> None:
        late = self.join(0)
        self.clock.advance(QUIET)
        timely = self.join(1)
        self.asking.go_on()
        self.failureResultOf(late, StoreUnavailable)
        self.assertEqual(self.sent()[:-1], [[b"GET", b"k1"]])
        self.assertNoResult(timely)

    def test_a_connection_that_comes_in_a_turn_that_took_too_long_is_not_used_and_stays(self) -> None:
        own = self.pool.idle()
        assert own is not None
        asked = [self.join(0), self.join(1)]
        self.asking.under_way = 1
        self.asking.go_on()
        self.clock.rightNow += QUIET  # and no timer had its turn yet
        self.pool.release(own)
        for one in asked:
            self.failureResultOf(one, StoreUnavailable)
        self.assertEqual((self.sent(), self.asking.under_way, self.connection.is_idle), ([], 0, True))

    def test_as_many_go_together_and_as_many_wait_as_the_bounds_say(self) -> None:
        asked = [self.join(number) for number in range(MOST_QUEUED)]
        self.assertIsNone(self.successResultOf(self.join(0)))
        self.asking.go_on()
        self.assertEqual(len(self.sent()), MOST_JOINED + 1)
        self.answer(*[b"x"] * MOST_JOINED, [b"o0", b"o1", b"o2"])
        self.assertEqual([one.called for one in asked], [True] * MOST_JOINED + [False] * (MOST_QUEUED - MOST_JOINED))
        self.assertEqual(len(self.sent()), MOST_JOINED + 1)

    def test_what_brings_much_along_goes_in_writes_that_are_no_larger_than_the_bound(self) -> None:
        def write(size: int) -> Deferred[Any]:
            return self.asking.join(Joiner((b"EVALSHA", b"%d" % size), None, True, self.clock.seconds(), SECONDS, SECONDS, size))

        sizes = [MOST_JOINED_BYTES - 1, 1, 1, MOST_JOINED_BYTES + 1, 1]
        asked = [write(size) for size in sizes]
        self.asking.go_on()
        told = []
        for number in (2, 1, 1, 1):
            sent = self.sent()
            told += [int(words[1]) for words in sent]
            self.assertEqual(len(sent), number)  # and no owner key, which nobody wants
            self.answer(*[b"done"] * number)
        self.assertEqual(told, sizes)
        self.assertEqual([self.successResultOf(one) for one in asked], [[b"done", None]] * len(sizes))

    def test_what_cannot_be_sent_is_heard_by_who_asked_and_it_goes_on(self) -> None:
        wrong: Any = (b"GET", None)
        asked = self.asking.join(Joiner(wrong, (b"GET", owner_key(0)), True, 0.0, SECONDS, QUIET))
        self.asking.go_on()
        self.failureResultOf(asked, TypeError)
        self.assertEqual(self.asking.under_way, ASKED_AT_ONCE - 1)
        self.asking.under_way = ASKED_AT_ONCE
        asked, other = self.asking.join(Joiner(wrong, (b"GET", owner_key(0)), True, 0.0, SECONDS, QUIET)), self.join(1)
        self.asking.go_on()
        for one in (asked, other):  # each asks alone, and only whose fault it is hears of it
            self.assertIsNone(self.successResultOf(one))


class ReadingTests(TestCase):
    """With a real server."""

    async def prepare(self) -> tuple[EphemeralValkey, Router]:
        valkey = borrow(self, appendfsync="no")
        router = await connect(self, valkey.url, 16)
        await router.mset({f"n{number}": f"{number}" for number in range(200)})
        for number in range(200):
            await router.get(f"n{number}")  # where each bucket is, is known by now
        return valkey, router

    async def test_many_at_once_each_hear_their_own_over_few_connections(self) -> None:
        _, router = await self.prepare()
        await router.rpush("list", "x")
        server = router.atlas.pools[0].servers[0]
        writes: list[int] = []
        original = Connection.execute

        def execute(connection: Any, commands: Any, *more: Any) -> Any:
            writes.append(len(commands))
            return original(connection, commands, *more)

        self.patch(Connection, "execute", execute)
        wrong = ensureDeferred(router.get("list"))
        found = await gatherResults([ensureDeferred(router.get(f"n{number}")) for number in range(200)])
        self.assertEqual(found, [b"%d" % number for number in range(200)])
        await self.assertFailure(wrong, TransactionRefused)
        self.assertLess(len(writes), 20)  # the wrong one again, alone, and greetings of a second connection or so, among them
        self.assertEqual(router.counts["retries"], 0)
        await until(lambda: not server.asking.under_way)  # the last one told us, and is not at its end

    async def test_what_is_read_with_others_is_believed_only_where_its_own_owner_key_says_so(self) -> None:
        valkey, router = await self.prepare()
        bucket = router.bucket_of("n7")
        valkey.call("SET", owner_key(bucket), "sealed:1:s2.token")
        reading = {number: ensureDeferred(router.get(f"n{number}")) for number in range(200)}
        for number, one in reading.items():
            if router.bucket_of(f"n{number}") != bucket:
                self.assertEqual(await one, b"%d" % number)
        self.assertFalse(reading[7].called)
        valkey.call("SET", owner_key(bucket), "open:1:s1")
        for number, one in reading.items():
            if router.bucket_of(f"n{number}") == bucket:
                self.assertEqual(await one, b"%d" % number)

    async def test_what_one_asks_that_cannot_be_sent_is_the_error_of_that_one(self) -> None:
        _, router = await self.prepare()
        asking = router.atlas.pools[0].servers[0].asking
        asking.under_way = ASKED_AT_ONCE
        bucket = router.bucket_of("n7")
        wrong: Any = (b"GETRANGE", router.key("n7", bucket), None, b"1")
        failing, reading = ensureDeferred(router.read(bucket, [wrong])), ensureDeferred(router.get("n8"))
        for _ in range(ASKED_AT_ONCE):
            asking.go_on()
        self.assertEqual(await reading, b"8")
        await self.assertFailure(failing, TypeError)

    async def test_single_reads_do_not_wait_until_others_of_several_commands_pause(self) -> None:
        _, router = await self.prepare()
        bucket = router.bucket_of("n7")
        several = [(b"GET", router.key("n7", bucket))] * 2
        server = router.atlas.pools[0].servers[0]
        taken = await gatherResults([server.take(SECONDS) for _ in range(4)])
        for one in taken:
            server.release(one)
        single: list[Deferred[Any]] = []

        async def go_on() -> int:
            for done in range(100):
                await router.read(bucket, several)
                if single and single[0].called:
                    return done
            return 100

        others = [ensureDeferred(go_on()) for _ in taken]
        single.append(ensureDeferred(router.get("n8")))
        self.assertLess(max(await gatherResults(others)), 100)
        self.assertEqual(await single[0], b"8")

    async def test_with_one_write_at_a_time_all_are_answered_too(self) -> None:
        self.patch(asking_module, "ASKED_AT_ONCE", 1)
        self.patch(asking_module, "MOST_JOINED", 3)
        _, router = await self.prepare()
        found = await gatherResults([ensureDeferred(router.get(f"n{number}")) for number in range(50)])
        self.assertEqual(found, [b"%d" % number for number in range(50)])
