"""Buckets of which there is nothing to say: one batch that follows its mark, one section of floats, of States that are all there. Pure.

1. What a cycle of such a bucket writes and answers is what Fold would have it write and answer (a test compares them): only what Fold has
   to look for, and does not find here, is left out. Of all these buckets the States of one Type are folded in one call. Which other States
   spill along with a full one depends on what is folded together, here as in Fold: what they hold is the same.
2. Whatever is out of the ordinary leaves its bucket to Fold; what a Handler cannot fold leaves all of that Type to it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from itertools import chain, groupby
from operator import attrgetter
from typing import Any

import numpy

from taba.batch import Block, Verdict
from taba.server import keys
from taba.server.fold.cycle import LATENCY_SAMPLES, Cycle, Outcome, are_times
from taba.server.fold.marks import Marks
from taba.server.router import Command
from taba.server.work.bench import Bench

PlainSteps = Generator[dict[int, Sequence[Command]], Mapping[int, Sequence[Any]], dict[int, Outcome]]


class Plain:
    """Such a bucket."""

    __slots__ = ("block", "contents", "cycle", "marks", "type", "verdict")

    def __init__(self, cycle: Cycle, block: Block, contents: list[bytes], marks: Marks, verdict: Verdict):
        self.cycle, self.block, self.contents, self.marks, self.verdict, self.type = cycle, block, contents, marks, verdict, block.type

    def outcome(self, contents: Sequence[bytes], frame: bytes, parts: Mapping[int, Sequence[bytes]]) -> Outcome:
        """What is written where its States are these now, behind their frames, and some have these further parts, which are not."""
        cycle, block = self.cycle, self.block
        bucket, states = cycle.bucket, keys.states(cycle.bucket)
        written = [b""] * (2 * len(contents))
        written[::2], written[1::2] = block.fields, contents
        emptied: list[bytes] = []
        for row, further in parts.items():
            for field, part in zip(keys.part_fields(block.fields[row], len(further)), further, strict=True):
                if part:
                    written += (field, frame + part)
                else:
                    emptied.append(field)
        events = len(block.times) >> 3
        commands: list[Command] = [
            (b"HSET", keys.marks(bucket), *chain.from_iterable(self.marks.written().items())),
            (b"HSET", states, *written),
        ]
        if emptied:
            commands.append((b"HDEL", states, *emptied))
        commands.append((b"HINCRBY", keys.counts(bucket), b"folded", b"%d" % events))
        times = numpy.frombuffer(block.times, "<f8")[:: events // LATENCY_SAMPLES + 1]
        return Outcome(commands, [self.verdict], events, {}, {}, times, moved=block.moved)


def plain_of(cycle: Cycle, replies: Sequence[Any], bench: Bench, age: int) -> Plain | None:
    """The bucket of this cycle, where it is such a one and the replies to its reads leave nothing to look for; else None."""
    block = cycle.block
    if block is None:
        return None
    marks_kept, types, contents = replies
    type = block.type
    if types.count(type.encode()) != len(types) or not keys.are_framed(contents) or not bench.folds_dumps(type):
        return None
    [item] = cycle.waiting
    batch = item.batch
    marks = Marks({batch.stream: marks_kept[0]}, age)
    verdict, is_new = marks.fold(batch.stream, batch.number, item.follows, item.nonce)
    return Plain(cycle, block, contents, marks, verdict) if is_new else None


def fold_plain(plain: Sequence[Plain], bench: Bench, now: float, age: int) -> PlainSteps:
    """By bucket the Outcome of these, as far as that is to be had; yields what must be read in addition."""
    outcomes: dict[int, Outcome] = {}
    for type, of_type in groupby(sorted(plain, key=_TYPE_OF), _TYPE_OF):
        members = list(of_type)
        handler: Any = bench.get(type)
        blocks = [one.block for one in members]
        counts = list(chain.from_iterable([block.counts for block in blocks]))
        times = numpy.frombuffer(b"".join([block.times for block in blocks]), "<f8")
        if not are_times(times).all():
            continue
        rows = numpy.arange(len(counts))
        if len(times) > len(counts):
            rows = rows.repeat(counts)
        values = numpy.frombuffer(b"".join([block.values for block in blocks]), "<f8")
        contents = list(chain.from_iterable([one.contents for one in members]))
        frame = keys.frame(handler.version, age)
        states = handler.fold_dumps(contents, rows, times, values, now, handler.version, frame)
        if states is None:
            continue
        ends = numpy.cumsum([len(block) for block in blocks])
        parts: dict[int, dict[int, Sequence[bytes]]] = {}
        spilling = handler.spilling(states)
        if len(spilling):
            places = numpy.searchsorted(ends, spilling, side="right").tolist()
            begins = [0, *ends.tolist()]
            local: dict[int, list[int]] = {}  # by the member's place its rows
            for row, place in zip(spilling.tolist(), places, strict=True):
                local.setdefault(place, []).append(row - begins[place])
            further = handler.further_parts
            replies = yield {
                members[place].cycle.bucket: [
                    (
                        b"HMGET",
                        keys.states(members[place].cycle.bucket),
                        *chain.from_iterable([keys.part_fields(blocks[place].fields[row], further) for row in its]),
                    )
                ]
                for place, its in local.items()
            }
            kept = list(chain.from_iterable([replies[members[place].cycle.bucket][0] for place in local]))
            try:
                old = [_dump_of(content, handler.version) for content in kept]
                new = handler.spill(states, spilling, [old[at : at + further] for at in range(0, len(old), further)])
            except ValueError:  # who is at fault Fold finds out
                continue
            made = iter(new)
            parts = {place: {row: next(made) for row in its} for place, its in local.items()}
        dumps = handler.dump_array(states)
        begin = 0
        for place, (one, end) in enumerate(zip(members, ends.tolist(), strict=True)):
            outcomes[one.cycle.bucket] = one.outcome(dumps[begin:end], frame, parts.get(place, {}))
            begin = end
    return outcomes


_TYPE_OF = attrgetter("type")


def _dump_of(content: bytes | None, version: int) -> bytes:
    framed = keys.unframe(content)
    if framed.version not in (0, version):
        raise ValueError("a further part has another version than its State")
    return framed.dump
