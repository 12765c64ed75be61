"""ExpiryGauge: the last value by time, until it expires.

An event `{"value": v, "seconds": s}` holds v for s seconds from its time; any other value holds HOLD_SECONDS. The State is
`[value, time, seconds]`, or nil. As with a Gauge, of several events at one time the one recorded later stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from taba.bounds import DAY
from taba.handlers.base import Events, Handler, Projection, Sample
from taba.handlers.folded import InC
from taba.handlers.gauge import aggregate_values, latest, value_samples
from taba.handlers.render import as_json
from taba.parts import find

HOLD_SECONDS = DAY  # for a value that says nothing of its own

_latest = find("taba.handlers._latest")  # without it Python does it all


def held_value(event: Any) -> tuple[Any, float]:
    """(value, seconds) of an event's value: of `{"value", "seconds"}` what it says, of any other value itself for a day."""
    if isinstance(event, dict) and event.keys() == {"value", "seconds"}:
        seconds = event["seconds"]
        if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and math.isfinite(seconds):
            return event["value"], float(seconds)
    return event, HOLD_SECONDS


class ExpiryGauge(InC, Handler):
    """The last value by time, until it expires."""

    type = "ExpiryGauge"
    version = 1
    in_c = None if _latest is None else _latest.expiring
    shown = ("held",)

    def new_state(self) -> None:
        return None

    def fold(self, state: Any, events: Events, now: float) -> Any:
        found = latest(events, now, -math.inf if state is None else state[1])
        if found is None:
            return state
        event, time = found
        value, seconds = held_value(event)
        return [value, time, seconds]

    def load(self, content: bytes) -> Any:
        state = super().load(content)
        if state is not None and not (isinstance(state, list) and len(state) == 3 and all(isinstance(item, float) for item in state[1:])):
            raise ValueError("an ExpiryGauge's State takes a value, a time and seconds")
        return state

    def project(self, state: Any, now: float) -> Projection:
        if self.prunable(state, now):
            return {"value": None, "time": None}
        return {"value": as_json(state[0]), "time": state[1]}

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        return aggregate_values(projections)

    def prunable(self, state: Any, now: float) -> bool:
        return state is None or not now < state[1] + state[2]

    def samples(self, projection: Projection) -> list[Sample]:
        return value_samples(projection)
