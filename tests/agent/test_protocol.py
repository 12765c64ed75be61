"""A lane against the marks of a Server, over a network that loses, repeats and delays, a store that goes back in time, and restarts.

No I/O: what an Agent decides (`taba.agent.lanes`) meets what a Server decides (`taba.server.fold.marks`).
"""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.lanes import MAX_BACKOFF_SECONDS, RETAIN_SECONDS, Backoff, HeldBatch, Lane, Outgoing, obey
from taba.agent.outbox import StoredBatch
from taba.batch import NONCE_BYTES, BatchId, Header, Verdict
from taba.server.fold.marks import Marks
from tests.agent.moments import at
from tests.agent.test_lanes import Recorder
from tests.examples import examples

STREAM = b"s" * 16
NOW = at(0.0)


class Store:
    """The mark of one stream, as a Server's own Marks decide it, and the numbers of what was folded.

    `past` is what both were after each change: a store that goes back in time by any number of them, no real one can be had to do.
    """

    def __init__(self) -> None:
        self.kept: bytes | None = None
        self.folded: list[int] = []
        self.past: list[tuple[bytes | None, list[int]]] = [(None, [])]
        self.opens = 0

    def decide(self, send: Outgoing) -> Verdict:
        marks = Marks({STREAM: self.kept}, 100, 1)
        if isinstance(send.entry, Header):
            self.opens += 1
            verdict, is_new = marks.do(send.entry, self.opens.to_bytes(NONCE_BYTES, "big")), False
        else:
            verdict, is_new = marks.fold(STREAM, send.number, send.entry.follows, send.entry.nonce)
        self.kept = marks.written().get(STREAM, None if marks.removed() else self.kept)
        if is_new:
            self.folded.append(send.number)
        self.past.append((self.kept, list(self.folded)))
        return verdict

    def go_back(self, changes: int) -> None:
        self.kept, folded = self.past[max(0, len(self.past) - 1 - changes)]
        self.folded = list(folded)


class World:
    """An Agent's lane that forgets nothing yet, and what is on its way."""

    def __init__(self) -> None:
        self.store = Store()
        self.now = 0.0
        self.backoff = Backoff(Random(1))
        self.batches: list[int] = []
        self.sent: list[list[Outgoing]] = []
        self.start()

    def start(self) -> None:
        """An Agent starts on what an earlier one left."""
        self.lane = Lane(STREAM, 1, Recorder())
        for number in self.batches:
            self._add(number)

    def _add(self, number: int) -> None:
        self.lane.add(HeldBatch(StoredBatch(BatchId(STREAM, 1, number), NOW, 1, 100, 0, 0)))

    def record(self) -> None:
        self.batches.append(len(self.batches) + 1)
        self._add(self.batches[-1])

    def send(self) -> list[Outgoing]:
        self.now = max(self.now, self.lane.not_before)
        run = self.lane.next(self.now, NOW, 3)
        if run:
            self.sent.append(run)
        return run

    def deliver(self, run: list[Outgoing]) -> list[Verdict]:
        return [self.store.decide(send) for send in run]

    def answer(self, run: list[Outgoing], verdicts: list[Verdict]) -> None:
        for send, verdict in zip(run, verdicts, strict=True):
            if self.lane is send.lane and self.lane.awaits(send):
                obey(send, verdict, self.now, self.backoff)

    def check(self) -> None:
        assert self.store.folded == sorted(set(self.store.folded)), self.store.folded


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["record", "record", "good", "good", "good", "lost", "unanswered", "late", "late", "back", "restart", "probe"]),
        st.integers(0, 30),
    ),
    max_size=60,
)


class ProtocolTests(SynchronousTestCase):
    @given(STEPS)
    @examples(400)
    def test_every_batch_is_folded_once_whatever_comes_late_again_or_never(self, steps: list[tuple[str, int]]) -> None:
        world = World()
        for step, number in steps:
            if step == "record":
                world.record()
            elif step == "restart":
                world.start()
            elif step == "back":
                world.store.go_back(number % 6)
            elif step == "probe":
                world.lane.probing = True
            elif step == "late":
                if world.sent:
                    run = world.sent[number % len(world.sent)]
                    world.deliver(run)  # its answer goes to nobody
            else:
                run = world.send()
                if step == "good":
                    world.answer(run, world.deliver(run))
                elif run:
                    if step == "unanswered":
                        world.deliver(run)
                    world.lane.failed(world.now, world.backoff)
            world.check()
        for _ in range(6 * len(world.batches) + 12):
            world.lane.probing = not world.lane.pending
            run = world.send()
            world.answer(run, world.deliver(run))
            world.check()
        self.assertEqual(world.store.folded, world.batches)
        self._end(world)

    def _end(self, world: World) -> None:
        """Nothing more comes: the stream is ended, and whatever of it comes late afterwards folds nothing."""
        lane = world.lane
        for _ in range(4):
            world.now += 2 * RETAIN_SECONDS + MAX_BACKOFF_SECONDS
            lane.probe_due(world.now)
            lane.ending = lane.is_idle
            run = world.send()
            world.answer(run, world.deliver(run))
        self.assertTrue(lane.is_idle)
        self.assertIsNone(world.store.kept)
        batches = [[send for send in run if not isinstance(send.entry, Header)] for run in world.sent]
        for run in batches + world.sent:  # first no late open comes before them
            world.deliver(run)
            self.assertEqual(world.store.folded, world.batches)
