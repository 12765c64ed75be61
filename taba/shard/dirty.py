"""What a transaction notes while its bucket is being copied: each key, hash field or member of a set that it writes. Pure.

A note says where to look again, not what is there: whoever copies takes the note first, and reads then. So a note too
many costs a little copying, and one too few would cost what was written: what is not known to touch one field or member
notes its whole key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from taba.shard.buckets import dirty_key, lease_key

Command = tuple[bytes, ...]

KEY, FIELD, MEMBER, SCORED = b"k", b"h", b"s", b"z"

_ALL_ARGUMENTS = frozenset([b"DEL", b"UNLINK"])
_EVERY_SECOND = frozenset([b"MSET", b"MSETNX"])
_FIRST_TWO = frozenset([b"RENAME", b"RENAMENX", b"COPY", b"SMOVE", b"LMOVE", b"RPOPLPUSH"])
_ZADD_WORDS = frozenset([b"NX", b"XX", b"GT", b"LT", b"CH", b"INCR"])
_READS = frozenset(b"GET MGET HGET HMGET HGETALL SMEMBERS LRANGE EXISTS STRLEN HLEN SCARD LLEN".split())


class Note(NamedTuple):
    """`kind` KEY: the whole of `key`; FIELD, MEMBER or SCORED (of a sorted set): `part` of it alone."""

    kind: bytes
    key: bytes
    part: bytes = b""


def encode_note(note: Note) -> bytes:
    """Its bytes, as the dirty set has them as a member."""
    return note.kind + b"%d:" % len(note.key) + note.key + note.part


def decode_note(content: bytes) -> Note:
    """Raises ValueError for anything that `encode_note` would not have written."""
    length, colon, rest = content[1:].partition(b":")
    if content[:1] not in (KEY, FIELD, MEMBER, SCORED) or not colon or not length.isdigit() or len(length) > 9 or int(length) > len(rest):
        raise ValueError(f"a note {content[:60]!r}")
    return Note(content[:1], rest[: int(length)], rest[int(length) :])


def notes_of(commands: Sequence[Command]) -> list[bytes]:
    """What `commands` may have written, as encoded notes, each once."""
    notes: dict[bytes, None] = {}
    for command in commands:
        name = command[0].upper()
        if name in _READS or len(command) < 2:
            continue
        key = command[1]
        if name in (b"HSET", b"HMSET"):
            found = [Note(FIELD, key, field) for field in command[2::2]]
        elif name in (b"HINCRBY", b"HINCRBYFLOAT", b"HSETNX"):
            found = [Note(FIELD, key, command[2])] if len(command) > 2 else []
        elif name == b"HDEL":
            found = [Note(FIELD, key, field) for field in command[2:]]
        elif name in (b"SADD", b"SREM"):
            found = [Note(MEMBER, key, member) for member in command[2:]]
        elif name == b"ZADD":
            pairs = command[2:]
            while pairs and pairs[0].upper() in _ZADD_WORDS:
                pairs = pairs[1:]
            found = [Note(SCORED, key, member) for member in pairs[1::2]]
        elif name == b"ZREM":
            found = [Note(SCORED, key, member) for member in command[2:]]
        elif name == b"ZINCRBY":
            found = [Note(SCORED, key, member) for member in command[3:4]]
        elif name in _ALL_ARGUMENTS:
            found = [Note(KEY, one) for one in command[1:]]
        elif name in _EVERY_SECOND:
            found = [Note(KEY, one) for one in command[1::2]]
        elif name in _FIRST_TWO:
            found = [Note(KEY, one) for one in command[1:3]]
        else:
            # SORT … STORE, BLMOVE and whatever else may have a second key somewhere: what may be a key of this bucket counts as one
            prefix = key[: key.find(b"}:") + 2]
            found = [Note(KEY, one) for one in command[1:] if one == key or (len(prefix) > 2 and one.startswith(prefix))]
        for note in found:
            notes[encode_note(note)] = None
    return list(notes)


def noting(bucket: int, commands: Sequence[Command]) -> list[Command]:
    """The command that adds the notes of `commands` to the bucket's dirty set; none where nothing is written."""
    notes = notes_of([command for command in commands if len(command) > 1 and command[1] != lease_key(bucket)])
    return [(b"SADD", dirty_key(bucket), *notes)] if notes else []
