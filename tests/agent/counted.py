"""What an event takes of an Agent's parts in C; see tests/counted.py."""

from __future__ import annotations

import struct
from array import array
from collections import namedtuple
from typing import Any

from taba.agent.ages import Moment
from taba.agent.outbox import EncodedBatch, StoredBatch
from taba.batch import BatchId
from tests.counted import Case, is_nothing, part

EACH = 200  # events of a Tab
EDGE_SECONDS, MOST_TIME, MOST_VALUE = 60.0, 1e12, 1e290
BOUNDS = 10_000, 2**23, 100, 10_000, 2**16  # as taba/agent/encoding.py gives them
STREAM = bytes(16)
NOBODY: Any = None
Section = namedtuple("Section", "type columns fields counts times values is_listed stands_for edge until")
Made = tuple[Any, tuple[Any, ...]]

drain, fresh, rows, spreads = map(part, ("taba.agent._drain", "taba.handlers._fresh", "taba.handlers._rows", "taba.handlers._spreads"))


def records(events: int) -> bytes:
    return b"".join([struct.pack("<dQII", 1.0, at, at % (events // EACH), 7) for at in range(events)])


def some(count: int, size: int = 8) -> bytearray:
    return bytearray(size * count)


def leading(events: int) -> Made:
    return drain.leading, (records(events), 7)


def count(events: int) -> Made:
    tabs = events // EACH
    return drain.count, (records(events), ((events, 7),), tabs, some(tabs, 4), some(tabs, 4), some(tabs), None)


def place(events: int) -> Made:
    tabs, starts = array("I", range(events // EACH)), array("q", range(0, events, EACH))
    return drain.place, (records(events), tabs, starts, some(len(tabs)), some(events), some(events), None)


def checksum(events: int) -> Made:
    return drain.checksum, (records(events),)


def bins(events: int) -> Made:
    in_order, codes = array("q", [at // EACH for at in range(events)]), array("q", [at % 20 for at in range(events)])
    return fresh.bins, (in_order, codes, some(events), some(events))


def figures(events: int) -> Made:
    in_order, values = array("q", [at // EACH for at in range(events)]), array("d", [1.5]) * events
    return fresh.figures, (in_order, values, *[some(events // EACH) for _ in range(3)])


def columns(events: int) -> tuple[Any, Any, Any]:
    """Where each begins, times and values: each has all bins, and two slots."""
    times = array("d", [1.7e9 + at % EACH / EACH * 9 for at in range(events)])
    return array("q", range(0, events + 1, EACH)), times, array("d", [1.3 ** (at % 20) for at in range(events)])


def measure(events: int) -> Made:
    tabs = events // EACH
    its = [some(tabs) for _ in range(4)]
    return drain.measure, (*columns(events), MOST_TIME, EDGE_SECONDS, MOST_VALUE, bytearray(b"\1" * tabs), *its)


def sum_up(events: int) -> Made:
    starts, _, values = columns(events)
    return drain.sum_up, (starts, values, some(events // EACH), some(events // EACH))


def edge_rows(events: int) -> Made:
    return rows.edge, columns(events)


def edge_spreads(events: int) -> Made:
    return spreads.edge, columns(events)


def join_fields(count: int) -> Made:
    names = [f"web.requests.{number}" for number in range(count)]
    edges = array("q", range(0, count + 1, 5))
    return drain.join_fields, (names, [(b"web/1", b"web")], bytes(count), array("q", bytes(8 * count)), array("I", range(count)), edges)


def cut_sections(count: int) -> Made:
    """Sections of five columns of two events."""
    edges, starts = array("q", range(0, 5 * count + 1, 5)), array("q", range(0, 10 * count + 1, 10))
    times = memoryview(bytes(80 * count))
    sections = [(number, "CounterGroup") for number in range(count)]
    keys, counts = array("q", range(0, 2 * count, 2)), array("I", [2]) * (5 * count)
    return drain.cut_sections, ({}, sections, keys, edges, starts, counts, times, times, [b"fields"] * count, NOBODY, Section)


def cut_states(count: int) -> Made:
    """Five of each section."""
    sections, numbers = [(number, "CounterGroup") for number in range(count)], array("q", [at // 5 for at in range(count)])
    edges, times = array("q", range(0, count + 1, 5)), array("d", [1.7e9]) * count
    dumps = [bytes(100) for _ in range(count)]
    fields = [b"fields"] * (count // 5)
    return drain.cut_states, ({}, sections, numbers, edges, array("I", [9]) * count, times, times, dumps, fields, 1, Section)


def section(bucket: int) -> Any:
    fields = b"".join([b"\xc4\x12web.requests.\0web%d" % at for at in range(5)])
    return Section("CounterGroup", 5, fields, struct.pack("<5I", *[2] * 5), bytes(80), bytes(80), False, b"", 0, b"")


def encode(count: int) -> Made:
    """Sections of one batch."""
    return drain.encode, ([section(1) for _ in range(count)], 4, STREAM, 1, 7, b"", BOUNDS, memoryview(bytearray(2**18)), 0)


def encode_plain(count: int) -> Made:
    """Batches of one Section."""
    packed = {bucket: [section(bucket)] for bucket in range(count)}
    room = memoryview(bytearray(2**18))
    fields: tuple[Any, ...] = [*packed], 0, packed, 4, STREAM, dict.fromkeys(packed, 300), Moment(1.0, 1, 1), BOUNDS, {}, {}
    return drain.encode_plain, (*fields, room, 0, BatchId, EncodedBatch)


def index_group(count: int) -> Made:
    moment = Moment(1.0, 1, 1)
    batches = [EncodedBatch(BatchId(STREAM, at, 7), moment, 10, bytes(300), b"", 12345) for at in range(count)]
    return drain.index_group, (batches, 4096, 8192, StoredBatch)


CASES = {
    "leading": Case("leading", 400, 1200, leading),
    "count": Case("count", 400, 1200, count),
    "place": Case("place", 400, 1200, place, is_nothing),
    "checksum": Case("checksum", 400, 1200, checksum),
    "bins": Case("bins", 400, 1200, bins),
    "figures": Case("figures", 400, 1200, figures),
    "measure": Case("measure", 400, 1200, measure, is_nothing),
    "sum_up": Case("sum_up", 400, 1200, sum_up),
    "edge of rows": Case("edge", 400, 1200, edge_rows),
    "edge of spreads": Case("edge", 400, 1200, edge_spreads),
    "join_fields": Case("join_fields", 50, 150, join_fields),
    "cut_sections": Case("cut_sections", 20, 60, cut_sections, is_nothing),
    "cut_states": Case("cut_states", 20, 60, cut_states, is_nothing),
    "encode": Case("encode", 20, 60, encode),
    "encode_plain": Case("encode_plain", 20, 60, encode_plain),
    "index_group": Case("index_group", 20, 60, index_group),
}
