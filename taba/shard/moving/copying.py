"""Copying the keys of one bucket into staging keys: in chunks, then again what was written meanwhile; and comparing both. Pure.

1. What changes while it is copied is in the dirty set, and is copied again: so no chunk needs to agree with another.
2. A copy never expires while it is staged; it gets its key's own moment of expiry, an absolute one, when the bucket opens.
3. Under the seal nothing changes but by expiry: then, and only then, both sides must be the same.
4. What a shard refuses to tell (its user may not, the command is not there) ends the copy: it is never taken for a key that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

from taba.shard.buckets import dirty_key, lots
from taba.shard.dirty import FIELD, KEY, MEMBER, Note, decode_note
from taba.shard.moving.steps import (
    MAX_CHUNK_BYTES,
    MEASURED_KEYS,
    SMALL_KEY_BYTES,
    Command,
    Done,
    MoveFailed,
    Overtaken,
    Step,
    Steps,
    is_content,
    staged,
)

FIRST_COUNT = 100  # elements of the first chunk of a large key; then as many as fit
MOST_COUNT = 20_000
NOTED_PARTS = 250  # fields or members read again in one step; States of 4 KiB fill a chunk
TAKEN_NOTES = 1000  # notes in one step
COMPARED_KEYS = 1000  # in one step
SAMPLES = 8  # random elements of each key that are compared

_WHOLE = {b"string": b"GET", b"hash": b"HGETALL", b"set": b"SMEMBERS"}
_LENGTH = {b"string": b"STRLEN", b"hash": b"HLEN", b"set": b"SCARD", b"list": b"LLEN", b"zset": b"ZCARD", b"stream": b"XLEN"}


class Differs(Exception):
    """A copy is not what it was made from."""


class Taken(NamedTuple):
    """Notes taken from the dirty set, and how many it still had."""

    notes: list[Note]
    left: int


class Copy:
    """One bucket's copy. `here` and `there`: what the owner keys must say at the source and at the target; `here` changes with the seal."""

    def __init__(self, bucket: int, source: str, target: str, token: str, here: bytes, there: bytes):
        self.bucket, self.source, self.target, self.token = bucket, source, target, token
        self.here, self.there = here, there
        self.kinds: dict[bytes, bytes] = {}  # key → its type; what is staged
        self.expires: dict[bytes, int] = {}  # key → Unix milliseconds
        self.bytes = 0
        self._waiting: list[Command] = []  # writes that are not sent yet
        self._waiting_bytes = 0

    @property
    def opening(self) -> list[Command]:
        """The commands that turn the staged keys into the bucket's own."""
        commands: list[Command] = [(b"RENAME", self._staged(key), key) for key in self.kinds]
        return commands + [(b"PEXPIREAT", key, b"%d" % when) for key, when in self.expires.items() if key in self.kinds]

    # --- copying whole keys ---

    def keys(self, keys: Iterable[bytes]) -> Steps:
        """Copy `keys` as they are; one that is not there any more is not in the copy either."""
        small: list[tuple[bytes, bytes]] = []
        small_bytes = 0
        for lot in lots([key for key in keys if is_content(self.bucket, key)], MEASURED_KEYS):
            asked = [command for key in lot for command in ((b"TYPE", key), (b"PEXPIRETIME", key), (b"MEMORY", b"USAGE", key))]
            replies = yield from self._read("measure", asked)
            for index, key in enumerate(lot):
                kind, expires, size = replies[3 * index : 3 * index + 3]
                if kind == b"none" or size is None:
                    self._drop(key)
                    continue
                self.kinds[key] = kind
                if isinstance(expires, int) and expires >= 0:
                    self.expires[key] = expires
                else:
                    self.expires.pop(key, None)
                if size > SMALL_KEY_BYTES and kind in _LENGTH:
                    yield from self._large(key, kind)
                    continue
                small.append((key, kind))
                small_bytes += size
                if small_bytes >= MAX_CHUNK_BYTES:
                    yield from self._small(small)
                    small, small_bytes = [], 0
        yield from self._small(small)
        yield from self._flush()

    def _small(self, keys: Sequence[tuple[bytes, bytes]]) -> Steps:
        if not keys:
            return
        asked: list[Command] = []
        for key, kind in keys:
            if kind == b"list":
                asked.append((b"LRANGE", key, b"0", b"-1"))
            else:
                asked.append((_WHOLE.get(kind, b"DUMP"), key))
        replies = yield from self._read("copy", asked)
        for (key, kind), reply in zip(keys, replies, strict=True):
            if (not reply and not (reply == b"" and kind == b"string")) or isinstance(reply, Exception):
                self._drop(key)  # gone, or of another type by now: then it is noted
                continue
            yield from self._write((b"UNLINK", self._staged(key)))
            if kind == b"string":
                yield from self._write((b"SET", self._staged(key), reply))
            elif kind in _ADDING:
                yield from self._add(key, kind, reply)
            else:
                yield from self._write((b"RESTORE", self._staged(key), b"0", reply, b"REPLACE"))

    def _large(self, key: bytes, kind: bytes) -> Steps:
        yield from self._write((b"UNLINK", self._staged(key)))
        if kind == b"string":
            yield from self._in_ranges(key, b"GETRANGE", MAX_CHUNK_BYTES, lambda chunk: [(b"APPEND", self._staged(key), chunk)])
        elif kind == b"list":
            yield from self._in_ranges(key, b"LRANGE", None, lambda chunk: list(self._additions(key, kind, chunk)))
        elif kind in (b"hash", b"set"):
            yield from self._scanned(key, kind)
        else:  # no type that the Router offers: in one piece
            [reply] = yield from self._read("copy", [(b"DUMP", key)])
            if isinstance(reply, bytes):
                yield from self._write((b"RESTORE", self._staged(key), b"0", reply, b"REPLACE"))
            else:
                self._drop(key)

    def _in_ranges(self, key: bytes, command: bytes, size: int | None, writes: Callable[[Any], list[Command]]) -> Steps:
        position, count = 0, size or FIRST_COUNT
        while True:
            [chunk] = yield from self._read("copy", [(command, key, b"%d" % position, b"%d" % (position + count - 1))])
            if not chunk or isinstance(chunk, Exception):
                if not position:
                    self._drop(key)  # as in `_small`
                return
            for write in writes(chunk):
                yield from self._write(write)
            position += len(chunk)
            if size is None:
                count = _next_count(chunk)

    def _scanned(self, key: bytes, kind: bytes) -> Steps:
        command = b"HSCAN" if kind == b"hash" else b"SSCAN"
        cursor, count = b"0", FIRST_COUNT
        while True:
            [reply] = yield from self._read("copy", [(command, key, cursor, b"COUNT", b"%d" % count)])
            if isinstance(reply, Exception):
                return
            cursor, chunk = reply
            if chunk:
                yield from self._add(key, kind, chunk)
                count = _next_count(chunk, 2 if kind == b"hash" else 1)
            if cursor == b"0":
                return

    # --- copying what was noted ---

    def take(self) -> Generator[Any, Any, Taken]:
        """Take notes from the dirty set. What is written after this is noted again."""
        done = yield Step(
            "take", self.source, self.here, [(b"SPOP", dirty_key(self.bucket), b"%d" % TAKEN_NOTES), (b"SCARD", dirty_key(self.bucket))]
        )
        notes, left = self._replies(done)
        return Taken([decode_note(note) for note in notes], left)

    def noted(self, notes: Sequence[Note]) -> Steps:
        """Copy again what `notes` say."""
        whole = {note.key for note in notes if note.kind == KEY}
        parts = [note for note in notes if note.kind != KEY and note.key not in whole and is_content(self.bucket, note.key)]
        for start in range(0, len(parts), NOTED_PARTS):
            by_key: dict[tuple[bytes, bytes], list[bytes]] = {}
            for note in parts[start : start + NOTED_PARTS]:
                by_key.setdefault((note.kind, note.key), []).append(note.part)
            asked = [(b"HMGET" if kind == FIELD else b"SMISMEMBER", key, *names) for (kind, key), names in by_key.items()]
            replies = yield from self._read("again", asked)
            for ((kind, key), names), reply in zip(by_key.items(), replies, strict=True):
                if isinstance(reply, Exception) or self.kinds.get(key, _OF_PARTS[kind]) != _OF_PARTS[kind]:
                    whole.add(key)  # of another type than it was
                elif kind == FIELD:
                    yield from self._again_fields(key, names, reply)
                else:
                    yield from self._again_members(key, names, reply)
        yield from self._flush()
        yield from self.keys(sorted(whole))

    def _again_fields(self, key: bytes, names: Sequence[bytes], values: Sequence[bytes | None]) -> Steps:
        there = [part for name, value in zip(names, values, strict=True) if value is not None for part in (name, value)]
        gone = [name for name, value in zip(names, values, strict=True) if value is None]
        if there:
            self.kinds[key] = b"hash"
            yield from self._add(key, b"hash", there)
        if gone:
            yield from self._write((b"HDEL", self._staged(key), *gone))

    def _again_members(self, key: bytes, names: Sequence[bytes], held: Sequence[int]) -> Steps:
        there = [name for name, is_member in zip(names, held, strict=True) if is_member]
        gone = [name for name, is_member in zip(names, held, strict=True) if not is_member]
        if there:
            self.kinds[key] = b"set"
            yield from self._add(key, b"set", there)
        if gone:
            yield from self._write((b"SREM", self._staged(key), *gone))

    # --- comparing ---

    def compare(self) -> Steps:
        """Under the seal: lengths of all keys, the whole of small strings (marks are), and random elements of the others.

        Raises Differs. A key that has expired is taken out of the copy.
        """
        for lot in lots(list(self.kinds), COMPARED_KEYS):
            here: list[Command] = [command for key in lot for command in (self._measure(key, key), self._sample(key))]
            ours = yield from self._read("compare", here)
            there: list[Command] = []
            for index, key in enumerate(lot):
                name = self._staged(key)
                sample = _elements(self.kinds[key], ours[2 * index + 1])
                there += [self._measure(key, name), self._found(key, name, sample)]
            done = yield Step("compare", self.target, self.there, there, is_read=True)
            theirs = _told(self.target, self._replies(done))
            for index, key in enumerate(lot):
                mine, found = ours[2 * index : 2 * index + 2], theirs[2 * index : 2 * index + 2]
                if mine[0] in (0, None) and not mine[1]:  # empty or gone
                    if found[0] and key not in self.expires:
                        raise Differs(f"{key!r} is gone, and its copy is not")
                    if self.kinds[key] == b"string" and mine[1] == b"":
                        continue
                    self._drop(key)
                elif isinstance(mine[0], Exception) or mine[0] != found[0]:
                    raise Differs(f"{key!r} has length {mine[0]!r}, its copy {found[0]!r}")
                elif not _is_same(self.kinds[key], mine[1], found[1]):
                    raise Differs(f"{key!r} and its copy differ")
        yield from self._flush()

    def _measure(self, key: bytes, name: bytes) -> Command:
        return (_LENGTH.get(self.kinds[key], b"EXISTS"), name)

    def _sample(self, key: bytes) -> Command:
        kind, count = self.kinds[key], b"%d" % SAMPLES
        if kind == b"string":
            return (b"GETRANGE", key, b"0", b"%d" % (SMALL_KEY_BYTES - 1))
        if kind == b"hash":
            return (b"HRANDFIELD", key, count, b"WITHVALUES")
        if kind == b"set":
            return (b"SRANDMEMBER", key, count)
        if kind == b"list":
            return (b"LRANGE", key, b"0", b"%d" % (SAMPLES - 1))
        return (b"EXISTS", key)

    def _found(self, key: bytes, name: bytes, sample: Sequence[bytes]) -> Command:
        kind = self.kinds[key]
        if kind == b"string":
            return (b"GETRANGE", name, b"0", b"%d" % (SMALL_KEY_BYTES - 1))
        if kind == b"hash" and sample:
            return (b"HMGET", name, *sample)
        if kind == b"set" and sample:
            return (b"SMISMEMBER", name, *sample)
        if kind == b"list":
            return (b"LRANGE", name, b"0", b"%d" % (SAMPLES - 1))
        return (b"EXISTS", name)

    # --- reading and writing ---

    def _staged(self, key: bytes) -> bytes:
        return staged(self.bucket, self.token, key)

    def _drop(self, key: bytes) -> None:
        self.kinds.pop(key, None)
        self.expires.pop(key, None)
        self._waiting.append((b"UNLINK", self._staged(key)))

    def _read(self, name: str, commands: Sequence[Command]) -> Generator[Any, Any, list[Any]]:
        done = yield Step(name, self.source, self.here, commands, is_read=True)
        return _told(self.source, self._replies(done))

    def _replies(self, done: Done) -> list[Any]:
        if done.replies is None:
            raise Overtaken(f"bucket {self.bucket}: another has this move in hand")
        return done.replies

    def _add(self, key: bytes, kind: bytes, elements: Sequence[bytes]) -> Steps:
        for command in self._additions(key, kind, elements):
            yield from self._write(command)

    def _additions(self, key: bytes, kind: bytes, elements: Sequence[bytes]) -> Iterable[Command]:
        """The commands that add `elements` (of a hash: fields and values in turn), each of a chunk at the most."""
        stride = 2 if kind == b"hash" else 1
        part: list[bytes] = []
        size = 0
        for index in range(0, len(elements), stride):
            element = elements[index : index + stride]
            weight = sum(map(len, element))
            if part and size + weight > MAX_CHUNK_BYTES:
                yield (_ADDING[kind], self._staged(key), *part)
                part, size = [], 0
            part += element
            size += weight
        if part:
            yield (_ADDING[kind], self._staged(key), *part)

    def _write(self, command: Command) -> Steps:
        size = sum(map(len, command))
        if self._waiting and self._waiting_bytes + size > MAX_CHUNK_BYTES:
            yield from self._flush()
        self._waiting.append(command)
        self._waiting_bytes += size

    def _flush(self) -> Steps:
        if self._waiting:
            commands, size = self._waiting, self._waiting_bytes
            self._waiting, self._waiting_bytes = [], 0
            self._replies((yield Step("stage", self.target, self.there, commands, size=size)))
            self.bytes += size


_OF_PARTS = {FIELD: b"hash", MEMBER: b"set"}
_ADDING = {b"hash": b"HSET", b"set": b"SADD", b"list": b"RPUSH"}


def _told(shard: str, replies: list[Any]) -> list[Any]:
    """`replies`, in which only a key's being of another type by now may be an error: what is refused is not what is gone."""
    for reply in replies:
        if isinstance(reply, Exception) and not str(reply).startswith("WRONGTYPE"):
            raise MoveFailed(f"shard {shard} does not tell what it has: {reply}")
    return replies


def _next_count(chunk: Sequence[bytes], stride: int = 1) -> int:
    """How many elements like those in `chunk` make half a chunk."""
    average = max(sum(map(len, chunk)) * stride // len(chunk), 1)
    return max(1, min(MAX_CHUNK_BYTES // 2 // average, MOST_COUNT))


def _elements(kind: bytes, sample: Any) -> Sequence[bytes]:
    if not isinstance(sample, list):
        return ()
    return sample[::2] if kind == b"hash" else sample


def _is_same(kind: bytes, ours: Any, theirs: Any) -> bool:
    if kind == b"hash":
        return not ours or list(ours[1::2]) == theirs
    if kind == b"set":
        return not ours or all(theirs)
    return bool(ours == theirs)
