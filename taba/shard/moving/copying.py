"""Copying the keys of one bucket into staging keys: in chunks, then again what was written meanwhile; and comparing both. Pure.

1. What changes while it is copied is in the dirty set, and is copied again: so no chunk needs to agree with another.
2. A copy never expires while it is staged; it gets what is left of its key's time when the bucket opens.
3. Every element of every key is compared once, while writers go on: a difference is allowed only where something was
   noted since. What was noted since is compared again under the seal, with the lengths of all keys: nothing changes
   there but by expiry.
4. What a shard refuses to tell (its user may not, the command is not there) ends the copy: it is never taken for a key that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

from taba.shard.buckets import dirty_key, lots
from taba.shard.dirty import FIELD, KEY, MEMBER, SCORED, Command, Note, decode_note
from taba.shard.moving.steps import (
    MAX_CHUNK_BYTES,
    MEASURED_KEYS,
    SMALL_KEY_BYTES,
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
COMPARED_KEYS = 1000  # whose lengths are compared in one step

_WHOLE: dict[bytes, Command] = {
    b"string": (b"GET",),
    b"hash": (b"HGETALL",),
    b"set": (b"SMEMBERS",),
    b"list": (b"LRANGE", b"0", b"-1"),
    b"zset": (b"ZRANGE", b"0", b"-1", b"WITHSCORES"),
}
_LENGTH = {b"string": b"STRLEN", b"hash": b"HLEN", b"set": b"SCARD", b"list": b"LLEN", b"zset": b"ZCARD", b"stream": b"XLEN"}
_SCANS = {b"hash": b"HSCAN", b"set": b"SSCAN", b"zset": b"ZSCAN"}
_FINDS = {b"hash": b"HMGET", b"set": b"SMISMEMBER", b"zset": b"ZMSCORE"}
_REMOVING = {b"hash": b"HDEL", b"set": b"SREM", b"zset": b"ZREM"}
_OF_PARTS = {FIELD: b"hash", MEMBER: b"set", SCORED: b"zset"}
_ADDING = {b"hash": b"HSET", b"set": b"SADD", b"list": b"RPUSH", b"zset": b"ZADD"}
_STRIDES = {b"hash": 2, b"zset": 2}  # elements of the others are one value each


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
        self.expires: dict[bytes, int] = {}  # key → milliseconds that it had left when we last looked
        self.bytes = 0
        self._is_first = True  # the first copy goes at the rate asked for; what is written meanwhile is copied again at once
        self._since: dict[bytes, set[bytes | None]] | None = None  # key → parts (None: all of it) noted since the comparison began
        self._suspects: dict[bytes, set[bytes | None]] = {}  # key → parts that differed then
        self._waiting: list[Command] = []  # writes that are not sent yet
        self._waiting_bytes = 0

    @property
    def opening(self) -> list[Command]:
        """The commands that turn the staged keys into the bucket's own."""
        commands: list[Command] = [(b"RENAME", self._staged(key), key) for key in self.kinds]
        return commands + [(b"PEXPIRE", key, b"%d" % max(left, 1)) for key, left in self.expires.items() if key in self.kinds]

    # --- copying whole keys ---

    def keys(self, keys: Iterable[bytes]) -> Steps:
        """Copy `keys` as they are; one that is not there any more is not in the copy either."""
        small: list[tuple[bytes, bytes]] = []
        small_bytes = 0
        for lot in lots([key for key in keys if is_content(self.bucket, key)], MEASURED_KEYS):
            asked = [command for key in lot for command in ((b"TYPE", key), (b"PTTL", key), (b"MEMORY", b"USAGE", key))]
            replies = yield from self._read("measure", asked)
            for index, key in enumerate(lot):
                kind, left, size = replies[3 * index : 3 * index + 3]
                if kind == b"none" or size is None:
                    self._drop(key)
                    continue
                self.kinds[key] = kind
                if isinstance(left, int) and left >= 0:
                    self.expires[key] = left
                else:
                    self.expires.pop(key, None)
                if size > SMALL_KEY_BYTES and kind in _WHOLE:
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
        replies = yield from self._read("copy", [_whole(kind, key) for key, kind in keys])
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
        else:
            yield from self._scanned(key, kind)

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
        cursor, count = b"0", FIRST_COUNT
        while True:
            [reply] = yield from self._read("copy", [(_SCANS[kind], key, cursor, b"COUNT", b"%d" % count)])
            if isinstance(reply, Exception):
                return
            cursor, chunk = reply
            if chunk:
                yield from self._add(key, kind, chunk)
                count = _next_count(chunk, _STRIDES.get(kind, 1))
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

    def drain(self) -> Generator[Any, Any, int]:
        """Copy again what is noted by now; how much that was."""
        self._is_first = False
        taken = yield from self.take()
        wanted, done = taken.left + len(taken.notes), 0
        while True:
            done += len(taken.notes)
            yield from self.noted(taken.notes)
            if not taken.left or done >= wanted:
                return done
            taken = yield from self.take()

    def noted(self, notes: Sequence[Note]) -> Steps:
        """Copy again what `notes` say."""
        if self._since is not None:
            for note in notes:
                self._since.setdefault(note.key, set()).add(None if note.kind == KEY else note.part)
        whole = {note.key for note in notes if note.kind == KEY}
        parts = [note for note in notes if note.kind != KEY and note.key not in whole and is_content(self.bucket, note.key)]
        for start in range(0, len(parts), NOTED_PARTS):
            by_key: dict[tuple[bytes, bytes], list[bytes]] = {}
            for note in parts[start : start + NOTED_PARTS]:
                by_key.setdefault((_OF_PARTS[note.kind], note.key), []).append(note.part)
            asked: list[Command] = [(_FINDS[kind], key, *names) for (kind, key), names in by_key.items()]
            asked += [(b"EXISTS", key) for _, key in by_key]
            replies = yield from self._read("again", asked)
            for ((kind, key), names), reply, is_there in zip(by_key.items(), replies, replies[len(by_key) :], strict=False):
                if isinstance(reply, Exception) or self.kinds.get(key, kind) != kind:
                    whole.add(key)  # of another type than it was
                elif not is_there:
                    self._drop(key)  # with its last part; what came to it since is noted
                else:
                    yield from self._again(key, kind, names, reply)
        yield from self._flush()
        yield from self.keys(sorted(whole))

    def _again(self, key: bytes, kind: bytes, names: Sequence[bytes], found: Sequence[Any]) -> Steps:
        is_there = [value is not None and value != 0 for value in found]
        gone = [name for name, there in zip(names, is_there, strict=True) if not there]
        elements: list[bytes] = []
        for name, value, there in zip(names, found, is_there, strict=True):
            if there:
                elements += [name, value] if kind == b"hash" else [name] if kind == b"set" else [name, value]
        if elements:
            self.kinds[key] = kind
            yield from self._add(key, kind, elements)
        if gone:
            yield from self._write((_REMOVING[kind], self._staged(key), *gone))

    # --- comparing ---

    def compare_all(self) -> Steps:
        """Compare every element of every key on both sides, while writers go on. What differs is judged by `judge`."""
        self._since, self._suspects = {}, {}
        yield from self._compare(list(self.kinds), self._suspect)

    def judge(self) -> None:
        """Raises Differs for what differed although nothing was noted there since the comparison began."""
        since = self._since or {}
        for key, parts in self._suspects.items():
            noted = since.get(key, set())
            for part in parts:
                if None not in noted and (part not in noted if part is not None else not noted):
                    raise Differs(f"{key!r} and its copy differ" + ("" if part is None else f" in {part!r:.100}"))

    def compare_sealed(self) -> Steps:
        """Under the seal: what was noted since `compare_all` began, and the lengths of all keys. Raises Differs.

        Of a key that was noted in parts, all is compared where it is no more than a chunk; a larger one in those parts.
        A key that has expired is taken out of the copy.
        """
        since = {key: parts for key, parts in (self._since or {}).items() if is_content(self.bucket, key)}
        yield from self._lengths()
        touched = [key for key in since if key in self.kinds]
        sizes: dict[bytes, Any] = {}
        for lot in lots(touched, MEASURED_KEYS):
            sizes.update(zip(lot, (yield from self._read("compare", [(b"MEMORY", b"USAGE", key) for key in lot])), strict=True))
        whole = [key for key in touched if None in since[key] or self.kinds[key] not in _FINDS or (sizes[key] or 0) <= MAX_CHUNK_BYTES]
        yield from self._compare(whole, self._refuse)
        for key in touched:
            if key not in whole and key in self.kinds:
                for names in lots(sorted(part for part in since[key] if part is not None), NOTED_PARTS):
                    yield from self._compare_parts(key, names, None, self._refuse)
        yield from self._times_left()
        yield from self._flush()

    def _suspect(self, key: bytes, part: bytes | None) -> None:
        self._suspects.setdefault(key, set()).add(part)

    def _refuse(self, key: bytes, part: bytes | None) -> None:
        raise Differs(f"{key!r} and its copy differ" + ("" if part is None else f" in {part!r:.100}"))

    def _compare(self, keys: Sequence[bytes], differs: Callable[[bytes, bytes | None], None]) -> Steps:
        small: list[bytes] = []
        small_bytes = 0
        for lot in lots(keys, MEASURED_KEYS):
            sizes = yield from self._read("compare", [(b"MEMORY", b"USAGE", key) for key in lot])
            for key, size in zip(lot, sizes, strict=True):
                if key not in self.kinds or size is None:
                    if key in self.kinds and key not in self.expires:
                        differs(key, None)
                    continue
                if size > SMALL_KEY_BYTES and self.kinds[key] in _WHOLE:
                    yield from self._compare_large(key, differs)
                    continue
                small.append(key)
                small_bytes += size
                if small_bytes >= MAX_CHUNK_BYTES:
                    yield from self._compare_small(small, differs)
                    small, small_bytes = [], 0
        yield from self._compare_small(small, differs)

    def _compare_small(self, keys: Sequence[bytes], differs: Callable[[bytes, bytes | None], None]) -> Steps:
        # what is neither of the Router's types nor a stream is compared by its length, with the others'
        known = [key for key in keys if self.kinds[key] in _WHOLE]
        if not known:
            return
        ours = yield from self._read("compare", [_whole(self.kinds[key], key) for key in known])
        theirs = yield from self._read_copy([_whole(self.kinds[key], self._staged(key)) for key in known])
        for key, mine, found in zip(known, ours, theirs, strict=True):
            if mine in (None, []) and key in self.expires:
                continue  # it has expired here, and never does there
            if isinstance(mine, Exception) or isinstance(found, Exception):
                differs(key, None)
                continue
            for part in _differences(self.kinds[key], mine, found):
                differs(key, part)

    def _compare_large(self, key: bytes, differs: Callable[[bytes, bytes | None], None]) -> Steps:
        kind = self.kinds[key]
        if kind in (b"string", b"list"):
            yield from self._compare_ranges(key, kind, differs)
            return
        cursor, count, seen = b"0", FIRST_COUNT, 0
        while True:
            [reply] = yield from self._read("compare", [(_SCANS[kind], key, cursor, b"COUNT", b"%d" % count)])
            if isinstance(reply, Exception):
                differs(key, None)
                return
            cursor, chunk = reply
            stride = _STRIDES.get(kind, 1)
            for start in range(0, len(chunk), stride * NOTED_PARTS):
                part = chunk[start : start + stride * NOTED_PARTS]
                yield from self._compare_parts(key, part[::stride], part[1::2] if stride == 2 else [1] * len(part), differs)
            seen += len(chunk)
            if chunk:
                count = _next_count(chunk, stride)
            if cursor == b"0":
                break
        [mine] = yield from self._read("compare", [(_LENGTH[kind], key)])
        [found] = yield from self._read_copy([(_LENGTH[kind], self._staged(key))])
        if mine != found and not (mine == 0 and key in self.expires):
            differs(key, None)

    def _compare_ranges(self, key: bytes, kind: bytes, differs: Callable[[bytes, bytes | None], None]) -> Steps:
        command, position, count = (b"GETRANGE", 0, MAX_CHUNK_BYTES) if kind == b"string" else (b"LRANGE", 0, FIRST_COUNT)
        while True:
            span = (b"%d" % position, b"%d" % (position + count - 1))
            [mine] = yield from self._read("compare", [(command, key, *span)])
            [found] = yield from self._read_copy([(command, self._staged(key), *span)])
            if mine != found:
                if not (not position and not mine and key in self.expires):
                    differs(key, None)
                return
            if not mine or isinstance(mine, Exception):
                return
            position += len(mine)
            if kind == b"list":
                count = _next_count(mine)

    def _compare_parts(
        self, key: bytes, names: Sequence[bytes], values: Sequence[Any] | None, differs: Callable[[bytes, bytes | None], None]
    ) -> Steps:
        """`values`: what the source answers for `names`, where it was read already."""
        kind = self.kinds[key]
        finds = _FINDS[kind]
        mine: Any = values
        if mine is None:
            [mine] = yield from self._read("compare", [(finds, key, *names)])
        [found] = yield from self._read_copy([(finds, self._staged(key), *names)])
        if isinstance(mine, Exception) or isinstance(found, Exception):
            differs(key, None)
            return
        for name, ours, theirs in zip(names, mine, found, strict=True):
            if not _is_same(kind, ours, theirs):
                differs(key, name)

    def _lengths(self) -> Steps:
        for lot in lots(list(self.kinds), COMPARED_KEYS):
            ours = yield from self._read("compare", [(_LENGTH.get(self.kinds[key], b"EXISTS"), key) for key in lot])
            theirs = yield from self._read_copy([(_LENGTH.get(self.kinds[key], b"EXISTS"), self._staged(key)) for key in lot])
            for key, mine, found in zip(lot, ours, theirs, strict=True):
                if mine == found and not isinstance(mine, Exception):
                    continue
                if mine == 0 and key in self.expires:
                    self._drop(key)
                    continue
                raise Differs(f"{key!r} has length {mine!r}, its copy {found!r}")

    def _times_left(self) -> Steps:
        for lot in lots([key for key in self.expires if key in self.kinds], COMPARED_KEYS):
            for key, left in zip(lot, (yield from self._read("compare", [(b"PTTL", key) for key in lot])), strict=True):
                if left == -2:
                    self._drop(key)
                elif left == -1:
                    del self.expires[key]
                else:
                    self.expires[key] = left

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

    def _read_copy(self, commands: Sequence[Command]) -> Generator[Any, Any, list[Any]]:
        done = yield Step("compare", self.target, self.there, commands, is_read=True)
        return _told(self.target, self._replies(done))

    def _replies(self, done: Done) -> list[Any]:
        if done.replies is None:
            raise Overtaken(f"bucket {self.bucket}: another has this move in hand")
        return done.replies

    def _add(self, key: bytes, kind: bytes, elements: Sequence[bytes]) -> Steps:
        for command in self._additions(key, kind, elements):
            yield from self._write(command)

    def _additions(self, key: bytes, kind: bytes, elements: Sequence[bytes]) -> Iterable[Command]:
        """The commands that add `elements` (of a hash or a sorted set: names and values in turn), each of a chunk at the most."""
        stride = _STRIDES.get(kind, 1)
        part: list[bytes] = []
        size = 0
        for index in range(0, len(elements), stride):
            element = elements[index : index + stride]
            weight = sum(map(len, element))
            if part and size + weight > MAX_CHUNK_BYTES:
                yield (_ADDING[kind], self._staged(key), *part)
                part, size = [], 0
            part += element[::-1] if kind == b"zset" else element  # ZADD takes the score first
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
            self._replies((yield Step("stage", self.target, self.there, commands, size=size, is_paced=self._is_first)))
            self.bytes += size


def _whole(kind: bytes, key: bytes) -> Command:
    name, *rest = _WHOLE.get(kind, (b"DUMP",))
    return (name, key, *rest)


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


def _differences(kind: bytes, ours: Any, theirs: Any) -> Iterable[bytes | None]:
    """The parts in which two whole values of one type differ; None stands for the whole."""
    if kind in (b"hash", b"zset"):
        mine, found = (dict(zip(one[::2], one[1::2], strict=True)) for one in (ours, theirs))
        return [name for name in {**mine, **found} if not _is_same(kind, mine.get(name), found.get(name))]
    if kind == b"set":
        return list(set(ours) ^ set(theirs))
    return [] if ours == theirs else [None]


def _is_same(kind: bytes, ours: Any, theirs: Any) -> bool:
    if kind == b"zset" and ours is not None and theirs is not None:
        return float(ours) == float(theirs)  # commands, and versions of servers, write one score in several ways
    return bool(ours == theirs)
