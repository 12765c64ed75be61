"""UpDown: a number that goes up and down, such as requests in flight; what a process added to it is gone when the process dies.

1. A ring's events come as absolutes: what its process had added up to a position. The State keeps, for each ring, the sum of the
   greatest position that it saw, so that loss, repetition and order of absolutes do no harm. The value is the sum over the rings.
2. At position RING_ENDED the process is dead: its entry stays, without a sum, so that no earlier absolute which is still on its way revives
   it; at RING_GONE none is, and the entry goes.
3. Posted events are deltas without a source: they stay in `base`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgpack

from taba.batch import RING_ENDED, RING_GONE
from taba.handlers.base import Events, Handler, Projection, Sample
from taba.handlers.figures import show_tallies, sum_tallies
from taba.handlers.folded import InC
from taba.parts import find

MAX_RINGS = 1000  # entries of one State: a Client has one ring at a time, and one more for each process that died a moment ago
RING_ID_BYTES = 16
MAX_RING_POSITION = 2**63 - 1

State = tuple[float, int, dict[bytes, list[Any]]]  # base, events refused, [position, sum] by ring

_latest = find("taba.handlers._latest")  # without it Python does it all


class UpDown(InC, Handler):
    """The sum of what living processes added, and of what was posted."""

    type = "UpDown"
    version = 1
    in_c = None if _latest is None else _latest.updowns
    shown = ("value",)
    absolute = True

    def new_state(self) -> State:
        return 0.0, 0, {}

    def fold(self, state: State, events: Events, now: float) -> State:
        base, refused, rings = state
        for value in events.values:
            if isinstance(value, list):
                _fold_absolute(rings, value)
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"takes numbers, not {value!r}"[:200])
            if math.isfinite(value):
                base += value
            else:
                refused += 1
        return base, refused, rings

    def project(self, state: State, now: float) -> Projection:
        base, refused, rings = state
        return {"value": base + sum(total for _, total in rings.values()), "_refused": refused}

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        return {"value": sum(projection["value"] for projection in projections), **sum_tallies(projections)}

    def detail(self, state: State, now: float) -> Projection:
        """The Projection, and how many Events were refused."""
        return show_tallies(self.project(state, now))

    def samples(self, projection: Projection) -> list[Sample]:
        return [Sample("", {}, projection["value"], "gauge")]

    def load(self, content: bytes) -> State:
        base, refused, rings = msgpack.unpackb(content, strict_map_key=False)
        if type(base) is not float or type(refused) is not int or refused < 0 or not isinstance(rings, dict):
            raise ValueError("no State of an UpDown")
        for ring, entry in rings.items():
            if not isinstance(entry, list) or len(entry) != 2:
                raise ValueError("no State of an UpDown: a ring has a position and a sum")
            _check(ring, *entry)
        return base, refused, rings

    def prunable(self, state: State, now: float) -> bool:
        base, _, rings = state
        return base == 0 and not rings


def _fold_absolute(rings: dict[bytes, list[Any]], row: list[Any]) -> None:
    if len(row) != 3:
        raise ValueError(f"takes [ring, position, sum], not {row!r}"[:200])
    ring, position, total = row
    _check(ring, position, total)
    if position == RING_GONE:
        rings.pop(ring, None)
        return
    entry = rings.get(ring)
    if entry is None and len(rings) >= MAX_RINGS:
        raise ValueError(f"more than {MAX_RINGS} rings of one Client")
    if entry is None or position >= entry[0]:
        rings[ring] = [position, 0.0 if position >= RING_ENDED else total]


def _check(ring: Any, position: Any, total: Any) -> None:
    if not isinstance(ring, bytes) or len(ring) != RING_ID_BYTES or type(position) is not int or not 0 <= position <= MAX_RING_POSITION:
        raise ValueError(f"no ring and position: {ring!r} {position!r}"[:200])
    if type(total) is not float or not math.isfinite(total):
        raise ValueError(f"no sum: {total!r}"[:200])
