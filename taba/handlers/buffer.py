"""Buffer: the latest values, each until it expires.

An event `{"value": v, "seconds": s}` is kept for s seconds from its time; any other value for a day. The State is
`[floor, [[time, value, seconds], …]]`, oldest first: the latest MAX_VALUES by time (of those at one time, the later recorded) that take
MAX_BYTES at most. The floor is the time of the latest that had no room: what is older comes too late, however small it is; what is kept
already, or recorded later at that very time, stands above it. What is expired is shown no more, but keeps its place until later values
push it out: so the State depends on the events alone, not on when they were folded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from taba.bounds import KiB
from taba.handlers.base import Events, Handler, Projection
from taba.handlers.expiry_gauge import held_value
from taba.handlers.render import as_json

MAX_VALUES = 100
MAX_BYTES = 64 * KiB  # of the values' JSON; two of the largest that a ring carries


class Buffer(Handler):
    """The latest values, each until it expires."""

    type = "Buffer"
    version = 1
    shown = ()

    def new_state(self) -> list[Any]:
        return [0.0, []]

    def fold(self, state: list[Any], events: Events, now: float) -> list[Any]:
        floor, items = state
        if floor > now or any(item[0] > now for item in items):
            # a Server whose clock was ahead kept them: they must not shut out what is right
            floor, items = (floor if floor <= now else 0.0), [[min(time, now), *rest] for time, *rest in items]
        fresh = []
        for time, event in zip(events.times, events.values, strict=True):
            value, seconds = held_value(event.item() if hasattr(event, "dtype") else event)
            time = float(time) if time <= now else now  # NaN is held as well
            if time >= floor or not floor:
                fresh.append([time, value, seconds])
        merged = [*items, *fresh]
        merged.sort(key=lambda item: item[0])  # stable: of one time, the later recorded is later
        kept = _latest(merged, lambda item: as_json(item[1]))
        if len(kept) < min(len(merged), MAX_VALUES):
            floor = max(floor, merged[-1 - len(kept)][0])
        return [floor, kept]

    def load(self, content: bytes) -> list[Any]:
        state = super().load(content)
        if not (isinstance(state, list) and len(state) == 2 and isinstance(state[0], float) and isinstance(state[1], list)) or not all(
            isinstance(item, list) and len(item) == 3 and isinstance(item[0], float) and isinstance(item[2], float) for item in state[1]
        ):
            raise ValueError("a Buffer's State takes a floor, times, values and seconds")
        return state

    def project(self, state: list[Any], now: float) -> Projection:
        return {"values": [[time, as_json(value)] for time, value, seconds in state[1] if now < time + seconds]}

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        # as in a fold: what is not above the latest that had no room comes too late, whichever Clients were put together first
        floor = max((tuple(projection["_floor"]) for projection in projections if "_floor" in projection), default=(0.0, ""))
        times = sorted((time for projection in projections for time, _ in projection["values"]), reverse=True)
        least = times[min(len(times), MAX_VALUES) - 1] if times else 0.0
        found = [(item, _place(item)) for projection in projections for item in projection["values"] if item[0] >= least]
        found = sorted((one for one in found if one[1] >= floor), key=lambda one: one[1])
        kept = _latest([item for item, _ in found], lambda item: item[1])
        if len(kept) < min(len(found), MAX_VALUES):
            floor = found[-1 - len(kept)][1]
        kept.sort(key=lambda item: (item[0], json.dumps(item[1], sort_keys=True)))
        return {"values": kept, "_floor": list(floor)} if floor[1] else {"values": kept}

    def prunable(self, state: list[Any], now: float) -> bool:
        return not any(now < time + seconds for time, _, seconds in state[1])


def _place(item: list[Any]) -> tuple[float, str]:
    """Where a value stands among those of all Clients: by time, and of one time by a digest, so that the Clients' order does not matter."""
    text = json.dumps(item[1], sort_keys=True)
    return item[0], hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _latest(items: list[list[Any]], value_of: Callable[[list[Any]], Any]) -> list[list[Any]]:
    """The last of sorted `items` that keep the bounds: never more, and at least one, however large."""
    kept: list[list[Any]] = []
    size = 0
    for item in reversed(items[-MAX_VALUES:]):
        size += _size(value_of(item))
        if size > MAX_BYTES and kept:
            break
        kept.append(item)
    return kept[::-1]


def _size(value: Any) -> int:
    """About the bytes of a JSON value."""
    if isinstance(value, str):
        return 2 + (len(value) if value.isascii() else len(value.encode()))
    return len(json.dumps(value)) if isinstance(value, (dict, list)) else 8
