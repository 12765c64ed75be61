"""What is fuzzed: each target takes any bytes, and raises only what it says that it does; and good bytes, to begin with."""

from __future__ import annotations

import functools
import gzip
import json
import os
import sqlite3
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from taba import batch, calls, counting, events, nesting
from taba import ring as layouts
from taba.agent import salvage
from taba.agent.ages import Moment
from taba.agent.drain import Drain
from taba.agent.locks import private
from taba.agent.outbox import MIN_OUTBOX_BYTES, Covered, EncodedBatch, OtherVersion, Outbox, OutboxCorrupt, Table
from taba.agent.reader import Ring
from taba.agent.scratch import Scratch
from taba.agent.spool import Spool
from taba.agent.spooled import is_damage
from taba.batch import BatchId, Column, Header, Meaning, SentBatch, Verdict
from taba.bounds import MAX_NOTE, MAX_TIME
from taba.errors import MalformedBatch, NoVerdicts
from taba.handlers.counter_group import CounterGroup
from taba.handlers.percentile_counter import PercentileCounter
from taba.handlers.percentile_group import PercentileGroup
from taba.handlers.totals_counter import TotalsCounter
from taba.inputs.statsd import Readers
from taba.ring import MalformedRing
from taba.routes import Parameter, Route
from taba.routes import Table as Routes
from taba.server.fold.deadletters import (
    address_of,
    column_of,
    dead_letters_of,
    decode_dead_letter,
    describe,
    encode_dead_letter,
    shown_of,
)
from taba.server.keys import ABSENT
from taba.server.prometheus import syntax
from taba.server.work.child import pack, unpack_answer
from taba.server.work.errand import Errand
from taba.server.work.rows import ForeignWork, Work
from taba.steps import finish
from taba.tokens import parse_tokens
from tests.agent.outboxes import Bytes
from tests.agent.producers import Producer
from tests.fuzz import driver
from tests.fuzz.written import Written, patched, patches_of
from tests.pieces import at_edge

STREAM, NONCE, TIMES = bytes(range(16)), b"n" * 8, struct.pack("<2d", 1.0, 2.0)


class Target(NamedTuple):
    """`take` has any bytes. `seeds` gives what is right. `slowness`: one input costs as much as so many of others.

    `mutate` makes another input of two. `together` takes up to so many inputs at once, where that is quicker.
    """

    take: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    slowness: int = 1
    mutate: driver.Mutate = driver.mutate
    together: tuple[Callable[[Sequence[bytes]], None], int] | None = None


# --- what travels ---


def _batches() -> list[bytes]:
    columns = [
        Column("web/1", "bids_won", "CounterGroup", TIMES, TIMES),
        Column("web/1", 'price{a="b"}', "Buffer", TIMES, ["text", [1, {"a": None}]]),
        Column("web/1", "busy", "UpDown", TIMES[:8], [[bytes(16), 5, 1.0]], 3),
    ]
    folded = [
        at_edge("hot", MERGING[0], [1.0, 2.0] * 20),
        at_edge('price{a="b"}', MERGING[1], [0.5] * 40, client="web/2"),
    ]
    return [
        batch.encode_batch(STREAM, 5, 7, columns, [Meaning("bids_won", "1", "bids that were won")]),
        batch.encode_batch(STREAM, 5, 7, columns[:1]),
        batch.encode_batch(STREAM, 5, 7, [*folded, *columns[:1]]),
        batch.encode_batch(STREAM, 5, 7, []),
    ]


def take_batch(content: bytes) -> None:
    try:
        found = batch.decode_batch(content)
    except MalformedBatch:
        return
    for column in found.columns:
        if isinstance(column, Column):
            assert column.events * 8 == len(column.times) and column.weight >= 0
            if isinstance(column.values, list):
                assert not any(map(nesting.is_deeper, column.values)), "a value that is nested too deep was made"
    good = [column for column in found.columns if isinstance(column, Column)]
    again = batch.encode_batch(*found.id, good, found.meanings)
    assert batch.decode_batch(again)._replace(made_bytes=0, columns=[]) == found._replace(made_bytes=0, bad_meanings=0, columns=[])
    assert repr(batch.decode_batch(again).columns) == repr(good)  # not ==: there may be NaN


def _envelopes() -> list[bytes]:
    entries: list[SentBatch | Header] = [SentBatch(_batches()[1], 6, NONCE), SentBatch(b"x", 0, NONCE, bytes(36))]
    entries[1:1] = [Header("open", STREAM, 5), Header("end", STREAM, 5, NONCE)]
    return [batch.encode_envelope("default", "host", 1.5, "store", entries), batch.encode_envelope("a", "h", 0.0, None, [])]


def take_envelope(content: bytes) -> None:
    try:
        found = batch.decode_envelope(content)
    except MalformedBatch:
        return
    assert repr(batch.decode_envelope(batch.encode_envelope(*found))) == repr(found)


def _verdicts() -> list[bytes]:
    verdicts = [Verdict("applied", 7), Verdict("later", 0.5, "why"), Verdict("gap", 3, "nonce"), Verdict("open", NONCE, 0)]
    return [batch.encode_verdicts(verdicts, 12), batch.encode_verdicts([], None)]


def take_verdicts(content: bytes) -> None:
    for entries in (0, 4):
        try:
            batch.decode_verdicts(content, entries)
        except NoVerdicts:
            continue


def _posts() -> list[bytes]:
    some: list[dict[str, Any]] = [
        {"tab": "a", "type": "T", "value": 1, "time": 5.5, "labels": {"x": "1"}},
        {"tab": "b", "type": "Buffer", "value": [1, "é", {"k": [None, True]}]},
        {"tab": "a b"},
    ]
    return [
        json.dumps({"client": "web/1", "events": some}).encode(),
        json.dumps({"events": some, "client": "web/1"}, ensure_ascii=False, indent=1).encode(),
        b'{"client": "a", "events": []}',
    ]


def take_events(content: bytes) -> None:
    try:
        found = events.read_events(content, 1.0, 8)
    except ValueError:
        found = None
    try:
        whole = json.loads(content, parse_constant=_none) if not content.startswith((b"\xef\xbb\xbf", b"\xfe", b"\xff")) else None
        is_post = isinstance(whole, dict) and set(whole) == {"client", "events"}
    except (ValueError, RecursionError):
        is_post = False
    # what is read in windows is what is read at once
    assert found is None or is_post or b"\0" in content or content.startswith(b"\xef\xbb\xbf"), "what is no JSON was read"
    if found is not None and whole is not None and is_post:
        assert found.accepted + len(found.rejected) == len(whole["events"])


def _none(name: str) -> float:
    raise ValueError(name)


def take_value(content: bytes) -> None:
    try:
        value = counting.unpack_counted(content)
    except ValueError:
        return
    assert not nesting.is_deeper(value)
    assert repr(counting.unpack_counted(msgpack.packb(value))) == repr(value)


def _values() -> list[bytes]:
    values: list[Any] = [1, "text", [1, [2.5, None]], {"a": {"b": b"c"}}, [[]] * 20, 2**63]
    return [msgpack.packb(value) for value in values]


def take_tokens(content: bytes) -> None:
    try:
        parse_tokens(content.decode("utf-8", "replace"))
    except ValueError:
        return


def _tokens() -> list[bytes]:
    return [b"# ours\nread sha256:" + b"0a" * 32 + b" client=web/* prefix=a.\nadmin sha256:" + b"1b" * 32 + b"\n"]


# --- what lies in shared memory and on disk: an input is what is written over a good one, as (offset, length, bytes) … ---

RING_BYTES = 65_536
RINGS_AT_ONCE = 12  # of one drain: what it costs is shared


@functools.cache
def _written_rings() -> tuple[bytes, bytes]:
    """One that is written over, and its neighbour."""
    with tempfile.TemporaryDirectory() as directory:
        bad, good = (Producer("fuzz", "web/1", RING_BYTES, directory) for _ in range(2))
        try:
            for value in (1.0, "text", [1], 2.0):
                bad.record(bad.tab(f"tab{value}"), value)
            up = bad.tab("busy", "UpDown", has_cell=True)
            bad.owe(up, 2.0)
            bad.record(up, 1.0)
            bad.record(bad.tab('price{a="b"}', "PercentileGroup", unit="s", description="how long"), 0.5)
            bad.reserve()
            bad.record(up, -1.0)
            bad.drop("ring_full", 3)
            good.record(good.tab("good"), 5.0)
            return os.pread(bad.fd, RING_BYTES, 0), os.pread(good.fd, RING_BYTES, 0)
        finally:
            bad.remove()
            good.remove()


def _ring_places() -> list[int]:
    """Words of the header that are 0, and the records behind the last."""
    where = layouts.layout(RING_BYTES)
    words = (layouts.TAIL_OFFSET, layouts.BYTE_TAIL_OFFSET, layouts.RETIRED_OFFSET, layouts.NO_PLACE_OFFSET, layouts.OWES_OFFSET)
    counts = [layouts.DROPS_OFFSET + 8 * place for place in range(len(layouts.DROP_REASONS))]
    behind = [where.record_offset + layouts.RECORD_BYTES * record + word for record in range(6, 14) for word in (0, 8, 16, 20)]
    last = [where.record_offset + layouts.RECORD_BYTES * (where.records - 1) + word for word in (0, 8, 16, 20)]
    return [*words, *counts, *behind, *last]


WRITTEN_RING = Written(lambda: _written_rings()[0], _ring_places())


@functools.cache
def _segments() -> list[int]:
    """Files that no disk has, which are written anew for each drain: to make and remove them took longer than all else."""
    return [os.memfd_create("fuzz") for _ in range(RINGS_AT_ONCE + 1)]


def take_rings(contents: Sequence[bytes]) -> None:
    """Rings that their owners wrote over, and a good one among them."""
    segments = _segments()
    os.pwrite(segments[0], _written_rings()[1], 0)
    rings = [Ring(os.dup(segments[0]), "taba.fuzz.0000000000000001")]
    try:
        for place, content in enumerate(contents, 1):
            os.pwrite(segments[place], patched(WRITTEN_RING.good, patches_of(content, RING_BYTES)), 0)
            fd = os.dup(segments[place])
            try:
                rings.append(Ring(fd, f"taba.fuzz.{place:015d}2"))
            except MalformedRing:
                os.close(fd)
        drain, scratch = Drain(8), Scratch()
        broken: set[Ring] = set()
        for ring in rings[1:]:  # … as whoever decides when to read looks at them
            try:
                fill = ring.look(scratch)
            except MalformedRing:
                continue
            assert fill.records >= 0 and fill.bytes >= 0
        for dead in (False, True):
            drained = drain.run([(ring, dead) for ring in rings if ring not in broken])
            for ring, reading in drained.readings:
                ring.settle(reading)
            broken |= {ring for ring, _ in drained.broken}
            assert drained.found <= len(rings) * layouts.layout(RING_BYTES).records
        assert rings[0].recorded == 1, "a ring's neighbour lost its event"
        for ring in rings[1:]:
            ring.drops()
            assert ring.had_no_place() in (False, True) and ring.read_owes() >= 0
    finally:
        for ring in rings:
            ring.close()


def take_ring(content: bytes) -> None:
    take_rings([content])


def take_directory(content: bytes) -> None:
    for count in (0, 1, 5, 10_000):
        try:
            found, used = layouts.parse_directory(content, count)
        except MalformedRing:
            continue
        assert len(found) <= count and 0 <= used <= len(content)


def _directories() -> list[bytes]:
    return [
        layouts.encode_entry("T", "a") + layouts.encode_entry("Gauge", 'b{c="d"}', "s", "how long"),
        layouts.encode_entry("UpDown", "busy", has_cell=True),
    ]


_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a disk syncs for longer than all else takes
SALVAGE_TRIES = 100  # ranges of rows that are halved: each of the usual 20,000 does the same again
_HELD = {
    BatchId(STREAM, bucket, number): bytes([bucket, number]) * size
    for bucket, number, size in ((1, 1, 9), (1, 2, 3000), (3, 1, 40), (3, 2, 200))
}


@functools.cache
def _spool_files() -> tuple[bytes, bytes]:
    """A spool with rows in each of its tables, some that lie on pages of their own; and its manifest."""
    with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
        path = os.path.join(directory, "fuzz.spool")
        spool = Spool(path)
        spool.add(
            [EncodedBatch(id, Moment(1.0, 1, None), 2, content, b"key" * (id.bucket == 3)) for id, content in _HELD.items()],
            (bytes(16), b"table"),
        )
        spool.keep_aside(BatchId(STREAM, 4, 1), "refused", b"aside")
        spool._database.execute("INSERT INTO lost VALUES (NULL, 'salvage', ?, 9, 1, 5)", (STREAM,))
        spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        spool.close()
        return Path(path).read_bytes(), Path(path + ".list").read_bytes()


WRITTEN_SPOOL = Written(lambda: _spool_files()[0], head=2)
_CUT, _HAS_NO_MANIFEST, _TWICE = 1, 2, 4  # what the first byte of an input says; the second: at which 256th it is cut off


def take_spool(content: bytes) -> None:
    """Whatever its bytes are, it opens, also once more, and nothing is read of it that is something else than what was written."""
    what, where = content[:2].ljust(2, b"\0")
    whole = patched(WRITTEN_SPOOL.good, patches_of(content[2:], len(WRITTEN_SPOOL.good)))
    if what & _CUT:
        del whole[len(whole) * where // 256 :]
    tries, salvage.MAX_TRIES = salvage.MAX_TRIES, SALVAGE_TRIES
    try:
        with tempfile.TemporaryDirectory(dir=_MEMORY) as directory:
            path = os.path.join(directory, "fuzz.spool")
            with open(path, "wb", opener=private) as file:
                file.write(whole)
            if not what & _HAS_NO_MANIFEST:
                with open(path + ".list", "wb", opener=private) as file:
                    file.write(_spool_files()[1])
            try:
                spool = Spool(path)
            except OtherVersion:
                return
            try:
                _read_through(spool)
                is_mended = spool.problem is not None
            finally:
                spool.close()
            if is_mended or what & _TWICE:
                again = Spool(path)
                assert again.problem is None, "what was mended is damaged"
                again.close()
    finally:
        salvage.MAX_TRIES = tries


def _read_through(spool: Spool) -> None:
    """As an Agent does that sends it all, and has it mended where it cannot be read."""
    try:
        _read_all(spool)
    except sqlite3.Error as error:
        assert is_damage(error), f"an Agent would take this for its disk's fault: {error}"
        spool.heal(f"{error}")
        _read_all(spool)


def _read_all(spool: Spool) -> None:
    lane = spool.next_lane(None)
    while lane is not None:
        for stored in spool.rows(*lane, 0, 100):
            read = spool.read(stored.id)
            assert read is None or read == _HELD.get(stored.id, read)
            if read is None:
                spool.torn(stored.id)
        lane = spool.next_lane(lane)
    spool.posted()
    spool.journal(None)


# --- what is asked ---


def _questions() -> list[bytes]:
    return [
        b'sum by (a) (rate(x_total{b!~"c.*", client=""}[5m] offset -1m)) / on(a) group_left(z) y > bool -3e4',
        b"histogram_quantile(0.9, sum(rate(x[5m]))) or topk(3, {'a.b', le=`0.5`} unless ignoring(q) -z ^ 2 % NaN) # so",
        b'label_replace(absent(x) and y, "a", "$1", "b", "(.*)") @ end() * x[5m:1m]',
    ]


def take_question(content: bytes) -> None:
    try:
        text = content.decode()
        syntax.check(text)
        nodes = syntax.nodes_of(syntax.flattened(text))
    except ValueError:
        return
    for place, node in enumerate(nodes):
        assert all(place < part < len(nodes) for part in getattr(node, "parts", ())), "a part does not stand behind what is made of it"


def _lines() -> list[bytes]:
    return [
        b"a.b:1|c|@0.1|#k:v,u\nt:250:3.5|ms\r\ng:+4|g|T12\ns:\xc3\xa9|s",
        b"h:1e3:-2|h|@0.3|c:ci-1|#le:1,0a:b\n_e{1,1}:a|b\n_sc|x|0\n\nbad",
        b"_e{3,4}:a\xc3\xa9|b\\nc|d:17|h:x|t:error|p:low|#a:b,c\n_sc|x|2|d:9|h:y|#k|m:a|b\n_sc|x|2|h:y|#k\n_e{2,1}:\xc3\xa9a|b",
    ]


def _take_note(text: str, time: float | None) -> None:
    assert 0 < len(text) <= MAX_NOTE and text.isprintable() and text == text.strip()
    assert time is None or 0 <= time <= MAX_TIME


def take_lines(content: bytes) -> None:
    """… and what lines say does not hang on how they are packed."""

    def heard(packets: list[bytes]) -> tuple[list[Any], list[int]]:
        events: list[Any] = []
        readers = Readers(lambda *named: lambda *event: events.append((named, event)), _take_note)
        for packet in packets:
            for record, value, time in readers.reader("a").read(packet):
                record(value, time)
        return events, readers.counts.tolist()

    assert heard([content]) == heard([line + b"\n" for line in content.split(b"\n")]), "lines mean something else in another packet"


# --- what is kept, what children say, what HTTP brings ---


def _written_outbox() -> bytes:
    memory = Bytes(bytearray(MIN_OUTBOX_BYTES // 16))
    Outbox.format(memory, bytes(16))
    outbox = Outbox(memory)
    moment = Moment(1.0, 1, None)
    for number in range(1, 4):
        id = BatchId(STREAM, 5, number)
        table = Table((Covered(bytes(16), 0, number, 0),), recorded=number, opened=((STREAM, b"\x20", b""),))
        outbox.append(table, [EncodedBatch(id, moment, 1, batch.encode_batch(*id, []))])
    return bytes(memory.content)


WRITTEN_OUTBOX = Written(_written_outbox)


def take_outbox(content: bytes) -> None:
    """Whatever another process of this user has done to it."""
    whole = patched(WRITTEN_OUTBOX.good, patches_of(content, len(WRITTEN_OUTBOX.good)))
    try:
        outbox = Outbox(Bytes(whole))
        for group in outbox.groups():
            for stored in group.batches:
                outbox.read(stored.position, stored.length)
    except (OutboxCorrupt, OtherVersion):
        return


def _letters() -> list[bytes]:
    column = Column("web/1", "x", "Buffer", TIMES, ["text", [1, {"a": None}]])
    floats = column._replace(values=TIMES, type="Gauge")
    folded = at_edge("hot", MERGING[0], [1.0] * 40)
    return [encode_dead_letter(letter) for one in (column, floats, folded) for letter in dead_letters_of(1.0, "bad_value", "why", one)]


def take_letter(content: bytes) -> None:
    address = address_of(content)
    letter = decode_dead_letter(content)
    if letter is None:
        return
    assert address is None or address == (letter.reason, letter.detail, letter.client, letter.tab, letter.type)
    assert len(list(describe(0, letter))) == shown_of(letter)
    assert column_of(letter) is None or letter.times


MERGING: list[Any] = [CounterGroup(), PercentileGroup(), PercentileCounter(), TotalsCounter()]


def _dumps() -> list[bytes]:
    """States as an edge folds them, each after the number of its Handler."""
    found = []
    for number, handler in enumerate(MERGING):
        for values in ([1.0] * 40, [float(value) for value in range(-20, 20)]):
            column = at_edge("hot", handler, values, times=[1000.0 + value for value in range(40)])
            assert isinstance(column.values, batch.AtEdge)
            found.append(bytes((number,)) + column.values.dump)
    return found


def take_dump(content: bytes) -> None:
    """A State that a sender says that it folded: no State, or one that is merged and can be kept and shown."""
    handler = MERGING[content[0] % len(MERGING) if content else 0]
    try:
        [count] = handler.count_array([content[1:]]).tolist()
        states = handler.merge_array(handler.load_array([b""]), np.zeros(1, np.int64), [content[1:]], 1000.0)
    except ValueError:
        return
    assert count > 0
    further = [[b""] * handler.further_parts]
    rows = handler.spilling(states)
    if len(rows):
        further = handler.spill(states, rows, further)
    [main] = handler.dump_array(states)
    handler.project([main, *further[0]], 1000.0)


def _answers() -> list[bytes]:
    failed = ["handler_error", "why"]
    return [pack([True, [{0: b"state"}, {0: [b"part"]}, {1: failed}, {0: [[failed, [0, 1]]]}, [1], 2]]), pack([False, None])]


def take_answer(content: bytes) -> None:
    """A frame of a Handler's child, which is not trusted: what it says of others' rows, or of no row, comes to nothing."""
    work = Work([ABSENT, ABSENT], [(0, TIMES, TIMES), (1, TIMES, TIMES)], [b"a", b"b"])
    errand = Errand(ForeignWork("T", work, {}), True, 1)
    errand.request()
    try:
        _, item = unpack_answer(content)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError):
        return
    errand.take(item)
    folded = errand.folded
    rows = {*folded.states, *folded.parts, *folded.failed, *folded.spoiled, *errand.wanted}
    assert rows <= {0, 1}, rows
    assert all(type(dump) is bytes for dump in folded.states.values())


def take_compressed(content: bytes) -> None:
    for wbits in (calls.GZIP_WBITS, 15):
        try:
            whole = finish(calls.inflate(content, wbits, 65_536))
        except calls.HTTPError as error:
            assert error.status in (400, 413)
            continue
        assert len(whole) <= 65_536


def _compressed() -> list[bytes]:
    text = b'{"client": "a", "events": []}'
    return [gzip.compress(text, mtime=0), gzip.compress(text, mtime=0) * 2, zlib.compress(text), gzip.compress(bytes(70_000), mtime=0)]


async def _served(call: calls.Call) -> calls.Answer:
    raise AssertionError("nobody asks")


_ROUTES = Routes(
    [
        Route("GET", "/v1/names", _served, ""),
        Route("GET", "/v1/boards/{name}", _served, "", parameters=(Parameter("name", ""),)),
        Route("GET", "/api/v1/label/{name}/values", _served, "", parameters=(Parameter("name", ""),)),
    ]
)


def take_path(content: bytes) -> None:
    found = _ROUTES.find("GET", content.decode("ascii", "replace"))
    if found is not None:
        assert set(found.in_path) == set(found.route.path_names)
        assert all(isinstance(text, str) and text for text in found.in_path.values())


TARGETS = {
    "batch": Target(take_batch, _batches),
    "envelope": Target(take_envelope, _envelopes),
    "verdicts": Target(take_verdicts, _verdicts),
    "events": Target(take_events, _posts),
    "value": Target(take_value, _values),
    "compressed": Target(take_compressed, _compressed),
    "path": Target(take_path, lambda: [b"/v1/names", b"/v1/boards/a%20b", b"/api/v1/label/%C3%A4/values"]),
    "dump": Target(take_dump, _dumps, 5),
    "letter": Target(take_letter, _letters),
    "answer": Target(take_answer, _answers),
    "outbox": Target(take_outbox, WRITTEN_OUTBOX.seeds, 4, WRITTEN_OUTBOX.mutate),
    "question": Target(take_question, _questions),
    "statsd": Target(take_lines, _lines),
    "tokens": Target(take_tokens, _tokens),
    "directory": Target(take_directory, _directories),
    "ring": Target(take_ring, WRITTEN_RING.seeds, 20, WRITTEN_RING.mutate, (take_rings, RINGS_AT_ONCE)),
    "spool": Target(take_spool, WRITTEN_SPOOL.seeds, 200, WRITTEN_SPOOL.mutate),
}
