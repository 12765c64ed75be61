"""Gauge: the last value by time, of any type that msgpack can carry; of several at one time, the one recorded later.

The State is `[value, time]`, or nil. An event from the future is held to now, and a time that a State kept beyond now (its Server's clock
was ahead) yields to whatever is folded next: a wrong clock cannot shut out what follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from taba.handlers.base import Events, Handler, Projection, Sample
from taba.handlers.folded import InC
from taba.handlers.render import as_json, as_text
from taba.parts import find

MAX_VALUES = 100  # different values that an Aggregate tells apart; one for each Client would be a list of Clients
MAX_TEXT = 200  # characters of a value in an Aggregate
OTHERS = "…"  # the Clients whose values are not among the MAX_VALUES that most Clients have

_latest = find("taba.handlers._latest")  # without it Python does it all


class Gauge(InC, Handler):
    """The last value by time."""

    type = "Gauge"
    version = 1
    in_c = None if _latest is None else _latest.gauges
    shown = ("latest",)

    def new_state(self) -> None:
        return None

    def fold(self, state: Any, events: Events, now: float) -> Any:
        found = latest(events, now, -math.inf if state is None else state[1])
        return state if found is None else list(found)

    def load(self, content: bytes) -> Any:
        state = super().load(content)
        if state is not None and not (isinstance(state, list) and len(state) == 2 and isinstance(state[1], float)):
            raise ValueError("a Gauge's State takes a value and a time")
        return state

    def project(self, state: Any, now: float) -> Projection:
        if state is None:
            return {"value": None, "time": None}
        value, time = state
        return {"value": as_json(value), "time": time if math.isfinite(time) else None}

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        return aggregate_values(projections)

    def samples(self, projection: Projection) -> list[Sample]:
        return value_samples(projection)


def latest(events: Events, now: float, time: float) -> tuple[Any, float] | None:
    """(value, time) of the last of `events` by time, unless a value of a later `time` is there already; then None.

    Events from the future are held to `now`; of several at one time the one recorded later is the last. A kept `time` beyond `now`
    yields to any of them.
    """
    if time > now:
        time = -math.inf
    found = None
    if isinstance(events.times, np.ndarray) and len(events.times) > 8:
        times = np.where(events.times <= now, events.times, now)
        last = len(times) - 1 - int(np.argmax(times[::-1]))
        if times[last] >= time:
            found, time = last, float(times[last])
    else:
        for place, at in enumerate(events.times):
            at = float(at) if at <= now else now  # NaN is held as well
            if at >= time:
                found, time = place, at
    if found is None:
        return None
    value = events.values[found]
    return value.item() if isinstance(value, np.generic) else value, time


def value_samples(projection: Projection) -> list[Sample]:
    """Samples of a Projection with `value`, or of an Aggregate of such; none where it is no number."""
    if "values" not in projection:
        return [Sample("", {}, projection["value"], "gauge")] if _is_number(projection["value"]) else []
    found = [Sample("_clients", {}, projection["clients"], "gauge")]
    for name in ("sum", "average", "min", "max"):
        if projection[name] is not None:
            found.append(Sample("_" + name, {}, projection[name], "gauge"))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def aggregate_values(projections: Sequence[Projection]) -> Projection:
    """The Aggregate of Projections with `value` and `time`, or of such Aggregates.

    How many Clients have each value, as text; sum, average, least and greatest where all values are numbers, else None. Beyond
    MAX_VALUES different values, the rest is counted under OTHERS.
    """
    values: dict[str, int] = {}
    clients, total, low, high, numeric = 0, 0.0, math.inf, -math.inf, True
    for projection in projections:
        if "values" in projection:  # an Aggregate
            for text, count in projection["values"].items():
                values[text] = values.get(text, 0) + count
            clients += projection["clients"]
            if projection["sum"] is not None:
                total, low, high = total + projection["sum"], min(low, projection["min"]), max(high, projection["max"])
            elif projection["clients"]:
                numeric = False
            continue
        value, time = projection["value"], projection["time"]
        if value is None and time is None:  # nothing was recorded
            continue
        clients += 1
        text = as_text(value)
        text = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + OTHERS
        values[text] = values.get(text, 0) + 1
        if _is_number(value):
            total, low, high = total + value, min(low, value), max(high, value)
        else:
            numeric = False
    numeric = numeric and clients > 0
    return {
        "values": _most(values),
        "clients": clients,
        "sum": total if numeric else None,
        "average": total / clients if numeric else None,
        "min": low if numeric else None,
        "max": high if numeric else None,
    }


def _most(values: dict[str, int]) -> dict[str, int]:
    others = values.pop(OTHERS, 0)
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    others += sum(count for _, count in ordered[MAX_VALUES:])
    shown = dict(ordered[:MAX_VALUES])
    if others:
        shown[OTHERS] = others
    return shown
