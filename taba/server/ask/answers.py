"""What answers are made of: what is asked, which part of it is wanted, and what comes of it, or why nothing does. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from taba.history import PastSteps
from taba.server.ask.choosing import Chosen
from taba.server.ask.filters import Filter


class Unanswered(NamedTuple):
    """Stands where a Projection or Aggregate would: why there is none of what is there."""

    error: str


class Projected(NamedTuple):
    """The Projections of one Tab by Client, as its Handler made them, or Unanswered; of a Tab of many Clients, some of them."""

    tab: str
    type: str
    projections: Mapping[str, Any]


class Aggregated(NamedTuple):
    """The Aggregate of one name, and what is wrong with it: that some Clients are left out, or why there is none (then it is None)."""

    type: str
    aggregate: Any
    error: str | None = None


class Page(NamedTuple):
    """Which part of an answer is wanted: at most `limit` names, those after `cursor`."""

    limit: int | None = None
    cursor: str | None = None


WHOLE = Page()


class Paged(NamedTuple):
    """A part of the names: `tabs`, sorted; `next`: the cursor of the part after it, None where it is the last."""

    names: Sequence[str]
    next: str | None

    @classmethod
    def of(cls, names: Sequence[str], page: Page) -> Paged:
        """The part that `page` wants of sorted names."""
        if page.cursor is not None:
            names = [name for name in names if name > page.cursor]
        if page.limit is None or len(names) <= page.limit:
            return cls(names, None)
        names = names[: page.limit]
        return cls(names, names[-1])


class Asked(NamedTuple):
    """What a question is about, found before anything of it is read: what is made of it comes lot by lot."""

    chosen: Chosen
    wanted: Filter
    detail: bool
    groups: Mapping[str, Sequence[str]]  # by=: the name of a group → its Tabs; else each Tab alone
    next: str | None


class Summary(NamedTuple):
    """A Tab in one: its Aggregate, how many Clients, and what happened in steps of time (None for a Type that keeps no slots)."""

    tab: str
    type: str
    aggregated: Aggregated
    clients: int
    steps: PastSteps | None


class Total:
    """Projections and Aggregates that become one Aggregate, of how many Clients, and how many of them are left out, and why."""

    def __init__(self, type: str, pieces: list[Any] | None = None, clients: int = 0, left_out: int = 0, error: str | None = None):
        self.type, self.clients, self.left_out, self.error = type, clients, left_out, error
        self.pieces: list[Any] = [] if pieces is None else pieces
        self.made = 0  # of the pieces, those that are Aggregates
        self.differs: set[str] = set()  # the Types, where there are several

    @classmethod
    def of(cls, type: str, projections: Sequence[Any]) -> Total:
        """What Projections, and Unanswered ones, come to."""
        total = cls(type)
        for projection in projections:
            total.add(projection)
        return total

    @property
    def is_empty(self) -> bool:
        return not self.clients

    @property
    def is_made(self) -> bool:
        """Whether it is one Aggregate already, which nothing is to be added to."""
        return len(self.pieces) == 1 == self.made

    def add(self, projection: Any, clients: int = 1, is_made: bool = False) -> None:
        """One more Client's, or, if it `is_made`, the Aggregate of several."""
        self.clients += clients
        if isinstance(projection, Unanswered):
            self.left_out += 1
            self.error = self.error or projection.error
        else:
            self.pieces.append(projection)
            self.made += is_made

    def fail(self, error: str) -> None:
        """There is none, and why."""
        self.pieces, self.made, self.left_out, self.error = [], 0, self.clients, error

    def with_other(self, other: Total) -> Total:
        """Both together."""
        types = {total.type for total in (self, other) if total.type and not total.is_empty}
        self.differs |= other.differs | (types if len(types) > 1 else set())
        self.type = self.type if self.type and not self.is_empty else other.type
        self.clients += other.clients
        self.left_out += other.left_out
        self.error = self.error or other.error
        self.pieces, self.made = ([], 0) if self.differs else (self.pieces + other.pieces, self.made + other.made)
        return self
