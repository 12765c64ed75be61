"""The cold load: many States with a full day in each, and then one event for each of them. Shared by Server and floor.

A CounterGroup's cheap updates go to its journal of recent slots of 5 s, and once in a while the journal spills into the archive. So the
journals are filled beforehand to lengths from JOURNAL_LEAST to the bound, evenly, and rounds come 5 s apart, in real time, for
as long as it takes a journal to fill again: the mean over them is what a steady load pays.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np

from taba.batch import Column
from taba.bounds import DEFAULT_BUCKETS
from taba.handlers.counter_group import JOURNAL_SLOTS, LADDER
from taba.names import bucket_of
from taba.server import keys
from taba.shard.servers.connection import encode

JOURNAL_LEAST = 20  # a spill leaves 19 at the most
SLOT_SECONDS = float(LADDER.widths[0])
PERIOD_ROUNDS = JOURNAL_SLOTS + 1 - JOURNAL_LEAST  # after so many, a journal spills again
VALUES = [round(1.3**number, 3) for number in range(20)]
DAY_TIMES = (  # seconds ago: in every slot of a day that no journal holds
    *(float(ago) for ago in range(86_000, 3_600, -900)),
    *(float(ago) for ago in range(3_600, 600, -150)),
    *(float(ago) for ago in range(600, 240, -30)),
)

ByBucket = dict[int, list[Column]]  # columns by bucket


class Cold(NamedTuple):
    """So many States, of so many Clients with the same Tabs."""

    states: int
    clients: int

    def names(self) -> dict[int, list[tuple[str, str]]]:
        """bucket → (Client, Tab) of its States."""
        found: dict[int, list[tuple[str, str]]] = {}
        for tab in range(self.states // self.clients):
            name = f"benchmark.cold.{self.clients}.{tab:06d}"
            found.setdefault(bucket_of(name, DEFAULT_BUCKETS), []).extend((f"web-{client:03d}/1", name) for client in range(self.clients))
        return found

    def fields(self) -> dict[int, list[bytes]]:
        """bucket → the fields of its States' main parts."""
        return {bucket: [keys.state_field(tab, client) for client, tab in pairs] for bucket, pairs in self.names().items()}

    def asking_bytes(self) -> int:
        """What the commands that read these States and the Types of their Tabs take on the wire."""
        total = 0
        for bucket, fields in self.fields().items():
            tabs = dict.fromkeys(field.partition(b"\0")[0] for field in fields)
            total += len(encode([(b"HMGET", keys.states(bucket), *fields), (b"HMGET", keys.tabs(bucket), *tabs)]))
        return total

    def day(self, now: float) -> ByBucket:
        """The day before `now` (Unix seconds): what comes to lie in the archives."""
        return self._columns(np.array([now - ago for ago in DAY_TIMES]))

    def journals(self, now: float) -> ByBucket:
        """The last minutes before the slot of `now`."""
        columns: ByBucket = {}
        number = 0
        for bucket, pairs in self.names().items():
            for client, tab in pairs:
                slots = JOURNAL_LEAST + number % (JOURNAL_SLOTS - JOURNAL_LEAST + 1)
                number += 1
                columns.setdefault(bucket, []).append(_column(client, tab, now - SLOT_SECONDS * np.arange(slots, 0, -1)))
        return columns

    def round(self, now: float) -> ByBucket:
        """One event for every State, at `now`."""
        return self._columns(np.array([now]))

    def _columns(self, times: np.ndarray) -> ByBucket:
        return {bucket: [_column(client, tab, times) for client, tab in pairs] for bucket, pairs in self.names().items()}


def spread(tabs: int, clients: int, now: float) -> ByBucket:
    """One event, at `now`, of each of so many Tabs and Clients."""
    time, columns = np.array([now]), ByBucket()
    for tab in range(tabs):
        name = f"benchmark.spread.{tab:06d}"
        its = columns.setdefault(bucket_of(name, DEFAULT_BUCKETS), [])
        its += [_column(f"web-{client:04d}/1", name, time) for client in range(clients)]
    return columns


def _column(client: str, tab: str, times: np.ndarray) -> Column:
    first = zlib.crc32(tab.encode()) % len(VALUES)
    values = np.array([VALUES[(first + place) % len(VALUES)] for place in range(len(times))])
    return Column(client, tab, "CounterGroup", times.tobytes(), values.tobytes())
