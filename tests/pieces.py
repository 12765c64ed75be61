"""Columns as a drain hands them to the encoder, made from Columns: for tests and benchmarks that send without rings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgpack

from taba.agent.drain import Packed, extent, first_piece
from taba.batch import Column


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


def _header(content: bytes) -> bytes:
    packed: bytes = msgpack.packb(content)
    return packed[: len(packed) - len(content)]
