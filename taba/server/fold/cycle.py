"""The fold cycle: everything that waits for one bucket, and the bucket's own state, become one transaction. Pure.

Here is what a cycle has, in the order in which it came, and which keys it touches: `Cycle.reads` goes to the store first. What it comes
to then, an Outcome, is decided by `fold_cycle` (deciding.py), which `advance` runs for the Router (errands.py).
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple

from taba import names
from taba.batch import (
    MAX_CACHED_FIELDS,
    MAX_CACHED_NAME,
    MAX_CACHED_NAMES,
    OPEN,
    BadColumn,
    Batch,
    Block,
    Column,
    DecodedSection,
    Header,
    KeyPart,
    Verdict,
    columns_of,
    decoded_sections,
)
from taba.lately import Lately
from taba.server import keys
from taba.server.fold.excess import Beyond
from taba.server.router import Command
from taba.server.work.pace import Pause
from taba.server.work.rows import ForeignWork

MAX_HOMES = 4  # stores of so many numbers of buckets whose Tabs are remembered: a process serves one


class WaitingBatch(NamedTuple):
    """A batch that waits to be folded, the number that it follows, and its size in bytes; or a header, with a batch of no columns.

    `nonce`: under which its stream is open, or for a header that opens it, the one that was drawn; empty for events that were posted
    to this Server, whose stream opens itself (and where they have no key, `follows` is ANY). `part`: of posted events with a key that come
    by an Agent, with the stream that was drawn for their post in place of the key. `agent`: who sent it, for people.
    """

    follows: int
    batch: Batch
    size: int
    nonce: bytes = b""
    part: KeyPart | None = None
    header: Header | None = None
    agent: str = ""

    @property
    def charged(self) -> int:
        """What it counts as in a queue: its bytes, and what was made of them."""
        return self.size + self.batch.made_bytes


class Reads(NamedTuple):
    """What a fold must read in addition; it is sent the replies."""

    commands: list[Command]


class Foreign(NamedTuple):
    """What is to be folded elsewhere; the fold is sent, for each, a Folded or the rows it wants parts of."""

    works: list[ForeignWork]


class Outcome(NamedTuple):
    """What a cycle writes, the verdicts in the order of its batches, and what there is to count once it is written."""

    commands: list[Command]
    verdicts: list[Verdict]
    folded: int
    dead: dict[str, int]
    handler_errors: dict[str, int]  # Events that Handlers failed to fold, by Type
    times: Sequence[bytes]  # of what was folded, float64, in pieces
    turned_away: tuple[str, ...] = ()  # Agents that may open no more streams here
    first_errors: Mapping[str, str] = {}  # what the first of them said, by Type
    bad_meanings: int = 0  # units and descriptions that did not decode
    moved: Mapping[str, int] = {}  # Tab → its Events that were folded
    beyond: Mapping[Beyond, int] = {}  # Events for which there was no room
    made: tuple[int, int] = (0, 0)  # new Tabs, and new Clients of the bucket


Need = Reads | Foreign | Pause
CycleSteps = Generator[Need, Any, Outcome]


def columns_alone(waiting: Iterable[WaitingBatch]) -> int:
    """How many columns there are that take steps of their own (see Pace): in no Block."""
    return sum([len(part) for item in waiting for part in decoded_sections(item.batch.columns) if not isinstance(part, Block)])


class Cycle:
    """The batches of one cycle of `bucket`, planned: which keys they touch."""

    def __init__(self, bucket: int, waiting: Sequence[WaitingBatch], buckets: int):
        self.bucket, self.buckets = bucket, buckets
        self.waiting = list(waiting)
        self.streams = list(dict.fromkeys([item.batch.stream for item in self.waiting if item.header or item.nonce]))
        direct = [item.batch.stream for item in self.waiting if not (item.header or item.nonce)]
        self.posted = list(dict.fromkeys(direct + [item.part.key for item in self.waiting if item.part]))
        self.opens = sum([item.header is not None and item.header.do == OPEN for item in self.waiting])
        self.tabs: dict[str, int] = {}
        self.whole: Block | None = None  # the first block, where no State comes twice in it
        self._each: dict[bytes, int] = {}
        self.sections: list[list[tuple[DecodedSection, list[int]]]] = []  # per batch its columns, with the row of each in `fields`, or −1
        for item in self.waiting:
            self.sections.append([(one, self._block_rows(one) or self._rows(one)) for one in decoded_sections(item.batch.columns)])
            for meaning in item.batch.meanings:
                self.tabs.setdefault(meaning.tab, len(self.tabs))

    def _block_rows(self, section: DecodedSection) -> list[int] | None:
        """The rows of a block, all of whose Tabs live here."""
        if not isinstance(section, Block):
            return None
        tabs = section.moved
        if max(map(len, tabs)) > MAX_CACHED_NAME or set(map(homes[self.buckets].__getitem__, tabs)) != {self.bucket}:
            return None
        for tab in tabs:
            self.tabs.setdefault(tab, len(self.tabs))
        if not self.fields and len(section.names) == len(section):
            self.whole = section
            return list(range(len(section)))
        fields = self.each
        return [fields.setdefault(field, len(fields)) for field in section.fields]

    @property
    def fields(self) -> Collection[bytes]:
        """What the store calls the States that are touched, in the order of their rows."""
        return self._each or (self.whole.fields if self.whole else ())

    @property
    def each(self) -> dict[bytes, int]:
        """Field → row. Of a block whose fields are all of them, which most cycles have, it is made for whoever looks one up."""
        if not self._each and self.whole is not None:
            self._each.update(zip(self.whole.fields, range(len(self.whole)), strict=True))
        return self._each

    def _rows(self, section: DecodedSection) -> list[int]:
        rows, tabs, fields = [], self.tabs, self.each
        for column in columns_of(section):
            if isinstance(column, Column):
                tab = column.tab
                own, field = (home_and_field if len(tab) <= MAX_CACHED_NAME else _find_home)(tab, column.client, self.buckets)
                if own == self.bucket:
                    tabs.setdefault(tab, len(tabs))
                    rows.append(fields.setdefault(field, len(fields)))
                    continue
            rows.append(-1)
        return rows

    def columns(self, index: int) -> Iterator[tuple[Column | BadColumn, int]]:
        """The columns of a batch, with their rows."""
        return chain.from_iterable(zip(columns_of(section), rows, strict=True) for section, rows in self.sections[index])

    @property
    def reads(self) -> list[Command]:
        """What `fold` needs the replies of."""
        commands: list[Command] = []
        if self.streams:
            commands.append((b"HMGET", keys.marks(self.bucket), *self.streams))
        if self.posted:
            commands.append((b"HMGET", keys.posted(self.bucket), *self.posted))
        if self.opens:
            commands.append((b"HLEN", keys.marks(self.bucket)))
        if self.tabs:
            commands.append((b"HMGET", keys.tabs(self.bucket), *[tab.encode() for tab in self.tabs]))
        if self.fields:
            commands.append((b"HMGET", keys.states(self.bucket), *self.fields))
        return commands


def bucket_of(tab: str, buckets: int) -> int:
    """names.bucket_of, remembered for names of ordinary length."""
    return homes[buckets][tab] if len(tab) <= MAX_CACHED_NAME else names.bucket_of(tab, buckets)


class _Homes(dict[int, Lately[str, int]]):
    """By how many buckets there are, which is always the same of a store, the bucket of each Tab; for names of ordinary length."""

    def __missing__(self, buckets: int) -> Lately[str, int]:
        if len(self) >= MAX_HOMES:
            self.clear()
        self[buckets] = found = Lately(partial(names.bucket_of, buckets=buckets), MAX_CACHED_NAMES // 2)
        return found


homes = _Homes()


def _find_home(tab: str, client: str, buckets: int) -> tuple[int, bytes]:
    """The bucket of a State, and its field there."""
    return bucket_of(tab, buckets), keys.state_field(tab, client)


home_and_field = lru_cache(MAX_CACHED_FIELDS)(_find_home)  # for names of ordinary length alone
