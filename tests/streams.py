"""Streams as tests open them: batches first go without the nonce that an Agent would know by then."""

from __future__ import annotations

from collections.abc import Sequence

from taba.batch import LATER, NONCE_BYTES, OPEN, Column, Entry, Header, SentBatch, Verdict, decode_batch, encode_batch
from taba.errors import MalformedBatch

NO_NONCE = bytes(NONCE_BYTES)


def encoded(stream: int, bucket: int, number: int, columns: Sequence[Column]) -> SentBatch:
    """A batch that follows the number before it, without its nonce."""
    return SentBatch(encode_batch(bytes([stream]) * 16, bucket, number, columns), number - 1, NO_NONCE)


class Streams:
    """What a sender knows of its streams. Before entries are sent, `headers` are; `with_nonces` gives what is sent then."""

    def __init__(self) -> None:
        self.nonces: dict[tuple[bytes, int], bytes] = {}

    def headers(self, entries: Sequence[Entry]) -> list[Header]:
        """What opens the streams of `entries` that are not open yet."""
        lanes = dict.fromkeys(lane for entry in entries if (lane := _lane(entry)) is not None and lane not in self.nonces)
        return [Header(OPEN, *lane) for lane in lanes]

    def opened(self, headers: Sequence[Header], verdicts: Sequence[Verdict]) -> None:
        """The verdicts on `headers`."""
        for header, verdict in zip(headers, verdicts, strict=True):
            if verdict.word != LATER:
                is_open = verdict.word == OPEN and isinstance(verdict.detail, bytes)
                self.nonces[header.stream, header.bucket] = verdict.detail if is_open else NO_NONCE  # type: ignore[assignment]

    def with_nonces(self, entries: Sequence[Entry]) -> list[Entry]:
        """`entries`, those of streams that are open with their nonce."""
        return [entry._replace(nonce=self.nonces.get(lane, NO_NONCE)) if (lane := _lane(entry)) else entry for entry in entries]


def _lane(entry: Entry) -> tuple[bytes, int] | None:
    """The stream and bucket of a batch, or of a header that needs them open; None for what is no batch."""
    if isinstance(entry, Header):
        return None if entry.do == OPEN else (entry.stream, entry.bucket)
    try:
        batch = decode_batch(entry.batch)
    except MalformedBatch:
        return None
    return batch.stream, batch.bucket
