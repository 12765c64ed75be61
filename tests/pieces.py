"""Columns as a drain hands them to the encoder, made from Columns, and what a Column holds: for tests that send without rings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taba.agent.drain import Packed
from taba.batch import Column, sections_of
from taba.batch import Packed as PackedValues


def pack(columns: Mapping[int, Iterable[Column]]) -> Packed:
    """`columns` as a drain hands them to the encoder."""
    return {bucket: sections_of(some) for bucket, some in columns.items()}


def values_of(column: Column) -> list[Any]:
    """The values of a column, in whichever form it has them."""
    if isinstance(column.values, PackedValues):
        return column.values.values()
    return column.values if isinstance(column.values, list) else memoryview(column.values).cast("d").tolist()
