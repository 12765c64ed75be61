"""What is fuzzed: each target takes any bytes, and raises only what it says that it does; and good bytes, to begin with."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
import numpy as np

from taba import batch, calls, counting, events, nesting
from taba import ring as layouts
from taba.agent import salvage
from taba.agent.ages import Moment
from taba.agent.drain import Drain
from taba.agent.outbox import MIN_OUTBOX_BYTES, Covered, EncodedBatch, OtherVersion, Outbox, OutboxCorrupt, Table
from taba.agent.reader import Ring
from taba.agent.spool import Spool
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
from tests.agent.producers import Producer
from tests.pieces import at_edge

STREAM, NONCE, TIMES = bytes(range(16)), b"n" * 8, struct.pack("<2d", 1.0, 2.0)


class Target(NamedTuple):
    """`take` has any bytes. `seeds` gives what is right. `slowness`: one input costs as much as so many of others."""

    take: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    slowness: int = 1


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


def _patches() -> list[bytes]:
    return [struct.pack("<HB", offset, 8) + word for offset in (0, 64, 128, 192, 256, 4096, 8192) for word in (bytes(8), b"\xff" * 8)]


def _patch(content: bytes, size: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    at = 0
    while at + 3 < len(content) and len(found) < 64:
        offset, length = struct.unpack_from("<HB", content, at)
        at += 3
        found.append((offset % size, content[at : at + length]))
        at += length
    return found


_RINGS: list[bytes] = []  # one that is written over, and its neighbour


def _written_rings() -> list[bytes]:
    if not _RINGS:
        directory = tempfile.mkdtemp()
        producers = [Producer("fuzz", "web/1", RING_BYTES, directory) for _ in range(2)]
        try:
            for value in (1.0, "text", [1], 2.0):
                producers[0].record(producers[0].tab(f"tab{value}"), value)
            producers[1].record(producers[1].tab("good"), 5.0)
            _RINGS.extend(os.pread(producer.fd, RING_BYTES, 0) for producer in producers)
        finally:
            for producer in producers:
                producer.remove()
            shutil.rmtree(directory)
    return _RINGS


def _in_memory(content: bytes) -> int:
    """A file that no disk has: to make and remove one there took longer than all else."""
    fd = os.memfd_create("fuzz")
    os.pwrite(fd, content, 0)
    return fd


def take_ring(content: bytes) -> None:
    bad, good = _written_rings()
    rings = [Ring(_in_memory(good), "taba.fuzz.0000000000000001")]
    try:
        fd = _in_memory(bad)
        for offset, patch in _patch(content, RING_BYTES):
            os.pwrite(fd, patch[: RING_BYTES - offset], offset)
        try:
            rings.append(Ring(fd, "taba.fuzz.0000000000000002"))
        except MalformedRing:
            os.close(fd)
        for dead in (False, True):
            for ring, reading in Drain(8).run([(ring, dead) for ring in rings]).readings:
                ring.settle(reading)
        assert rings[0].recorded == 1, "a ring's neighbour lost its event"
    finally:
        for ring in rings:
            ring.close()


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


_SPOOL: list[bytes] = []
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a disk syncs for longer than all else takes
SALVAGE_TRIES = 100  # ranges of rows that are halved: each of the usual 20,000 does the same again


def _spool_file() -> bytes:
    if not _SPOOL:
        directory = tempfile.mkdtemp()
        try:
            path = os.path.join(directory, "fuzz.spool")
            spool = Spool(path)
            spool._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            spool.close()
            with open(path, "rb") as file:
                _SPOOL.append(file.read())
        finally:
            shutil.rmtree(directory)
    return _SPOOL[0]


def take_spool(content: bytes) -> None:
    """… and the first byte says, where it is odd, that the file is cut off there."""
    whole = bytearray(_spool_file())
    for offset, patch in _patch(content[1:], min(len(whole), 65_536)):
        whole[offset : offset + len(patch)] = patch
    if content[:1] and content[0] & 1:
        del whole[len(whole) * content[0] // 256 :]
    directory, tries = tempfile.mkdtemp(dir=_MEMORY), salvage.MAX_TRIES
    salvage.MAX_TRIES = SALVAGE_TRIES
    try:
        path = os.path.join(directory, "fuzz.spool")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(whole)
        try:
            Spool(path).close()
        except OtherVersion:
            return
        Spool(path).close()  # what was mended opens
    finally:
        salvage.MAX_TRIES = tries
        shutil.rmtree(directory)


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


class _Bytes:
    """The memory of an outbox, which has all its pages."""

    def __init__(self, content: bytearray):
        self.content, self.size = content, len(content)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and length >= 0 and offset + length <= self.size
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, *parts: bytes | memoryview) -> None:
        content = b"".join(parts)
        assert offset >= 0 and offset + len(content) <= self.size
        self.content[offset : offset + len(content)] = content

    def load(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 8), "little")

    def store(self, offset: int, word: int) -> None:
        self.write(offset, word.to_bytes(8, "little"))

    def room(self) -> int:
        return self.size

    def reserve(self, offset: int, length: int) -> None:
        assert offset + length <= self.size

    def punch(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))


_OUTBOX: list[bytes] = []


def _outbox() -> bytearray:
    if not _OUTBOX:
        _OUTBOX.append(bytes(_written_outbox()))
    return bytearray(_OUTBOX[0])


def _written_outbox() -> bytearray:
    memory = _Bytes(bytearray(MIN_OUTBOX_BYTES // 16))
    Outbox.format(memory, bytes(16))
    outbox = Outbox(memory)
    moment = Moment(1.0, 1, None)
    for number in range(1, 4):
        id = BatchId(STREAM, 5, number)
        table = Table((Covered(bytes(16), 0, number, 0),), recorded=number, opened=((STREAM, b"\x20", b""),))
        outbox.append(table, [EncodedBatch(id, moment, 1, batch.encode_batch(*id, []))])
    return memory.content


def take_outbox(content: bytes) -> None:
    """Whatever another process of this user has done to it."""
    whole = _outbox()
    for offset, patch in _patch(content, len(whole)):
        whole[offset : offset + len(patch)] = patch
    try:
        outbox = Outbox(_Bytes(whole))
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
    "outbox": Target(take_outbox, _patches, 20),
    "question": Target(take_question, _questions),
    "statsd": Target(take_lines, _lines),
    "tokens": Target(take_tokens, _tokens),
    "directory": Target(take_directory, _directories),
    "ring": Target(take_ring, _patches, 20),
    "spool": Target(take_spool, lambda: [b"\0" + patch for patch in _patches()], 200),
}
