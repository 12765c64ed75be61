"""What a cycle comes to: verdicts by the marks, States by the Handlers, dead letters for the rest. Pure.

1. The marks decide (marks.py), in the transaction in which they are moved.
2. What is accepted is sorted by Type (sorting.py), as far as there is room for what is new (newcomers.py), then folded and written.
3. An Event that cannot be folded becomes a dead letter in the same transaction (burying.py); its State's bytes are not touched.

`fold_cycle` is a generator, because a cycle may have to read more, some Handlers run elsewhere, and of what takes long others have their
turns in between: it yields `Reads` (and is sent the replies), `Foreign` (and is sent a Folded each) or a Pause, and returns an Outcome. It
may be run any number of times with fresh replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from itertools import chain, islice
from typing import Any

from taba.batch import Block, Column, Verdict, columns_of
from taba.server import keys
from taba.server.fold.bounds import DEFAULT_BOUNDS, MEANINGS_OF_ABSENT, Bounds
from taba.server.fold.burying import Burial
from taba.server.fold.cycle import Cycle, CycleSteps, Foreign, Need, Outcome, Reads, bucket_of
from taba.server.fold.in_all import ENDLESS, Room
from taba.server.fold.marks import FULL, MARK_MINUTES, Marks, stale
from taba.server.fold.newcomers import OWN, Newcomers
from taba.server.fold.sorting import Sorting, bury_bad
from taba.server.fold.type_groups import TypeGroup, are_good, dumps_of, picked, weight_of
from taba.server.router import Command
from taba.server.work.bench import Bench
from taba.server.work.pace import PAUSE, Pace, Pause
from taba.server.work.rows import HANDLER_ERROR, Failed, Folding, ForeignWork, Parts, Work

MAX_ARGUMENTS = 1000  # of one command that removes marks


def fold_cycle(
    cycle: Cycle, replies: Sequence[Any], bench: Bench, now: float, age: int | None, bounds: Bounds = DEFAULT_BOUNDS, in_all: Room = ENDLESS
) -> CycleSteps:
    """The Outcome at `now` (Unix seconds), when the store is `age` minutes old, given what it has, and the room in all."""
    return Fold(cycle, replies, bench, now, age, bounds, in_all).run()


class Fold:
    """One fold of a Cycle, with what `fold_cycle` is given; retrying.py has another, of dead letters."""

    def __init__(
        self, cycle: Cycle, replies: Sequence[Any], bench: Bench, now: float, age: int | None, bounds: Bounds, in_all: Room = ENDLESS
    ):
        self.cycle, self.bench, self.now, self.age, self.bounds = cycle, bench, now, age, bounds
        found = iter(replies)
        self.kept_marks = dict(zip(cycle.streams, next(found) if cycle.streams else (), strict=True))
        self.posted = Marks(dict(zip(cycle.posted, next(found) if cycle.posted else (), strict=True)), age)
        self.open_streams = int(next(found)) if cycle.opens else 0
        types = next(found) if cycle.tabs else ()
        known = {tab: keys.text_of(type) for tab, type in zip(cycle.tabs, types, strict=True) if type is not None}
        self.kept: Sequence[bytes | None] = next(found) if cycle.fields else ()
        self.fields = list(cycle.fields)
        self.burial = Burial(cycle.bucket, now)
        self.newcomers = Newcomers(cycle, self.fields, self.kept, known, bounds, in_all, self.burial)
        self.sorting = Sorting(cycle, self.fields, self.kept, bench, self.newcomers, self.burial)
        self.samples: list[bytes] = []
        self.handler_errors: dict[str, int] = {}
        self.first_errors: dict[str, str] = {}
        self.folded = 0
        self.moved: Counter[str] = Counter()
        self.pace = Pace()
        self.bad_meanings = 0  # that did not decode
        self.known_key = 0  # Events of posts that came before by another way

    def run(self) -> CycleSteps:
        key = keys.marks(self.cycle.bucket)
        gone = yield from self._make_room()
        marks = Marks(self.kept_marks, self.age, self.bounds.streams - self.open_streams)
        verdicts, accepted = self._judge(marks)
        turned_away = tuple({item.agent for item, verdict in zip(self.cycle.waiting, verdicts, strict=True) if verdict is FULL})
        commands: list[Command] = [(b"HDEL", key, *lot) for lot in _lots([*gone, *marks.removed()])]
        for name, written in ((key, marks.written()), (keys.posted(self.cycle.bucket), self.posted.written())):
            if written:
                commands.append((b"HSET", name, *chain.from_iterable(written.items())))
        if not commands:
            return Outcome([], verdicts, 0, {}, {}, (), turned_away)
        commands += yield from self.fold(accepted)
        commands += yield from self.burial.commands()
        if self.folded:
            commands.append((b"HINCRBY", keys.counts(self.cycle.bucket), b"folded", b"%d" % self.folded))
        if self.known_key:
            commands.append((b"HINCRBY", keys.counts(self.cycle.bucket), b"known_key", b"%d" % self.known_key))
        new = self.newcomers
        said = self.first_errors, self.bad_meanings, self.moved, new.beyond, (new.made_tabs, new.made_clients)
        return Outcome(commands, verdicts, self.folded, self.burial.by_reason, self.handler_errors, self.samples, turned_away, *said)

    def fold(self, accepted: list[int]) -> Generator[Need, Any, list[Command]]:
        """Fold these batches of the cycle: the commands that write States. What cannot be folded is in `dead` then."""
        yield from self.newcomers.measure(accepted)
        groups = yield from self.sorting.sort(accepted, self.pace)
        self.check(groups)
        for group in groups:
            self.sorting.load(group)
        groups = [group for group in groups if group.pieces or group.merges]
        yield from self.fold_groups(groups)
        commands = yield from self._state_commands(groups)
        commands += yield from self._meaning_commands(accepted)
        return commands

    def check(self, groups: list[TypeGroup]) -> None:
        """Bury what of each group cannot be folded; together.py has another way, with the groups of other buckets."""
        for group in groups:
            if not are_good([group]):
                bury_bad(group, self.burial)

    def _make_room(self) -> Generator[Reads, Any, list[bytes]]:
        """Where streams are to be opened and the bucket is full: which have not been touched for so long that they go."""
        if self.age is None or self.open_streams + self.cycle.opens <= self.bounds.streams:
            return []
        [pairs] = yield Reads([(b"HGETALL", keys.marks(self.cycle.bucket))])
        gone = [stream for stream in stale(pairs, self.age, MARK_MINUTES) if stream not in self.kept_marks]
        self.open_streams -= len(gone)
        return gone

    def _judge(self, marks: Marks) -> tuple[list[Verdict], list[int]]:
        """The verdicts, and which batches are to be folded."""
        verdicts, accepted = [], []
        for index, item in enumerate(self.cycle.waiting):
            batch = item.batch
            if item.header is not None:
                verdicts.append(marks.do(item.header, item.nonce))
                continue
            if item.nonce:
                verdict, is_new = marks.fold(batch.stream, batch.number, item.follows, item.nonce)
                if is_new and item.part is not None and not self.posted.fold_posted(item.part.key, item.part.lot)[1]:
                    is_new = False
                    self.known_key += sum(weight_of(column) for column in batch.columns)
            else:
                verdict, is_new = self.posted.fold_posted(batch.stream, batch.number, item.follows)
            verdicts.append(verdict)
            if is_new:
                accepted.append(index)
        return verdicts, accepted

    def fold_groups(self, groups: list[TypeGroup]) -> Generator[Need, Any, None]:
        """Have each group's `folded`; together.py has another way, with the groups of other buckets."""
        foldings: list[tuple[TypeGroup, Folding]] = [
            (group, self.bench.folding(group.type, self._work(group), self.now)) for group in groups
        ]
        sent: list[Any] = [None] * len(foldings)
        while foldings:
            # all Types advance to their next need, then one read, and one errand elsewhere, serve them all
            wants: list[tuple[TypeGroup, Folding, list[int]]] = []
            works: list[tuple[TypeGroup, Folding, ForeignWork]] = []
            for (group, folding), answer in zip(foldings, sent, strict=True):
                try:
                    need = folding.send(answer)
                    while isinstance(need, Pause):
                        yield need
                        need = folding.send(None)
                except StopIteration as stop:
                    group.folded = stop.value
                    continue
                if isinstance(need, ForeignWork):
                    works.append((group, folding, need))
                else:
                    wants.append((group, folding, need))
            sent = []
            if wants:
                sent += yield from self.read_parts([(group, rows) for group, _, rows in wants])
            if works:
                sent += yield Foreign([work for _, _, work in works])
            foldings = [(group, folding) for group, folding, _ in (*wants, *works)]

    def _work(self, group: TypeGroup) -> Work:
        names = [self.fields[row] for row in group.rows] if self.bench.may_hang(group.type) else ()
        return Work(group.states, group.runs, names, dumps_of(group))

    def read_parts(self, wants: list[tuple[TypeGroup, list[int]]]) -> Generator[Reads, Any, list[Parts]]:
        """For each group the further parts of these of its rows."""
        fields: list[bytes] = []
        for group, rows in wants:
            of_group = list(group.rows)
            for row in rows:
                fields += keys.part_fields(self.fields[of_group[row]], group.handler.further_parts)
        [contents] = yield Reads([(b"HMGET", keys.states(self.cycle.bucket), *fields)])
        parts, position = [], 0
        for group, rows in wants:
            of_rows, count = {}, group.handler.further_parts
            for row in rows:
                of_rows[row] = [keys.unframed(content) for content in contents[position : position + count]]
                position += count
            parts.append(of_rows)
        return parts

    def _state_commands(self, groups: list[TypeGroup]) -> Generator[Pause, None, list[Command]]:
        bucket = self.cycle.bucket
        written: list[bytes] = []
        emptied: list[bytes] = []
        new: dict[bytes, list[bytes]] = {}
        new_tabs: list[bytes] = []
        for group in groups:
            assert group.folded is not None
            version, age = group.handler.version, self.age
            frame = keys.frame(version, keys.UNKNOWN_AGE if age is None else age)
            states = group.folded.states
            rows = list(group.rows)
            of_rows = list(map(rows.__getitem__, states))
            if age is not None:
                framed: Iterable[bytes] = map(frame.__add__, states.values())
            else:
                framed = [self._frame_of(group, local, rows[local]) + dump for local, dump in states.items()]
            written += chain.from_iterable(zip(map(self.fields.__getitem__, of_rows), framed, strict=True))
            if self.newcomers.has_absent:
                for row in of_rows:
                    if self.kept[row] is None:
                        tab, _, client = self.fields[row].partition(b"\0")
                        new.setdefault(tab, []).append(client)
            for local, further in group.folded.parts.items():
                its = frame if age is not None else self._frame_of(group, local, rows[local])
                for field, dump in zip(keys.part_fields(self.fields[rows[local]], len(further)), further, strict=True):
                    if dump:
                        written += (field, its + dump)
                    else:
                        emptied.append(field)
            is_whole = not group.folded.spoiled and len(states) == len(rows)
            done: dict[int, int] = {}  # by row, how many of its Events were looked at
            for of_piece, piece in group.pieces:
                if isinstance(piece, Block) and is_whole:
                    self._count(piece)
                    if self.newcomers.new_types:
                        made = [tab for tab in piece.moved if tab in self.newcomers.new_types]
                        new_tabs += chain.from_iterable([(tab.encode(), self.newcomers.new_types.pop(tab).encode()) for tab in made])
                    continue
                for local, column in zip(of_piece, columns_of(piece), strict=True):
                    self._settle(group, local, column, done, new_tabs)  # type: ignore[arg-type]
                    if self.pace.is_due(1):
                        yield PAUSE
            for local, column in group.merges:
                self._settle(group, local, column, done, new_tabs)
        commands: list[Command] = []
        if written:
            commands.append((b"HSET", keys.states(bucket), *written))
        if emptied:
            commands.append((b"HDEL", keys.states(bucket), *emptied))
        if new_tabs:
            commands += ((b"HSET", keys.tabs(bucket), *new_tabs), keys.count_tab_changes(bucket, len(new_tabs) // 2))
        for tab, clients in new.items():
            commands.append((b"SADD", keys.clients_of(bucket, tab), *clients))
        # a Client is who records: that a process lives is Taba's own to know
        recording = dict.fromkeys(chain.from_iterable([clients for tab, clients in new.items() if tab not in OWN]))
        if recording:
            commands.append((b"SADD", keys.clients(bucket), *recording))
        return commands

    def _frame_of(self, group: TypeGroup, local: int, row: int) -> bytes:
        """What stands before a row's dumps while the store's age is not known: a State that is there keeps the one that it has."""
        return keys.frame(group.handler.version, keys.UNKNOWN_AGE if self.kept[row] is None else group.states[local].age)

    def _count(self, block: Block) -> None:
        """All Events of a block were folded."""
        self.folded += len(block.times) >> 3
        self.samples.append(block.times)
        self.moved.update(block.moved)

    def _settle(self, group: TypeGroup, local: int, column: Column, done: dict[int, int], new_tabs: list[bytes]) -> None:
        """Count what became of a column."""
        folded = group.folded
        assert folded is not None
        if local in folded.spoiled:
            place = done.get(local, 0)
            done[local] = place + column.events
            column = self._without_spoiled(group, local, column, place)
            if not column.times:
                return
        if local in folded.states:
            weight = column.weight
            self.folded += weight
            if weight:  # else it tells again what was told before
                self.moved[column.tab] += weight
                self.samples.append(column.times)
            if self.newcomers.new_types and column.tab in self.newcomers.new_types:
                new_tabs += (column.tab.encode(), self.newcomers.new_types.pop(column.tab).encode())
        else:
            reason, detail = folded.failed.get(local) or Failed(HANDLER_ERROR, "the Handler gave no State")
            self._fail(group.type, column, Failed(reason, detail))

    def _meaning_commands(self, accepted: list[int]) -> Generator[Reads, Any, list[Command]]:
        """What Tabs mean: the later one stands, and what it leaves out stays as it was.

        Of Tabs that are not there, because they were pruned or their Events are dead letters, as far as MEANINGS_OF_ABSENT leaves room.
        """
        written: dict[bytes, bytes] = {}
        absent: dict[bytes, bytes] = {}
        for index in accepted:
            batch = self.cycle.waiting[index].batch
            self.bad_meanings += batch.bad_meanings
            for meaning in batch.meanings:
                is_there = meaning.tab in self.newcomers.types and meaning.tab not in self.newcomers.new_types
                if not is_there and bucket_of(meaning.tab, self.cycle.buckets) != self.cycle.bucket:
                    continue  # it does not live here: its Events are dead letters, which are counted
                fields = keys.meaning_fields(meaning.tab.encode())
                said = {field: text.encode() for field, text in zip(fields, meaning[1:], strict=True) if text}
                (written if is_there else absent).update(said)
        bucket = self.cycle.bucket
        if absent:
            kept, tabs = yield Reads([(b"HLEN", keys.meanings(bucket)), (b"HLEN", keys.tabs(bucket))])
            room = 2 * (tabs + MEANINGS_OF_ABSENT) - kept
            written |= dict(islice(absent.items(), max(0, room)))
        if not written:
            return []
        return [(b"HSET", keys.meanings(bucket), *(part for pair in written.items() for part in pair))]

    def _without_spoiled(self, group: TypeGroup, row: int, column: Column, place: int) -> Column:
        """`column`, whose first Event is the row's `place`-th, without those that cannot be folded, which are buried."""
        assert group.folded is not None
        end = place + column.events
        left = set(range(place, end))
        alike: dict[tuple[str, str, str], tuple[Failed, list[int]]] = {}
        for failed, places in group.folded.spoiled[row]:
            here = [index - place for index in places if index in left]
            left.difference_update(places)
            # of one kind of exception raised in one line the first says what there is to say: else a letter for each Event
            kind = (failed.reason, failed.detail.partition(":")[0], failed.detail.rpartition(" (")[2])
            alike.setdefault(kind, (failed, []))[1].extend(here)
        for failed, here in alike.values():
            if here:
                self._fail(group.type, picked(column, sorted(here)), failed)
        return column if len(left) == column.events else picked(column, [index - place for index in sorted(left)])

    def _fail(self, type: str, column: Column, failed: Failed) -> None:
        """The Handler could not fold these Events."""
        self.burial.bury(column, *failed)
        self.handler_errors[type] = self.handler_errors.get(type, 0) + column.weight
        self.first_errors.setdefault(type, failed.detail)


def _lots(streams: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [streams[start : start + MAX_ARGUMENTS] for start in range(0, len(streams), MAX_ARGUMENTS)]
