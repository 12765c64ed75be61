"""From rings into the outbox: when to look, what to drain, which rings to retire. No reactor; the service calls `tick`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import TypeAlias, cast

from taba.agent.ages import Moment
from taba.agent.discover import MAX_LOOKED_AT, Rings, is_dead
from taba.agent.drain import MAX_DRAIN_EVENTS, Drain, Drained
from taba.agent.edge import Edge
from taba.agent.encoding import SectionsByBucket, WritingRoom, encode
from taba.agent.fairness import Drops, Reserve
from taba.agent.keeper import Keeper
from taba.agent.looks import Looks
from taba.agent.meanings import Meanings, Telling
from taba.agent.outbox import Covered, EncodedBatch, TableFull, group_bytes
from taba.agent.reader import Reading, Ring
from taba.agent.register import ENDED, GONE, Register
from taba.agent.rounds import Rounds
from taba.agent.scratch import Scratch
from taba.agent.spool import SpoolFull
from taba.agent.sums import Pending, Sums
from taba.agent.tallies import Sorted, Tallies, Tally
from taba.batch import RING_ENDED, RING_GONE
from taba.ring import MalformedRing
from taba.versions import Edges

SCAN_SECONDS = 1.0  # a dead client's ring is gone within three
TICK_SECONDS = 0.05  # a look at each ring's fill; one that is a quarter full, of records or of bytes, is drained at once
FULL_TICK_SECONDS = 0.01  # while rings fill
NEAR_EVENTS = 32_768  # of rings that are nearly full, drained alone where drains cannot take all, of those who have fewest …
HURRIED_EVENTS = 131_072  # … between drains of so many: they come again before others' rings are full, too
MAX_AHEAD_SECONDS = 1.0  # that the pace looks ahead, however late the loop is
FEWEST_EVENTS = 2  # one drain's, when an outbox is so small: two of the longest values fit the smallest group
RETIRED_NAMES = 32_768  # of rings that one turn lets go of, but always one
MAX_DEATHS = 10_000  # rings whose process's death waits to be told

_Publishing: TypeAlias = Generator[None, None, bool]
_Encoded: TypeAlias = tuple[list[EncodedBatch], list[Telling]]


class _UnderWay:
    """A drain that goes on turn by turn: of these rings, of which each may be dead. `steps` reads, and what `publish` gives publishes.

    `now` and `moment` are this turn's.
    """

    now: float
    moment: Moment

    def __init__(
        self,
        drain: Drain,
        pairs: list[tuple[Ring, bool]],
        steps: Generator[None, None, Drained],
        publish: Callable[[_UnderWay, Drained], _Publishing],
    ):
        self.drain, self.pairs, self.steps = drain, pairs, steps
        self.is_long = False  # it took more than one turn
        self._publish = publish
        self._all = self._in_steps()

    def step(self, now: float, moment: Moment) -> bool | None:
        """Go on for a turn; returns whether there is more at once, once all is published."""
        self.now, self.moment = now, moment
        try:
            next(self._all)
        except StopIteration as done:
            return cast(bool, done.value)
        self.is_long = True
        return None

    def _in_steps(self) -> _Publishing:
        drained = yield from self.steps
        return (yield from self._publish(self, drained))


class RingPump:
    """Drains the Agent's rings into the keeper. Nothing is drained until `set_buckets`. `began`: when the Agent did, in Unix seconds;
    `edge` folds what goes as States."""

    def __init__(self, keeper: Keeper, rings: Rings, register: Register, began: float = 0.0, edge: Edge | None = None):
        self.keeper, self.rings = keeper, rings
        self.edge = edge or Edge({})
        self.sums = Sums(keeper, register)
        self.meanings = Meanings()
        self.tallies = Tallies(began)
        self._drain: Drain | None = None
        self._under_way: _UnderWay | None = None
        self._to_tally: list[Sorted | Tally] = []  # of the last drain, where that went in turns
        self._dead: set[str] = set()
        self._unremoved: dict[str, bytes] = {}  # rings that are retired and were not to be removed: names and keys
        self._is_ending = False  # the last drain read a ring whose process died: the next one gives it back
        self._next_scan = self._last_drain = 0.0
        self._is_handing_over = False
        self.scans = 0  # looks for rings so far
        self.deaths: dict[bytes, str] = {}  # rings whose process was found dead, and their clients; whoever tells of them clears it
        self._drops: dict[str, Counter[str]] = {}  # of the last look, by client, where there were any
        self.drops = Drops()
        self.rounds = Rounds()
        self._reserve = Reserve()
        self.had_no_place = False  # as of that look: some process found not even a place to count its drops in
        self._behind: list[Ring] = []  # rings of which the last drain could not read all names
        self._is_hot = False  # a ring filled before its time: the next look comes sooner
        self._last_look = 0.0
        self._was_hurried = False  # the last drain was of rings that are nearly full alone
        self._scratch, self._room = Scratch(), WritingRoom()
        self.looks = Looks(self._scratch)
        self._events = MAX_DRAIN_EVENTS
        # ranges of rings that are not open: an earlier Agent's, or of rings that turned out to be none. Should they be read again …
        self._orphans: list[Covered] = list(keeper.books.covered)

    @property
    def buckets(self) -> int | None:
        return self._drain.buckets if self._drain is not None else None

    def set_buckets(self, buckets: int, moment: Moment) -> None:
        """The store has so many buckets. Where that changed, fresh events go into a new stream."""
        if self._drain is None or self._drain.buckets != buckets:
            if self._drain is not None:
                self.keeper.begin_stream(moment)
            self.give_up_drain()
            self._drain = Drain(buckets, self.edge)
            self.sums.take_up(self._drain)

    def allow(self, edges: Edges, moment: Moment) -> None:
        """All Servers merge States of these Types and versions. Where that is less than before, fresh events go into a new stream: States
        that are on their way hold up what follows them alone."""
        before = self.edge.allowed
        self.edge.allow(edges)
        if before != self.edge.allowed:
            self.give_up_drain()
        if not set(before) <= set(self.edge.allowed):
            self.keeper.begin_stream(moment)

    def tick(self, now: float, moment: Moment) -> float:
        """Do what is due; returns the seconds until the next tick."""
        self.rings.admission.tick(now)
        self.tallies.move_some()
        died = len(self._dead)
        if self._under_way is None and (now >= self._next_scan or self.rings.has_changed(now)):
            self._scan(now)  # whose process died is looked at whenever one came, so that many short lives find room
            if now >= self._next_scan:
                self._next_scan = now + SCAN_SECONDS
                self._heal(now, moment)
        if self._drain is None or not self.rings.open:
            return TICK_SECONDS
        if self._under_way is not None:
            return self._go_on(now, moment)
        if self._to_tally:
            self._tally()
            return 0.0
        # whose process died is read at once, so that its place is given back
        is_urgent = len(self._dead) > died or self._is_ending
        rounds = self.rounds
        if rounds.is_between and (is_urgent or not rounds.is_of(self.rings.open)):
            self._end_round()
            is_urgent = True
        parts = rounds.parts_of_next(self.looks.has_records, len(self.rings.open))
        # a batch costs a Server about the same whatever is in it: when they lag, what waits is drained together
        is_busy = self.keeper.are_busy(parts)
        is_filling = self._is_filling(now, 2 if is_busy else 4) or is_urgent
        if not is_filling and now < self._last_drain + rounds.wait(parts, self.looks.has_records, is_busy):
            if self._read_ahead():
                return 0.0
            return FULL_TICK_SECONDS if self._is_hot else TICK_SECONDS
        self._last_drain, self._is_hot = now, is_filling
        rounds.begin(1 if is_urgent else parts, self.rings.open)
        self._under_way = self._begin(self._drain, is_fresh=True, parts=rounds.parts)
        return self._go_on(now, moment)

    def _end_round(self) -> None:
        """The next drain is of all rings, also where some had their part of a round and others had not."""
        assert self._drain is not None
        self._drain.begin_anew()
        self.rounds.give_up()

    def _go_on(self, now: float, moment: Moment) -> float:
        """Drain for a turn; returns the seconds until the next tick."""
        under_way, self._under_way = self._under_way, None
        assert under_way is not None
        is_cut = under_way.step(now, moment)
        if is_cut is None:
            self._under_way = under_way
            return 0.0
        is_filling = self._is_hot
        self._behind = [ring for ring in self.rings.open.values() if ring.names.is_behind]
        if is_cut and not self._behind:
            self._last_drain = 0.0  # there is more, now; but names are read first, which takes less than as many drains
        return 0.0 if is_cut or self._behind else FULL_TICK_SECONDS if is_filling else TICK_SECONDS

    def _read_ahead(self) -> bool:
        """Read new names for a turn, where the last drain found rings of which there are more than it may read. Returns whether it did."""
        drain = self._drain
        # only those that are open: another ring may have the name of one that is closed by now, and its descriptor
        behind = [ring for ring in self._behind if ring.names.is_behind and self.rings.open.get(ring.name) is ring]
        if not behind or drain is None:
            return False
        for ring, reason in drain.read_ahead(behind):
            self._isolate(ring, reason)
        if not any(ring.names.is_behind for ring in behind):
            self._behind, self._last_drain = [], 0.0  # what waited for them goes now
        return True

    def drain_now(self, now: float, moment: Moment) -> bool:
        """Look for rings and drain them, whatever the pace. Returns whether there is more at once."""
        self._scan(now, at_once=True)
        self._last_drain = now
        return self.drain(now, moment) or self.rings.has_more

    def drain(self, now: float, moment: Moment) -> bool:
        """Read the rings, publish, move tails, retire what is dead and drained. Returns whether there is more at once."""
        self.give_up_drain()
        if self._drain is None:
            return False
        if self.rounds.is_between:
            self._end_round()
        under_way = self._begin(self._drain)
        while (is_cut := under_way.step(now, moment)) is None:
            pass
        return is_cut

    def _tally(self) -> None:
        """Sum up what the last drain gave, while that holds."""
        drained, self._to_tally = self._to_tally, []
        self.tallies.add(drained)

    def give_up_drain(self) -> None:
        """What a drain that is under way has read so far does not count: it is read again. For whoever changes what a drain is made of, or
        closes a ring."""
        if self._under_way is not None:
            self._under_way.drain.begin_anew()
            self.rounds.give_up()
        self._under_way = None

    def _begin(self, drain: Drain, pairs: list[tuple[Ring, bool]] | None = None, is_fresh: bool = False, parts: int = 1) -> _UnderWay:
        """Have a drain under way, of these rings, or of all. `is_fresh`: the last look was just now. `parts`: of as many it is one."""
        if pairs is None:
            # whether a ring is dead was seen before it is read: what its process wrote is all there
            pairs = [(ring, name in self._dead) for name, ring in self.rings.open.items()]
        if self._to_tally:
            self._tally()
        self.meanings.begin(self.keeper.stream, self.rings.open.values())
        spent = self._reserve.spent(self.keeper.rest, {ring.client for ring, _ in pairs})
        events, waiting, first = self._events, self.looks.waiting, frozenset[Ring]()
        if self._was_hurried:
            events = min(events, HURRIED_EVENTS)
        elif self.rounds.is_cut:
            first = self.looks.near(NEAR_EVENTS)
        self._was_hurried = bool(first)  # others have the next drain
        most_rings = -(-len(pairs) // parts) if parts > 1 else 0
        steps = drain.steps(pairs, events, waiting, spent, self.keeper.batch_bytes, first, is_fresh, most_rings)
        return _UnderWay(drain, pairs, steps, self._publish_drained)

    def _publish_drained(self, under_way: _UnderWay, drained: Drained) -> _Publishing:
        """Publish what was read, and go on as `drain` does; in turns, where there is no room yet or it is read anew."""
        try:
            while not (yield from self._publish_or_not(under_way, drained)):
                under_way.drain.begin_anew()  # nothing was settled
                drained = yield from self._begin(under_way.drain, under_way.pairs).steps
        except TableFull:
            worst = max(self.rings.open.values(), key=lambda ring: len(ring.covered))
            self._isolate(worst, f"{len(worst.covered)} holes: the outbox's table cannot name them all")
            under_way.drain.begin_anew()
            return True
        if self._events < MAX_DRAIN_EVENTS:
            self._events = min(MAX_DRAIN_EVENTS, self._events * 2)
        self.rounds.ended(drained.is_cut, drained.may_wait)
        self._is_ending = any(ring.name in self._dead for ring, _ in drained.readings)
        dead = dict(under_way.pairs)
        if under_way.is_long and any(map(dead.get, drained.empty)):
            yield  # who gives it up has them found empty by the next drain again
        self._retire(dead, drained, under_way.now, under_way.moment)
        return drained.is_cut and not drained.may_wait

    def _publish_or_not(self, under_way: _UnderWay, drained: Drained) -> _Publishing:
        """Publish what was read, once there is room. Returns False where it must be read anew: a ring turned out to be none, or it is too
        much for the outbox. Raises TableFull."""
        sums = self._owed(under_way, drained)
        if sums is None:
            return False
        if not drained.readings and not sums.changes:
            return True
        ready = yield from self._encode_with_room(under_way, drained, sums)
        if ready is None:
            self._events = max(FEWEST_EVENTS, self._events // 4)  # read less
            return False
        return self._publish(under_way, drained, sums, *ready)

    def _owed(self, under_way: _UnderWay, drained: Drained) -> Pending | None:
        """What counters of these rings have come to beside what was read; None where a ring turned out to be none."""
        for ring, reason in drained.broken:
            self._isolate(ring, reason)
        under_way.pairs = self._still_open(under_way.pairs)
        open_rings = [ring for ring, _ in under_way.pairs]
        sums, broken = self.sums.pending(under_way.drain, open_rings, dict(drained.readings), drained.added, drained.packed)
        for ring, reason in broken:
            self._isolate(ring, reason)
        under_way.pairs = self._still_open(under_way.pairs)
        return None if broken else sums

    def _still_open(self, pairs: list[tuple[Ring, bool]]) -> list[tuple[Ring, bool]]:
        return [(ring, dead) for ring, dead in pairs if ring.name in self.rings.open]

    def _encode_with_room(self, under_way: _UnderWay, drained: Drained, sums: Pending) -> Generator[None, None, _Encoded | None]:
        """The batches of this, in the turn in which there is room for them in the outbox; None where there never is."""
        keeper = self.keeper
        while True:
            self.meanings.begin(keeper.stream, self.rings.open.values())  # a stream may have begun since it was read
            batches, told = self._encode(drained, sums, under_way.moment)
            needed = group_bytes(batches)
            if needed > keeper.group_bytes and self._events > FEWEST_EVENTS:
                return None
            if keeper.is_ready(needed + keeper.spare_bytes, under_way.now, under_way.moment):
                return batches, told
            yield
            while not keeper.is_ready(needed + keeper.spare_bytes, under_way.now, under_way.moment):
                yield
            # numbers, stream and time are others by now

    def _publish(self, under_way: _UnderWay, drained: Drained, sums: Pending, batches: list[EncodedBatch], told: list[Telling]) -> bool:
        """Publish these batches of what was read, or count their events as dropped where nothing takes them; then move the tails. False,
        having changed nothing, where another stream began meanwhile that cannot be named: what heals waits then."""
        keeper, now, moment = self.keeper, under_way.now, under_way.moment
        columns = sum([section.columns for its in drained.packed.values() for section in its])
        found = drained.found + sums.events - sum(added.events for added in drained.added)  # with those that were owed
        held_back = drained.held_back.total()
        counts = {"malformed": drained.malformed, "too_many_tabs": drained.refused}
        stream = keeper.stream
        is_taken = keeper.make_room(batches, now, moment)
        why = keeper.why_full
        counts[why] = held_back if is_taken else held_back + sum(batch.events for batch in batches)
        dropped = Counter({reason: events for reason, events in counts.items() if events})
        if not is_taken:
            batches = []
        elif keeper.stream != stream:  # all before moves to the spool
            self.meanings.begin(keeper.stream, self.rings.open.values())
            batches, told = self._encode(drained, sums, moment)
        if not self.sums.may_go(sums, batches):  # only now it is certain which stream they are of
            return False
        covered = (*self._covered(drained.readings), *self.sums.covered(self.rings.open.values(), sums))
        try:
            try:
                keeper.publish(batches, now, covered, found, dropped)
            except SpoolFull:  # the disk is full before the spool's bound is reached
                why = keeper.why_full
                dropped[why] += sum(batch.events for batch in batches)
                batches, is_taken = [], False
                keeper.publish((), now, covered, found, dropped)
        except Exception:
            if covered and keeper.books.covered is covered:  # it was published, and what failed came after that
                self._settle_all(drained, sums, bool(batches))
            raise
        # before anything else, which may fail where there is no memory: what is published and not settled would be read once more
        self._settle_all(drained, sums, bool(batches))
        self._tell_clients(drained, sums, is_taken, why)
        self.sums.spares(drained.malformed + drained.refused + held_back)
        if batches:
            self.rounds.published(len(batches), columns, found)
            self.meanings.published(told)
            self.edge.published()
        self._to_tally = drained.tallies  # no promise rests on these: nothing of what was published waits for them
        if not under_way.is_long:
            self._tally()
        return True

    def _settle_all(self, drained: Drained, sums: Pending, is_sent: bool) -> None:
        self.sums.published(sums, is_sent)
        for ring, reading in drained.readings:  # the tails move only now: until here a kill loses nothing
            self._settle(ring, reading)

    def _encode(self, drained: Drained, sums: Pending, moment: Moment) -> _Encoded:
        """The batches of what was read, as the keeper's numbers are now, and what they tell of Tabs. They hold until the next."""
        keeper = self.keeper
        meanings, told = self.meanings.pending(drained.tellings)
        most, weights = keeper.batch_bytes, sums.weights
        batches = encode(drained.packed, keeper.stream, keeper.numbers, moment, most, weights, meanings, keeper.version, room=self._room)
        return batches, told

    def _tell_clients(self, drained: Drained, sums: Pending, is_taken: bool, why: str) -> None:
        """Whose events were dropped by this drain, as `why` where it had no room for them, and who took how much of what is left."""
        for client, lost in drained.lost.items():
            self.drops.count(client, lost)
        for client, events in drained.held_back.items():
            self.drops.count(client, {why: events})
        for client, length in drained.taken.items():
            self._reserve.use(client, length)
        if not is_taken:
            batched: Counter[str] = Counter()  # as the total counts them: what was read, without what is counted above, and what was owed
            for ring, reading in drained.readings:
                batched[ring.client] += len(reading.tabs) + reading.malformed + reading.refused
            for added in drained.added:
                batched[added.ring.client] -= added.events  # the changes have them
            for change in sums.changes:
                batched[change.ring.client] += change.events
            for client, counted in drained.lost.items():
                batched[client] -= sum(counted.values())
            batched.subtract(drained.held_back)
            for client, left in batched.items():
                self.drops.count(client, {why: left})

    def living(self) -> set[str]:
        """The clients that have an open ring whose process lives, as of the last look. Pages to count in are nobody's: many share one; and
        who is one of too many is not told of one by one."""
        return {ring.client for ring in self.told_rings() if not self.is_dead(ring)}

    def told_rings(self) -> list[Ring]:
        """The open rings of whose processes is told."""
        return [ring for ring in self.rings.open.values() if ring.where.records and ring.names.client == ring.client]

    def is_dead(self, ring: Ring) -> bool:
        """Whether the process of this open ring was dead at the last look."""
        return ring.name in self._dead

    def bucket_of(self, tab: str) -> int:
        """The bucket of a Tab; only once `buckets` is known."""
        assert self._drain is not None
        return self._drain.bucket(tab)

    def hand_over(self) -> bool:
        """Leave the rings to another Agent, and look for no others; True once none is left.

        A ring stays while records behind a hole were read: another one would read them again.
        """
        self._is_handing_over = True
        self.give_up_drain()
        for ring in [ring for ring in self.rings.open.values() if not ring.covered]:
            self.rings.release(ring)
            self._dead.discard(ring.name)
        return not self.rings.open

    def worst(self, reason: str) -> tuple[str, int]:
        """The client that dropped most for this reason since this Agent began, as of the last look, and how many; "" where nobody knows."""
        return self.drops.most(reason, self._drops)

    def dropped_by(self, client: str) -> int:
        """How many events of this client were dropped since this Agent began, and before by processes that live, as of the last look."""
        return self.drops.total(client, self._drops)

    def drops_by_client(self) -> dict[str, dict[str, int]]:
        """Of the Clients that dropped most since this Agent began, how many by reason, as of the last look."""
        return self.drops.worst(self._drops)

    def live_drops(self) -> Counter[str]:
        """Events that the clients of open rings dropped, by reason."""
        drops: Counter[str] = Counter()
        self._drops, self.had_no_place = {}, False
        for ring in list(self.rings.open.values()):
            try:
                own = ring.drops()
                self.had_no_place = self.had_no_place or ring.had_no_place()
            except (MalformedRing, OSError) as error:
                self._isolate(ring, str(error))
            else:
                drops.update(own)
                if own and ring.where.records:  # else they are of many clients
                    self._drops.setdefault(ring.client, Counter()).update(own)
        return drops

    def _scan(self, now: float, at_once: bool = False) -> None:
        """Look for new rings, and for dead ones."""
        self.scans += 1
        self.tallies.keep(self.rings.open.values())
        if not self._is_handing_over:
            self.rings.scan(self._orphans, now, at_once)
        if self._orphans:
            known = {ring.key for ring in self.rings.open.values()}
            # while a ring cannot be opened, any range may be its own
            self._orphans = [found for found in self._orphans if found.ring not in known] if self.rings.has_unread else []
        for name, ring in list(self.rings.open.items()):
            if ring.key in self.keeper.books.retired:  # a kill came between its last publish and its removal
                self._remove(ring)
            elif name not in self._dead and is_dead(ring):
                self._dead.add(name)
                is_told = ring.where.records and ring.names.client == ring.client
                if is_told and len(self.deaths) < MAX_DEATHS:  # beyond: what was said of them runs out by itself
                    self.deaths[ring.header.ring_id] = ring.client
        self._forget_retired()

    def _forget_retired(self) -> None:
        """Retired rings that somebody else has removed by now are named no more, or tables would grow with each; a part of them in turn."""
        retired = self.keeper.books.retired
        for name in list(islice(self._unremoved, MAX_LOOKED_AT)):
            key = self._unremoved.pop(name)
            if self.rings.is_there(name):
                self._unremoved[name] = key  # at the end
            else:
                retired.discard(key)
        if retired and not self.rings.has_unread:  # an earlier Agent's
            retired.intersection_update([*self._unremoved.values(), *(ring.key for ring in self.rings.open.values())])

    def _is_filling(self, now: float, part: int) -> bool:
        """Whether of any ring one of `part` parts is full, of records or of bytes, or it might overflow before the next look."""
        elapsed, self._last_look = now - self._last_look, now
        ahead = min(max(elapsed, TICK_SECONDS), MAX_AHEAD_SECONDS)  # a loop that was late may be so again
        for ring, reason in self.looks.look(list(self.rings.open.values()), part):
            self._isolate(ring, reason)
        return self.looks.is_filling(part, ahead / elapsed if elapsed > 0 else 0.0)

    def _isolate(self, ring: Ring, reason: str) -> None:
        self.give_up_drain()
        self._orphans += ring.covered
        self.rings.isolate(ring, reason)

    def _covered(self, readings: list[tuple[Ring, Reading]]) -> Iterator[Covered]:
        yield from self._orphans
        for ring in self.rings.open.values():
            yield from ring.covered
        for _, reading in readings:
            yield from reading.ranges

    def _settle(self, ring: Ring, reading: Reading) -> None:
        try:
            ring.settle(reading)
        except OSError as error:
            self._isolate(ring, str(error))

    def _heal(self, now: float, moment: Moment) -> None:
        """Send the ends of sums whose rings are gone, and that nothing older of them can arrive any more."""
        drain = self._drain
        if drain is None or self._is_handing_over:
            return
        lost, gone = self.sums.overdue(drain, self.rings.open.values(), self.rings.directory, now)
        for word, position, entries in ((ENDED, RING_ENDED, lost), (GONE, RING_GONE, gone)):
            packed: SectionsByBucket = defaultdict(list)
            weights: dict[int, int] = {}
            self.sums.pack(drain, packed, weights, entries, position)
            if entries and self.publish(packed, weights, now, moment):
                self.sums.told(word, entries)
        self.sums.forget(drain, now)

    def publish(self, packed: SectionsByBucket, weights: dict[int, int], now: float, moment: Moment) -> bool:
        """Publish what no ring holds; False where there is no room."""
        keeper = self.keeper
        batches = encode(packed, keeper.stream, keeper.numbers, moment, keeper.batch_bytes, weights, version=keeper.version)
        stream = keeper.stream
        if not keeper.is_ready(group_bytes(batches), now, moment) or not keeper.make_room(batches, now, moment):
            return False
        if keeper.stream != stream:
            batches = encode(packed, keeper.stream, keeper.numbers, moment, keeper.batch_bytes, weights, version=keeper.version)
        self.sums.sending(batches)
        try:
            keeper.publish(batches, now)
        except (TableFull, SpoolFull):
            return False
        return True

    def _retire(self, dead: dict[Ring, bool], drained: Drained, now: float, moment: Moment) -> None:
        drain = self._drain
        assert drain is not None
        names = 0
        for ring in drained.empty:
            if not dead.get(ring) or ring.name not in self.rings.open:
                continue
            if names >= RETIRED_NAMES:
                self._is_ending = True  # the others with the next turns
                break
            if ring.key in self.keeper.books.retired:  # its counts are published, and what failed came between that and its removal
                self._remove(ring)
                continue
            names += len(ring.directory)
            packed: SectionsByBucket = defaultdict(list)
            try:
                if not ring.where.records:
                    ring.retire()  # before it is read: nobody begins to count there any more, should a kill keep it from being removed
                drops = Counter(ring.drops())
                ending = self.sums.ending(drain, ring, packed)
            except (MalformedRing, OSError) as error:
                self._isolate(ring, str(error))
                continue
            if ending is None:
                self._is_ending = True
                continue
            weights = ending.weights
            if ending.unknown:
                drops["too_many_tabs"] += ending.unknown
            if ending.beyond:
                drops["ring_full"] += ending.beyond  # where they went: only a ring that says nonsense has so many
            keeper = self.keeper
            batches = encode(packed, keeper.stream, keeper.numbers, moment, keeper.batch_bytes, weights, version=keeper.version)
            stream = keeper.stream
            if batches and not (keeper.is_ready(group_bytes(batches), now, moment) and keeper.make_room(batches, now, moment)):
                continue  # its contribution must go: it waits for room
            if keeper.stream != stream:
                batches = encode(packed, keeper.stream, keeper.numbers, moment, keeper.batch_bytes, weights, version=keeper.version)
            self.sums.sending(batches)
            self.keeper.books.retired.add(ring.key)
            others = [other for other in self.rings.open.values() if other is not ring]
            covered = [*self._orphans, *(found for other in others for found in other.covered), *self.sums.covered(others)]
            try:
                self.keeper.publish(batches, now, covered, drops.total() + ending.told, drops)
            except Exception as error:
                if ring.key not in self.keeper.outbox.table.retired:  # else it would be removed, and its counts with it
                    self.keeper.books.retired.discard(ring.key)
                if not isinstance(error, (TableFull, SpoolFull)):
                    raise
                continue
            self.sums.ended(ending)
            self.sums.spares(drops.total())
            if ring.where.records:
                self.drops.count(ring.client, drops)
                self._drops.pop(ring.client, None)  # the next look tells of its other rings
            self._remove(ring)

    def _remove(self, ring: Ring) -> None:
        self.give_up_drain()
        try:
            ring.retire()
        except OSError as error:
            self._isolate(ring, str(error))
        else:
            if self.rings.remove(ring):
                self.keeper.books.retired.discard(ring.key)
            elif ring.key in self.keeper.books.retired:
                self._unremoved[ring.name] = ring.key
        self._dead.discard(ring.name)
