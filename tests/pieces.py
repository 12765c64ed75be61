"""Columns as a drain hands them to the encoder, made from Columns, and what a Column holds: for tests that send without rings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgpack

from taba.agent.drain import Packed, extent, first_piece
from taba.batch import Column
from taba.batch import Packed as PackedValues


def pack(columns: Mapping[int, Iterable[Column]]) -> Packed:
    """The pieces of `columns`, as a drain makes them."""
    packed: Packed = {}
    for bucket, some in columns.items():
        pieces = packed[bucket] = []
        for client, tab, type, times, values, _ in some:
            more = (_header(times), times, *((_header(values), values) if isinstance(values, bytes) else (b"", msgpack.packb(values))))
            first = first_piece(client, tab, type)
            pieces += (extent(len(times) >> 3, len(first) + sum(map(len, more))) + first, *more)
    return packed


def values_of(column: Column) -> list[Any]:
    """The values of a column, in whichever form it has them."""
    if isinstance(column.values, PackedValues):
        return column.values.values()
    return column.values if isinstance(column.values, list) else memoryview(column.values).cast("d").tolist()


def _header(content: bytes) -> bytes:
    packed: bytes = msgpack.packb(content)
    return packed[: len(packed) - len(content)]
