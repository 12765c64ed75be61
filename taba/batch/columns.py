"""What is in a batch, once it is read and before it is written: columns of Events and of States, and what Tabs mean."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Any, NamedTuple, cast

from taba.batch.identity import BatchId
from taba.bounds import MAX_VALUE_BYTES, KiB
from taba.counting import unpack_list

MAX_DUMP_BYTES = MAX_VALUE_BYTES  # of a State that was folded at the edge: wherever the largest value has room, it has
MAX_LIST_VALUES = 16_384  # values that are no floats, of all columns of a batch: each becomes an object of Python's
MAX_LIST_BYTES = 64 * KiB  # that these take, lists in them and all: made, each byte may be an object of 64, and a fold walks them
MAX_BATCH_MEANINGS = 1000  # as many as Tabs of a batch
MAX_CACHED_IDS = 10_000  # client ids and Types whose form is known to be right

# why a column is not read
BAD_COLUMN = "bad_column"
NOT_COVERED = "not_covered"  # by the token of whoever sent it

RING_ENDED = 2**62  # positions beyond those of any record
RING_GONE = RING_ENDED + 1


class Packed:
    """Values of which some hold others, of which each is within its bounds: as their msgpack, one after the other.

    They are made only for what needs them, a fold: what lies in a queue as lists in lists is walked by each collection of garbage.
    """

    __slots__ = ("content", "count")

    def __init__(self, content: bytes, count: int):
        self.content, self.count = content, count

    def values(self) -> list[Any]:
        """Make them."""
        return unpack_list(self.content, self.count)


class AtEdge(NamedTuple):
    """A fresh State to which Events were folded at the edge: the version of what its Handler made, that, and the time of the last one."""

    edge: int
    dump: bytes
    until: float


class Column(NamedTuple):
    """The Events of one (Client, Tab, Type) in one batch.

    `times` are n little-endian float64 Unix seconds; `values` n little-endian float64, or a list of n msgpack values, or these Packed.
    Of Events that were folded at the edge `times` is that of the first one alone, and `stands_for` how many they are.
    """

    client: str
    tab: str
    type: str
    times: bytes
    values: bytes | list[Any] | Packed | AtEdge
    stands_for: int | None = None

    def made(self) -> bytes | list[Any]:
        """Its values, all made; of Events that were folded at the edge there are none."""
        assert not isinstance(self.values, AtEdge)
        return self.values.values() if isinstance(self.values, Packed) else self.values

    def opened(self) -> Column:
        """The same, and its values are made."""
        return self._replace(values=self.made()) if isinstance(self.values, Packed) else self

    @property
    def events(self) -> int:
        return len(self.times) // 8

    @property
    def weight(self) -> int:
        """How many recorded Events this accounts for."""
        return len(self.times) // 8 if self.stands_for is None else self.stands_for


class Block(NamedTuple):
    """Columns of one section of which nothing is amiss, all of floats, as arrays: who looks at one has it made.

    `fields` are what the store calls these States, `counts` how many rows each has; `moved` the Tabs that there are, and how many rows each
    of them has, and `places` of each column which of them is its own (bytes of int32).
    """

    type: str
    fields: Sequence[bytes]
    counts: Sequence[int]
    times: bytes
    values: bytes
    moved: Mapping[str, int]
    places: bytes

    @classmethod
    def of(
        cls, type: str, fields: Sequence[bytes], states: Sequence[tuple[str, str]], counts: Sequence[int], times: bytes, values: bytes
    ) -> Block:
        """Of columns whose Clients and Tabs are `states`."""
        places: dict[str, int] = {}
        moved: dict[str, int] = {}
        for (_, tab), count in zip(states, counts, strict=True):
            places.setdefault(tab, len(places))
            moved[tab] = moved.get(tab, 0) + count
        return cls(type, fields, counts, times, values, moved, struct.pack(f"={len(states)}i", *[places[tab] for _, tab in states]))

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def names(self) -> frozenset[bytes]:
        """The fields, each once."""
        return frozenset(self.fields)

    def columns(self) -> list[Column]:
        """Make them."""
        found, start, make = [], 0, cast(Any, tuple.__new__)
        tabs, places = list(self.moved), struct.unpack(f"={len(self)}i", self.places)
        for field, place, count in zip(self.fields, places, self.counts, strict=True):
            end, client = start + 8 * count, field.partition(b"\0")[2].decode()
            found.append(make(Column, (client, tabs[place], self.type, self.times[start:end], self.values[start:end], None)))
            start = end
        return found


class BadColumn(NamedTuple):
    """A column or a section that does not decode, or that its sender may not send: what is wrong with it, what was there, how many Events
    its sender says that it holds, and the reason under which they are dead letters; and its Client, where it decodes."""

    error: str
    content: bytes
    events: int
    reason: str = BAD_COLUMN
    client: str = ""


DecodedSection = Block | Sequence[Column | BadColumn]


class Columns(Sequence[Column | BadColumn]):
    """The columns of a batch in their order, by section."""

    __slots__ = ("sections",)

    def __init__(self, sections: Sequence[DecodedSection]):
        self.sections = sections

    def __len__(self) -> int:
        return sum(map(len, self.sections))

    def __iter__(self) -> Iterator[Column | BadColumn]:
        return chain.from_iterable(map(columns_of, self.sections))

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


def decoded_sections(columns: Sequence[Column | BadColumn]) -> Sequence[DecodedSection]:
    """These columns, as blocks where they came so."""
    return columns.sections if isinstance(columns, Columns) else (columns,)


def columns_of(section: DecodedSection) -> Sequence[Column | BadColumn]:
    """The columns of a section, one by one."""
    return section.columns() if isinstance(section, Block) else section


class Meaning(NamedTuple):
    """What an application says that a Tab is: "" where it says nothing."""

    tab: str
    unit: str
    description: str


class Batch(NamedTuple):
    """One decoded batch. `bad_meanings`: how many did not decode; `made_bytes`: what a fold makes of it takes so many, about."""

    stream: bytes
    bucket: int
    number: int
    columns: Sequence[Column | BadColumn]
    meanings: tuple[Meaning, ...] = ()
    bad_meanings: int = 0
    made_bytes: int = 0

    @property
    def id(self) -> BatchId:
        return BatchId(self.stream, self.bucket, self.number)

    @property
    def fields(self) -> Set[bytes]:
        """The names of the States that it touches."""
        sections = decoded_sections(self.columns)
        if len(sections) == 1 and isinstance(sections[0], Block):
            return sections[0].names
        found: set[bytes] = set()
        for section in sections:
            its = (
                section.fields
                if isinstance(section, Block)
                else [field_of(one.tab, one.client) for one in section if isinstance(one, Column)]
            )
            found.update(its)
        return found

    @property
    def types(self) -> set[str]:
        """The Types of its columns."""
        found: set[str] = set()
        for section in decoded_sections(self.columns):
            found |= {section.type} if isinstance(section, Block) else {column.type for column in section if isinstance(column, Column)}
        return found


def field_of(tab: str, client: str) -> bytes:
    """The name of a State."""
    return f"{tab}\0{client}".encode()


def uint32s(content: bytes) -> tuple[int, ...]:
    """The numbers in it."""
    return struct.unpack(f"<{len(content) >> 2}I", content)
