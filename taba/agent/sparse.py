"""Rings that have few records, read many in one call of the C part: of hundreds of them what Python does for each would be nearly all.

1. Such a ring is plain, as the last look saw it, which was just now: no holes, all names read, nobody's place taken by another's. That
   look found its records committed; what is read here is read for the second time, as `taba.agent.reader` has it.
2. What turns out not to be so plain is left to the ring itself: one ring, or all of them where a value cannot be read.
3. Nothing changes by it, as by any read.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from taba.agent.numbering import Places
from taba.agent.outbox import Covered
from taba.agent.reader import Reading, Ring
from taba.agent.scratch import Scratch
from taba.counting import unpack_counted
from taba.ring import MalformedRing

MOST_RECORDS = 1024  # of a ring that is read with others …
MOST_TOGETHER = 16_384  # … and of all of them: some 2 ms
_NONE = np.broadcast_to(np.uint32(0), 2**30), np.zeros(0), np.zeros(0, np.uint64)  # what settling needs of a reading is how many they are


class Read(NamedTuple):
    """What was read of some rings: of each its reading, and how many columns it has; then of all by column which ring it is of, its place
    there, the number of its Tab, its key, and how many events it has; and of events that are no floats the values, and which these are.
    The records are in Scratch, one ring's after the other's."""

    readings: list[tuple[Ring, Reading]]
    columns: list[int]
    of: Any
    places: Any
    numbers: Any
    keys: Any
    counts: Any
    events: int
    boxed: Any | None
    is_boxed: Any | None
    boxes: int


def few(ring: Ring) -> int:
    """How many records there are in a ring that can be read with others; 0 where it is to be read by itself."""
    names, places = ring.names, ring.places
    events = ring.seen_plainly
    is_known = isinstance(places, Places) and places.known == len(names.entries) and names.leads is None and not names.is_behind
    return events if is_known and events <= MOST_RECORDS else 0


def read_together(rings: Sequence[Ring], scratch: Scratch, sections: Any, first: int, byte_limit: int) -> Read | None:
    """Read these rings, of which `few` gave the records, behind Scratch's `begin`. None where that cannot be; rings that are not so plain
    are left out. `sections`: by number of a Tab the number of its section; `first`: what the first of the rings is numbered."""
    asked = np.array([ring.place_to_read for ring in rings], np.int64)
    total, known = int((asked[:, 4] - asked[:, 3]).sum()), int(asked[:, 5].max())
    scratch.fit(total)
    of, counts = np.empty((2, total), np.int64)
    places, numbers = np.empty((2, total), np.uint32)
    keys, found = np.empty(total, np.int32), np.empty(len(rings), np.int64)
    boxes = np.empty((min(total, max(0, scratch.values)), 4), np.int64)
    given = asked, [ring.places.numbers for ring in rings], sections, first, scratch.here(total), scratch.slots(known)
    columns, boxed = scratch.native.gather(*given, of, places, numbers, keys, counts, boxes, found)
    ends: dict[int, int] = {}
    values: tuple[Any, Any] | None = None
    if boxed:
        values = np.empty(total, np.object_), np.zeros(total, np.bool_)
        plain = [ring for ring, its in zip(rings, found.tolist(), strict=True) if its >= 0]
        try:
            if not _read_values(plain, first, boxes[:boxed].tolist(), values[0], byte_limit, ends):
                return None
        except (MalformedRing, OSError, ValueError):
            return None  # whoever reads each by itself says which it is, and why
        values[1][boxes[:boxed, 1]] = True
    readings: list[tuple[Ring, Reading]] = []
    each: list[int] = []
    events = 0
    for ring, (_, _, _, start, end, *_), its in zip(rings, asked.tolist(), found.tolist(), strict=True):
        if its < 0:
            continue
        ranges = [Covered(ring.key, start, end, ends.get(first + len(readings), 0))]
        readings.append((ring, Reading(_NONE[0][: end - start], *_NONE[1:], None, None, ranges, 0, False)))
        each.append(its)
        events += end - start
    boxed_of, is_boxed = (None, None) if values is None else (values[0][:events], values[1][:events])
    by_column = of[:columns], places[:columns], numbers[:columns], keys[:columns], counts[:columns]
    return Read(readings, each, *by_column, events, boxed_of, is_boxed, boxed)


def _read_values(rings: list[Ring], first: int, boxes: list[list[int]], to: Any, byte_limit: int, ends: dict[int, int]) -> bool:
    """Read the values that lie in the rings' bytes, and say where they end, by the number of the ring. False where they are more bytes
    than the limit. Raises ValueError for what is no value."""
    for of, its in groupby(boxes, itemgetter(0)):
        ring, each = rings[of - first], list(its)
        begin, end = min([one[2] for one in each]), max([one[2] + one[3] for one in each])
        byte_limit -= end
        if byte_limit < 0:
            return False
        content = ring.read_bytes(ring.byte_tail + begin, end - begin)
        for _, row, start, length in each:
            to[row] = unpack_counted(content[start - begin : start - begin + length])
        ends[of] = ring.byte_tail + end
    return True
