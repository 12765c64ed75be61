"""What waits for several buckets of one server becomes one transaction, and whoever cannot be in it goes on alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import Verdict
from taba.bounds import MAX_CYCLE_BYTES, MAX_CYCLE_STATES
from taba.errors import StoreUnavailable
from taba.handlers.lookup import Found, Lookup
from taba.server.fold import ingest as module
from taba.server.fold.cycle import WaitingBatch
from taba.server.fold.ingest import ENVELOPE_SECONDS, FAILED_SECONDS, TOGETHER_FAILED, Ingest
from taba.server.fold.together import MOST_AT_FAULT
from taba.shard import NotReplicated
from taba.shard.buckets import lease_key
from taba.shard.joint import MAX_JOINED, UpdateOfMany
from taba.shard.servers.connection import Command

from ..samples import AGE, Sum, Words, batch, bench_of, column, lookup_of, tab_in
from .test_ingest import HeldRouter

BUCKETS = MAX_JOINED + 2


class JoiningRouter(HeldRouter):
    """Holds transactions over several buckets, too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock, BUCKETS)
        self.joint: list[tuple[list[int], Deferred[None]]] = []
        self.apart: set[int] = set()  # buckets that are in none with others, as far as anybody knows
        self.is_lossy = False  # what a transaction over several comes to is lost on its way
        self.is_lagging = False  # its replicas have nothing of it

    def may_join(self, bucket: int) -> bool:
        return bucket not in self.apart

    async def transact_many(
        self, reads: Mapping[int, Sequence[Command]], update: UpdateOfMany, seconds: float | None = None
    ) -> dict[int, Any]:
        held: Deferred[None] = Deferred()
        self.joint.append((list(reads), held))
        await held
        results = await super().transact_many(reads, update, seconds)
        if self.is_lossy:
            raise StoreUnavailable("its answer was lost")
        return dict.fromkeys(results, NotReplicated("none")) if self.is_lagging else results

    def join(self, *leased: int) -> None:
        """Carry out the oldest transaction over several buckets, of which others have a lease of these."""
        for bucket in leased:
            self.kept.run((b"SET", lease_key(bucket), b"another"))
        held = self.joint.pop(0)[1]
        held.callback(None)
        for bucket in leased:
            self.kept.run((b"DEL", lease_key(bucket)))

    @property
    def joined(self) -> list[list[int]]:
        return [buckets for buckets, _ in self.joint]

    @property
    def alone(self) -> list[int]:
        return [held[0] for held in self.held]


class Joining(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.router = JoiningRouter(self.clock)
        self.ingest = Ingest(self.router, bench_of(lookup_of(Sum())), self.clock, lambda: 1001.0, lambda: AGE)

    def submit(self, *items: WaitingBatch) -> Deferred[list[Verdict]]:
        return ensureDeferred(self.ingest.submit(items))

    def one(self, bucket: int, number: int = 1, stream: int = 1, size: int = 100, states: int = 1) -> WaitingBatch:
        tab = tab_in(bucket, buckets=BUCKETS)
        columns = [column(tab, "Sum", [1.0], client=f"web/{stream}/{n}") for n in range(states)]
        return batch(stream, number, columns, bucket=bucket)._replace(size=size)

    def words(self, submitted: Deferred[list[Verdict]]) -> list[str]:
        return [verdict.word for verdict in self.successResultOf(submitted)]

    def test_an_envelope_of_several_buckets_is_one_transaction(self) -> None:
        submitted = self.submit(self.one(0), self.one(2), self.one(1), self.one(2, 2))
        self.assertEqual((self.router.joined, self.router.alone), ([[0, 2, 1]], []))
        self.assertNoResult(submitted)
        self.router.join()
        self.assertEqual(self.words(submitted), ["applied"] * 4)
        self.assertEqual((self.ingest.waiting_bytes, self.ingest._lines, self.ingest.cycles, self.ingest.alone), (0, {}, 1, 0))

    def test_what_comes_meanwhile_for_other_buckets_is_another_beside_it_and_for_the_same_the_next(self) -> None:
        first = self.submit(self.one(0), self.one(1))
        second = self.submit(self.one(1, 2), self.one(2), self.one(3))
        self.assertEqual(self.router.joined, [[0, 1], [2, 3]])
        self.router.join()
        self.assertEqual((self.words(first), self.router.joined, self.router.alone), (["applied"] * 2, [[2, 3]], [1]))
        self.router.join()
        self.router.commit()
        self.assertEqual(self.words(second), ["applied"] * 3)

    def test_it_takes_so_many_buckets_and_no_more(self) -> None:
        submitted = self.submit(*(self.one(bucket) for bucket in range(MAX_JOINED + 1)))
        self.assertEqual((self.router.joined, self.router.alone), ([list(range(MAX_JOINED))], [MAX_JOINED]))
        self.router.join()
        self.clock.pump([0.0] * 8)  # of so many columns others have their turns in between
        self.router.commit()
        self.assertEqual(self.words(submitted), ["applied"] * (MAX_JOINED + 1))

    def test_it_takes_so_many_bytes_and_states_and_no_more(self) -> None:
        half = MAX_CYCLE_BYTES // 2
        self.submit(self.one(0, size=half), self.one(1, size=half), self.one(2, size=1))
        self.assertEqual((self.router.joined, self.router.alone), ([[0, 1]], [2]))
        self.submit(self.one(3, states=MAX_CYCLE_STATES - 1), self.one(4), self.one(5))
        self.assertEqual((self.router.joined[1:], self.router.alone[1:]), ([], [5]))
        self.clock.advance(0)  # before one of so many columns others have their turn
        self.assertEqual(self.router.joined[1:], [[3, 4]])

    def test_a_bucket_that_leaves_goes_on_alone_at_once_and_joins_the_next(self) -> None:
        submitted = self.submit(self.one(0), self.one(1), self.one(2))
        self.router.join(1)
        self.assertNoResult(submitted)
        self.assertEqual((self.router.alone, self.ingest.alone), ([1], 1))
        more = self.submit(self.one(0, 2), self.one(1, 2), self.one(2, 2))
        self.assertEqual(self.router.joined, [[0, 2]])
        self.router.join()
        self.router.commit()
        self.assertEqual(self.words(submitted), ["applied"] * 3)
        self.router.commit()  # what came for it meanwhile
        self.assertEqual(self.words(more), ["applied"] * 3)
        self.submit(self.one(0, 3), self.one(1, 3))
        self.assertEqual(self.router.joined, [[0, 1]])

    def test_a_bucket_whose_events_use_up_the_tries_goes_on_alone(self) -> None:
        bad = batch(1, 1, [column(tab_in(1, buckets=BUCKETS), "Sum", [13.0] * (MOST_AT_FAULT + 1))], bucket=1)
        submitted = self.submit(self.one(0), bad, self.one(2))
        self.router.join()
        self.assertEqual((self.router.alone, self.ingest.alone), ([1], 1))
        self.router.commit()
        self.assertEqual(self.words(submitted), ["applied"] * 3)

    def test_after_a_transaction_that_came_to_nothing_and_after_any_error_each_goes_on_alone(self) -> None:
        for number, error in enumerate([None, StoreUnavailable("gone"), ValueError("a fault")], 1):
            submitted = self.submit(self.one(0, number), self.one(1, number), self.one(2, number))
            if error is None:
                self.router.join(0, 1, 2)
            else:
                self.router.joint.pop()[1].errback(error)
            self.assertEqual((self.router.alone, self.router.joined), ([0, 1, 2], []))
            for _ in range(3):
                self.router.commit()
            self.assertEqual(self.words(submitted), ["applied"] * 3)
        self.assertEqual((self.ingest.waiting_bytes, self.ingest._lines, self.ingest.alone), (0, {}, 9))
        self.assertEqual((len(self.flushLoggedErrors(ValueError)), self.ingest.errors), (1, {TOGETHER_FAILED: 1}))

    def test_a_server_that_took_so_long_that_nobody_waits_is_probed_before_more_goes_there(self) -> None:
        submitted = self.submit(self.one(0), self.one(1))
        self.clock.advance(ENVELOPE_SECONDS)
        self.assertEqual(self.words(submitted), ["later"] * 2)
        self.router.joint.pop()[1].errback(StoreUnavailable("gone"))
        self.assertEqual((self.router.alone, len(self.router.probes)), ([], 1))
        self.assertEqual(self.words(self.submit(self.one(0, 2), self.one(2))), ["later"] * 2)  # at once
        self.router.probes[0].callback(None)
        back = self.submit(self.one(0), self.one(1))
        self.router.join()
        self.assertEqual((self.words(back), self.ingest.waiting_bytes, self.ingest._lines), (["applied"] * 2, 0, {}))

    def test_what_was_done_although_nobody_knew_is_not_done_again(self) -> None:
        submitted = self.submit(self.one(0), self.one(1))
        self.router.is_lossy = True
        self.router.join()
        self.assertEqual((self.router.kept.counts(0), self.router.kept.counts(1)), ({"folded": 1}, {"folded": 1}))
        self.router.commit()
        self.router.commit()
        self.assertEqual(self.words(submitted), ["applied"] * 2)
        self.assertEqual((self.router.kept.counts(0), self.router.kept.counts(1)), ({"folded": 1}, {"folded": 1}))

    def test_what_too_few_replicas_have_is_later_for_all_and_nobody_waits_for_them_again(self) -> None:
        submitted = self.submit(self.one(0), self.one(1))
        self.router.is_lagging = True
        self.router.join()
        self.assertEqual((self.words(submitted), self.router.alone, self.ingest.postponed), (["later"] * 2, [], 2))

    def test_a_bucket_whose_cycle_fails_holds_up_no_others_for_a_while(self) -> None:
        self.submit(self.one(0), self.one(1))
        self.router.joint.pop()[1].errback(ValueError("a fault"))
        self.router.fail(ValueError("a fault"))
        self.router.commit()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        self.submit(self.one(0), self.one(1, 2), self.one(2))
        self.assertEqual((self.router.alone, self.router.joined), ([0], [[1, 2]]))
        self.router.join()
        self.router.commit()
        self.clock.advance(FAILED_SECONDS)
        self.submit(self.one(0, 2), self.one(1, 3))
        self.assertEqual(self.router.joined, [[0, 1]])

    def test_handlers_of_others_and_slots_of_a_cluster_are_in_none(self) -> None:
        lookup = Lookup({"Sum": Found(Sum(), "taba", True), "Words": Found(Words(), "plugin test", False)})
        self.ingest = Ingest(self.router, bench_of(lookup), self.clock, lambda: 1001.0, lambda: AGE)
        foreign = batch(1, 1, [column(tab_in(1, buckets=BUCKETS), "Words", ["x"])], bucket=1)
        self.submit(self.one(0), foreign, self.one(2), self.one(3))
        self.assertEqual((self.router.alone, self.router.joined), ([0, 1], [[2, 3]]))
        self.router.apart = {5}
        self.submit(self.one(5), self.one(6), self.one(7))
        self.assertEqual((self.router.alone[2:], self.router.joined[1:]), ([5], [[6, 7]]))

    def test_each_server_has_its_own(self) -> None:
        self.router.places = {bucket: "a" if bucket % 2 else "b" for bucket in range(BUCKETS)}
        self.submit(*(self.one(bucket) for bucket in range(6)))
        self.assertEqual(sorted(self.router.joined), [[0, 2, 4], [1, 3, 5]])

    def test_what_nobody_waits_for_any_more_is_not_begun_again(self) -> None:
        self.patch(module, "MAX_CYCLES", 1)
        submitted = self.submit(self.one(0), self.one(1), self.one(2))
        self.clock.advance(module.ENVELOPE_SECONDS)
        self.assertEqual(self.words(submitted), ["later"] * 3)
        self.router.join(0, 1, 2)
        self.assertEqual((self.router.alone, self.ingest._lines, self.ingest.waiting_bytes), ([], {}, 0))

    def test_a_server_that_stops_says_later_of_what_it_would_have_to_begin_again(self) -> None:
        submitted = self.submit(self.one(0), self.one(1))
        stopping = ensureDeferred(self.ingest.drain(5.0))
        self.router.join(0, 1)
        self.assertEqual((self.words(submitted), self.router.alone), (["later"] * 2, []))
        self.clock.advance(1.0)
        self.successResultOf(stopping)
