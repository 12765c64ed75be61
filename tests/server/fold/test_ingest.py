"""Lines: what waits for one bucket becomes one cycle after another, within bounds and deadlines."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import Verdict
from taba.bounds import MAX_CYCLE_BYTES, MAX_CYCLE_STATES
from taba.errors import StoreUnavailable
from taba.handlers.lookup import Lookup
from taba.server import keys
from taba.server.fold import ingest as module
from taba.server.fold.cycle import Outcome, WaitingBatch
from taba.server.fold.errands import Errands
from taba.server.fold.ingest import ENVELOPE_SECONDS, MAX_TURNED_AWAY, TURNED_AWAY_SECONDS, Ingest
from taba.server.fold.lines import PROBE_PAUSE_SECONDS
from taba.server.fold.marks import Mark, encode_mark
from taba.server.fold.together import Alone
from taba.server.latency import MOST_ADDED, MOST_SAMPLES, MOST_SECONDS, SLICE_SECONDS, WINDOW_SECONDS, Latency
from taba.server.work.rows import Folded
from taba.server.work.sandbox import FOLD_SECONDS, HandlerSlow
from taba.shard import BucketAway, BucketBusy, NotReplicated
from taba.shard.memory.router import MemoryRouter
from taba.shard.memory.server import MemoryServer
from taba.shard.servers.connection import Command
from taba.shard.transaction import LEASE_SECONDS, Update

from ..samples import AGE, BUCKETS, NONCE, MemoryStore, Spilling, Sum, Words, batch, bench_of, column, go_on, lookup_of, tab_in


class HeldRouter(MemoryRouter):
    """A Router over a server in memory whose transactions begin, and whose probes end, when the test says so."""

    def __init__(self, clock: Clock, buckets: int = BUCKETS) -> None:
        server = MemoryServer(clock)
        super().__init__([server], buckets, clock, Random(1))
        self.kept = MemoryStore(server=server)
        self.held: list[tuple[int, Deferred[None]]] = []
        self.places: dict[int, str] = {}
        self.probes: list[Deferred[None]] = []
        self._results: list[Outcome] = []
        ensureDeferred(self.connect())
        for bucket in range(buckets):
            self.kept.put(keys.marks(bucket), {bytes([stream]) * 16: encode_mark(Mark(NONCE, 0, AGE)) for stream in range(1, 10)})

    def may_join(self, bucket: int) -> bool:
        return False

    def place_of(self, bucket: int) -> str:
        return self.places.get(bucket, "one")

    async def probe(self, bucket: int, seconds: float) -> None:
        probing: Deferred[None] = Deferred()
        self.probes.append(probing)
        await probing

    async def transact(self, bucket: int, reads: Sequence[Command], update: Update, seconds: float | None = None) -> Any:
        held: Deferred[None] = Deferred()
        self.held.append((bucket, held))
        await held
        self._results.append(await super().transact(bucket, reads, update, seconds))
        return self._results[-1]

    def commit(self) -> int:
        """Carry out the oldest transaction; how many batches it decided."""
        before = len(self._results)
        self.held.pop(0)[1].callback(None)
        return sum(len(result.verdicts) for result in self._results[before:])

    def fail(self, error: Exception) -> None:
        self.held.pop(0)[1].errback(error)


class Lines(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.router = HeldRouter(self.clock)

        async def no_foreign(works: Any, now: float, seconds: float, is_retry: bool) -> Any:
            raise AssertionError

        self.ingest = Ingest(self.router, bench_of(lookup_of(Sum(), Spilling()), no_foreign), self.clock, lambda: 1001.0, lambda: AGE)

    def submit(self, *items: WaitingBatch) -> Deferred[list[Verdict]]:
        return ensureDeferred(self.ingest.submit(items))

    def one(self, stream: int, number: int = 1, bucket: int = 0, size: int = 100, states: int = 1) -> WaitingBatch:
        columns = [column(tab_in(bucket), "Sum", [1.0], client=f"web/{stream}/{n}") for n in range(states)]
        return batch(stream, number, columns, bucket=bucket)._replace(size=size)

    def words(self, submitted: Deferred[list[Verdict]]) -> list[str]:
        return [verdict.word for verdict in self.successResultOf(submitted)]

    def test_what_comes_while_a_cycle_is_under_way_becomes_one_cycle(self) -> None:
        first = self.submit(self.one(1))
        others = [self.submit(self.one(stream)) for stream in range(2, 7)]
        self.assertEqual(len(self.router.held), 1)
        self.assertEqual(self.router.commit(), 1)
        self.assertEqual(self.words(first), ["applied"])
        self.assertEqual(self.router.commit(), 5)
        self.assertEqual([self.words(other) for other in others], [["applied"]] * 5)
        self.assertEqual((self.ingest.waiting_bytes, self.ingest._lines), (0, {}))

    def test_nothing_is_applied_before_its_transaction_is(self) -> None:
        submitted = self.submit(self.one(1))
        self.assertNoResult(submitted)
        self.router.commit()
        self.assertEqual(self.words(submitted), ["applied"])

    def test_a_cycle_takes_so_many_bytes_and_states_and_always_one_batch(self) -> None:
        self.submit(self.one(1))
        half = MAX_CYCLE_BYTES // 2
        for stream, size in ((2, half), (3, half), (4, 1), (5, 3 * half), (6, 1)):
            self.submit(self.one(stream, size=size))
        self.submit(self.one(7, states=MAX_CYCLE_STATES - 1))
        self.submit(self.one(8, states=2))
        committed = []
        for _ in range(6):
            committed.append(self.router.commit())
            self.clock.advance(0)  # before one of so many columns others have their turn
        self.assertEqual(committed, [1, 2, 1, 1, 2, 1])

    def test_buckets_are_folded_side_by_side_up_to_a_bound(self) -> None:
        self.patch(module, "MAX_CYCLES", 2)
        submitted = [self.submit(self.one(1, bucket=bucket)) for bucket in range(3)]
        self.assertEqual(len(self.router.held), 2)
        self.router.commit()
        self.assertEqual(len(self.router.held), 2)
        self.router.commit()
        self.router.commit()
        self.assertEqual([self.words(one) for one in submitted], [["applied"]] * 3)

    def test_the_bound_is_each_servers_own(self) -> None:
        self.patch(module, "MAX_CYCLES", 2)
        self.router.places = {bucket: "a" if bucket < 3 else "b" for bucket in range(BUCKETS)}
        for bucket in range(3):
            self.submit(self.one(1, bucket=bucket))  # a server that does not answer
        other = self.submit(self.one(1, bucket=3))
        self.assertEqual([held[0] for held in self.router.held], [0, 1, 3])
        self.router.held.insert(0, self.router.held.pop())
        self.router.commit()
        self.assertEqual(self.words(other), ["applied"])

    def test_a_server_that_fails_gets_one_probe_at_a_time_until_it_takes_writes(self) -> None:
        self.router.places = {bucket: "a" if bucket < 3 else "b" for bucket in range(BUCKETS)}
        first = self.submit(self.one(1))
        self.router.fail(StoreUnavailable("gone"))
        self.assertEqual(self.words(first), ["later"])
        for bucket in (0, 1, 2, 0):
            self.assertEqual(self.words(self.submit(self.one(2, bucket=bucket))), ["later"])  # at once
        self.assertEqual((len(self.router.probes), self.router.held), (1, []))
        other = self.submit(self.one(1, bucket=3))
        self.router.commit()
        self.assertEqual(self.words(other), ["applied"])
        self.router.probes[0].errback(StoreUnavailable("still gone"))
        self.assertEqual(self.words(self.submit(self.one(2))), ["later"])
        self.assertEqual(len(self.router.probes), 1)  # not before a while
        self.clock.advance(PROBE_PAUSE_SECONDS)
        self.assertEqual(self.words(self.submit(self.one(2))), ["later"])
        self.router.probes[1].callback(None)
        back = self.submit(self.one(2))
        self.router.commit()
        self.assertEqual(self.words(back), ["applied"])
        self.assertEqual((self.ingest.waiting_bytes, self.ingest._lines, self.ingest._gates), (0, {}, {}))

    def test_a_bucket_that_is_away_says_nothing_of_its_server(self) -> None:
        for error in (BucketAway("sealed"), BucketBusy("another"), NotReplicated("too few")):
            first = self.submit(self.one(1))
            self.router.fail(error)
            self.assertEqual(self.words(first), ["later"])
            second = self.submit(self.one(1))
            self.router.commit()
            self.assertEqual(self.words(second), ["applied"])
        self.assertEqual(self.router.probes, [])

    def test_cycles_with_handlers_of_others_leave_room_for_the_rest(self) -> None:
        foreign = Lookup({**lookup_of(Sum())._found, **lookup_of(Words(), own=False)._found})

        async def fold(works: Any, now: float, seconds: float, is_retry: bool) -> Any:
            return [Folded({0: b"\x90"}, {}, {}, {})]

        self.ingest = Ingest(self.router, bench_of(foreign, fold), self.clock, lambda: 1001.0, lambda: AGE)
        self.patch(module, "MAX_FOREIGN_CYCLES", 2)
        theirs = [batch(1, 1, [column(tab_in(bucket), "Words", ["a"])], bucket=bucket) for bucket in range(4)]
        submitted = [self.submit(item) for item in theirs]
        self.assertEqual([bucket for bucket, *_ in self.router.held], [0, 1])
        self.submit(self.one(2, bucket=3))  # waits behind what came before it
        own = self.submit(self.one(1, bucket=2, states=2)._replace(size=MAX_CYCLE_BYTES))
        self.assertEqual([bucket for bucket, *_ in self.router.held], [0, 1])
        self.router.fail(BucketBusy("x"))
        self.assertEqual([bucket for bucket, *_ in self.router.held], [1, 2])
        self.router.fail(BucketBusy("x"))
        self.assertEqual([bucket for bucket, *_ in self.router.held], [2, 3])
        self.router.fail(BucketBusy("x"))
        self.assertEqual([bucket for bucket, *_ in self.router.held], [3, 2])
        self.router.fail(BucketBusy("x"))
        self.router.commit()
        self.assertEqual(self.words(own), ["applied"])
        self.assertEqual({self.words(one)[0] for one in submitted}, {"later"})
        self.assertFalse(self.ingest._held or self.ingest._foreign or self.ingest._running)

    def test_a_handler_elsewhere_is_told_the_names_of_its_states_the_same_in_each_try(self) -> None:
        foreign = Lookup({**lookup_of(Sum())._found, **lookup_of(Words(), own=False)._found})
        asked: list[Any] = []

        async def fold(works: Any, now: float, seconds: float, is_retry: bool) -> Any:
            asked.extend(works)
            if len(asked) == 1:  # somebody else writes meanwhile
                self.router.kept.put(keys.states(0), {b"another": keys.frame(1, AGE)})
            return [Folded({0: b"\x90"}, {}, {}, {})]

        self.ingest = Ingest(self.router, bench_of(foreign, fold), self.clock, lambda: 1001.0, lambda: AGE)
        numbers, words = column(tab_in(0), "Sum", [1.0]), column(tab_in(0, 1), "Words", ["a"])
        submitted = self.submit(batch(1, 1, [numbers, words]))
        self.router.commit()
        self.clock.pump([0.1] * 20)
        self.assertEqual(self.words(submitted), ["applied"])
        self.assertEqual([work.work.names for work in asked], [[keys.state_field(tab_in(0, 1), "web/1")]] * 2)

    def slowly(self) -> list[float]:
        """Have an Ingest whose foreign Handler is slow; for how long each of its folds was waited for."""
        foreign = Lookup({**lookup_of(Sum())._found, **lookup_of(Words(), own=False)._found})
        waited: list[float] = []

        async def fold(works: Any, now: float, seconds: float, is_retry: bool) -> Any:
            waited.append(seconds)
            raise HandlerSlow("Words")

        self.ingest = Ingest(self.router, bench_of(foreign, fold), self.clock, lambda: 1001.0, lambda: AGE)
        return waited

    def slow(self, stream: int, number: int = 1) -> WaitingBatch:
        return batch(stream, number, [column(tab_in(0, 1), "Words", ["a"]), column(tab_in(0), "Sum", [1.0])])

    def test_a_slow_handler_holds_up_its_own_events_and_what_follows_them_in_their_stream(self) -> None:
        waited = self.slowly()
        self.submit(self.one(9))
        submitted = self.submit(self.one(1), self.slow(2), self.one(2, 2), self.one(3))
        self.router.commit()
        self.router.commit()
        self.router.commit()
        verdicts = self.successResultOf(submitted)
        late = Verdict("later", module.SLOW_SECONDS, module.SLOW)
        self.assertEqual(verdicts, [Verdict("applied", 1), late, late, Verdict("applied", 1)])
        self.assertEqual(waited, [FOLD_SECONDS])
        self.assertEqual((self.router.kept.counts(), self.ingest.errors, self.router.held), ({"folded": 3}, {}, []))

    def test_where_nothing_else_came_with_it_all_is_later_and_no_dead_letter(self) -> None:
        self.slowly()
        submitted = self.submit(self.slow(2))
        self.router.commit()
        self.assertEqual(self.words(submitted), ["later"])
        self.assertEqual((self.router.kept.counts(), self.ingest._running), ({}, 0))

    def test_a_cycle_waits_for_its_handlers_so_long_and_no_longer_in_all_its_tries_together(self) -> None:
        waited: list[float] = []

        async def fold(works: Any, now: float, seconds: float, is_retry: bool) -> Any:
            waited.append(seconds)
            self.clock.advance(0.2)
            return []

        errands = Errands(bench_of(lookup_of(Words(), own=False), fold), lambda: 1.0, self.clock.seconds, 0.5, go_on)
        for _ in range(4):
            self.successResultOf(ensureDeferred(errands.run([])))
        self.assertEqual([round(seconds, 6) for seconds in waited], [0.5, 0.3, 0.1, 0.0])

    def test_a_cycle_ends_before_its_lease_is_taken_for_abandoned(self) -> None:
        self.assertLess(module.CYCLE_SECONDS + FOLD_SECONDS, LEASE_SECONDS)

    def test_when_time_is_up_the_decided_are_told_and_the_rest_is_later(self) -> None:
        self.patch(module, "MAX_CYCLES", 2)
        submitted = self.submit(*(self.one(1, bucket=bucket) for bucket in range(4)))
        self.router.commit()
        self.clock.advance(ENVELOPE_SECONDS)
        self.assertEqual(self.words(submitted), ["applied", "later", "later", "later"])
        # what was under way ends; what had not begun is not begun
        self.assertEqual(len(self.router.held), 2)
        self.router.commit()
        self.router.commit()
        self.assertEqual((len(self.router.held), self.ingest.waiting_bytes, self.ingest._lines), (0, 0, {}))

    def test_a_full_queue_says_later(self) -> None:
        self.patch(module, "MAX_LINE_BYTES", 1000)
        self.patch(module, "MAX_WAITING_BYTES", 1500)
        self.submit(self.one(1))
        at_the_bound = [self.submit(self.one(stream, size=500)) for stream in (2, 3)]
        self.assertEqual(self.words(self.submit(self.one(4, size=1))), ["later"])
        self.submit(self.one(1, bucket=1))
        self.submit(self.one(2, bucket=1, size=500))
        self.assertEqual(self.words(self.submit(self.one(3, bucket=1, size=1))), ["later"])
        self.router.commit()
        self.router.commit()
        while self.router.held:
            self.router.commit()
        self.assertEqual([self.words(one) for one in at_the_bound], [["applied"]] * 2)
        self.assertEqual(self.ingest.waiting_bytes, 0)

    def test_what_follows_a_batch_that_is_later_is_later_too(self) -> None:
        self.patch(module, "MAX_LINE_BYTES", 1000)
        self.submit(self.one(9))
        submitted = self.submit(self.one(1, 1, size=900), self.one(1, 2, size=200), self.one(1, 3, size=1), self.one(2, 1, size=1))
        self.router.commit()
        self.router.commit()
        self.assertEqual(self.words(submitted), ["applied", "later", "later", "applied"])

    def test_a_busy_bucket_and_a_store_that_is_away_say_later(self) -> None:
        for error in (BucketBusy("busy"), StoreUnavailable("away")):
            submitted = self.submit(self.one(1))
            self.router.fail(error)
            self.assertEqual(self.words(submitted), ["later"])
        self.assertEqual(self.ingest.errors, {})

    def test_a_batch_that_fails_a_cycle_does_not_hold_up_the_others_with_it(self) -> None:
        self.submit(self.one(9))
        submitted = self.submit(self.one(1), self.one(2))
        self.router.commit()
        self.router.fail(ZeroDivisionError("oops"))
        self.router.fail(ZeroDivisionError("oops"))
        self.router.commit()
        self.assertEqual(self.words(submitted), ["later", "applied"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual(self.ingest.errors[module.CYCLE_FAILED], 2)

    def test_a_bucket_whose_cycle_failed_is_folded_as_all_others_after_a_while_and_forgotten(self) -> None:
        plainly: list[bool] = []

        class Noting(Alone):
            def __init__(self, *arguments: Any) -> None:
                plainly.append(arguments[-1])
                super().__init__(*arguments)

        self.patch(module, "Alone", Noting)
        for bucket, passed in ((0, 0.0), (1, 10.0), (0, 10.0)):
            self.clock.advance(passed)
            self.submit(self.one(1, bucket=bucket))
            self.router.fail(ZeroDivisionError("oops"))
        self.assertEqual(list(self.ingest._failed), [1, 0])
        for passed, bucket, is_plain in ((49.9, 1, False), (0.1, 1, True), (0.0, 0, False), (10.0, 0, True)):
            self.clock.advance(passed)
            self.submit(self.one(2, bucket=bucket))
            self.assertEqual(plainly.pop(), is_plain, (passed, bucket))
            self.router.fail(BucketBusy("busy"))
        self.assertEqual(self.ingest._failed, {})
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)

    def test_the_same_batch_sent_twice_at_once_is_folded_once(self) -> None:
        submitted = [self.submit(self.one(1)) for _ in range(3)]
        self.assertEqual([self.router.commit() for _ in range(2)], [1, 2])
        self.assertEqual([self.words(one) for one in submitted], [["applied"]] * 3)
        self.assertEqual(self.router.kept.counts(), {"folded": 1})

    def test_an_asker_that_goes_away_takes_nothing_with_it(self) -> None:
        self.submit(self.one(9))
        gone, stays = self.submit(self.one(1)), self.submit(self.one(2))
        gone.cancel()
        self.failureResultOf(gone)
        self.router.commit()
        self.assertEqual(self.router.commit(), 1)
        self.assertEqual(self.words(stays), ["applied"])

    def test_an_agent_that_is_turned_away_now_is_named_however_many_were_before(self) -> None:
        for number in range(MAX_TURNED_AWAY):
            self.ingest._note([], Outcome([], [], 0, {}, {}, (), (f"before{number}",)))
        self.clock.advance(TURNED_AWAY_SECONDS)
        self.assertEqual(self.ingest.problems, [])
        self.ingest._note([], Outcome([], [], 0, {}, {}, (), ("now",)))
        self.assertIn("these Agents must wait: now.", self.ingest.problems[0])


class Latencies(SynchronousTestCase):
    def test_percentiles_of_the_last_minute(self) -> None:
        latency = Latency()
        self.assertEqual(latency.percentiles(1000.0), {"p50": None, "p95": None, "p99": None})
        latency.add(1000.0 - numpy.linspace(0.01, 1.0, 1000), 1000.0)
        for name, expected in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            self.assertLess(abs((latency.percentiles(1000.0)[name] or 0) - expected), 0.03 * expected)
        latency.add(1010.0 - numpy.full(10, 5.0), 1010.0)  # of less than a minute: what became visible in it, and nothing else
        self.assertLess(abs((latency.percentiles(1012.0, 10)["p50"] or 0) - 5.0), 0.15)
        self.assertLess(latency.percentiles(1012.0, 60)["p50"] or 0, 1.0)
        latency.add(numpy.array([1000.0 - MOST_SECONDS - 1, 1001.0, 999.0]), 1000.0)  # too old to count; from the future; ordinary
        self.assertEqual(latency.percentiles(1010.0 + WINDOW_SECONDS + 6), {"p50": None, "p95": None, "p99": None})

    def test_what_is_counted_later_is_counted_as_at_once(self) -> None:
        later, at_once = Latency(), Latency()
        steps = [
            0.0,
            1.0,
            SLICE_SECONDS - 1.5,
            0.5,
            0.25,
            -2.0,
            2 * SLICE_SECONDS,
            *[0.01] * MOST_ADDED,
            WINDOW_SECONDS,
            -WINDOW_SECONDS,
            1.0,
        ]
        now = 1000.0
        for number, step in enumerate(steps):
            now += step
            times = now - numpy.linspace(0.01, 1.0 + number, 1 + number % 3)
            later.add(times, now)
            at_once.add(times, now)
            at_once.percentiles(now)
        self.assertEqual(*[[one.percentiles(now, seconds) for seconds in (1.0, 6.0, 60.0)] for one in (later, at_once)])

    def test_what_is_not_counted_yet_is_bounded(self) -> None:
        latency = Latency()
        for _ in range(MOST_ADDED - 1):
            latency.add_all([numpy.full(3 * MOST_SAMPLES, 999.0).tobytes()], 1000.0)
        self.assertEqual(sum(times.nbytes for times, _ in latency._added), (MOST_ADDED - 1) * 8 * MOST_SAMPLES * 3 // 4)  # each fourth
        self.assertTrue(all(times.base is None for times, _ in latency._added))  # nothing holds what is not among the samples
        latency.add_all([numpy.full(3, 999.0).tobytes()], 1000.0)
        self.assertEqual(latency._added, [])
