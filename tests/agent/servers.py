"""A Server for tests: a real twisted.web Site on loopback that gives the verdicts of a small store, or what a test wants instead."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor, task
from twisted.web import resource, server

from taba import batch as codec
from taba.batch import Verdict


class Store:
    """Marks per (stream, bucket), and the events of the batches that were folded."""

    def __init__(self) -> None:
        self.marks: dict[tuple[bytes, int], int] = {}
        self.events: dict[tuple[str, str], list[Any]] = {}
        self.folded = 0
        self.orders: list[tuple[bytes, int, int]] = []

    def fold(self, follows: int, content: bytes) -> Verdict:
        """The verdict on one batch, as a Server gives it: by the mark alone."""
        batch = codec.decode_batch(content)
        key = (batch.stream, batch.bucket)
        mark = self.marks.get(key, 0)
        if batch.number <= mark:
            return Verdict(codec.APPLIED, mark)
        if follows != mark or batch.columns is None:
            return Verdict(codec.GAP, mark)
        self.marks[key] = batch.number
        self.orders.append((batch.stream, batch.bucket, batch.number))
        for column in batch.columns:
            assert isinstance(column, codec.Column), column
            values = column.values if isinstance(column.values, list) else _floats(column.values)
            self.events.setdefault((column.client, column.tab), []).extend(values)
            self.folded += column.events
        return Verdict(codec.APPLIED, batch.number)


def _floats(content: bytes) -> list[float]:
    return list(memoryview(content).cast("d"))


class Answers(resource.Resource):
    """What a Server answers; `answer`, when set, is asked first: (request, envelope) → bytes or None to go on."""

    isLeaf = True

    def __init__(self, store: Store | None = None, buckets: int = 8):
        super().__init__()
        self.store = store or Store()
        self.buckets = buckets
        self.envelopes = self.compressed = 0
        self.batches = 0
        self.answer: Callable[[Any, codec.Envelope], Any] | None = None
        self.verdict: Callable[[int, bytes], Verdict | None] | None = None
        self.known: list[str] = []
        self.url = "http://127.0.0.1:8280"

    def render_GET(self, request: Any) -> bytes:
        if request.path == b"/v1/status":
            return json.dumps({"version": "0", "store": {"buckets": self.buckets}}).encode()
        if request.path == b"/v1/servers":
            return json.dumps([{"url": url, "roles": [], "started": 0} for url in (self.known or [self.url])]).encode()
        request.setResponseCode(404)
        return b"{}"

    def render_POST(self, request: Any) -> Any:
        content = request.content.read()
        if request.getHeader("content-encoding") == "deflate":
            content = zlib.decompress(content)
            self.compressed += 1
        envelope = codec.decode_envelope(content)
        self.envelopes += 1
        self.batches += len(envelope.batches)
        if self.answer is not None:
            answered = self.answer(request, envelope)
            if answered is not None:
                return answered
        verdicts = []
        for follows, content in envelope.batches:
            verdict = self.verdict(follows, content) if self.verdict is not None else None
            verdicts.append(verdict or self.store.fold(follows, content))
        request.setHeader(codec.VERDICTS_HEADER, "1")
        request.setHeader("content-type", codec.CONTENT_TYPE)
        return codec.encode_verdicts(verdicts)


class FakeServer(Answers):
    """Answers on loopback."""

    def __init__(self, store: Store | None = None, buckets: int = 8):
        super().__init__(store, buckets)
        self.site = _Site(self)
        self.port: Any = reactor.listenTCP(0, self.site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.port.getHost().port}"

    async def stop(self) -> None:
        await self.port.stopListening()
        for channel in self.site.channels:
            if channel.transport is not None:  # an Agent that was killed leaves its connections open for a moment
                channel.transport.abortConnection()
        await task.deferLater(reactor, 0, lambda: None)  # type: ignore[arg-type]


class _Site(server.Site):
    """Knows its connections."""

    def __init__(self, resource: resource.Resource):
        super().__init__(resource)
        self.channels: list[Any] = []

    def buildProtocol(self, addr: Any) -> Any:
        protocol: Any = super().buildProtocol(addr)
        self.channels.append(protocol._channel)
        return protocol
