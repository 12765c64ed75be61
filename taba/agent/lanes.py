"""A lane: the batches of one stream and bucket, sent in order. Pure: verdicts in, what to send next out.

1. The first of `pending` are sent next, as one run in one envelope, and nothing else until all of it is answered. `follows` of the
   first is the number that the mark is believed to be, of each other the number before it: a Server folds a run in one cycle.
   Verdicts come in the run's order; the first that neither applies nor refuses ends it, and the rest is sent again.
2. A stream is opened in its bucket before its first batch is sent, and its batches carry the nonce that it was given; where the Server
   knows nothing of it, or another nonce, it is opened again: what the mark does not cover then is sent again. Once nothing of it is left,
   and nothing more will come, it is ended.
3. `applied` retains a batch until the mark, read 60 s later, still covers it; a `gap` brings back what is retained beyond the mark.
4. Whatever a lane gives up it says to its Ledger once, with the reason: the Ledger counts, and frees the bytes.

Where a batch's bytes are is the Ledger's business; a lane knows a HeldBatch for each. Times are the Agent's monotonic seconds,
except `created`, which is what age is told by.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from random import Random
from typing import NamedTuple, Protocol, cast

from taba.agent.ages import Moment
from taba.agent.outbox import StoredBatch
from taba.batch import APPLIED, END, ENDED, GAP, LATER, MARK, NUMBER, OPEN, REFUSED, Entry, Header, SentBatch, Verdict
from taba.bounds import BATCH_DAYS, DAY, MiB
from taba.errors import TabaError

RETAIN_SECONDS = 60.0  # longer than a store takes to fail over and to come back with an older past
PROBE_SLACK_SECONDS = 5.0  # a later batch's verdict usually tells the mark by then, without a probe
MAX_LATER_SECONDS = 30.0  # whatever a Server asks for
FIRST_BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 15.0
MAX_RUN_BATCHES = 16  # of one lane in one envelope; as many as it knows of the spool
MAX_RUN_BYTES = 1 * MiB  # together; one is always sent
HEADER_BYTES = 64  # what a header takes in an envelope, at the most
MAX_HISTORY = 256  # forgotten batches of a lane whose events it knows, should a gap lose them, …
MORE_HISTORY = 32  # … and so many more at times
UNREADABLE_SECONDS = 5.0  # between two tries to read a batch back: a disk that had a bad moment has others to serve
# why a batch is dropped whose bytes are not those that were written
IN_OUTBOX = "outbox_corrupt", "its bytes do not match their checksum, so something cut or wrote to the outbox's segment in shared memory"
IN_SPOOL = "spool_corrupt", "its row in the spool does not match its checksum"
MAX_MISSING = 65_536  # batches that a gap looks for; of those before, it counts that they are lost


class Unreadable(TabaError):
    """The bytes of a batch cannot be read now, by the disk's fault: they stay where they are, and may be read later."""


class Group:
    """A published group of the outbox, while it is not released, from `start` to `end` there.

    `held` are its batches in their order; None for one that is done with since before this Agent's start.
    """

    __slots__ = ("end", "held", "is_damaged", "released", "retained", "start", "unacknowledged", "unforgotten")

    def __init__(self, start: int, end: int):
        self.start = start
        self.end = end
        self.held: list[HeldBatch | None] = []
        self.unacknowledged = 0
        self.unforgotten = 0
        self.retained = 0  # bytes of its batches that are acknowledged and not forgotten
        self.released = False
        self.is_damaged = False  # something wrote over its index


class HeldBatch:
    """A batch as its lane knows it. `group` is None for one in the spool; `position` and `flag` are its places in the outbox, and `crc` is
    the checksum of its bytes there."""

    __slots__ = (
        "acknowledged",
        "crc",
        "created",
        "events",
        "flag",
        "group",
        "is_dropped",
        "is_pending",
        "key",
        "length",
        "number",
        "position",
    )

    def __init__(self, stored: StoredBatch, group: Group | None = None):
        (_, _, self.number), self.created, self.events, self.length, self.crc, self.position, self.flag, _, self.key = stored
        self.group = group
        self.is_pending = True  # neither acknowledged nor dropped
        self.is_dropped = False  # and counted
        self.acknowledged = 0.0

    @property
    def is_gone(self) -> bool:
        """Whether its bytes were given up while it was retained."""
        return self.group is not None and self.group.released


class Skip(NamedTuple):
    """What is lost once the batch `number` is applied: after the mark `follows` the store lost batches that are here no more.

    Without batches: what lies between was counted before.
    """

    follows: int
    number: int
    batches: int
    events: int


class Ledger(Protocol):
    """Who keeps the bytes and the counts. Every batch of a lane ends in exactly one of `forgotten` and `gave_up`, or is gone.

    What it is told it keeps, before anything else is sent, where a kill does not reach it. `read` gives None for bytes that are gone, or
    not what was written, and raises Unreadable where nobody knows.
    """

    def read(self, lane: Lane, batch: HeldBatch) -> bytes | None: ...
    def acknowledged(self, lane: Lane, batch: HeldBatch, now: float) -> None: ...
    def brought_back(self, lane: Lane, batch: HeldBatch) -> None: ...
    def forgotten(self, lane: Lane, batch: HeldBatch) -> None: ...
    def gave_up(self, lane: Lane, batch: HeldBatch, reason: str, detail: str, now: float) -> None: ...
    def opening(self, lane: Lane) -> None: ...
    def ending(self, lane: Lane) -> None: ...
    def ended(self, lane: Lane) -> None: ...
    def recall(self, lane: Lane, numbers: Sequence[int]) -> Mapping[int, int]: ...
    def skipping(self, lane: Lane, skip: Skip | None) -> None: ...
    def lost(self, lane: Lane, skip: Skip, now: float) -> None: ...
    def misses(self, lane: Lane) -> None: ...
    def settles_doubt(self, lane: Lane, mark: int) -> None: ...


class Outgoing(NamedTuple):
    """One thing that a lane sends. `batch` is None where it is a header."""

    lane: Lane
    batch: HeldBatch | None
    number: int
    follows: int
    entry: Entry

    @property
    def size(self) -> int:
        """The bytes that it takes in an envelope, about."""
        return HEADER_BYTES if isinstance(self.entry, Header) else len(self.entry.batch) + HEADER_BYTES


class Backoff:
    """Delays between tries: doubling, jittered by up to a half, capped."""

    def __init__(self, random: Random, first: float = FIRST_BACKOFF_SECONDS, most: float = MAX_BACKOFF_SECONDS):
        self._random, self._first, self._most = random, first, most

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row (1, 2, …)."""
        return min(self._most, self._first * 2.0 ** min(failures - 1, 16)) * (0.5 + self._random.random() / 2)


class Lane:
    """The batches of (stream, bucket). `sent` is the run under way, as far as it is not answered."""

    __slots__ = (
        "_history",
        "bucket",
        "doubt",
        "ending",
        "failures",
        "highest",
        "in_outbox",
        "is_unsure",
        "last",
        "ledger",
        "loaded",
        "more",
        "nonce",
        "not_before",
        "pending",
        "probing",
        "queued",
        "retained",
        "sent",
        "skip",
        "stream",
        "unproven",
    )

    def __init__(self, stream: bytes, bucket: int, ledger: Ledger, more: bool = False):
        self.stream, self.bucket, self.ledger = stream, bucket, ledger
        self.nonce: bytes | None = None  # under which the stream is open; None while it has to be opened
        self.ending = False  # nothing of it is left, and nothing more will come: it is to be ended
        self.is_unsure = False  # something was sent of which nobody knows whether it was applied
        self.last = 0  # what the mark is believed to be, once the stream is open
        self.pending: deque[HeldBatch] = deque()
        self.retained: deque[HeldBatch] = deque()
        self.sent: deque[Outgoing] = deque()
        self.not_before = 0.0
        self.failures = 0
        self.highest = 0  # the highest number that ever came in
        self.in_outbox = 0  # where the last group of the outbox ends that has, or had, a batch of it
        self.doubt: dict[int, int] = {}  # events of batches that the spool lost, by number: whether the store has them is asked first
        self.more = more  # the spool has, or may have, batches beyond `loaded`
        self.loaded = 0
        self.skip: Skip | None = None  # what the run under way leaves out
        self.unproven = 0  # of an earlier Agent's, the last number that was done with: whether the store has it is asked before the end
        self.probing = False
        self.queued = False  # the Schedule's: whether it stands in a queue
        # of the last batches that are known no more number and events, 0 where these were counted: one after the other, for of all lanes
        # together there are very many
        self._history: array[int] | None = None

    def add(self, batch: HeldBatch) -> bool:
        """Take a batch behind all others. False for one that was here before (a replayed request)."""
        if batch.number <= self.highest:
            return False
        self.highest, self.ending = batch.number, False
        self.pending.append(batch)
        return True

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left of this lane's batches."""
        return not (self.pending or self.retained or self.sent or self.more or self.doubt)

    @property
    def has_turn(self) -> bool:
        """Whether there is something to send, now or when `not_before` has come."""
        return bool(self.pending) or self.probing or self.ending or bool(self.doubt)

    def next(self, now: float, moment: Moment, most: int = 1) -> list[Outgoing]:
        """What to send now, at most so many batches; the lane is busy with them until they are answered.

        Batches that are too old, or cannot be read back, are dropped here.
        """
        if self.sent or now < self.not_before:
            return []
        self.probing = self.probing and bool(self.retained)
        if not self.has_turn:
            return []
        if self.doubt:
            self.nonce = None  # it is opened anew, whatever its Server knows of it: that tells the mark
        is_unproven = self.unproven > 0 and (self.nonce is None or self.unproven > self.last)
        if self.is_idle and not is_unproven:
            self.ledger.ending(self)
            self._send_header(END, 0)
        elif self.nonce is None or self.is_idle:
            self._open(self.retained[-1].number if self.retained else self.unproven)
        elif not self._drop_old(now, moment):
            self._open(self.pending[0].number)  # what is too old may be folded: then it was not dropped
        else:
            try:
                while self.pending and not (self.sent or self.doubt):  # a run of what follows would move the mark past the doubt
                    first = self.pending[0]
                    self._begin_run(most)
                    if not self.sent and self.pending and self.pending[0] is first:
                        if self.is_unsure:
                            self._open(first.number)  # a Server may have it, or have it in hand
                            break
                        self._settle(self.pending.popleft(), *(IN_SPOOL if first.group is None else IN_OUTBOX), now)
            except Unreadable:
                self.not_before = now + UNREADABLE_SECONDS  # what follows waits behind it, for the order's sake
            if self.probing and not self.sent:
                self._send_header(MARK, self.retained[-1].number)
        return list(self.sent)

    def awaits(self, send: Outgoing) -> bool:
        """Whether the next verdict is the one on `send`; it is not when an earlier verdict ended its run."""
        return bool(self.sent) and self.sent[0] is send

    def opened(self, nonce: bytes, mark: int, now: float) -> None:
        """The verdict on an `open`: the stream is open under `nonce`, and the store has all up to `mark`."""
        sent = self._answered()
        self.failures = 0
        self.nonce = nonce
        if self.doubt:
            self.ledger.settles_doubt(self, mark)
            if self.doubt:  # no more of it can be told for now
                self.nonce, self.not_before = None, now + UNREADABLE_SECONDS
        self._gap(mark, now, sent)
        if not (self.pending or self.more or self.doubt) and sent.number >= self.unproven:
            self.unproven = 0  # what the store does not have of it is counted

    def ended(self, now: float) -> None:
        """The verdict on an `end`: the Server knows the stream no more."""
        self._answered()
        self.failures = 0
        self.ending, self.nonce = False, None
        self.ledger.ended(self)

    def applied(self, mark: int, now: float) -> None:
        """The verdict on what was sent, or on the question for the mark: the store has all up to `mark`."""
        sent = self._answered()
        self.failures = 0
        if mark < sent.number:
            self._gap(mark, now, sent)  # the mark of a store that went back in time
            return
        if sent.batch is not None and (not self.pending or self.pending[0] is not sent.batch):
            return  # an earlier one of the run told of a mark beyond it
        self._cover(mark, now)

    def gap(self, mark: int, why: str, now: float, backoff: Backoff) -> None:
        """The verdict on what was sent: the store has all up to `mark`, and not what this batch follows; or the stream is not open so."""
        sent = self._answered()
        if why != NUMBER:
            self.sent.clear()
            self.nonce = None  # with what it has then, the open stream's mark is answered
            self._again(now, backoff)
            return
        if sent.follows == mark and sent.batch is not None:  # it was sent so: to send the same at once again would go on for ever
            self._again(now, backoff)
        self._gap(mark, now, sent)

    def later(self, seconds: float, now: float) -> None:
        """The verdict on what was sent: try again in so many seconds."""
        self.unanswered()
        self.failures = 0
        self.not_before = now + min(max(0.0, seconds), MAX_LATER_SECONDS) if seconds == seconds else now + MAX_LATER_SECONDS

    def refused(self, reason: str, now: float) -> None:
        """The verdict on what was sent: never send it again."""
        sent = self._answered()
        if sent.batch is None:
            self.sent.clear()
            self.not_before = now + MAX_LATER_SECONDS  # a header: it changes nothing
            return
        self.failures = 0
        if self.pending and self.pending[0] is sent.batch:
            self._settle(self.pending.popleft(), "refused", reason, now)

    def failed(self, now: float, backoff: Backoff) -> None:
        """No verdict came: whether the store has the batch, nobody knows. It is sent again, unchanged."""
        self.unanswered()
        self._again(now, backoff)

    def unanswered(self) -> None:
        """Nothing is known of what became of what `next` gave: it is sent again."""
        self.is_unsure = self.is_unsure or any(send.batch is not None for send in self.sent)
        self.sent.clear()

    def unsent(self) -> None:
        """What `next` gave was not sent after all."""
        self.sent.clear()

    def probe_due(self, now: float) -> float | None:
        """When a probe must read the mark, unless a later verdict did; None while nothing is retained. Asks for it when that is now."""
        self._let_go()
        if not self.retained:
            return None
        due = self.retained[0].acknowledged + RETAIN_SECONDS + PROBE_SLACK_SECONDS
        if due <= now:
            self.probing = True
        return due

    def lose(self, number: int, events: int) -> HeldBatch | Outgoing | None:
        """The batch of this number is in the spool no more: whether the store has it is asked before anything else is sent.

        Returns it where all the same it is kept: retained, or in the outbox. Where it is under way, all of it that goes is returned, and
        it waits on: the caller may bring it back. None where it is in doubt now, or was done with before.
        """
        batch = next((batch for batch in (*self.pending, *self.retained) if batch.number == number), None)
        if batch is None:
            if number > self.loaded:
                self.doubt[number] = events
            return None
        if batch.group is not None or not batch.is_pending:
            return batch
        send = next((send for send in self.sent if send.batch is batch), None)
        if send is not None:
            return send
        self.pending.remove(batch)
        batch.is_pending, batch.is_dropped = False, True
        self.doubt[number] = events
        return None

    def give_up_retained(self) -> None:
        """Forget all that is retained, before its time."""
        while self.retained:
            batch = self.retained.popleft()
            self._remember(batch)
            if not batch.is_gone:
                self.ledger.forgotten(self, batch)

    def give_up_through(self, last: HeldBatch) -> int:
        """Forget a retained batch before its time, and what is retained before it; how many these are. 0 where it is retained no more."""
        count = 0
        while self.retains(last):
            batch = self.retained.popleft()
            self._remember(batch)
            if not batch.is_gone:
                self.ledger.forgotten(self, batch)
                count += 1
        return count

    def retains(self, batch: HeldBatch) -> bool:
        """Whether a batch that was acknowledged is retained still: what is forgotten has lower numbers than what is not."""
        if batch.is_pending or batch.is_dropped or batch.is_gone:
            return False
        return bool(self.retained) and self.retained[0].number <= batch.number

    def moved_to_spool(self, keep: int) -> None:
        """All pending batches are in the spool now. Knows only the first `keep` of them further on."""
        self._let_go()
        while len(self.pending) > keep:
            self.pending.pop()
            self.more = True
        if self.pending:
            self.loaded = self.pending[-1].number

    def precede(self, batches: Iterable[HeldBatch]) -> None:
        """Take batches that come before all that are pending: a move to the spool was cut off behind them."""
        self.pending.extendleft(reversed(list(batches)))

    def load(self, batches: Iterable[HeldBatch], last: int, more: bool) -> None:
        """Take the next batches of this lane from the spool, which was looked through up to the number `last`."""
        for batch in batches:
            if batch.number > self.loaded:
                self._take(batch)
        self.loaded = max(self.loaded, last)
        self.more = more

    def _take(self, batch: HeldBatch) -> None:
        self.highest = max(self.highest, batch.number)
        self.ending = False
        self.pending.append(batch)

    def _send_header(self, what: str, number: int) -> None:
        nonce = self.nonce or b""  # a stream that is opened has none; the one that an earlier Agent left open is ended without
        # what opens it is told the last word on what was sent before: an earlier Agent's, or one that was not answered
        self.sent.append(Outgoing(self, None, number, 0, Header(what, self.stream, self.bucket, nonce, what == OPEN)))

    def _open(self, number: int) -> None:
        """Ask for the mark, of which an `open` alone tells the last word: what was sent before it is folded no more."""
        self.ledger.opening(self)
        self.nonce = None
        self._send_header(OPEN, number)

    def _drop_old(self, now: float, moment: Moment) -> bool:
        """Drop what is too old to be sent; False where the mark must be known first."""
        while self.pending and moment.since(self.pending[0].created) > BATCH_DAYS * DAY:
            if self.is_unsure:
                return False
            self._settle(self.pending.popleft(), "too_old", "", now)
        return True

    def _again(self, now: float, backoff: Backoff) -> None:
        self.failures += 1
        self.not_before = now + backoff.delay(self.failures)

    def _answered(self) -> Outgoing:
        if not self.sent:
            raise RuntimeError(f"a verdict for bucket {self.bucket}, which has nothing under way")
        return self.sent.popleft()

    def _gap(self, mark: int, now: float, sent: Outgoing) -> None:
        back = []
        self.sent.clear()
        while self.retained and self.retained[-1].number > mark:
            batch = self.retained.pop()
            if batch.is_gone:
                self._remember(batch)
            else:
                batch.is_pending = True
                self.ledger.brought_back(self, batch)
                back.append(batch)
        self.pending.extendleft(back)  # from the highest number to the lowest: they end in order
        self._cover(mark, now)
        self.probing = False
        first = self.pending[0].number if self.pending else self.loaded + 1 if self.more else sent.number + 1
        if first > mark + 1:
            self.ledger.misses(self)
        if not self.pending and not self.more and not self.doubt and sent.number > mark:  # a probe of what is here no more
            missing = self._between(mark, sent.number + 1)
            if missing.batches:
                self._lose(missing, now)
                # with the count it is kept that it was counted: another one may ask
                self.skip = Skip(mark, sent.number + 1, 0, 0)
                self.ledger.skipping(self, self.skip)

    def _cover(self, mark: int, now: float) -> None:
        """The store has all up to `mark`, as of now."""
        self.last = mark
        self.is_unsure = False
        if self.skip is not None and self.skip.number <= mark:
            self._lose(self.skip, now)
        while self.pending and self.pending[0].number <= mark:
            batch = self.pending.popleft()
            batch.acknowledged, batch.is_pending = now, False
            self.ledger.acknowledged(self, batch, now)
            self.retained.append(batch)
        while self.retained and (self.retained[0].is_gone or self.retained[0].acknowledged <= now - RETAIN_SECONDS):
            if self.retained[0].number > mark and not self.retained[0].is_gone:
                break
            batch = self.retained.popleft()
            self._remember(batch)
            if not batch.is_gone:
                self.ledger.forgotten(self, batch)
        self.probing = False

    def _begin_run(self, most: int) -> None:
        """Begin a run with the first of what is pending; nothing where that cannot be read."""
        number = self.pending[0].number
        follows = min(self.last, number - 1)
        self._leave_out(follows, number)
        room = MAX_RUN_BYTES
        for batch in tuple(islice(self.pending, most)):  # what is read may turn out to be lost, with others: see `lose`
            room -= batch.length
            if self.sent and room < 0:
                break
            try:
                content = self.ledger.read(self, batch)
            except Unreadable:
                if not self.sent:
                    raise
                content = None  # its turn comes
            if content is None or batch.is_dropped:
                break
            self.sent.append(Outgoing(self, batch, batch.number, follows, SentBatch(content, follows, self.nonce or b"", batch.key)))
            follows = batch.number

    def _leave_out(self, follows: int, number: int) -> None:
        """The run begins with `number`, and the mark is `follows`: what lies between is lost when that is applied."""
        missing = self._between(follows, number)
        was_counted = self.skip is not None and self.skip.follows == follows
        skip = missing if missing.batches or was_counted else None
        if skip != self.skip:
            self.skip = skip
            self.ledger.skipping(self, skip)

    def _between(self, follows: int, number: int) -> Skip:
        """What lies between is lost, but for what was counted."""
        before = self.skip if self.skip is not None and self.skip.follows == follows and self.skip.number <= number else None
        missing = self._missing(follows if before is None else before.number - 1, number)
        if before is None:
            return missing
        return Skip(
            follows, number, before.batches + missing.batches, before.events + missing.events
        )  # it knows what may be forgotten since

    def _let_go(self) -> None:
        """Know no more of retained batches whose bytes were given up."""
        while self.retained and self.retained[0].is_gone:
            self._remember(self.retained.popleft())

    def _settle(self, batch: HeldBatch, reason: str, detail: str, now: float) -> None:
        self._remember(batch, counted=True)
        batch.is_pending, batch.is_dropped = False, True
        self.ledger.gave_up(self, batch, reason, detail, now)

    def _remember(self, batch: HeldBatch, counted: bool = False) -> None:
        self._know(batch.number, 0 if counted else batch.events)

    def _know(self, number: int, events: int) -> None:
        history = self._history = array("Q") if self._history is None else self._history
        history.extend((number, events))
        if len(history) > 2 * (MAX_HISTORY + MORE_HISTORY):
            del history[: 2 * MORE_HISTORY]

    def _known(self) -> dict[int, int]:
        """What is remembered: of a batch that stands there twice the last word."""
        history = self._history or ()
        return dict(zip(history[::2], history[1::2], strict=True))

    def _missing(self, follows: int, number: int) -> Skip:
        """What lies between is in no store: neither applied nor here. Batches that nobody recalls count 0 events each."""
        numbers = range(max(follows + 1, number - MAX_MISSING), number)
        history = self._known()
        unknown = [lost for lost in numbers if lost not in history]
        if unknown:
            history = {**self.ledger.recall(self, unknown), **history}
        missing = [lost for lost in numbers if history.get(lost) != 0]
        batches = len(missing) + max(0, number - MAX_MISSING - follows - 1)
        return Skip(follows, number, batches, sum(history.get(lost, 0) for lost in missing))

    def _lose(self, skip: Skip, now: float) -> None:
        self.skip = None
        for number in range(max(skip.follows + 1, skip.number - MAX_HISTORY), skip.number):
            self._know(number, 0)  # counted: once
        if skip.batches:
            self.ledger.lost(self, skip, now)
        else:
            self.ledger.skipping(self, None)


def obey(send: Outgoing, verdict: Verdict, now: float, backoff: Backoff) -> None:
    """Have the lane of `send` know the verdict on it."""
    lane = send.lane
    word, detail, why = verdict
    if word == LATER:
        lane.later(float(detail), now)
    elif word == REFUSED:
        lane.refused(str(detail), now)
    elif word not in _ANSWERS[send.entry.do if isinstance(send.entry, Header) else ""]:
        lane.failed(now, backoff)  # nonsense: nothing is known of what became of it
    elif word == GAP:
        lane.gap(int(detail), str(why), now, backoff)
    elif word == OPEN:
        lane.opened(cast(bytes, detail), int(why), now)
    elif word == ENDED:
        lane.ended(now)
    else:
        lane.applied(int(detail), now)


_ANSWERS = {"": (APPLIED, GAP), OPEN: (OPEN,), MARK: (MARK, GAP), END: (ENDED,)}  # besides `later` and `refused`
