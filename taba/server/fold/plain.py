"""Buckets of which there is nothing to say: batches that follow their marks, sections of floats, of States that are all there. Pure.

1. What a cycle of such a bucket writes and answers is what Fold would have it write and answer (a test compares them): only what Fold has
   to look for, and does not find here, is left out. Of all these buckets the States of one Type are folded in one call. Which other States
   spill along with a full one depends on what is folded together, here as in Fold: what they hold is the same.
2. Whatever is out of the ordinary leaves its bucket to Fold; what a Handler cannot fold leaves all buckets with that Type to it.
3. What a bucket has beside arrays is folded apart, and written with the rest (besides.py).
4. What is done for each bucket is `plan`, `judge`, `gather` and `write`, with the same in C (_plain.c), which may leave more to Fold than
   these. But for `plan` each is one call for all buckets.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy

from taba import parts as parts_in_c
from taba.batch import MAX_CACHED_NAME, Block, Verdict, decoded_sections
from taba.server import keys
from taba.server.fold.besides import Besides, BesidesOfType, apart, gather_besides, placed
from taba.server.fold.cycle import Outcome, WaitingBatch, homes
from taba.server.fold.marks import Marks
from taba.server.fold.type_groups import are_times
from taba.server.router import Command
from taba.server.work.bench import Bench, Beside
from taba.server.work.pace import Pause

PlainSteps = Generator[dict[int, Sequence[Command]] | Pause, Any, dict[int, Outcome]]

_plain = parts_in_c.find("taba.server.fold._plain")


class PlainGroup(NamedTuple):
    """What a bucket's batches have of one Type: each State once, the blocks, and of each column in these the State's place in `fields`;
    `rows` is None where that is its own place, in one block."""

    type: str
    fields: list[bytes]
    blocks: list[Block]
    rows: list[int] | None


class Plan(NamedTuple):
    """What a bucket's batches need: what is to be read of marks, Types and States (in the order of `groups`), and the Types that the Tabs
    must have then; and what is counted once they are folded: Events, Events by Tab, and their times. Of `besides` the States come last in
    what is read."""

    reads: list[Command]
    types: list[bytes]
    groups: list[PlainGroup]
    events: int
    moved: dict[str, int]
    times: list[bytes]
    besides: Besides | None = None


_FORMS = (Plan, PlainGroup, Block)


class PlainOutcome(Outcome):
    """One that says nothing but what was folded."""

    __slots__ = ()


class Plain(NamedTuple):
    """A bucket that turned out to be such a one."""

    bucket: int
    plan: Plan
    contents: list[bytes]
    marks: list[bytes]
    verdicts: list[Verdict]


def plan(
    bucket: int,
    waiting: Sequence[WaitingBatch],
    buckets: int,
    dumping: Mapping[str, bytes | None],
    beside: Mapping[str, Beside | None] | None = None,
) -> Plan | None:
    """The Plan of what waits for `bucket`, where that is ordinary so far. `dumping`, `beside`: see Bench."""
    made: Plan | None
    if _plain is not None:
        made = _plain.plan(bucket, waiting, homes[buckets], dumping, keys.of(bucket), _FORMS)
    else:
        made = _plan(bucket, waiting, buckets, dumping)
    return _plan_besides(bucket, waiting, buckets, dumping, beside) if made is None and beside is not None else made


def _plan_besides(
    bucket: int, waiting: Sequence[WaitingBatch], buckets: int, dumping: Mapping[str, bytes | None], beside: Mapping[str, Beside | None]
) -> Plan | None:
    """As `plan`, of a bucket that has something beside arrays."""
    found = apart(waiting, dumping, beside)
    if found is None:
        return None
    rest, columns = found
    if any([item.batch.columns for item in rest]):
        made = plan(bucket, rest, buckets, dumping)
        if made is None:
            return None
    else:
        of = keys.of(bucket)
        streams = dict.fromkeys([item.batch.stream for item in waiting])
        made = Plan([(b"HMGET", of.marks, *streams), (b"HMGET", of.tabs), (b"HMGET", of.states)], [], [], 0, {}, [])
    marks, tabs, states = made.reads
    types = dict(zip(tabs[2:], made.types, strict=True))
    besides = placed(columns, bucket, buckets, types, beside)
    if besides is None or not set(states[2:]).isdisjoint(besides.fields):
        return None
    moved, events = dict(made.moved), made.events
    times = [*made.times]
    for column in columns:
        weight = column.weight
        if weight:  # else it tells again what was told before
            events += weight
            moved[column.tab] = moved.get(column.tab, 0) + weight
            times.append(column.times)
    reads: list[Command] = [marks, (*tabs[:2], *types), (*states, *besides.fields)]
    return Plan(reads, list(types.values()), made.groups, events, moved, times, besides)


def _plan(bucket: int, waiting: Sequence[WaitingBatch], buckets: int, dumping: Mapping[str, bytes | None]) -> Plan | None:
    streams: dict[bytes, None] = {}
    types: dict[str, bytes] = {}  # by Tab
    places: dict[str, dict[bytes, int]] = {}  # by Type
    blocks: dict[str, list[Block]] = {}
    rows: dict[str, list[int]] = {}
    moved: dict[str, int] = {}
    for item in waiting:
        batch = item.batch
        if item.header is not None or item.part is not None or not item.nonce or batch.meanings or batch.bad_meanings:
            return None
        streams[batch.stream] = None
        for section in decoded_sections(batch.columns):
            type = dumping[section.type] if isinstance(section, Block) else None
            if type is None:
                return None
            block = cast(Block, section)
            tabs = block.moved
            for tab, count in tabs.items():
                moved[tab] = moved.get(tab, 0) + count
            if max(map(len, tabs)) > MAX_CACHED_NAME or set(map(homes[buckets].__getitem__, tabs)) != {bucket}:
                return None
            for tab in tabs:
                if types.setdefault(tab, type) != type:
                    return None
            its = places.setdefault(block.type, {})
            rows.setdefault(block.type, []).extend([its.setdefault(field, len(its)) for field in block.fields])
            blocks.setdefault(block.type, []).append(block)
    if not blocks:
        return None
    groups = []
    for name, its in places.items():
        is_simple = len(blocks[name]) == 1 and len(its) == len(rows[name])
        groups.append(PlainGroup(name, list(its), blocks[name], None if is_simple else rows[name]))
    of = keys.of(bucket)
    reads: list[Command] = [
        (b"HMGET", of.marks, *streams),
        (b"HMGET", of.tabs, *[tab.encode() for tab in types]),
        (b"HMGET", of.states, *chain.from_iterable(places.values())),
    ]
    times = [block.times for group in groups for block in group.blocks]
    return Plan(reads, list(types.values()), groups, sum(map(len, times)) >> 3, moved, times)


def judge(
    waiting: Mapping[int, Sequence[WaitingBatch]],
    plans: Mapping[int, Plan | None],
    replies: Mapping[int, Sequence[Any]],
    age: int,
) -> list[Plain]:
    """Those of `replies` that have a Plan, and in whose replies nothing is left to look for."""
    if _plain is not None:
        judged: list[Plain] = _plain.judge(waiting, plans, replies, age, (Verdict, Plain))
        return judged
    found = []
    for bucket, its in replies.items():
        planned = plans[bucket]
        decided = None if planned is None else _judge(waiting[bucket], planned, its, age)
        if planned is not None and decided is not None:
            found.append(Plain(bucket, planned, its[2], *decided))
    return found


def _judge(waiting: Sequence[WaitingBatch], planned: Plan, replies: Sequence[Any], age: int) -> tuple[list[bytes], list[Verdict]] | None:
    """The marks as they are then, streams and contents in turn, and the verdicts."""
    kept, types, contents = replies
    if types != planned.types or not keys.are_framed(contents):
        return None
    marks = Marks(dict(zip(planned.reads[0][2:], kept, strict=True)), age)
    verdicts = []
    for item in waiting:
        verdict, is_new = marks.fold(item.batch.stream, item.batch.number, item.follows, item.nonce)
        if not is_new:
            return None
        verdicts.append(verdict)
    return list(chain.from_iterable(marks.written().items())), verdicts


Gathered = Sequence[list[Any]]
"""Of one Type, of each of its buckets: which it is, its group; the contents of all States one after the other, and of each bucket where its
own begin there; and of each block its times and its values, and the counts of all columns."""


def gather(plain: Sequence[Plain]) -> dict[str, Gathered]:
    """What these have of each Type."""
    if _plain is not None:
        gathered: dict[str, Gathered] = _plain.gather(plain)
        return gathered
    found: dict[str, Gathered] = {}
    for bucket, planned, of_all, _, _ in plain:
        begin = 0
        for group in planned.groups:
            buckets, groups, contents, begins, times, values, counts = found.setdefault(group.type, [[], [], [], [], [], [], []])
            end = begin + len(group.fields)
            buckets.append(bucket)
            groups.append(group)
            begins.append(len(contents))
            contents += of_all[begin:end]
            begin = end
            for block in group.blocks:
                times.append(block.times)
                values.append(block.values)
                counts += block.counts
    return found


Written = tuple[list[bytes], dict[int, list[bytes]]]
"""Of one Type: the contents of all States as in Gathered, and of some of its buckets, by their place there, further fields and contents in
turn."""


def write(plain: Sequence[Plain], written: Mapping[str, Written], emptied: Mapping[int, list[bytes]]) -> dict[int, Outcome]:
    """By bucket the Outcome, of those of whose Types all are `written`; `emptied`: fields that go."""
    if _plain is not None:
        outcomes: dict[int, Outcome] = _plain.write(plain, written, emptied, keys.of, _SAYS_NOTHING)
        return outcomes
    found: dict[int, Outcome] = {}
    dealt = dict.fromkeys(written, (0, 0))
    for bucket, planned, _, marks, verdicts in plain:
        of = keys.of(bucket)
        states: list[bytes] = []
        for group in planned.groups:
            if group.type in written:
                (contents, further), (place, begin) = written[group.type], dealt[group.type]
                end = begin + len(group.fields)
                states += chain.from_iterable(zip(group.fields, contents[begin:end], strict=True))
                states += further.get(place, ())
                dealt[group.type] = place + 1, end
        if not all([group.type in written for group in planned.groups]):
            continue
        commands: list[Command] = [(b"HSET", of.marks, *marks), (b"HSET", of.states, *states)]
        if bucket in emptied:
            commands.append((b"HDEL", of.states, *emptied[bucket]))
        commands.append((b"HINCRBY", of.counts, b"folded", b"%d" % planned.events))
        found[bucket] = _SAYS_NOTHING._replace(
            commands=commands, verdicts=verdicts, folded=planned.events, times=planned.times, moved=planned.moved
        )
    return found


class _OfType:
    """All that is folded of one Type, of several buckets."""

    def __init__(self, type: str, handler: Any, gathered: Gathered):
        self.type, self.handler = type, handler
        self.buckets: list[int]
        self.groups: list[PlainGroup]
        self.buckets, self.groups, self.contents, self.begins, self._times, self._values, self._counts = gathered
        self.states: Any = None
        self.frame = b""
        self.spilling: dict[int, list[int]] = {}  # by place of the bucket: rows among its States
        self.parts: dict[int, dict[int, Sequence[bytes]]] = {}  # the further parts that these have then

    def fold(self, now: float, age: int) -> bool:
        """Whether it was to be had."""
        handler = self.handler
        self.frame = keys.frame(handler.version, age)
        times = numpy.frombuffer(b"".join(self._times), "<f8")
        if numpy.count_nonzero(are_times(times)) < len(times):  # all() is a function of Python's
            return False
        values = numpy.frombuffer(b"".join(self._values), "<f8")
        rows = self._rows(len(self._counts))
        if len(times) > len(self._counts):
            rows = rows.repeat(self._counts)
        self.states = handler.fold_dumps(self.contents, rows, times, values, now, handler.version, self.frame)
        if self.states is None:
            return False
        spilling = handler.spilling(self.states)
        if len(spilling):
            places = (numpy.searchsorted(self.begins, spilling, side="right") - 1).tolist()
            for row, place in zip(spilling.tolist(), places, strict=True):
                self.spilling.setdefault(place, []).append(row - self.begins[place])
        return True

    def _rows(self, columns: int) -> Any:
        """Of each column the State, among all."""
        if all([group.rows is None for group in self.groups]):
            return numpy.arange(columns)
        found: list[int] = []
        for begin, group in zip(self.begins, self.groups, strict=True):
            own = range(len(group.fields)) if group.rows is None else group.rows
            found += [begin + row for row in own] if begin else own
        return numpy.array(found, dtype=numpy.int64)

    def reads(self, place: int) -> list[bytes]:
        """The fields of the further parts that are wanted of the bucket at `place`."""
        fields, further = self.groups[place].fields, self.handler.further_parts
        return [field for row in self.spilling[place] for field in keys.part_fields(fields[row], further)]

    def spill(self, found: Mapping[int, Sequence[bytes | None]]) -> bool:
        """Move what is full into further parts, of which by place of the bucket these are there; whether that was to be had."""
        handler = self.handler
        further = handler.further_parts
        rows = [self.begins[place] + row for place, its in self.spilling.items() for row in its]
        try:
            old = [_dump_of(content, handler.version) for place in self.spilling for content in found[place]]
            new = iter(handler.spill(self.states, numpy.array(rows), [old[at : at + further] for at in range(0, len(old), further)]))
        except ValueError:  # who is at fault Fold finds out
            return False
        self.parts = {place: {row: next(new) for row in its} for place, its in self.spilling.items()}
        return True

    def written(self, emptied: dict[int, list[bytes]]) -> Written:
        """What of this Type is written; `emptied` gets by bucket the fields that go."""
        contents = self.handler.dump_array(self.states)  # behind their frames; the further parts are not
        further: dict[int, list[bytes]] = {}
        for place, of_rows in self.parts.items():
            fields, bucket = self.groups[place].fields, self.buckets[place]
            for row, its in of_rows.items():
                for field, part in zip(keys.part_fields(fields[row], len(its)), its, strict=True):
                    if part:
                        further.setdefault(place, []).extend((field, self.frame + part))
                    else:
                        emptied.setdefault(bucket, []).append(field)
        return contents, further


def fold_plain(plain: Sequence[Plain], bench: Bench, now: float, age: int) -> PlainSteps:
    """By bucket the Outcome of these, as far as that is to be had; yields what must be read in addition."""
    plain, beside = yield from _fold_besides(plain, bench, now)
    folded = []
    for type, gathered in gather(plain).items():
        of_type = _OfType(type, bench.get(type), gathered)
        if of_type.fold(now, age):
            folded.append(of_type)
    reads: dict[int, list[bytes]] = {}
    for of_type in folded:
        for place in of_type.spilling:
            reads.setdefault(of_type.buckets[place], []).extend(of_type.reads(place))
    for its in beside:
        for bucket, fields in its.reads().items():
            reads.setdefault(bucket, []).extend(fields)
    failed: set[str] = set()  # Types whose further parts are not as they must be
    if reads:
        replies = yield {bucket: [(b"HMGET", keys.of(bucket).states, *fields)] for bucket, fields in reads.items()}
        contents = {bucket: iter(found[0]) for bucket, found in replies.items()}
        for of_type in folded:
            further = of_type.handler.further_parts
            found = {}
            for place, rows in of_type.spilling.items():
                its = contents[of_type.buckets[place]]
                found[place] = [next(its) for _ in range(further * len(rows))]
            if found and not of_type.spill(found):
                failed.add(of_type.type)
        for its in beside:
            yield from its.go_on(contents)
    emptied: dict[int, list[bytes]] = {}
    written = {of_type.type: of_type.written(emptied) for of_type in folded if of_type.type not in failed}
    if not beside:
        return write(plain, written, emptied)
    also: dict[int, list[bytes]] = {}
    for its in beside:
        its.write(age, also, emptied)
    left = set().union(*[its.left() for its in beside])
    outcomes = {bucket: outcome for bucket, outcome in write(plain, written, emptied).items() if bucket not in left}
    for bucket, fields in also.items():
        if bucket in outcomes:
            commands = outcomes[bucket].commands
            commands[_STATES] = (*commands[_STATES], *fields)
    return outcomes


def _fold_besides(plain: Sequence[Plain], bench: Bench, now: float) -> Generator[Pause, None, tuple[Sequence[Plain], list[BesidesOfType]]]:
    """These with the contents of their arrays' States alone, and what they have beside them, folded as far as that goes without more."""
    with_besides = {one.bucket: one for one in plain if one.plan.besides is not None}
    if not with_besides:
        return plain, []
    contents: dict[int, Sequence[bytes]] = {}
    besides: dict[int, Besides] = {}
    arrays: dict[int, list[bytes]] = {}
    for bucket, one in with_besides.items():
        its = cast(Besides, one.plan.besides)
        size = len(one.contents) - len(its.fields)
        besides[bucket], arrays[bucket], contents[bucket] = its, one.contents[:size], one.contents[size:]
    found = list(gather_besides(contents, besides, bench).values())
    for of_type in found:
        yield from of_type.begin(now)
    return [one._replace(contents=arrays[one.bucket]) if one.bucket in arrays else one for one in plain], found


_STATES = 1  # among the commands that `write` makes, the one that writes States
_NOTHING: Mapping[Any, Any] = {}
_SAYS_NOTHING = PlainOutcome([], [], 0, _NOTHING, _NOTHING, (), (), _NOTHING, 0, _NOTHING, _NOTHING, (0, 0))  # type: ignore[arg-type]


def _dump_of(content: bytes | None, version: int) -> bytes:
    framed = keys.unframe(content)
    if framed.version not in (0, version):
        raise ValueError("a further part has another version than its State")
    return framed.dump
