"""A Server for tests: a real twisted.web Site on loopback that gives the verdicts of a small store, or what a test wants instead."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet import task
from twisted.web import resource, server

from taba import batch as codec
from taba.batch import Verdict
from taba.names import OWN_TABS
from taba.server.fold.marks import Marks, decode_mark, encode_mark
from tests.pieces import values_of

reactor: Any = installed


class Store:
    """Marks per bucket, and the events of the batches that were folded.

    What a Server decides, its own Marks decide here; it plays no store. A Server itself has no way to go back in time, or to forget a mark.
    """

    def __init__(self) -> None:
        self.kept: dict[int, dict[bytes, bytes]] = {}
        self.events: dict[tuple[str, str], list[Any]] = {}
        self.lives: list[tuple[str, Any]] = []  # what was said of who lives
        self.folded = self.weight = self.opens = 0  # rows, and events that columns stand for
        self.ended: list[tuple[bytes, int]] = []
        self.orders: list[codec.BatchId] = []
        self.age: int | None = 100

    @property
    def marks(self) -> dict[tuple[bytes, int], int]:
        """The marks of open streams."""
        found = {(stream, bucket): decode_mark(content) for bucket, kept in self.kept.items() for stream, content in kept.items()}
        return {lane: mark.number for lane, mark in found.items() if mark is not None}

    def set_mark(self, stream: bytes, bucket: int, number: int) -> None:
        """Have the store be as it was then."""
        mark = decode_mark(self.kept[bucket][stream])
        assert mark is not None
        self.kept[bucket][stream] = encode_mark(mark._replace(number=number))

    def decide(self, entry: codec.Entry) -> Verdict:
        """The verdict on one entry."""
        if isinstance(entry, codec.Header):
            kept = self.kept.setdefault(entry.bucket, {})
            marks = Marks({entry.stream: kept.get(entry.stream)}, self.age, 1)
            self.opens += entry.do == codec.OPEN
            verdict = marks.do(entry, self.opens.to_bytes(codec.NONCE_BYTES, "big"))
            if entry.do == codec.END and marks.removed():
                self.ended.append((entry.stream, entry.bucket))
        else:
            batch = codec.decode_batch(entry.batch)
            kept = self.kept.setdefault(batch.bucket, {})
            marks = Marks({batch.stream: kept.get(batch.stream)}, self.age)
            verdict, is_new = marks.fold(batch.stream, batch.number, entry.follows, entry.nonce)
            if is_new:
                self._fold(batch)
        kept.update(marks.written())
        for stream in marks.removed():
            kept.pop(stream, None)
        return verdict

    def _fold(self, batch: codec.Batch) -> None:
        self.orders.append(batch.id)
        for column in batch.columns:
            assert isinstance(column, codec.Column), column
            values = values_of(column)
            if column.tab in OWN_TABS:
                assert column.weight == 0, column
                self.lives += [(column.client, value) for value in values]
                continue
            self.events.setdefault((column.client, column.tab), []).extend(values)
            self.folded += column.events
            self.weight += column.weight


class Answers(resource.Resource):
    """What a Server answers; `answer`, when set, is asked first: (request, envelope) → bytes or None to go on."""

    isLeaf = True

    def __init__(self, store: Store | None = None, buckets: int = 8):
        super().__init__()
        self.store = store or Store()
        self.buckets = buckets
        self.store_id, self.succeeds = "4f2a", list[str]()
        self.envelopes = self.compressed = 0
        self.batches = 0
        self.answer: Callable[[Any, codec.Envelope], Any] | None = None
        self.verdict: Callable[[codec.SentBatch], Verdict | None] | None = None
        self.known: list[str] = []
        self.notes: list[dict[str, Any]] = []
        self.notes_status = 200
        self.url = "http://127.0.0.1:8280"

    def render_GET(self, request: Any) -> bytes:
        if request.path == b"/v1/status":
            return json.dumps({"version": "0", "store": {"id": self.store_id, "buckets": self.buckets, "succeeds": self.succeeds}}).encode()
        if request.path == b"/v1/servers":
            return json.dumps([{"url": url, "roles": [], "started": 0} for url in (self.known or [self.url])]).encode()
        request.setResponseCode(404)
        return b"{}"

    def render_POST(self, request: Any) -> Any:
        content = request.content.read()
        if request.path == b"/v1/notes":
            self.notes.append(json.loads(content))
            request.setResponseCode(self.notes_status)
            return b"{}"
        if request.getHeader("content-encoding") == "deflate":
            content = zlib.decompress(content)
            self.compressed += 1
        envelope = codec.decode_envelope(content)
        self.envelopes += 1
        self.batches += sum(isinstance(entry, codec.SentBatch) for entry in envelope.entries)
        if self.answer is not None:
            answered = self.answer(request, envelope)
            if answered is not None:
                return answered
        verdicts = []
        for entry in envelope.entries:
            verdict = self.verdict(entry) if self.verdict is not None and isinstance(entry, codec.SentBatch) else None
            verdicts.append(verdict or self.store.decide(entry))
        request.setHeader(codec.VERDICTS_HEADER, "1")
        request.setHeader("content-type", codec.CONTENT_TYPE)
        return codec.encode_verdicts(verdicts, self.store.age)


class FakeServer(Answers):
    """Answers on loopback."""

    def __init__(self, store: Store | None = None, buckets: int = 8):
        super().__init__(store, buckets)
        self.site = _Site(self)
        self.port: Any = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port.getHost().port}"

    async def stop(self) -> None:
        await self.port.stopListening()
        for channel in self.site.channels:
            if channel.transport is not None:  # an Agent that was killed leaves its connections open for a moment
                channel.transport.abortConnection()
        await task.deferLater(reactor, 0, lambda: None)


class _Site(server.Site):
    """Knows its connections."""

    def __init__(self, resource: resource.Resource):
        super().__init__(resource)
        self.channels: list[Any] = []

    def buildProtocol(self, addr: Any) -> Any:
        protocol: Any = super().buildProtocol(addr)
        self.channels.append(protocol._channel)
        return protocol
