"""Sends batches to a Server as an Agent does, without an Agent: encoded beforehand, over a few kept connections, until all are applied."""

from __future__ import annotations

import http.client
import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import cast
from urllib.parse import urlsplit

from taba.agent.ages import Moment
from taba.agent.encoding import encode
from taba.agent.lanes import HEADER_BYTES
from taba.agent.outbox import EncodedBatch
from taba.batch import (
    APPLIED,
    CONTENT_TYPE,
    GAP,
    LATER,
    NONCE_BYTES,
    OPEN,
    Column,
    Entry,
    Header,
    SentBatch,
    Verdict,
    decode_batch,
    decode_verdicts,
    encode_envelope,
    sections_of,
)
from taba.bounds import MAX_ENVELOPE_BATCHES, MAX_ENVELOPE_BYTES, KiB

NOW = Moment(0.0, 0, None)  # no batch of a benchmark waits for long
CONNECTIONS = 4  # as many envelopes has an Agent under way to a Server
POST_SECONDS = 60.0

Envelope = list[SentBatch]


class NotApplied(Exception):
    """The Server refused a batch, or did not answer with verdicts."""


class Streams:
    """One stream for each connection, so that each keeps the order of its own batches."""

    def __init__(self, connections: int = CONNECTIONS) -> None:
        self._streams = [os.urandom(16) for _ in range(connections)]
        self._numbers: list[dict[int, int]] = [{} for _ in range(connections)]

    def envelopes(self, columns: Mapping[int, list[Column]], most_bytes: int = MAX_ENVELOPE_BYTES) -> list[list[Envelope]]:
        """For each connection its envelopes, in order: the buckets of `columns` dealt out evenly. All must be sent."""
        dealt = []
        buckets = sorted(columns)
        for place, (stream, numbers) in enumerate(zip(self._streams, self._numbers, strict=True)):
            batches = encode(
                {bucket: sections_of(columns[bucket]) for bucket in buckets[place :: len(self._streams)]}, stream, numbers, NOW
            )
            for batch in batches:
                numbers[batch.id.bucket] = batch.id.number
            dealt.append(_pack(batches, most_bytes))
        return dealt


def _pack(batches: Sequence[EncodedBatch], most_bytes: int) -> list[Envelope]:
    envelopes: list[Envelope] = []
    size = 0
    for batch in batches:
        size += len(batch.content) + HEADER_BYTES
        if not envelopes or size > most_bytes - KiB or len(envelopes[-1]) == MAX_ENVELOPE_BATCHES:
            envelopes.append([])
            size = len(batch.content) + HEADER_BYTES
        envelopes[-1].append(SentBatch(bytes(batch.content), batch.id.number - 1, bytes(NONCE_BYTES)))
    return envelopes


class Sender:
    """The kept connections of an Agent to a Server, until it is closed."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._kept: list[http.client.HTTPConnection] = []

    def send(self, dealt: Sequence[Sequence[Envelope]]) -> float:
        """Seconds until every batch of every envelope is applied, each connection's in order. Raises NotApplied."""
        failures: list[Exception] = []

        def run(connection: http.client.HTTPConnection, envelopes: Sequence[Envelope]) -> None:
            try:
                for envelope in envelopes:
                    _send_one(connection, envelope)
            except Exception as error:  # raised again where the benchmark sees it
                failures.append(error)

        self._connect(len(dealt))
        threads = [
            threading.Thread(target=run, args=(connection, open_streams(connection, envelopes)))
            for connection, envelopes in zip(self._kept, dealt, strict=False)
        ]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        if failures:
            raise failures[0]
        return seconds

    def _connect(self, number: int) -> None:
        """At least so many connections, all of them open: a Server closes what says nothing for minutes."""
        while len(self._kept) < number:
            self._kept.append(http.client.HTTPConnection(self._address, timeout=POST_SECONDS))
        for connection in self._kept[:number]:
            if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:  # its end, for nothing was asked
                connection.close()
            if connection.sock is None:
                connection.connect()

    def close(self) -> None:
        for connection in self._kept:
            connection.close()


def send(url: str, dealt: Sequence[Sequence[Envelope]]) -> float:
    """The same, once, over connections of its own."""
    with closing(Sender(url)) as sender:
        return sender.send(dealt)


_nonces: dict[tuple[bytes, int], bytes] = {}  # of streams that are open: an Agent opens one in a bucket once in six days


def open_streams(connection: http.client.HTTPConnection, envelopes: Sequence[Envelope]) -> list[Envelope]:
    """Open the streams of all batches that are not open; these with their nonces."""
    ids = [[decode_batch(sent.batch).id for sent in envelope] for envelope in envelopes]
    lanes = dict.fromkeys(Header(OPEN, id.stream, id.bucket) for of_one in ids for id in of_one)
    nonces = _nonces
    while left := [header for header in lanes if (header.stream, header.bucket) not in nonces][:MAX_ENVELOPE_BATCHES]:
        for header, verdict in zip(left, _post(connection, left), strict=True):
            if verdict.word == OPEN:
                nonces[header.stream, header.bucket] = cast(bytes, verdict.detail)
            elif verdict.word != LATER:
                raise NotApplied(f"{verdict}")
    return [
        [sent._replace(nonce=nonces[id.stream, id.bucket]) for sent, id in zip(envelope, of_one, strict=True)]
        for envelope, of_one in zip(envelopes, ids, strict=True)
    ]


def _post(connection: http.client.HTTPConnection, envelope: Sequence[Entry]) -> list[Verdict]:
    body = encode_envelope("benchmark", "host", time.time(), None, envelope)
    connection.request("POST", "/v1/envelopes", body, {"Content-Type": CONTENT_TYPE})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise NotApplied(f"{answer.status}: {content[:200]!r}")
    return decode_verdicts(content, len(envelope)).verdicts


def _send_one(connection: http.client.HTTPConnection, envelope: Envelope) -> None:
    while envelope:
        left = []
        pause = 0.0
        for entry, verdict in zip(envelope, _post(connection, envelope), strict=True):
            if verdict.word == APPLIED:
                continue
            if verdict.word not in (LATER, GAP):  # a gap: the one before it has to come later
                raise NotApplied(f"{verdict}")
            left.append(entry)
            pause = max(pause, float(verdict.detail) if verdict.word == LATER else 0.0)
        envelope = left
        time.sleep(pause)
