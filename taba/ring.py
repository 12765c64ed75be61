"""The ring segment: where everything lies in it, and what its words mean. Bytes in, values out; no file, no clock.

Rules that the rest follows from:

1. One process (the producer) writes records; one Agent reads them. The producer is gated by `tail` and `byte_tail` alone,
   which only the Agent moves; the Agent learns of a record by its commit word alone, which only the producer writes.
2. A record is there when its commit word carries the lap of its position. Nothing is ever zeroed; zeroed memory is never fresh.
3. The commit word is stored last, as one aligned 8-byte store. A reader that copies memory must therefore read the commit words
   first, and then, with a second read, the times and values of those records that it found committed.
4. The magic is stored last at creation: a segment without it is being made, or its maker died while making it. The maker holds
   its flock before the segment has any size.
5. What the Agent reads is hostile: `parse_header` and `parse_directory` check every size, id and bound.

The segment, of S bytes, S a power of two (little-endian, naturally aligned):

| offset | bytes | what |
| --- | --- | --- |
| 0 | 4096 | header; below |
| 4096 | S/8 − 4096 | directory: entries, each begins on a multiple of 8; id = index; below |
| S/8 | S/8 | byte ring: msgpack of the values that are no float |
| S/4 | 3·S/4 | record ring: S/32 records of 24 bytes: time float64, value word, commit word |

A record at position p (0, 1, 2, … for ever) lies in slot p mod S/32. A value of length L at byte position q (counted for ever)
lies in bytes q mod S/8 … and wraps. Values lie in the byte ring in the order of their records; there may be gaps between them.

A segment of 4096 bytes has a header alone: it takes no records, and carries the counts of processes that have no ring past their ends.
Behind the header's words it has SLOTS places for these, of SLOT_BYTES each. Who counts in one holds an OFD lock on its first byte, by the
file description that is mapped, and adds to what an earlier holder left; who holds all of them knows that nobody counts here any more.

A directory entry is `u8 type length, u8 flags, u16 name length, u16 unit length, u16 description length`, with the flag CELL 64 bytes of
a cell, then type, name, unit and description. In a cell stand the sums of a Tab that heals (what a process added is gone when it dies):

| offset | bytes | what |
| --- | --- | --- |
| 0 | 8 | producer: float64, what found the ring full, and what earlier rings of this process held |
| 8 | 8 | producer: u64, how many events of this ring are in it; stored after it |
| 16, 32 | 16 | Agent: u64 records covered, float64 the sum of those of this Tab; two copies, written in turn before a publish |

Of the two copies the greatest that covers no more records than the outbox's table and the tail do holds, whatever kills the Agent.

Standard library only: applications import this module.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from taba.bounds import MAX_RING_BYTES, MAX_VALUE_BYTES, MIN_RING_BYTES
from taba.errors import TabaError
from taba.names import check_client, check_description, check_type, check_unit, is_plain, parse_name

MAGIC = int.from_bytes(b"TABARING", "little")
VERSION = 3
HEADER_BYTES = 4096
RECORD_BYTES = 24
RECORD_WORDS = 3  # time, value, commit
VALUE_OFFSET = 8  # in a record
COMMIT_OFFSET = 16
COUNTING_BYTES = HEADER_BYTES  # a segment that only counts
MAX_CLIENT_BYTES = 200
SHM_DIRECTORY = "/dev/shm"

# Offsets in the header. Its first 512 bytes never change after the magic is there; then come the producer's words, the counts, and the
# Agent's words, each 128 bytes or more apart: neighbouring cache lines are fetched in pairs.
MAGIC_OFFSET = 0  # u64
VERSION_OFFSET = 8  # u32
FLAGS_OFFSET = 12  # u32
SIZE_OFFSET = 16  # u64: S
PID_OFFSET = 24  # u64: the maker's process id, in its own PID namespace; for people only
ID_OFFSET = 32  # 16 random bytes
CREATED_OFFSET = 48  # float64, Unix seconds
CLIENT_LENGTH_OFFSET = 56  # u64
CLIENT_OFFSET = 64  # up to 200 bytes of ASCII

DIRECTORY_COUNT_OFFSET = 512  # u64, producer: entries that are complete; stored after them
DIRECTORY_USED_OFFSET = 520  # u64, producer: bytes that those entries take
DROPS_OFFSET = 640  # u64 for each of DROP_REASONS, producer
OWES_OFFSET = 768  # u64, producer: events owed in all cells together
TAIL_OFFSET = 1024  # u64, Agent: position of the first record that is not released
BYTE_TAIL_OFFSET = 1032  # u64, Agent: byte position of the first byte that is not released
RETIRED_OFFSET = 1040  # u64, Agent: not 0: nobody reads this ring any more

# In a segment that only counts:
NO_PLACE_OFFSET = 776  # u64, any process: not 0: one more found no place to count in
SLOTS_OFFSET = 1152
SLOT_BYTES = 128  # u64 for each of DROP_REASONS
SLOTS = (COUNTING_BYTES - SLOTS_OFFSET) // SLOT_BYTES

ACCELERATED = 1  # header flag: the producer is the C accelerator (which leaves no holes); else pure Python

# Why an event was not recorded; the index is the place of its count in the header. Append only: a place never changes its meaning.
DROP_REASONS = (
    "ring_full",  # no free record: no Agent reads, or not fast enough
    "bytes_full",  # no room in the byte ring
    "value_too_large",  # more than MAX_VALUE_BYTES of msgpack (or a quarter of the byte ring), or nested too deeply
    "value_type",  # not a value that msgpack has
    "bad_time",  # not a number from 0 to MAX_TIME
    "directory_full",  # no room for one more Tab
    "no_ring",  # no shared memory could be had
    "stopped",  # recorded between stop() and start()
    "reentrant",  # recorded while a ring, or a place in it, was being made: by a signal handler, or a thread that could not wait so long
    "unknown",  # was in a ring that somebody else removed: perhaps read, perhaps not
    "exhausted",  # the process had no memory, no stack or no interpreter left
    "function_raised",  # what a Gauge's set_function() was given raised instead of giving a value
)
MAX_DROP_REASONS = 16  # places in the header

_FIXED = struct.Struct("<QIIQQ16sdQ")  # magic … client length
_ENTRY = struct.Struct("<BBHHH")
_AGENT_WORDS = struct.Struct("<QQQ")
_PRODUCER_WORDS = struct.Struct("<QQ")
_DROPS = struct.Struct(f"<{MAX_DROP_REASONS}Q")
_SEGMENT = re.compile(r"taba\.([A-Za-z0-9_-]{1,64})\.([0-9a-f]{16})")


class MalformedRing(TabaError):
    """The producer's fault: these bytes are no ring of a version that this Agent reads."""


# --- names of segments -------------------------------------------------------------------------------------------------------------


def segment_name(agent: str, unique: bytes) -> str:
    """The name of a ring's segment; `unique` is 8 random bytes."""
    return f"taba.{agent}.{unique.hex()}"


def segment_prefix(agent: str) -> str:
    """What the names of all rings of one Agent, and of no other, begin with (an Agent's name has no dot)."""
    return f"taba.{agent}."


def segment_agent(name: str) -> str | None:
    """The Agent whose ring has this segment name; None for what is no ring."""
    match = _SEGMENT.fullmatch(name)
    return match[1] if match else None


# --- sizes -------------------------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """Where the parts of a segment of `size` bytes lie. `records` and `byte_ring_bytes` are powers of two; 0 where it only counts."""

    size: int
    directory_offset: int
    directory_bytes: int
    byte_ring_offset: int
    byte_ring_bytes: int
    record_offset: int
    records: int

    @property
    def max_value_bytes(self) -> int:
        """The longest value that this ring takes."""
        return min(MAX_VALUE_BYTES, self.byte_ring_bytes // 4)


def layout(size: int) -> Layout:
    """The layout of a segment of `size` bytes. Raises MalformedRing unless it is a power of two within the bounds, or only counts."""
    if size == COUNTING_BYTES:
        return Layout(size, size, 0, size, 0, size, 0)
    if not MIN_RING_BYTES <= size <= MAX_RING_BYTES or size & (size - 1):
        raise MalformedRing(f"a ring of {size} bytes: takes a power of two from {MIN_RING_BYTES} to {MAX_RING_BYTES}")
    eighth = size // 8
    return Layout(size, HEADER_BYTES, eighth - HEADER_BYTES, eighth, eighth, 2 * eighth, size // 32)


def fitting_size(asked: int) -> int:
    """The largest ring size that is not larger than `asked` bytes, within the bounds."""
    return 1 << (min(max(asked, MIN_RING_BYTES), MAX_RING_BYTES).bit_length() - 1)


# --- the commit word and the value word --------------------------------------------------------------------------------------------

TAB_BITS = 24
MAX_TABS = 1 << TAB_BITS
TAB_MASK = MAX_TABS - 1
FLAG_BYTES = 1  # the value word is a value_word(): the value lies in the byte ring
FLAG_SKIP = 2  # nothing was recorded here: a reservation that was given back. Released like a record; its value word means nothing
FLAGS_SHIFT = TAB_BITS
FLAGS_MASK = 0xFF
LAP_SHIFT = 32
LAP_MASK = 0xFFFF_FFFF
BYTE_POSITION_BITS = 40
BYTE_POSITION_MASK = (1 << BYTE_POSITION_BITS) - 1


class Commit(NamedTuple):
    """A commit word's fields."""

    tab: int
    flags: int
    lap: int


def lap_of(position: int, records: int) -> int:
    """The lap in the commit word of the record at `position` in a ring of `records`."""
    return ((position >> (records.bit_length() - 1)) + 1) & LAP_MASK


def commit_word(tab: int, flags: int, lap: int) -> int:
    """The commit word of these fields."""
    return tab | flags << FLAGS_SHIFT | lap << LAP_SHIFT


def split_commit(word: int) -> Commit:
    """The fields of a commit word."""
    return Commit(word & TAB_MASK, word >> FLAGS_SHIFT & FLAGS_MASK, word >> LAP_SHIFT)


def value_word(length: int, byte_position: int) -> int:
    """The value word of a value of `length` bytes that begins at `byte_position` (counted for ever; kept modulo 2**40)."""
    return length << BYTE_POSITION_BITS | byte_position & BYTE_POSITION_MASK


def split_value(word: int) -> tuple[int, int]:
    """(length, byte position modulo 2**40) of a value word."""
    return word >> BYTE_POSITION_BITS, word & BYTE_POSITION_MASK


# --- the header --------------------------------------------------------------------------------------------------------------------


class RingHeader(NamedTuple):
    """A ring's header. The first part never changes; `tail` and what follows are as they were when the page was read."""

    size: int
    flags: int
    pid: int
    ring_id: bytes
    created: float
    client: str
    tail: int
    byte_tail: int
    retired: bool
    directory_count: int
    directory_used: int
    drops: dict[str, int]

    @property
    def is_accelerated(self) -> bool:
        return bool(self.flags & ACCELERATED)


def encode_header(size: int, flags: int, pid: int, ring_id: bytes, created: float, client: str) -> bytes:
    """The first bytes of a new segment, magic left out (zero): the maker stores MAGIC last, as one aligned store of 8 bytes."""
    layout(size)
    content = client.encode("ascii")
    if len(content) > MAX_CLIENT_BYTES or len(ring_id) != 16:
        raise ValueError("a client id of at most 200 bytes and a ring id of 16")
    return _FIXED.pack(0, VERSION, flags, size, pid, ring_id, created, len(content)) + content


def parse_header(page: bytes, segment_bytes: int) -> RingHeader:
    """The header in the first HEADER_BYTES of a segment of `segment_bytes`. Raises MalformedRing for anything else.

    A page of zeros where the magic should be is a ring that is being made; `is_unmade` tells.
    """
    if len(page) < HEADER_BYTES:
        raise MalformedRing(f"a header of {len(page)} bytes")
    magic, version, flags, size, pid, ring_id, created, client_length = _FIXED.unpack_from(page)
    if magic != MAGIC:
        raise MalformedRing("no magic")
    if version != VERSION:
        raise MalformedRing(f"layout version {version}; this reads {VERSION}")
    where = layout(size)
    if segment_bytes < size:  # shared memory may be rounded up to pages, never down
        raise MalformedRing(f"a segment of {segment_bytes} bytes for a ring of {size}")
    if client_length > MAX_CLIENT_BYTES:
        raise MalformedRing(f"a client id of {client_length} bytes")
    try:
        client = check_client(page[CLIENT_OFFSET : CLIENT_OFFSET + client_length].decode("ascii"))
    except ValueError as error:
        raise MalformedRing(f"{error}"[:200]) from None
    if not 0 <= created < 2**40:  # false for NaN too
        raise MalformedRing(f"created at {created}")
    tail, byte_tail, retired = _AGENT_WORDS.unpack_from(page, TAIL_OFFSET)
    count, used = parse_directory_words(page[DIRECTORY_COUNT_OFFSET : DIRECTORY_COUNT_OFFSET + _PRODUCER_WORDS.size], where)
    offset, length = drops_range(size)
    drops = parse_drops(page[offset : offset + length])
    return RingHeader(size, flags, pid, ring_id, created, client, tail, byte_tail, retired != 0, count, used, drops)


def is_unmade(page: bytes) -> bool:
    """Whether the magic is still missing. With the flock free and for longer than a few seconds: its maker died."""
    return page[: MAGIC_OFFSET + 8].rstrip(b"\0") == b""


def parse_directory_words(words: bytes, where: Layout) -> tuple[int, int]:
    """(count, bytes used) of the directory from the 16 bytes at DIRECTORY_COUNT_OFFSET. Raises MalformedRing beyond the bounds."""
    count, used = _PRODUCER_WORDS.unpack(words)
    # the shortest entry takes 8 bytes; `used` is stored before `count`, so it may be ahead of it but never behind
    if used > where.directory_bytes or count > MAX_TABS or count * 8 > used:
        raise MalformedRing(f"a directory of {count} Tabs in {used} bytes")
    return count, used


def drops_range(size: int) -> tuple[int, int]:
    """Where the counts lie in a segment of `size` bytes: (offset, length)."""
    return (SLOTS_OFFSET, SLOTS * SLOT_BYTES) if size == COUNTING_BYTES else (DROPS_OFFSET, _DROPS.size)


def parse_drops(words: bytes) -> dict[str, int]:
    """The producers' counts by reason, from the bytes of `drops_range`; reasons with 0 are left out.

    A count in a place that this version has no name for is `reason_<place>`.
    """
    counts = [sum(places) for places in zip(*_DROPS.iter_unpack(words), strict=True)]
    return {(DROP_REASONS[place] if place < len(DROP_REASONS) else f"reason_{place}"): count for place, count in enumerate(counts) if count}


# --- the directory -----------------------------------------------------------------------------------------------------------------


ENTRY_BYTES = _ENTRY.size  # before its cell and its texts
CELL = 1  # entry flag: a cell follows
CELL_BYTES = 64
OWED_OFFSET = 0  # in a cell
OWED_EVENTS_OFFSET = 8
SUM_OFFSETS = (16, 32)  # of the two copies
_CELL = struct.Struct("<dQQdQd")
_SUM = struct.Struct("<Qd")


class TabEntry(NamedTuple):
    """One Tab of the directory: its Type and canonical name, what it is, and where in the parsed part its cell lies, if it has one."""

    type: str
    name: str
    unit: str = ""
    description: str = ""
    cell: int | None = None


class BadEntry(NamedTuple):
    """A Tab whose entry breaks the rules for names: its events are not to be forwarded."""

    error: str


class Sum(NamedTuple):
    """What an Agent wrote into a cell: how many records of the ring it had covered, and the sum of this Tab's."""

    covered: int
    total: float


class Cell(NamedTuple):
    """A cell's words."""

    owed: float
    owed_events: int
    sums: tuple[Sum, Sum]

    def sum_at(self, covered: int) -> tuple[int, Sum]:
        """The copy that holds where so many records are covered: its place, and what it says."""
        held = [(found.covered, at) for at, found in enumerate(self.sums) if found.covered <= covered]
        return (max(held)[1], self.sums[max(held)[1]]) if held else (0, Sum(0, 0.0))


def parse_cell(words: bytes) -> Cell:
    """A cell, from its CELL_BYTES."""
    owed, events, *copies = _CELL.unpack_from(words)
    return Cell(owed, events, (Sum(*copies[:2]), Sum(*copies[2:])))


def encode_sum(found: Sum) -> bytes:
    """A copy, for one of a cell's SUM_OFFSETS."""
    return _SUM.pack(*found)


def encode_entry(type: str, name: str, unit: str = "", description: str = "", has_cell: bool = False) -> bytes:
    """A directory entry, padded to a multiple of 8 bytes; its cell, if it has one, is zero."""
    type_bytes, *texts = type.encode("ascii"), name.encode(), unit.encode(), description.encode()
    header = _ENTRY.pack(len(type_bytes), CELL if has_cell else 0, *map(len, texts))
    content = header + bytes(CELL_BYTES if has_cell else 0) + type_bytes + b"".join(texts)
    return content + bytes(-len(content) % 8)


def parse_directory(content: bytes, count: int, is_part: bool = False) -> tuple[list[TabEntry | BadEntry], int]:
    """The next `count` entries in `content`, a part of the directory that begins with an entry; and the bytes that they take.

    So a reader that knows the first k entries, which take b bytes, reads the directory from b on and asks for the rest. Raises
    MalformedRing when the entries do not fit into `content`; one that fits and breaks the rules for names is a BadEntry. With `is_part`
    more follows behind `content`: what does not fit any more is left out.
    """
    split, taken = split_directory(content, count, is_part)
    return [parse_entry(entry, cell) for entry, cell in split], taken


def split_directory(content: bytes, count: int, is_part: bool = False) -> tuple[list[tuple[bytes, int | None]], int]:
    """The same as `parse_directory`, with the bytes of each entry instead, for `parse_entry`, and where its cell lies. The bytes are
    without the cell: of the same Tab they are the same in each ring."""
    entries: list[tuple[bytes, int | None]] = []
    position, length, unpack, size = 0, len(content), _ENTRY.unpack_from, _ENTRY.size
    for _ in range(count):
        texts = position + size
        if texts > length:
            if is_part and entries:
                break
            raise MalformedRing(f"{count} directory entries in {length} bytes")
        type_length, flags, name_length, unit_length, description_length = unpack(content, position)
        has_cell = flags & CELL
        if has_cell:
            texts += CELL_BYTES
        end = texts + type_length + name_length + unit_length + description_length
        if end > length:
            if is_part and entries:
                break
            raise MalformedRing(f"a directory entry of {end - position} bytes in {length - position}")
        if has_cell:
            entries.append((content[position : position + size] + content[texts:end], position + size))
        else:
            entries.append((content[position:end], None))
        position = end + -end % 8
        if position > length:
            position = end
    return entries, position


def parse_entry(entry: bytes, cell: int | None = None) -> TabEntry | BadEntry:
    """What an entry says that `split_directory` gave."""
    type_length, _, name_length, unit_length, _ = _ENTRY.unpack_from(entry)
    name_at = _ENTRY.size + type_length
    unit_at = name_at + name_length
    description_at = unit_at + unit_length
    try:
        type, name = entry[_ENTRY.size : name_at].decode(), entry[name_at:unit_at].decode()
        if not is_plain(name):
            parse_name(name)
        check_type(type)
        if unit_at == len(entry):
            return TabEntry(type, name, "", "", cell)
        unit, description = entry[unit_at:description_at].decode(), entry[description_at:].decode()
        return TabEntry(type, name, check_unit(unit), check_description(description), cell)
    except ValueError as error:
        return BadEntry(f"{error}"[:200])
