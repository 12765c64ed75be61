"""What waits to be folded: a line for each bucket, and a gate, at which lines are ready, for each server of the store."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from twisted.internet.defer import Deferred

from taba.batch import Verdict
from taba.bounds import MAX_CYCLE_BYTES, MAX_CYCLE_MADE, MAX_CYCLE_STATES
from taba.server.fold.cycle import WaitingBatch

PROBE_PAUSE_SECONDS = 0.5  # between probes of one server


class Gate:
    """One server of the store: the lines that are ready for a cycle there, and whether it takes writes."""

    def __init__(self, name: str):
        self.name = name
        self.ready: deque[Line] = deque()
        self.running = 0
        self.is_away = self.is_probing = False
        self.probed = -PROBE_PAUSE_SECONDS


class Line:
    """What waits for one bucket. Ready: has entries and stands at a gate for a cycle; busy: a cycle is under way."""

    __slots__ = ("bucket", "bytes", "entries", "is_alone", "is_busy", "is_ready")

    bucket: int

    def __init__(self) -> None:
        self.entries: deque[InLine] = deque()
        self.bytes = 0
        self.is_ready = self.is_busy = False
        self.is_alone = False  # the next cycle is of this bucket only


class Submission:
    """The verdicts of one submission, as they come in."""

    def __init__(self, batches: Sequence[WaitingBatch]):
        self.verdicts: list[Verdict | None] = [None] * len(batches)
        self.undecided = len(batches)
        self.abandoned = False  # nobody waits for the rest: what has not begun is not begun
        self.decided: Deferred[None] = Deferred()

    def give_up(self) -> None:
        if not self.decided.called:
            self.decided.callback(None)


class InLine(NamedTuple):
    """A batch in a line, what it counts as in a queue, and how many States it touches at the most: those that come twice count twice."""

    submission: Submission
    place: int
    waiting: WaitingBatch
    is_foreign: bool
    charged: int
    states: int

    def decide(self, verdict: Verdict) -> None:
        decide_all((self,), (verdict,))


class Taken(NamedTuple):
    """What of a line goes into a cycle."""

    line: Line
    entries: list[InLine]
    waiting: list[WaitingBatch]

    @property
    def is_foreign(self) -> bool:
        return any([entry.is_foreign for entry in self.entries])


class Load:
    """What a cycle has so far: at most MAX_CYCLE_BYTES, MAX_CYCLE_MADE and MAX_CYCLE_STATES, but always one batch."""

    def __init__(self) -> None:
        self.size = self.made = self.states = self.batches = 0

    def take(self, item: WaitingBatch, states: int) -> bool:
        """Whether there is room for `item`, which touches so many States that the cycle did not; then it is in it."""
        _, batch, size, _, _, _, _ = item
        size, made, states = self.size + size, self.made + batch.made_bytes, self.states + states
        if self.batches and (size > MAX_CYCLE_BYTES or made > MAX_CYCLE_MADE or states > MAX_CYCLE_STATES):
            return False
        self.size, self.made, self.states = size, made, states
        self.batches += 1
        return True


def decide_all(entries: Iterable[InLine], verdicts: Iterable[Verdict]) -> None:
    """`decide` for each."""
    for (submission, place, _, _, _, _), verdict in zip(entries, verdicts, strict=True):
        if submission.verdicts[place] is None:
            submission.verdicts[place] = verdict
            submission.undecided -= 1
            if not submission.undecided:
                submission.give_up()
