"""Cumulative: running totals that somebody else keeps, such as a counter that is read every 15 s.

An event is `[running total, start]`; the start (Unix seconds) says since when the total runs. What it adds is the increase over the last
one: all of it at first, after another start, and after a fall (whoever kept the total began anew); nothing for a repeat. An event older
than the last adds nothing, since the last one's total has it already; such are counted as late. So whoever forwards a running total
needs to remember nothing.

A State's main part is what was last seen, and behind it a CounterGroup's without bins, whose slots and archive these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints
from taba.handlers.base import Ever, History, Projection, Sample
from taba.handlers.counter_group import CounterGroup, CounterStates
from taba.handlers.figures import finite_events, sum_tallies
from taba.handlers.ragged import MalformedRow, refuse
from taba.handlers.samples import count_and_sum
from taba.handlers.windows import WINDOWS

MAX_TALLY = 2**32 - 1  # where the count of late events stops

_LAST = np.dtype(
    [("time", "<f8"), ("total", "<f8"), ("start", "<f8"), ("count", "<i8"), ("late", "<u4"), ("mark", "<u4")]
)  # 40 bytes, before the CounterGroup's
_MARK = 0x4C55_4D43  # the same in every dump: other bytes are seldom taken for one
_SLOTS = CounterGroup()


class CumulativeStates:
    """What each row last saw, and its slots."""

    __slots__ = ("last", "late", "slots")

    def __init__(self, last: NDArray[Any], slots: CounterStates):
        self.last = last
        self.late: Ints = last["late"].astype(np.int64)
        self.slots = slots


class Cumulative(CounterGroup):
    """Count, total and average of a running total's increases over the last 1m, 10m, 1h, 1d, exact to the slot."""

    type = "Cumulative"
    version = 1
    shown = ("total",)
    further_parts = 1
    pairs = "start"
    edge = None  # an increase depends on what was last seen, which only the State knows
    fold_dumps = None  # type: ignore[assignment]
    merge_array = None  # type: ignore[assignment]
    count_array = None  # type: ignore[assignment]

    def load_array(self, dumps: Sequence[bytes]) -> Any:
        size = _LAST.itemsize
        for row, dump in enumerate(dumps):
            if dump and len(dump) < size:
                raise MalformedRow(row, "no State of a Cumulative")
        last = np.frombuffer(bytearray().join(dump[:size] or _NEW for dump in dumps), dtype=_LAST)
        refuse((last["mark"] != _MARK) | (last["count"] < 0) | ~(last["total"] >= 0), "no State of a Cumulative")
        return CumulativeStates(last, _SLOTS.load_array([dump[size:] for dump in dumps]))

    def fold_array(self, states: Any, rows: Ints, times: Floats, values: Floats, now: float) -> Any:
        slots: CounterStates = states.slots
        totals, starts = (values, np.zeros(len(values))) if values.ndim == 1 else values.T
        rows, totals, starts, times = finite_events(slots.head["refused"], rows, np.ascontiguousarray(totals), starts, times)
        last = states.last
        found: list[tuple[int, float, float]] = []
        for row, total, start, time in zip(rows.tolist(), totals.tolist(), starts.tolist(), times.tolist(), strict=True):
            seen = last[row]
            at = min(time, now)
            if at < seen["time"] <= now:  # a time kept beyond now, by a clock that was ahead, yields
                states.late[row] += 1
                continue
            whole = total < seen["total"] or start != seen["start"]
            increase = total if whole else total - float(seen["total"])
            last[row] = (at, total, start, seen["count"] + (increase > 0), 0, _MARK)
            if increase > 0:
                found.append((row, time, increase))
        if found:
            columns = np.array(found)
            of, amounts = columns[:, 0].astype(np.int64), columns[:, 2].copy()
            with np.errstate(over="ignore"):  # a sum beyond all floats is infinite, and shown as no value
                np.add.at(slots.head["total"], of, amounts)
            _SLOTS.add_slots(slots, of, columns[:, 1].copy(), amounts, None, now)
        return states

    def spilling(self, states: Any) -> Ints:
        return _SLOTS.spilling(states.slots)

    def spill(self, states: Any, rows: Ints, parts: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
        return _SLOTS.spill(states.slots, rows, parts)

    def dump_array(self, states: Any) -> list[bytes]:
        last = states.last
        last["late"], last["mark"] = np.minimum(states.late, MAX_TALLY), _MARK
        content = last.tobytes()
        size = _LAST.itemsize
        return [content[row * size : (row + 1) * size] + dump for row, dump in enumerate(_SLOTS.dump_array(states.slots))]

    def merge(self, states: Sequence[list[bytes]]) -> list[bytes]:
        """The States of several Clients as one. What it last saw is the latest of theirs."""
        loaded = self.load_array([state[0] for state in states])
        merged = loaded.last[np.argmax(loaded.last["time"])].copy().reshape(1)
        merged["count"], merged["late"] = loaded.last["count"].sum(), min(int(loaded.late.sum()), MAX_TALLY)
        slots = _SLOTS.merge([[dump, *state[1:]] for dump, state in zip(_SLOTS.dump_array(loaded.slots), states, strict=True)])
        return [merged.tobytes() + slots[0], *slots[1:]]

    def project_array(self, states: Any, parts: Sequence[Sequence[bytes]], now: float) -> list[Projection]:
        projections = _SLOTS.project_array(states.slots, parts, now)
        for projection, late in zip(projections, states.late.tolist(), strict=True):
            del projection["pct"]
            projection["_late"] = late
        return projections

    def aggregate_array(self, states: Any, parts: Sequence[Sequence[bytes]], groups: Ints, total: int, now: float) -> list[Projection]:
        projections = _SLOTS.aggregate_array(states.slots, parts, groups, total, now)
        late = np.zeros(total, dtype=np.int64)
        np.add.at(late, groups, states.late)
        for projection, count in zip(projections, late.tolist(), strict=True):
            del projection["pct"]
            projection["_late"] = count
        return projections

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        return {**self.aggregate_windows(projections), **sum_tallies(projections)}

    def samples(self, projection: Projection) -> list[Sample]:
        return [sample for name in WINDOWS for sample in count_and_sum(projection[name], "_window", {"window": name}, "gauge")]

    def history(self, states: Sequence[list[bytes]], now: float) -> History:
        loaded = self.load_array([state[0] for state in states])
        ever = Ever(count=loaded.last["count"], total=loaded.slots.head["total"])
        return self.slot_history(loaded.slots, [state[1:] for state in states], ever, now)

    def slots_of(self, state: list[bytes]) -> CounterStates:
        slots: CounterStates = self.load_array(state[:1]).slots
        return slots


def _new() -> bytes:
    last = np.zeros(1, dtype=_LAST)
    last["time"], last["mark"] = -np.inf, _MARK
    return last.tobytes()


_NEW = _new()
