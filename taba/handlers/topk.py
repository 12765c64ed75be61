"""TopK: the values that occurred most often, ever, with how far each count may be off, by frequent items of `datasketches`.

The sketch counts CAPACITY different values exactly. When there are more, the rarest are given up, and `error` says by how much a
count may be too high because of it: the true count lies in count − error … count, and error is at most ERROR_SHARE of all events.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

from taba.handlers.base import Events, Projection, Sample
from taba.handlers.opaque import SketchHandler, brief_identity, count_values, datasketches, pack_sketch, unpack_sketch

LG_MAP = 9
CAPACITY = 384  # ¾ of 2 ** LG_MAP
ERROR_SHARE = 3.5 / 2**LG_MAP  # 0.7 %
MAX_SHOWN = 50  # values in a Projection or Aggregate; what is rarer is in the sketch, but mostly error
MAX_SAMPLES = 10  # values that exporters show; each is a series of its own there

_ALL = datasketches.frequent_items_error_type.NO_FALSE_NEGATIVES


class TopK(SketchHandler):
    """The values that occurred most often."""

    type = "TopK"
    version = 1
    shown = ("top",)

    def sketch(self, state: bytes) -> Any:
        return _sketch(state)

    def fold(self, state: bytes, events: Events, now: float) -> bytes:
        sketch = _sketch(state)
        for value, count in count_values(events.values):
            sketch.update(brief_identity(value), count)
        return pack_sketch(sketch.serialize())

    def project(self, state: bytes, now: float) -> Projection:
        return _projection(_sketch(state), state)

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        states = [b64decode(projection["_sketch"]) for projection in projections]
        merged = _merged(states)
        return _projection(merged, pack_sketch(merged.serialize()))

    def merge(self, states: Sequence[bytes]) -> bytes:
        """The States of several Clients as one."""
        return pack_sketch(_merged(states).serialize())

    def samples(self, projection: Projection) -> list[Sample]:
        counts: dict[str, int] = {}
        for value, count, _ in projection["top"][:MAX_SAMPLES]:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            counts[text] = counts.get(text, 0) + count  # 17 and "17" have one label
        return [Sample("", {"value": text}, count, "gauge") for text, count in counts.items()]


def _sketch(state: bytes) -> Any:
    if not state:
        return datasketches.frequent_strings_sketch(LG_MAP)
    return datasketches.frequent_strings_sketch.deserialize(unpack_sketch(state))


def _merged(states: Sequence[bytes]) -> Any:
    merged = datasketches.frequent_strings_sketch(LG_MAP)
    for state in sorted(states):  # what is given up depends on the order: the Clients' must not matter
        merged.merge(_sketch(state))
    return merged


def _projection(sketch: Any, state: bytes) -> Projection:
    found = sorted(((-estimate, text, upper - lower) for text, estimate, lower, upper in sketch.get_frequent_items(_ALL)))
    return {
        "top": [[json.loads(text), -negated, error] for negated, text, error in found[:MAX_SHOWN]],
        "_sketch": b64encode(state).decode(),
    }
