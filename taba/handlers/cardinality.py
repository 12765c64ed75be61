"""Cardinality: how many different values there were, ever, by HyperLogLog of the library `datasketches`.

Up to some 500 values are counted exactly; beyond, the standard error is STANDARD_ERROR, in a State of at most MAX_STATE_BYTES.
Over Clients it is the union: a value that two Clients saw counts once.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

from taba.handlers.base import Events, Projection, Sample
from taba.handlers.opaque import SketchHandler, count_values, datasketches, identity, pack_sketch, unpack_sketch

LG_REGISTERS = 13
STANDARD_ERROR = 0.0115  # relative: 1.04 / √(2 ** LG_REGISTERS)
MAX_STATE_BYTES = 6 * 1024  # half a byte a register, 4 KiB, and those few that need more

_KIND = datasketches.tgt_hll_type.HLL_4


class Cardinality(SketchHandler):
    """How many different values there were."""

    type = "Cardinality"
    version = 1
    shown = ("distinct",)

    def sketch(self, state: bytes) -> Any:
        return _sketch(state)

    def fold(self, state: bytes, events: Events, now: float) -> bytes:
        sketch = _sketch(state)
        for value, _ in count_values(events.values):
            sketch.update(identity(value))
        return pack_sketch(sketch.serialize_compact())

    def project(self, state: bytes, now: float) -> Projection:
        return _projection([state])

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        return _projection([b64decode(projection["_sketch"]) for projection in projections])

    def merge(self, states: Sequence[bytes]) -> bytes:
        """The States of several Clients as one."""
        return _union(states)[1]

    def samples(self, projection: Projection) -> list[Sample]:
        return [Sample("", {}, projection["distinct"], "gauge")]


def _sketch(state: bytes) -> Any:
    return datasketches.hll_sketch.deserialize(unpack_sketch(state)) if state else datasketches.hll_sketch(LG_REGISTERS, _KIND)


def _union(states: Sequence[bytes]) -> tuple[float, bytes]:
    """(estimate, State) of all `states` together."""
    union = datasketches.hll_union(LG_REGISTERS)
    filled = [state for state in states if state]
    for state in filled:
        union.update(_sketch(state))
    # a sketch that saw its values one by one estimates by the order that they came in; united with itself it knows no
    # order any more, so that pieces, Clients and the whole agree
    ordered, settled = union.get_result(datasketches.tgt_hll_type.HLL_8), datasketches.hll_union(LG_REGISTERS)
    settled.update(ordered)
    settled.update(ordered)
    content = filled[0] if len(filled) == 1 else pack_sketch(settled.get_result(_KIND).serialize_compact())
    return settled.get_estimate(), content


def _projection(states: Sequence[bytes]) -> Projection:
    estimate, state = _union(states)
    return {"distinct": round(estimate), "_sketch": b64encode(state).decode()}
