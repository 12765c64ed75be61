"""The keys of a bucket, and the form of what is kept under them (beside the shard layer's own: owner, lease).

1. Every key has its bucket in braces, so that all keys of a bucket lie on one shard (and in one slot of a cluster).
2. A State is one field of the bucket's `states` hash, its further parts are fields beside it: a cycle reads and writes all its
   States with one command each.
3. Every part begins with a frame: the Handler's version, and the age of the store at the last fold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

MAX_KEPT_KEYS = 8_192  # buckets whose keys a process need not make anew each time

_FRAME = struct.Struct("<HI")
FRAME_BYTES = _FRAME.size


def text_of(name: bytes) -> str:
    """A name, or another text, that is kept; where it is no UTF-8, with \\ufffd in its place: anybody may have written it, or a disk."""
    return name.decode("utf-8", "replace")


def texts_of(names: Sequence[bytes]) -> list[str]:
    """The same of many."""
    try:
        return list(map(bytes.decode, names))
    except UnicodeDecodeError:
        return list(map(text_of, names))


def count_of(content: bytes | None) -> int:
    """A number of `counts`; 0 where none is kept, or what is kept is none."""
    try:
        return int(content or 0)
    except ValueError:
        return 0


def marks(bucket: int) -> bytes:
    """Hash: stream → its mark (see fold/marks.py)."""
    return b"taba:{%d}:marks" % bucket


def posted(bucket: int) -> bytes:
    """Hash: stream of posted events → its mark."""
    return b"taba:{%d}:posted" % bucket


def posts(bucket: int) -> bytes:
    """Hash: digest of a Client → its Idempotency-Keys (see fold/posts.py)."""
    return b"taba:{%d}:keys" % bucket


def posters(bucket: int) -> bytes:
    """Hash: digest of whoever posts with Idempotency-Keys → for how many Clients (see fold/posts.py)."""
    return b"taba:{%d}:posters" % bucket


def age(bucket: int) -> bytes:
    """The store's age and when it was raised (see aging.py). In one bucket alone."""
    return b"taba:{%d}:age" % bucket


def tabs(bucket: int) -> bytes:
    """Hash: Tab → Type."""
    return b"taba:{%d}:tabs" % bucket


def meanings(bucket: int) -> bytes:
    """Hash: Tab and UNIT or DESCRIPTION → text."""
    return b"taba:{%d}:meanings" % bucket


UNIT, DESCRIPTION = b"unit", b"description"


def meaning_fields(tab: bytes) -> list[bytes]:
    """The fields of what a Tab means: of its unit, of its description."""
    return [b"%b\0%b" % (tab, which) for which in (UNIT, DESCRIPTION)]


def states(bucket: int) -> bytes:
    """Hash: State part → frame and dump."""
    return b"taba:{%d}:states" % bucket


class Keys(NamedTuple):
    """The keys of a bucket that nearly every cycle touches."""

    marks: bytes
    tabs: bytes
    states: bytes
    counts: bytes


@lru_cache(MAX_KEPT_KEYS)
def of(bucket: int) -> Keys:
    """Those of `bucket`."""
    return Keys(marks(bucket), tabs(bucket), states(bucket), counts(bucket))


def clients_of(bucket: int, tab: bytes) -> bytes:
    """Set: the Clients that have a State of this Tab."""
    return b"taba:{%d}:of:%b" % (bucket, tab)


def clients(bucket: int) -> bytes:
    """Set: the Clients that have a State in this bucket."""
    return b"taba:{%d}:clients" % bucket


def dead_letters(bucket: int) -> bytes:
    """List: dead letters, newest first."""
    return b"taba:{%d}:dead" % bucket


TAB_CHANGES = b"tabs"
DISCARDED = b"dead_discarded"  # Events that were dead letters, and given up by a person


def count_tab_changes(bucket: int, tabs: int = 1) -> tuple[bytes, ...]:
    """The command that goes with every change of `tabs`: who has read it once reads it again only then (see ask/index.py)."""
    return (b"HINCRBY", counts(bucket), TAB_CHANGES, b"%d" % tabs)


def is_tab_change(command: tuple[bytes, ...]) -> bool:
    """Whether a command is one of those."""
    return command[2:3] == (TAB_CHANGES,) and command[0] == b"HINCRBY"


def counts(bucket: int) -> bytes:
    """Hash: `folded`, `dead:<reason>`, `dead_dropped`, DISCARDED → decimal numbers of Events;
    TAB_CHANGES → how many Tabs have come and gone.
    """
    return b"taba:{%d}:counts" % bucket


def missing(bucket: int) -> bytes:
    """List: Types without a Handler that Events came for lately, newest first, with repetitions."""
    return b"taba:{%d}:missing" % bucket


def trial(bucket: int) -> bytes:
    """Written and removed in one transaction, to see whether the shard takes writes."""
    return b"taba:{%d}:trial" % bucket


def servers(bucket: int) -> bytes:
    """Hash: URL of a Server → JSON of what it says of itself. In one bucket alone."""
    return b"taba:{%d}:servers" % bucket


def jobs(bucket: int) -> bytes:
    """Hash: id of a job → JSON of what is known of it. In one bucket alone."""
    return b"taba:{%d}:jobs" % bucket


def notes(bucket: int) -> bytes:
    """List: JSON of notes, the latest that was said first. In one bucket alone."""
    return b"taba:{%d}:notes" % bucket


def boards(bucket: int) -> bytes:
    """Hash: name of a board → JSON of it. In one bucket alone."""
    return b"taba:{%d}:boards" % bucket


def state_field(tab: str, client: str) -> bytes:
    """The field of a State's main part."""
    return f"{tab}\0{client}".encode()


def state_fields(tab: str, clients: Iterable[str], further_parts: int) -> list[bytes]:
    """The fields of the States of a Tab's Clients, all parts of one after the other."""
    head = f"{tab}\0"
    if not further_parts:
        return [f"{head}{client}".encode() for client in clients]
    found: list[bytes] = []
    tails = part_fields(b"", further_parts)
    for client in clients:
        field = f"{head}{client}".encode()
        found.append(field)
        for tail in tails:
            found.append(field + tail)
    return found


def part_fields(field: bytes, further_parts: int) -> list[bytes]:
    """The fields of a State's further parts."""
    return [b"%b\0%d" % (field, part) for part in range(1, further_parts + 1)]


UNKNOWN_AGE = 0xFFFF_FFFF  # later than any: nothing is forgotten by it


class Framed(NamedTuple):
    """One part of a State as it is kept; version 0 and no dump: there is none."""

    version: int
    age: int  # minutes; UNKNOWN_AGE: it was not known at the last fold
    dump: bytes


ABSENT = Framed(0, 0, b"")


def frame(version: int, age: int) -> bytes:
    """What stands before every dump. `age`: the store's at the fold, in minutes."""
    return _FRAME.pack(version, age)


_NOTHING = frame(*ABSENT[:2])  # which is ABSENT, framed

_new_framed = partial(cast(Any, tuple.__new__), Framed)
_BYTES = {bytes}


def unframe_all(contents: Sequence[bytes | None]) -> list[Framed]:
    """`unframe` of each; nearly all are whole, or not there, and cost no call of Python each."""
    if None in contents:
        contents = [_NOTHING if content is None else content for content in contents]
    if _BYTES.issuperset(map(type, contents)):
        heads = b"".join([content[:FRAME_BYTES] for content in contents])  # type: ignore[index]
        if heads and len(heads) == FRAME_BYTES * len(contents):
            versions, ages = zip(*_FRAME.iter_unpack(heads), strict=True)
            return list(map(_new_framed, zip(versions, ages, [content[FRAME_BYTES:] for content in contents], strict=True)))  # type: ignore[index]
    return list(map(unframe, contents))


class Kept(Sequence[Framed]):
    """Main parts as they were read, each behind its frame: unframed for whoever looks at them."""

    __slots__ = ("_framed", "contents")

    def __init__(self, contents: list[bytes]):
        self.contents = contents
        self._framed: list[Framed] | None = None

    @property
    def framed(self) -> list[Framed]:
        """All of them."""
        if self._framed is None:
            self._framed = unframe_all(self.contents)
        return self._framed

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, place: Any) -> Any:
        return self.framed[place]

    def __iter__(self) -> Iterator[Framed]:
        return iter(self.framed)


def are_framed(contents: Sequence[bytes | None]) -> bool:
    """Whether all are there, and long enough to have a frame."""
    return _BYTES.issuperset(map(type, contents)) and min(map(len, contents), default=0) >= FRAME_BYTES  # type: ignore[arg-type]


def unframe(content: bytes | None) -> Framed:
    """A part as it was read. Raises ValueError for what is no part of a State."""
    if content is None:
        return ABSENT
    if len(content) < FRAME_BYTES:
        raise ValueError(f"a State of {len(content)} bytes")
    framed: Framed = _new_framed((*_FRAME.unpack_from(content), content[FRAME_BYTES:]))
    return framed


def unframed(content: bytes | None) -> Framed:
    """A part as it was read; what is none is of a version that no Handler has: its State fails, and is kept."""
    try:
        return unframe(content)
    except ValueError:
        return Framed(0xFFFF + 1, 0, b"")
