"""What a cycle comes to: verdicts by the marks, States by the Handlers, dead letters for the rest. Pure.

1. The marks decide (marks.py), in the transaction in which they are moved.
2. An Event that cannot be folded becomes a dead letter in the same transaction; its State's bytes are not touched.
3. The first Type of a Tab stands.

`fold_cycle` is a generator, because a cycle may have to read more and some Handlers run elsewhere: it yields `Reads` (and is sent the
replies) or `Foreign` (and is sent a Folded each), and returns an Outcome. It may be run any number of times with fresh replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from itertools import chain, islice
from typing import Any, cast

import numpy

from taba.batch import (
    BAD_COLUMN,
    AtEdge,
    Block,
    Column,
    DecodedSection,
    Packed,
    Verdict,
    columns_of,
)
from taba.bounds import MAX_VALUE_BYTES, MAX_VALUE_DEPTH
from taba.handlers.lookup import read_number, takes
from taba.names import OWN_TABS
from taba.server import keys
from taba.server.fold.bounds import DEFAULT_BOUNDS, MEANINGS_OF_ABSENT, Bounds
from taba.server.fold.cycle import Cycle, CycleSteps, Foreign, Outcome, Reads, bucket_of
from taba.server.fold.deadletters import (
    MAX_DEAD_LETTERS,
    DeadLetter,
    count_dead_letters,
    dead_letters_of,
    decode_dead_letter,
    encode_dead_letter,
    is_too_deep,
    packed_bytes,
)
from taba.server.fold.excess import ALL_CLIENTS, ALL_TABS, CLIENTS, NEW_CLIENTS, NEW_TABS, TABS, Beyond, why_of
from taba.server.fold.in_all import ENDLESS, Room
from taba.server.fold.marks import FULL, MARK_MINUTES, Marks, stale
from taba.server.fold.type_groups import TypeGroup, are_finite, are_good, are_times, dumps_of, miscounted, picked, weight_of
from taba.server.router import Command
from taba.server.work.bench import Bench
from taba.server.work.folding import HANDLER_ERROR, Failed, Folding, ForeignWork, Parts, Work

MAX_ARGUMENTS = 1000  # of one command that removes marks
MAX_MISSING_TYPES = 100  # a bucket's list of Types without a Handler; senders choose them

# why an Event is a dead letter; work/folding.py has those that a Handler causes
UNKNOWN_TYPE = "unknown_type"
TYPE_CONFLICT = "type_conflict"
WRONG_BUCKET = "wrong_bucket"
BAD_VALUE = "bad_value"
BAD_TIME = "bad_time"
BAD_STATE = "bad_state"
UNKNOWN_EDGE = "unknown_edge"
TOO_MANY_TABS = "too_many_tabs"
TOO_MANY_CLIENTS = "too_many_clients"


def fold_cycle(
    cycle: Cycle, replies: Sequence[Any], bench: Bench, now: float, age: int | None, bounds: Bounds = DEFAULT_BOUNDS, in_all: Room = ENDLESS
) -> CycleSteps:
    """The Outcome at `now` (Unix seconds), when the store is `age` minutes old, given what it has, and the room in all."""
    return Fold(cycle, replies, bench, now, age, bounds, in_all).run()


class Fold:
    """One fold of a Cycle; retrying.py has another, of dead letters."""

    def __init__(
        self, cycle: Cycle, replies: Sequence[Any], bench: Bench, now: float, age: int | None, bounds: Bounds, in_all: Room = ENDLESS
    ):
        self.in_all = in_all
        self.made_tabs = self.made_clients = 0
        self.cycle, self.bench, self.now, self.age, self.bounds = cycle, bench, now, age, bounds
        self.room = bounds
        self.new_clients: set[str] = set()
        found = iter(replies)
        self.kept_marks = dict(zip(cycle.streams, next(found) if cycle.streams else (), strict=True))
        self.posted = Marks(dict(zip(cycle.posted, next(found) if cycle.posted else (), strict=True)), age)
        self.open_streams = int(next(found)) if cycle.opens else 0
        types = next(found) if cycle.tabs else ()
        self.types = {tab: keys.text_of(type) for tab, type in zip(cycle.tabs, types, strict=True) if type is not None}
        self.kept: Sequence[bytes | None] = next(found) if cycle.fields else ()
        self.has_absent = not _BYTES.issuperset(map(_type_of, self.kept))  # some State is not there yet
        self.fields = list(cycle.fields)
        self.dead: list[DeadLetter] = []
        self.missing: dict[str, None] = {}
        self.new_types: dict[str, str] = {}
        self.samples: list[bytes] = []
        self.handler_errors: dict[str, int] = {}
        self.first_errors: dict[str, str] = {}
        self.folded = 0
        self.moved: Counter[str] = Counter()
        self.bad_meanings = 0  # that did not decode
        self.beyond: Counter[Beyond] = Counter()
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
        commands += yield from self._dead_commands()
        dead: dict[str, int] = {}
        for letter in self.dead:
            dead[letter.reason] = dead.get(letter.reason, 0) + letter.events
        if self.folded:
            commands.append((b"HINCRBY", keys.counts(self.cycle.bucket), b"folded", b"%d" % self.folded))
        if self.known_key:
            commands.append((b"HINCRBY", keys.counts(self.cycle.bucket), b"known_key", b"%d" % self.known_key))
        said = self.first_errors, self.bad_meanings, self.moved, self.beyond, (self.made_tabs, self.made_clients)
        return Outcome(commands, verdicts, self.folded, dead, self.handler_errors, self.samples, turned_away, *said)

    def fold(self, accepted: list[int]) -> Generator[Reads | Foreign, Any, list[Command]]:
        """Fold these batches of the cycle: the commands that write States. What cannot be folded is in `dead` then."""
        yield from self._measure(accepted)
        groups = self._group(accepted)
        yield from self.fold_groups(groups)
        commands = self._state_commands(groups)
        commands += yield from self._meaning_commands(accepted)
        return commands

    def _make_room(self) -> Generator[Reads | Foreign, Any, list[bytes]]:
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

    def _measure(self, accepted: list[int]) -> Generator[Reads | Foreign, Any, None]:
        """Learn how much room the bucket has, where there will be new States: hot cycles pay nothing for it."""
        if not self.has_absent:
            return
        bucket, key = self.cycle.bucket, keys.clients(self.cycle.bucket)
        rows: Iterable[int] = range(len(self.fields))
        if len(accepted) < len(self.cycle.waiting):
            rows = dict.fromkeys(row for index in accepted for _, its in self.cycle.sections[index] for row in its if row >= 0)
        absent = [self.fields[row].partition(b"\0") for row in rows if self.kept[row] is None]
        clients = list(dict.fromkeys([client for _, _, client in absent]))
        if clients:
            own = sorted(_OWN_TABS.intersection([tab for tab, _, _ in absent]))
            tabs, are_there, *sizes = yield Reads(
                [
                    (b"HLEN", keys.tabs(bucket)),
                    (b"SMISMEMBER", key, *clients),
                    (b"SCARD", key),
                    *((b"SCARD", keys.clients_of(bucket, tab)) for tab in own),
                ]
            )
            self.room = self.bounds._replace(tabs=self.bounds.tabs - tabs, clients=self.bounds.clients - max(sizes))
            self.new_clients = {client.decode() for client, is_there in zip(clients, are_there, strict=True) if not is_there}

    def _has_room(self, column: Column, is_new_tab: bool) -> bool:
        """Whether a new State of `column` stays within the bounds; else it is buried."""
        is_new_client = column.client in self.new_clients
        what = self._beyond(is_new_tab, is_new_client)
        if what is not None:
            self.beyond[Beyond(what, column.tab.partition("{")[0], column.client)] += column.weight
            self._bury(column, TOO_MANY_TABS if what in (TABS, ALL_TABS, NEW_TABS) else TOO_MANY_CLIENTS, why_of(what, self.bounds)[0])
            return False
        self.new_clients.discard(column.client)
        self.made_tabs += is_new_tab
        self.made_clients += is_new_client
        return True

    def _beyond(self, is_new_tab: bool, is_new_client: bool) -> str | None:
        """What there is no room for; None where there is."""
        room, in_all = self.room, self.in_all
        if is_new_tab and self.made_tabs >= room.tabs:
            return TABS
        if is_new_client and self.made_clients >= room.clients:
            return CLIENTS
        if is_new_tab and self.made_tabs >= in_all.tabs:
            return NEW_TABS if in_all.is_fast[0] else ALL_TABS
        if is_new_client and self.made_clients >= in_all.clients:
            return NEW_CLIENTS if in_all.is_fast[1] else ALL_CLIENTS
        return None

    def _group(self, accepted: list[int]) -> list[TypeGroup]:
        groups: dict[str, TypeGroup] = {}
        for index in accepted:
            large = self.cycle.waiting[index].size > MAX_VALUE_BYTES  # else no value in it can be
            for section, rows in self.cycle.sections[index]:
                if not (isinstance(section, Block) and self._take_block(groups, section, rows)):
                    self._take_columns(groups, section, rows, large)
        self._check(list(groups.values()))
        for group in groups.values():
            self._load(group)
        return [group for group in groups.values() if group.pieces or group.merges]

    def _take_block(self, groups: dict[str, TypeGroup], block: Block, rows: list[int]) -> bool:
        """Take it at once, where all its Tabs are of its Type or new, and there is room for what is new; else nothing is done."""
        type, kept = block.type, self.kept
        if min(rows) < 0:
            return False
        group = groups.get(type)
        handler = self.bench.get(type) if group is None else group.handler
        if handler is None:
            return False
        found = set(map(self.types.get, block.moved))
        if not found <= {type, None}:
            return False
        if self.has_absent or None in found:
            absent = [self.fields[row].partition(b"\0") for row in rows if kept[row] is None]
            if (absent or None in found) and not self._make_all(block, absent):
                return False
        if group is None:
            group = groups[type] = TypeGroup(type, handler, self.bench.is_array(type))
        group.add_block(rows, block)
        return True

    def _make_all(self, block: Block, absent: list[tuple[bytes, bytes, bytes]]) -> bool:
        """Whether there is room for all of a block's new Tabs, and for the Clients of the States that are absent; then it is taken."""
        types, room, in_all = self.types, self.room, self.in_all
        tabs = dict.fromkeys([tab for tab in {tab.decode(): None for tab, _, _ in absent} if tab not in types])
        clients = self.new_clients.intersection([client.decode() for _, _, client in absent]) if self.new_clients else ()
        if self.made_tabs + len(tabs) > min(room.tabs, in_all.tabs) and tabs:
            return False
        if self.made_clients + len(clients) > min(room.clients, in_all.clients) and clients:
            return False
        # looked up, and no set of all that are known: a cycle may have ten thousand blocks of one column
        if not all([tab in types or tab in tabs for tab in block.moved]):
            return False  # States whose Tab is not known: one by one
        self.new_clients.difference_update(clients)
        self.made_clients += len(clients)
        self.made_tabs += len(tabs)
        made = dict.fromkeys(tabs, block.type)
        types.update(made)
        self.new_types.update(made)
        return True

    def _take_columns(self, groups: dict[str, TypeGroup], section: DecodedSection, rows: list[int], large: bool) -> None:
        types, bench = self.types, self.bench
        for column, row in zip(columns_of(section), rows, strict=True):
            is_measured = isinstance(column, Column) and isinstance(column.values, Packed)
            if is_measured:
                column = column.opened()  # type: ignore[union-attr]  # until here nothing walked it; it is gone when this fold is over
            if row < 0:
                self._refuse(column)
                continue
            assert isinstance(column, Column)
            type = types.get(column.tab)
            if type is None:
                if bench.get(column.type) is None:
                    self._miss(column)
                    continue
                if not self._has_room(column, True):
                    continue
                type = types[column.tab] = self.new_types[column.tab] = column.type
            elif type != column.type:
                self._bury(column, TYPE_CONFLICT, f"the Tab has Type {type}")
                continue
            elif self.kept[row] is None and self.new_clients and not self._has_room(column, False):
                continue
            group = groups.get(type)
            if group is None:
                handler = bench.get(type)
                if handler is None:
                    self._miss(column)
                    continue
                group = groups[type] = TypeGroup(type, handler, bench.is_array(type))
            if isinstance(column.values, AtEdge):
                self._take_state(group, row, column, column.values)
                continue
            if column.stands_for is not None and not group.is_absolute and not (column.tab in OWN_TABS and not column.weight):
                self._bury(column, BAD_VALUE, f"{type} takes events one by one")
                continue
            if isinstance(column.values, list) and (column.stands_for is None or not group.is_absolute):
                good = self._checked(column, group, large, is_measured)
                if good is None:
                    continue
                column = good
            group.add(row, column)

    def _take_state(self, group: TypeGroup, row: int, column: Column, state: AtEdge) -> None:
        """Take what was folded at the edge, if the Handler merges it."""
        edge = self.bench.edge(group.type)
        if state.edge == edge:
            group.merges.append((group.rows.setdefault(row, len(group.rows)), column))
            return
        merges = f"version {edge} is merged here" if edge is not None else f"States of Type {group.type} are not merged here"
        self._bury(column, UNKNOWN_EDGE, f"an Agent folded these events to a State of version {state.edge}, and {merges}")

    def _refuse(self, column: Any) -> None:
        if isinstance(column, Column):
            self._bury(column, WRONG_BUCKET, f"the Tab does not live in bucket {self.cycle.bucket}")
        else:
            self.dead.append(DeadLetter(self.now, column.reason, column.error[:200], "", "", "", column.events, b"", [], column.content))

    def _miss(self, column: Column) -> None:
        type = self.types.get(column.tab, column.type)
        self.missing[type] = None
        self._bury(column, UNKNOWN_TYPE, f"no Handler of Type {type}")

    def _bury(self, column: Column, reason: str, detail: str) -> None:
        self.dead += dead_letters_of(self.now, reason, detail, column)

    def _checked(self, column: Column, group: TypeGroup, large: bool, is_measured: bool) -> Column | None:
        """A column of msgpack values without those that its Handler cannot take. `is_measured`: each is within its bounds.

        As float64 for an array Handler and of an absolute Type, or where there are pairs as a list of finite floats and pairs of them.
        """
        numeric, pairs = group.is_array or group.is_absolute, getattr(group.handler, "pairs", None)
        good: list[Any] = []
        bad: list[int] = []
        deep: list[int] = []
        kept: list[int] = []
        values = column.made()
        for index, value in enumerate(values):
            if numeric:
                try:
                    value = read_number(value, pairs)
                except ValueError:
                    bad.append(index)
                    continue
            elif is_measured:
                pass
            elif isinstance(value, (list, dict)):
                if is_too_deep(value):
                    deep.append(index)
                    continue
                if packed_bytes(value) > MAX_VALUE_BYTES:
                    bad.append(index)
                    continue
            elif large and isinstance(value, (str, bytes)) and packed_bytes(value) > MAX_VALUE_BYTES:
                bad.append(index)
                continue
            kept.append(index)
            good.append(value)
        if deep:
            self._bury(picked(column, deep), BAD_VALUE, f"a value is nested at most {MAX_VALUE_DEPTH} deep")
        if bad:
            wanted = takes(pairs) if numeric else f"a value takes at most {MAX_VALUE_BYTES} bytes"
            self._bury(picked(column, bad), BAD_VALUE, wanted)
        if not kept:
            return None
        if len(kept) < len(values):
            column = picked(column, kept)
        if numeric and not any(isinstance(value, tuple) for value in good):
            good = numpy.array(good, dtype="<f8").tobytes()  # type: ignore[assignment]
        return column._replace(values=good)

    def _check(self, groups: list[TypeGroup]) -> None:
        for group in groups:
            if not are_good([group]):
                self.bury_bad(group)

    def bury_bad(self, group: TypeGroup) -> None:
        """Bury Events whose time is none, or for an array Handler whose value is no finite number."""
        columns = []
        for row, column in group.columns:
            good = are_times(numpy.frombuffer(column.times, "<f8"))
            if not good.all():
                self._bury(picked(column, numpy.flatnonzero(~good).tolist()), BAD_TIME, "a time takes Unix seconds from 0 to 2^40")
                column = picked(column, numpy.flatnonzero(good).tolist())
            if group.is_array:
                good = are_finite(column.made())
                if not good.all():
                    self._bury(picked(column, numpy.flatnonzero(~good).tolist()), BAD_VALUE, "takes finite numbers")
                    column = picked(column, numpy.flatnonzero(good).tolist())
            if column.times:
                columns.append((row, column))
        group.replace(columns)
        merges = []
        for row, column in group.merges:
            error = miscounted(group.handler, [column])
            if error is None:
                merges.append((row, column))
            else:
                self._bury(column, BAD_COLUMN, error)
        group.merges = merges

    def _load(self, group: TypeGroup) -> None:
        contents = list(map(self.kept.__getitem__, group.rows))
        if keys.are_framed(contents):
            group.states = keys.Kept(cast(list[bytes], contents))
            return
        try:
            group.states = keys.unframe_all(contents)
            return
        except ValueError:
            pass  # said of each that is none
        bad: dict[int, str] = {}
        states: list[keys.Framed] = []
        for row, local in group.rows.items():
            try:
                states.append(keys.unframe(self.kept[row]))
            except ValueError as error:
                bad[local] = str(error)
                states.append(keys.ABSENT)
        group.states = states
        if bad:
            for local, column in (*group.columns, *group.merges):
                if local in bad:
                    self._bury(column, BAD_STATE, bad[local])
            group.replace([(local, column) for local, column in group.columns if local not in bad])
            group.merges = [(local, column) for local, column in group.merges if local not in bad]

    def fold_groups(self, groups: list[TypeGroup]) -> Generator[Reads | Foreign, Any, None]:
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

    def read_parts(self, wants: list[tuple[TypeGroup, list[int]]]) -> Generator[Reads | Foreign, Any, list[Parts]]:
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
                of_rows[row] = [_unframed(content) for content in contents[position : position + count]]
                position += count
            parts.append(of_rows)
        return parts

    def _state_commands(self, groups: list[TypeGroup]) -> list[Command]:
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
            if self.has_absent:
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
                    if self.new_types:
                        made = [tab for tab in piece.moved if tab in self.new_types]
                        new_tabs += chain.from_iterable([(tab.encode(), self.new_types.pop(tab).encode()) for tab in made])
                    continue
                for local, column in zip(of_piece, columns_of(piece), strict=True):
                    self._settle(group, local, column, done, new_tabs)  # type: ignore[arg-type]
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
        recording = dict.fromkeys(chain.from_iterable([clients for tab, clients in new.items() if tab not in _OWN_TABS]))
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
            if self.new_types and column.tab in self.new_types:
                new_tabs += (column.tab.encode(), self.new_types.pop(column.tab).encode())
        else:
            reason, detail = folded.failed.get(local) or Failed(HANDLER_ERROR, "the Handler gave no State")
            self._fail(group.type, column, Failed(reason, detail))

    def _meaning_commands(self, accepted: list[int]) -> Generator[Reads | Foreign, Any, list[Command]]:
        """What Tabs mean: the later one stands, and what it leaves out stays as it was.

        Of Tabs that are not there, because they were pruned or their Events are dead letters, as far as MEANINGS_OF_ABSENT leaves room.
        """
        written: dict[bytes, bytes] = {}
        absent: dict[bytes, bytes] = {}
        for index in accepted:
            batch = self.cycle.waiting[index].batch
            self.bad_meanings += batch.bad_meanings
            for meaning in batch.meanings:
                is_there = meaning.tab in self.types and meaning.tab not in self.new_types
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
        self._bury(column, *failed)
        self.handler_errors[type] = self.handler_errors.get(type, 0) + column.weight
        self.first_errors.setdefault(type, failed.detail)

    def _dead_commands(self) -> Generator[Reads | Foreign, Any, list[Command]]:
        commands: list[Command] = []
        bucket = self.cycle.bucket
        if self.missing:
            commands.append((b"LPUSH", keys.missing(bucket), *[type.encode() for type in list(self.missing)[:MAX_MISSING_TYPES]]))
            commands.append((b"LTRIM", keys.missing(bucket), b"0", b"%d" % (MAX_MISSING_TYPES - 1)))
        if self.dead:
            key = keys.dead_letters(bucket)
            kept = self.dead[-MAX_DEAD_LETTERS:]
            # what will be pushed out is read first: it is a dead letter no more, but dropped
            [pushed_out] = yield Reads([(b"LRANGE", key, b"%d" % (MAX_DEAD_LETTERS - len(kept)), b"-1")])
            gone = [letter for content in pushed_out if (letter := decode_dead_letter(content)) is not None]
            commands.append((b"LPUSH", key, *[encode_dead_letter(letter) for letter in kept]))
            commands.append((b"LTRIM", key, b"0", b"%d" % (MAX_DEAD_LETTERS - 1)))
            counts: Counter[str] = Counter()
            for letter in kept:
                counts[letter.reason] += letter.events
            for letter in gone:
                counts[letter.reason] -= letter.events
            dropped = sum(letter.events for letter in (*gone, *self.dead[: len(self.dead) - len(kept)]))
            commands += count_dead_letters(bucket, counts, dropped)
        return commands


def _lots(streams: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [streams[start : start + MAX_ARGUMENTS] for start in range(0, len(streams), MAX_ARGUMENTS)]


def _unframed(content: bytes | None) -> keys.Framed:
    try:
        return keys.unframe(content)
    except ValueError:
        return keys.Framed(0xFFFF + 1, 0, b"")  # of no version that a Handler has: its State fails, and is kept


_type_of = type
_BYTES = {bytes}
_OWN_TABS = frozenset(tab.encode() for tab in OWN_TABS)
