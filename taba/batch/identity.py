"""What batches, streams and parts of posts are known by, from the drain to the mark."""

from __future__ import annotations

from typing import Any, NamedTuple

from taba.bounds import MAX_BUCKETS
from taba.errors import MalformedBatch

STREAM_BYTES = 16
NONCE_BYTES = 8  # a stream id has 128 bits of its own: a nonce tells two openings of one stream apart
KEY_BYTES = 36  # of a KeyPart
MAX_STORE_ID = 64  # characters


class BatchId(NamedTuple):
    """What a batch is known by, from the drain to the mark: numbers count from 1 in each bucket of a stream."""

    stream: bytes
    bucket: int
    number: int


class KeyPart(NamedTuple):
    """Which part of which post with an Idempotency-Key a batch is: the key's id, the digest of the request, and from 1 on its place among
    the request's batches in this bucket."""

    key: bytes
    digest: bytes
    lot: int

    def encode(self) -> bytes:
        return self.key + self.digest + self.lot.to_bytes(4, "big")

    @staticmethod
    def decode(content: bytes) -> KeyPart:
        """The inverse of `encode`, of as many bytes as that gives."""
        return KeyPart(content[:16], content[16:32], int.from_bytes(content[32:], "big"))


def check_stream(stream: Any) -> None:
    """Raises MalformedBatch for what is no stream id, of STREAM_BYTES bytes."""
    if not isinstance(stream, bytes) or len(stream) != STREAM_BYTES:
        raise MalformedBatch(f"a stream id takes {STREAM_BYTES} bytes")


def check_bucket(bucket: Any) -> None:
    """Raises MalformedBatch for what is no bucket of the largest store."""
    if type(bucket) is not int or not 0 <= bucket < MAX_BUCKETS:
        raise MalformedBatch(f"bucket {bucket!r}"[:200])
