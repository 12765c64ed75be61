"""What an event takes of a Server's parts in C; see tests/counted.py."""

from __future__ import annotations

import struct
from array import array
from collections import namedtuple
from typing import Any

from taba import versions
from taba.batch import Column, SentBatch, Verdict, encode_batch, encode_envelope, envelope, reading
from taba.batch.columns import Block
from taba.bounds import MAX_ENVELOPE_BATCHES
from taba.server import keys
from taba.server.fold.marks import Mark, encode_mark
from tests.counted import Case, part

NOW = 1.7e9
EACH = 200  # events of a State
IN_BATCH = 5  # States of a bucket
STREAM, NONCE = b"s" * 16, b"12345678"
READS = frozenset([b"HMGET"])
# as those of taba/server/fold, which would import numpy
Waiting = namedtuple("Waiting", "follows batch size nonce part header agent", defaults=(NONCE, None, None, ""))
Plan = namedtuple("Plan", "reads types groups events moved times besides")
Group = namedtuple("Group", "type fields blocks rows")
Plain = namedtuple("Plain", "bucket plan contents marks verdicts")
Outcome = namedtuple("Outcome", "commands verdicts folded dead errors times away first bad moved beyond made")
Made = tuple[Any, tuple[Any, ...]]

rows, spreads, latest = part("taba.handlers._rows"), part("taba.handlers._spreads"), part("taba.handlers._latest")
plain, wire, writing = part("taba.server.fold._plain"), part("taba.shard.servers._wire"), part("taba.server.ask._writing")


def read_batch(content: bytes) -> Any:
    sections: Any = reading._sections
    return sections.read_batch(content, versions.HERE.batches, reading._BOUNDS, reading._NAMES, reading._FORMS)


def batch(columns: int, bucket: int = 1) -> bytes:
    """Of two Events a column, and five columns a Tab."""
    floats = struct.pack("<2d", NOW, NOW)
    return encode_batch(
        STREAM, bucket, 1, [Column(f"web/{at % 5}", f"tab.{at // 5}", "CounterGroup", floats, floats) for at in range(columns)]
    )


def read_columns(count: int) -> Made:
    return read_batch, (batch(count),)


def read_entries(count: int) -> Made:
    content = encode_envelope("agent", "host", NOW, "store", [SentBatch(bytes(300), at, NONCE) for at in range(count)])
    part: Any = envelope._part
    return part.read, (content, versions.HERE.envelopes, MAX_ENVELOPE_BATCHES, SentBatch)


def planning(columns: int, bucket: int = 1) -> tuple[Any, ...]:
    homes = {f"tab.{at}": bucket for at in range(columns)}
    return (
        bucket,
        [Waiting(0, read_batch(batch(columns, bucket)), 1000)],
        homes,
        {"CounterGroup": b"CounterGroup"},
        keys.of(bucket),
        (Plan, Group, Block),
    )


def plan(columns: int) -> Made:
    return plain.plan, planning(columns)


def judging(buckets: int) -> tuple[Any, ...]:
    waiting, plans, replies = {}, {}, {}
    for bucket in range(buckets):
        asked = planning(IN_BATCH, bucket)
        waiting[bucket], plans[bucket] = asked[1], plain.plan(*asked)
        replies[bucket] = [[encode_mark(Mark(NONCE, 0, 1))], list(plans[bucket].types), [b"content"] * IN_BATCH]
    return waiting, plans, replies, 5, (Verdict, Plain)


def judge(buckets: int) -> Made:
    return plain.judge, judging(buckets)


def gather(buckets: int) -> Made:
    return plain.gather, (plain.judge(*judging(buckets)),)


def write(buckets: int) -> Made:
    judged = plain.judge(*judging(buckets))
    written: dict[str, Any] = {"CounterGroup": ([b"content"] * (IN_BATCH * buckets), {})}
    return plain.write, (judged, written, {}, keys.of, Outcome([], [], 0, {}, {}, (), (), {}, 0, {}, {}, (0, 0)))


def fold_events(fold: Any, events: int) -> Made:
    in_order, values = array("q", [at // EACH for at in range(events)]), array("d", [1.5]) * events
    times, codes = array("d", [NOW + at % 3 for at in range(events)]), array("q", [at % 20 for at in range(events)])
    return fold, ([b""] * (events // EACH), in_order, times, values, NOW + 60, 0, b"", codes)


def fold_states(fold: Any, states: int) -> Made:
    """One event for each, as they are in a store that is written to once a second."""
    once, values, codes = array("q", range(states)), array("d", [1.5]) * states, array("q", [at % 20 for at in range(states)])
    dumps, _ = fold([b""] * states, once, array("d", [NOW]) * states, values, NOW, 0, b"", codes)
    return fold, (dumps, once, array("d", [NOW + 7]) * states, values, NOW + 7, 0, b"", codes)


def states(its: Any, count: int) -> list[bytes]:
    """Of ten events each, of four slots."""
    times, values = array("d", [NOW + at % 10 * 2 for at in range(10 * count)]), array("d", [1.3 ** (at % 10) for at in range(10 * count)])
    found: list[bytes] = its.edge(array("q", range(0, 10 * count + 1, 10)), times, values)
    return found


def merge(its: Any, count: int) -> Made:
    dumps, _ = its.merge([b""] * count, states(its, count), NOW + 30, 0, b"")
    return its.merge, (dumps, states(its, count), NOW + 30, 0, b"")


def windows(its: Any, count: int) -> Made:
    """Of as many groups: each State is one's own."""
    dumps, _ = its.merge([b""] * count, states(its, count), NOW + 30, 0, b"")
    groups, none = array("q", range(count)), [b""] * count
    return its.windows, ((dumps, none, groups, count, NOW + 30) if its is rows else (dumps, none, none, groups, count, NOW + 30, 2**20))


def of_latest(fold: Any, dump: bytes, count: int) -> Made:
    once, each = array("q", range(count)), array("d", [NOW]) * count
    return fold, ([dump] * count, once, each, each, NOW + 1, 0, b"")


def commands(count: int) -> list[Any]:
    return [(b"HMGET", b"taba:{1}:states", *[b"field"] * 5) for _ in range(count)]


def project(count: int) -> Made:
    window = {"count": 10, "total": 123.5, "mean": 12.35, "last": None}
    return writing.write, ([{"1m": window, "1h": window, "name": f"web/{at}"} for at in range(count)], repr)


FLOATS = b"\xcb" + struct.pack(">d", 2.5)
CASES = {
    "entries, a batch": Case("read_envelope", 20, 60, read_entries),
    "sections, a column": Case("read_batch", 20, 60, read_columns),
    "plan, a column": Case("plan", 20, 60, plan),
    "plan, a column of few": Case("plan", 4, 16, plan),
    "judge, a bucket": Case("judge", 5, 15, judge),
    "gather, a bucket": Case("gather", 5, 15, gather),
    "write, a bucket": Case("write_all", 5, 15, write),
    "fold of rows, an event": Case("fold", 400, 1200, lambda events: fold_events(rows.fold, events)),
    "fold of rows, a State": Case("fold", 20, 60, lambda count: fold_states(rows.fold, count)),
    "merge of rows, a State": Case("merge", 10, 30, lambda count: merge(rows, count)),
    "windows of rows, a State": Case("windows", 10, 30, lambda count: windows(rows, count)),
    "fold of spreads, an event": Case("fold", 400, 1200, lambda events: fold_events(spreads.fold, events)),
    "fold of spreads, a State": Case("fold", 20, 60, lambda count: fold_states(spreads.fold, count)),
    "merge of spreads, a State": Case("merge", 10, 30, lambda count: merge(spreads, count)),
    "windows of spreads, a State": Case("windows", 10, 30, lambda count: windows(spreads, count)),
    "gauges, a State": Case("gauges", 20, 60, lambda count: of_latest(latest.gauges, b"\x92" + 2 * FLOATS, count)),
    "expiring, a State": Case("expiring", 20, 60, lambda count: of_latest(latest.expiring, b"\x93" + 3 * FLOATS, count)),
    "updowns, a State": Case("updowns", 20, 60, lambda count: of_latest(latest.updowns, b"\x93" + FLOATS + b"\0\x80", count)),
    "wire's encode, a command": Case("encode", 20, 60, lambda count: (wire.encode, (commands(count),))),
    "wire's keys, a read": Case("keys", 20, 60, lambda count: (wire.keys, (commands(count), b"taba:{1}:", READS))),
    "wire's measure, a command": Case("measure", 20, 60, lambda count: (wire.measure, (commands(count), b"taba:{1}:"))),
    "writing, a row": Case("write_json", 20, 60, project),
}
