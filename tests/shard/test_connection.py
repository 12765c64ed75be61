"""One connection, and the pool of them: what txredisapi gets wrong is closed here."""

from __future__ import annotations

from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import CancelledError, ensureDeferred, gatherResults
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.errors import StoreUnavailable
from taba.places import ASKER
from taba.shard.servers import pool as pool_module
from taba.shard.servers.connection import SENT_AT_ONCE_BYTES, Connection, ConnectionGone, ErrorReply, TransactionRefused, encode
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import parse_store
from tests.shard.load import until
from tests.shard.pieces import ask
from tests.stores import borrow
from tests.valkey import free_port

ALL_BYTES = bytes(range(256)) * 5


class WireTests(SynchronousTestCase):
    """Without a server: a clock that we move, and a transport that we read."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.transport = StringTransport()
        self.connection = Connection(self.clock, "test")
        self.connection.makeConnection(self.transport)

    def test_many_commands_go_out_in_one_write(self) -> None:
        with mock.patch.object(self.transport, "write") as write:
            self.connection.execute([(b"GET", b"a"), (b"SET", b"b", b"\x00\r\n")])
        write.assert_called_once_with(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$3\r\n\x00\r\n\r\n")

    def test_what_goes_alone_is_sent_at_once_and_the_rest_of_it_and_what_comes_meanwhile_by_the_reactor(self) -> None:
        sent: list[bytes] = []
        left: list[bytes] = []
        takes: list[int | Exception] = [3, 0, ConnectionLost()]

        class Socket(FileDescriptor):
            def writeSomeData(self, data: bytes) -> int | BaseException:
                taken = takes.pop(0)
                sent.append(data[:taken] if isinstance(taken, int) else b"")
                return taken

            def write(self, data: bytes) -> None:
                left.append(data)

            def abortConnection(self) -> None:
                """Nobody is there."""

        connection = Connection(self.clock, "test")
        connection.makeConnection(Socket())
        first = connection.execute([(b"A",)])
        connection.execute([(b"B",)])
        self.assertEqual((sent, left), ([b"*1\r"], [b"\n$1\r\nA\r\n", b"*1\r\n$1\r\nB\r\n"]))
        connection.dataReceived(b"+a\r\n+b\r\n")
        self.assertEqual(self.successResultOf(first), [b"a"])
        for words in (b"C", b"D"):  # the socket is full, or gone: the reactor finds that out
            connection.execute([(words,)])
            self.assertEqual((sent.pop(), left.pop()), (b"", b"*1\r\n$1\r\n%b\r\n" % words))
            connection.dataReceived(b"+c\r\n")
        large = b"x" * SENT_AT_ONCE_BYTES
        connection.execute([(large,)])
        self.assertEqual((len(sent), left.pop()[-9:-2]), (1, large[:7]))  # not asked of the socket at all

    def test_under_tls_nothing_goes_past_it(self) -> None:
        class Tls(StringTransport):
            """Passes on what it does not have itself, as TLS does."""

            def writeSomeData(self, data: bytes) -> int:
                raise AssertionError("in the clear")

        transport = Tls()
        connection = Connection(self.clock, "test")
        connection.makeConnection(transport)
        connection.execute([(b"A",)])
        self.assertEqual(transport.value(), b"*1\r\n$1\r\nA\r\n")

    def test_replies_of_calls_that_overlap_go_to_who_asked(self) -> None:
        first = self.connection.execute([(b"A",), (b"B",)])
        second = self.connection.execute([(b"C",)])
        self.connection.dataReceived(b"+OK\r\n:7\r\n+PONG\r\n")
        self.assertEqual(self.successResultOf(first), [b"OK", 7])
        self.assertEqual(self.successResultOf(second), [b"PONG"])

    def test_a_reply_that_is_late_closes_the_connection_for_ever(self) -> None:
        first = self.connection.execute([(b"A",), (b"B",)], 2.0)
        second = self.connection.execute([(b"C",)], 5.0)
        self.connection.dataReceived(b"+OK\r\n")
        self.clock.advance(1.9)
        self.assertNoResult(first)
        self.clock.advance(0.2)
        self.failureResultOf(first, ConnectionGone)
        self.failureResultOf(second, ConnectionGone)
        self.assertTrue(self.transport.disconnected or self.transport.disconnecting)
        self.assertFalse(self.connection.is_open)
        self.failureResultOf(self.connection.execute([(b"D",)]), ConnectionGone)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_caller_that_gives_up_closes_the_connection(self) -> None:
        before, waiting, after = (self.connection.execute([(b"A",)]) for _ in range(3))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)  # not a store that is away: nobody would end who tries that again
        self.failureResultOf(before, ConnectionGone)
        self.failureResultOf(after, ConnectionGone)
        self.assertFalse(self.connection.is_open)

    def test_a_reply_that_nobody_asked_for_closes_the_connection(self) -> None:
        self.connection.dataReceived(b"+OK\r\n")
        self.assertFalse(self.connection.is_open)

    def test_what_is_no_reply_at_all_closes_the_connection(self) -> None:
        waiting = self.connection.execute([(b"A",)])
        self.connection.dataReceived(b"HTTP/1.1 400 Bad Request\r\n")
        self.failureResultOf(waiting, ConnectionGone)

    def test_what_cannot_be_encoded_is_not_sent_and_nothing_waits_for_its_reply(self) -> None:
        wrong: list[Any] = [(b"SET", b"a", b"1"), (b"SET", b"a", None)]
        with self.assertRaises(TypeError):
            self.connection.execute(wrong)
        self.assertEqual((self.transport.value(), self.clock.getDelayedCalls()), (b"", []))
        self.assertTrue(self.connection.is_idle)
        asked = self.connection.execute([(b"GET", b"a")])
        self.connection.dataReceived(b"+OK\r\n")
        self.assertEqual(self.successResultOf(asked), [b"OK"])

    def test_nothing_to_send_is_answered_at_once(self) -> None:
        self.assertEqual(self.successResultOf(self.connection.execute([])), [])

    @given(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=5), max_size=5))
    def test_commands_are_encoded_as_the_protocol_says(self, commands: list[list[bytes]]) -> None:
        expected = b"".join(
            b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in command) for command in commands
        )
        self.assertEqual(encode([tuple(command) for command in commands]), expected)

    def test_what_the_server_takes_no_more_when_all_is_queued_is_refused_for_its_reason(self) -> None:
        reasons = {
            "NOREPLICAS Not enough good replicas to write.": StoreUnavailable,
            "OOM command not allowed when used memory > 'maxmemory'.": StoreUnavailable,
            "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk.": StoreUnavailable,
            "READONLY You can't write against a read only replica.": StoreUnavailable,
            "ERR something else": TransactionRefused,
        }
        for reason, kind in reasons.items():
            connection = Connection(self.clock, "test")
            connection.makeConnection(StringTransport())
            working = ensureDeferred(connection.commit([(b"SET", b"a", b"1")]))
            connection.dataReceived(f"+OK\r\n+QUEUED\r\n-EXECABORT Transaction discarded because of: {reason}\r\n".encode())
            self.assertEqual(str(self.failureResultOf(working, kind).value), f"test: {reason}")
            self.assertEqual(connection.is_open, not reason.startswith("READONLY"))
            self.assertFalse(connection.is_watching)


class GivenUpTests(SynchronousTestCase):
    def test_a_connection_that_is_given_up_while_it_is_made_takes_the_place_of_no_reason(self) -> None:
        clock = MemoryReactorClock()
        pool = Pool(clock, parse_store("unix:/nowhere").addresses[0])
        pool.start()
        clock.unixClients[0][1].clientConnectionFailed(clock.connectors[0], Failure(ConnectionRefusedError()))
        self.assertIn("refused", pool.last_error)
        before = pool.last_error
        clock.pump([1.0] * 10)
        self.assertEqual(len(clock.unixClients), 2)  # it is tried again
        self.successResultOf(ensureDeferred(pool.close()))
        self.assertEqual(pool.last_error, before)


class WaitingTests(SynchronousTestCase):
    def test_however_many_give_back_at_once_what_they_waited_for_all_have_it_and_it_stays(self) -> None:
        pool = Pool(Clock(), parse_store("redis://127.0.0.1:1").addresses[0], size=0)
        connection = Connection(Clock(), "here")
        connection.makeConnection(StringTransport())
        had: list[int] = []

        async def have(number: int) -> None:
            taken = await pool.take(1.0)
            had.append(number)
            pool.release(taken)

        waiting = [ensureDeferred(have(number)) for number in range(500)]
        pool.release(connection)
        for one in waiting:
            self.successResultOf(one)
        self.assertEqual(had, list(range(500)))
        self.assertIs(pool.idle(), connection)
        self.assertIsNone(pool.idle())

    def test_of_those_that_wait_each_asker_has_its_turn_however_many_another_has_and_who_is_late_or_leaves_takes_no_place(self) -> None:
        clock = Clock()
        pool = Pool(clock, parse_store("redis://127.0.0.1:1").addresses[0], size=0)
        connection = Connection(clock, "here")
        connection.makeConnection(StringTransport())
        had: list[str] = []

        async def have(asker: str, number: int, seconds: float = 5.0) -> None:
            ASKER.set(asker)
            taken = await pool.take(seconds)
            had.append(f"{asker}{number}")
            pool.release(taken)

        waiting = [ensureDeferred(have("many", number)) for number in range(40)]
        waiting += [ensureDeferred(have("", number)) for number in range(3)]  # such as folds
        late, left = ensureDeferred(have("late", 0, 1.0)), ensureDeferred(have("left", 0))
        waiting += [ensureDeferred(have("good", number)) for number in range(2)]
        left.cancel()
        clock.advance(1.0)
        self.failureResultOf(late, StoreUnavailable)
        self.failureResultOf(left, CancelledError)
        pool.release(connection)
        for one in waiting:
            self.successResultOf(one)
        self.assertEqual(had[:8], ["many0", "0", "good0", "many1", "1", "good1", "many2", "2"])
        self.assertEqual(had[8:], [f"many{number}" for number in range(3, 40)])
        self.assertEqual((pool._waiters, pool._waiting), ({}, 0))


class ValkeyTests(TestCase):
    """With a real server."""

    timeout = 300

    def setUp(self) -> None:
        self.valkey = borrow(self)

    def pool(self, size: int = 2, url: str | None = None) -> Pool:
        pool = Pool(reactor, parse_store(url or self.valkey.url).addresses[0], size=size)
        self.addCleanup(lambda: ensureDeferred(pool.close()))
        pool.start()
        return pool

    async def test_binary_values_that_look_like_numbers_stay_bytes(self) -> None:
        values = [ALL_BYTES, b"", b"1", b"-1.5", b"+", b"OK", b"QUEUED", b"\xff\xfe", b"\r\n$3\r\n", b"0" * 70_000]
        pool = self.pool()
        commands = [(b"SET", b"k%d" % n, value) for n, value in enumerate(values)]
        self.assertEqual(await pool.execute(commands), [b"OK"] * len(values))
        self.assertEqual(await pool.execute([(b"GET", b"k%d" % n) for n in range(len(values))]), values)
        self.assertEqual(await pool.execute([(b"MGET", *(b"k%d" % n for n in range(len(values))), b"none")]), [[*values, None]])
        await pool.execute([(b"HSET", b"h", *(part for value in values for part in (b"f" + value[:50], value)))])
        found = await ask(pool, b"HGETALL", b"h")
        self.assertEqual(dict(zip(found[::2], found[1::2], strict=True)), {b"f" + value[:50]: value for value in values})

    async def test_nested_and_empty_replies_keep_their_shape(self) -> None:
        pool = self.pool()
        replies = await pool.execute(
            [
                *[(b"RPUSH", b"l", b"1", b"2"), (b"HSET", b"h", b"a", b"b"), (b"MULTI",), (b"LRANGE", b"l", b"0", b"-1")],
                *[(b"LRANGE", b"no", b"0", b"-1"), (b"GET", b"no"), (b"PING",), (b"HSCAN", b"h", b"0"), (b"EXEC",)],
            ]
        )
        self.assertEqual(replies[:3], [2, 1, b"OK"])
        self.assertEqual(replies[-1], [[b"1", b"2"], [], None, b"PONG", [b"0", [b"a", b"b"]]])

    async def test_an_error_is_the_value_of_its_own_command_only(self) -> None:
        pool = self.pool()
        replies = await pool.execute([(b"SET", b"a", b"x"), (b"INCR", b"a"), (b"NOSUCH",), (b"GET", b"a")])
        self.assertEqual([isinstance(reply, ErrorReply) for reply in replies], [False, True, True, False])
        self.assertEqual(replies[3], b"x")
        self.assertEqual(pool.connections, 1)

    async def test_ten_thousand_commands_in_one_write_come_back_in_order(self) -> None:
        count = 10_000
        pool = self.pool()
        commands = [(b"ECHO", b"%d" % n) for n in range(count)]
        self.assertEqual(await pool.execute(commands), [b"%d" % n for n in range(count)])

    async def test_a_transaction_on_one_connection(self) -> None:
        pool = self.pool()
        async with pool.connection() as connection, pool.connection() as other:
            self.assertEqual(await connection.watch([b"a"], [(b"GET", b"a")]), [None])
            self.assertEqual(await connection.commit([(b"SET", b"a", ALL_BYTES), (b"GET", b"a")]), [b"OK", ALL_BYTES])
            await connection.watch([b"a"], [])
            await other.execute([(b"SET", b"a", b"2")])
            self.assertIsNone(await connection.commit([(b"SET", b"a", b"3")]))
            self.assertTrue(connection.is_idle)
            self.assertEqual(await connection.commit([]), [])

    async def test_a_watch_left_behind_is_not_the_next_users(self) -> None:
        pool = self.pool(size=1)
        async with pool.connection() as connection:
            await connection.watch([b"a"], [])
            first = connection
        await self.pool().execute([(b"SET", b"a", b"1")])
        async with pool.connection() as connection:
            self.assertIs(connection, first)
            self.assertFalse(connection.is_watching)
            self.assertEqual(await connection.commit([(b"SET", b"b", b"1")]), [b"OK"])

    async def test_a_command_that_cannot_be_queued_aborts_the_whole_and_leaks_no_connection(self) -> None:
        pool = self.pool(size=1)
        for _ in range(3):
            async with pool.connection(1.0) as connection:
                await connection.watch([b"a"], [])
                with self.assertRaises(TransactionRefused) as caught:
                    await connection.commit([(b"SET", b"a", b"1"), (b"SET", b"a")])
                self.assertIn("wrong number of arguments", str(caught.exception))
        self.assertEqual(await pool.execute([(b"GET", b"a")]), [None])
        self.assertEqual(pool.connections, 1)

    async def test_a_command_that_fails_in_exec_is_an_error(self) -> None:
        pool = self.pool()
        async with pool.connection() as connection:
            with self.assertRaises(TransactionRefused) as caught:
                await connection.commit([(b"SET", b"a", b"x"), (b"HSET", b"a", b"f", b"v")])
            self.assertIn("HSET: WRONGTYPE", str(caught.exception))

    async def test_a_full_store_is_away_and_not_wrong(self) -> None:
        self.valkey.ask("CONFIG", "SET", "maxmemory", "1")
        pool = self.pool()
        async with pool.connection() as connection:
            with self.assertRaises(StoreUnavailable):
                await connection.commit([(b"SET", b"a", b"1")])

    async def test_nobody_waits_for_a_connection_for_longer_than_the_deadline(self) -> None:
        pool = self.pool(size=1)
        async with pool.connection():
            with self.assertRaises(StoreUnavailable) as caught:
                await pool.execute([(b"PING",)], checkout_seconds=0.05)
        self.assertIn("busy", str(caught.exception))
        self.assertEqual(await pool.execute([(b"PING",)]), [b"PONG"])

    async def test_as_many_callers_wait_as_the_bound_and_no_more(self) -> None:
        self.patch(pool_module, "CHECKOUT_WAITERS", 3)
        pool = self.pool(size=1)
        async with pool.connection():
            waiting = [ensureDeferred(pool.execute([(b"PING",)])) for _ in range(3)]
            with self.assertRaises(StoreUnavailable):
                await pool.execute([(b"PING",)])
        self.assertEqual(await gatherResults(waiting), [[b"PONG"]] * 3)

    async def test_the_pool_grows_to_its_size_and_no_further(self) -> None:
        pool = self.pool(size=3)
        await gatherResults([ensureDeferred(pool.execute([(b"PING",)])) for _ in range(50)])
        await gatherResults([ensureDeferred(pool.execute([(b"BLPOP", b"none", b"0.1")])) for _ in range(9)])
        self.assertEqual(pool.connections, 3)

    async def test_a_connection_with_a_reply_outstanding_is_not_reused(self) -> None:
        pool = self.pool(size=1)
        async with pool.connection() as connection:
            late = connection.execute([(b"BLPOP", b"none", b"5")])
        await self.assertFailure(late, ConnectionGone)
        self.assertEqual(await pool.execute([(b"PING",)]), [b"PONG"])

    async def test_a_stopped_store_costs_the_deadline_and_the_connection(self) -> None:
        pool = self.pool(size=1)
        await pool.execute([(b"PING",)])
        self.valkey.pause()
        try:
            with self.assertRaises(ConnectionGone):
                await pool.execute([(b"PING",)], 0.1)
        finally:
            self.valkey.resume()
        self.assertEqual(await pool.execute([(b"PING",)]), [b"PONG"])

    async def test_a_store_that_comes_back_is_found_again(self) -> None:
        pool = self.pool()
        await pool.execute([(b"SET", b"a", b"1")])
        self.valkey.kill()
        with self.assertRaises(StoreUnavailable):
            await pool.execute([(b"GET", b"a")], checkout_seconds=0.2)
        self.valkey.start()
        self.assertEqual(await pool.execute([(b"GET", b"a")], checkout_seconds=60), [b"1"])

    async def test_a_server_that_is_away_gets_one_knock_at_a_time_and_all_places_again_when_it_is_back(self) -> None:
        pool = self.pool(size=3)

        async def busy() -> None:
            await gatherResults([ensureDeferred(pool.execute([(b"BLPOP", b"none", b"0.05")], checkout_seconds=60)) for _ in range(6)])

        await busy()
        self.assertEqual(pool.connections, 3)
        self.valkey.kill()
        await until(lambda: (pool.connections, pool.places) == (0, 1))
        self.valkey.start()
        await busy()
        self.assertEqual((pool.connections, pool.places), (3, 3))

    async def test_a_pool_that_is_closed_answers_so(self) -> None:
        pool = self.pool(size=1)
        async with pool.connection():
            waiting = ensureDeferred(pool.execute([(b"PING",)]))
            await pool.close()
            await self.assertFailure(waiting, StoreUnavailable)
        with self.assertRaises(StoreUnavailable):
            await pool.execute([(b"PING",)])

    async def tried(self, pool: Pool) -> None:
        await until(lambda: pool.last_error != "not connected yet")

    async def test_a_user_and_password_open_the_store_and_wrong_ones_are_told_without_the_password(self) -> None:
        port = free_port()
        self.valkey.ask("ACL", "SETUSER", "taba", "on", ">se-cret", "~*", "&*", "+@all")
        self.valkey.ask("CONFIG", "SET", "port", port)
        self.valkey.ask("CONFIG", "SET", "requirepass", "other")
        good = self.pool(url=f"redis://taba:se-cret@127.0.0.1:{port}")
        self.assertEqual(await good.execute([(b"PING",)], checkout_seconds=60), [b"PONG"])
        for account in ("taba:wrong-one@", ""):
            bad = self.pool(url=f"redis://{account}127.0.0.1:{port}")
            await self.tried(bad)
            with self.assertRaises(StoreUnavailable) as caught:
                await bad.execute([(b"PING",)], checkout_seconds=0.3)
            self.assertRegex(str(caught.exception), "WRONGPASS|NOAUTH")
            self.assertNotIn("wrong-one", str(caught.exception))

    async def test_why_there_is_no_connection_is_logged_once_until_it_changes(self) -> None:
        port = free_port()
        self.valkey.ask("CONFIG", "SET", "port", port)
        self.valkey.ask("CONFIG", "SET", "requirepass", "other")
        with capturedLogs() as logged:
            self.pool(url=f"redis://taba:wrong-one@127.0.0.1:{port}")

            def reasons() -> list[str]:
                return [event["why"] for event in logged if "why" in event]

            while not reasons():
                await deferLater(reactor, 0.02)
            await deferLater(reactor, 0.5)  # a few tries more
            self.valkey.kill()
            while len(reasons()) < 2:
                await deferLater(reactor, 0.02)
        self.assertEqual(len(reasons()), 2, reasons())
        self.assertIn("WRONGPASS", reasons()[0])
        self.assertIn("refused", reasons()[1])
        self.assertNotIn("wrong-one", str(reasons()))

    async def test_a_user_who_may_not_multi_is_never_given_a_connection(self) -> None:
        self.valkey.ask("ACL", "SETUSER", "taba", "on", ">secret", "~*", "&*", "+@all", "-multi")
        port = free_port()
        self.valkey.ask("CONFIG", "SET", "port", port)
        pool = self.pool(url=f"redis://taba:secret@127.0.0.1:{port}")
        await until(lambda: "multi" in pool.last_error.lower())
        with self.assertRaises(StoreUnavailable) as caught:
            await pool.execute([(b"PING",)], checkout_seconds=0.3)
        self.assertIn("multi", str(caught.exception).lower())

    async def test_connections_that_the_store_closes_while_idle_are_replaced(self) -> None:
        pool = self.pool(size=2)
        await pool.execute([(b"PING",)])
        self.valkey.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await deferLater(reactor, 0.05)
        self.assertEqual(await pool.execute([(b"PING",)]), [b"PONG"])
