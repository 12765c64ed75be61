"""Many simulated Agents at once to one Server: each with a stream, a kept connection and an envelope a second; who is asked to leaves."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple
from urllib.parse import urlsplit

from benchmarks.sending import POST_SECONDS, Envelope, NotApplied, Streams, open_streams
from taba.batch import APPLIED, CONTENT_TYPE, LATER, Column, decode_verdicts, encode_envelope


class Crowd(NamedTuple):
    """What became of it: seconds that each envelope waited for its verdict, and connections that were made."""

    waits: list[float]
    connections: int


def send_from_many(url: str, columns: Sequence[dict[int, list[Column]]], seconds: int) -> Crowd:
    """Have one Agent for each of `columns` (by bucket: one) send them once a second for so long. Raises NotApplied."""
    address = urlsplit(url).netloc
    agents: list[list[Envelope]] = []
    with closing(http.client.HTTPConnection(address, timeout=POST_SECONDS)) as connection:
        for own in columns:
            streams = Streams()
            envelopes = [envelope for _ in range(seconds) for lot in streams.envelopes(own, 1) for envelope in lot]
            agents.append(open_streams(connection, envelopes))
    return asyncio.run(_send(address, agents))


async def _send(address: str, agents: Sequence[list[Envelope]]) -> Crowd:
    waits: list[float] = []
    host, _, port = address.partition(":")
    made = [0]
    start = time.perf_counter() + 0.5

    async def one(number: int, envelopes: list[Envelope]) -> None:
        reader, writer = None, None
        for turn, envelope in enumerate(envelopes):
            due = start + turn + number / len(agents)
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
            while True:
                if reader is None or writer is None:
                    reader, writer = await asyncio.open_connection(host, int(port))
                    made[0] += 1
                body = encode_envelope("benchmark", "host", time.time(), None, envelope)
                head = (
                    f"POST /v1/envelopes HTTP/1.1\r\nHost: {address}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                writer.write(head.encode() + body)
                try:
                    said = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                except (asyncio.IncompleteReadError, ConnectionError):
                    reader = writer = None  # it was closed before any byte: once more, on a new one
                    continue
                content = await reader.readexactly(int(said.partition("content-length:")[2].partition("\r\n")[0]))
                if "connection: close" in said:
                    writer.close()
                    reader = writer = None
                if " 200 " not in said.partition("\r\n")[0]:
                    raise NotApplied(f"{said[:100]!r}: {content[:200]!r}")
                [verdict] = decode_verdicts(content, 1).verdicts
                if verdict.word == APPLIED:
                    break
                if verdict.word != LATER:
                    raise NotApplied(f"{verdict}")
                await asyncio.sleep(float(verdict.detail))
            waits.append(time.perf_counter() - due)
        if writer is not None:
            writer.close()

    await asyncio.gather(*[one(number, envelopes) for number, envelopes in enumerate(agents)])
    return Crowd(waits, made[0])
