"""Columns as a drain hands them to the encoder, made from Columns, and what a Column holds: for tests that send without rings."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from taba.agent.encoding import SectionsByBucket
from taba.batch import AtEdge, Column, sections_of
from taba.batch import Packed as PackedValues


def pack(columns: Mapping[int, Iterable[Column]]) -> SectionsByBucket:
    """`columns` as a drain hands them to the encoder."""
    return {bucket: sections_of(some) for bucket, some in columns.items()}


def values_of(column: Column) -> list[Any]:
    """The values of a column, in whichever form it has them."""
    if isinstance(column.values, PackedValues):
        return column.values.values()
    if isinstance(column.values, AtEdge):
        return []  # they were folded
    values = column.made()
    return values if isinstance(values, list) else memoryview(values).cast("d").tolist()


def at_edge(tab: str, handler: Any, values: Sequence[float], client: str = "web/1", times: Sequence[float] | None = None) -> Column:
    """These events as a column that an Agent folded."""
    stamps = np.array(times or [1000.0] * len(values))
    [dump] = handler.edge_array(np.zeros(len(values), np.int64), stamps, np.array(values, np.float64), 1)
    least = struct.pack("<d", stamps.min())
    return Column(client, tab, handler.type, least, AtEdge(handler.edge, dump, float(stamps.max())), len(values))
