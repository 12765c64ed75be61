"""Names and values as the store has them, which bucket a name is in, and what a bucket keeps beside its keys. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from taba import names
from taba.bounds import MiB
from taba.shard.buckets import prefix_of

MAX_NAME_BYTES = 1024  # names are kept twice, and listed
MAX_CONTENT_BYTES = 8 * MiB  # one value; a reply holds several, and every connection may have one

MAX_PAGE_NAMES = 10_000  # of one `scan`, or one range: 10 MiB of the longest names

Text = str | bytes


def bytes_of(what: str, text: object) -> bytes:
    if isinstance(text, str):
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what} is text that UTF-8 can write, not {text!r:.60}") from None
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"{what} is text or bytes, not {type(text).__name__}: {text!r:.60}")


def plain(text: Text) -> bytes:
    """The bytes of a value. TypeError for what is neither text nor bytes, ValueError for what is too long for one."""
    content = bytes_of("a value", text)
    if len(content) > MAX_CONTENT_BYTES:
        raise ValueError(f"a value of {len(content)} bytes; at most {MAX_CONTENT_BYTES}")
    return content


def plain_name(name: Text) -> bytes:
    """The bytes of a name. TypeError for what is neither text nor bytes, ValueError for one that is empty or too long."""
    content = bytes_of("a name", name)
    if not 1 <= len(content) <= MAX_NAME_BYTES:
        raise ValueError(f"a name takes 1 to {MAX_NAME_BYTES} bytes, not {len(content)}")
    return content


def bucket_of(name: Text, buckets: int) -> int:
    """The bucket of `name`: the first 8 bytes of BLAKE2b of its bytes, big endian, modulo `buckets`. As `taba.names.bucket_of`."""
    return names.bucket_of(plain_name(name), buckets)


def names_key(bucket: int) -> bytes:
    return prefix_of(bucket) + b"names"  # a sorted set without scores: in the order of bytes, wherever and whenever it is read


def done_key(bucket: int, doer: bytes) -> bytes:
    """The number of the last write that the Router `doer` made in the bucket: by it, it knows whether a write was made."""
    return prefix_of(bucket) + b"done:" + doer


def doers_key(bucket: int) -> bytes:
    """A set: whose last writes the bucket remembers."""
    return prefix_of(bucket) + b"doers"


def pairs_of(reply: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


def end_of(prefix: bytes) -> bytes:
    """The end of the range of names that begin with `prefix`, as ZRANGEBYLEX wants it."""
    shorter = prefix.rstrip(b"\xff")
    return b"(" + shorter[:-1] + bytes([shorter[-1] + 1]) if shorter else b"+"
