"""The two base classes from which a Handler is made.

`Handler`: a `type` and four methods (`new_state`, `fold`, `project`, `aggregate`) make a working one.
`ArrayHandler`: folds all States of its Type in one call; its plain methods are its array methods on one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import attrs
import msgpack
from twisted.plugin import IPlugin
from zope.interface import implementer

from taba.handlers.interface import IArrayHandler, IHandler
from taba.handlers.numbers import column_of
from taba.handlers.render import render_text

MAX_EDGE_TIME = 2.0**33 - 1  # of an event that is folded at the edge: slots reach so far; what is later, a Server holds to its own time
EDGE_SECONDS = 60.0  # that the times of a column span which is folded at the edge: a fresh State then has few slots, and spills none

Projection = dict[str, Any]
Numbers = Any  # a sequence of numbers: a list, or a numpy array


class Events(NamedTuple):
    """Events of one (Client, Tab), in ring order: `times` (Unix seconds, float) and `values`, equally many.

    Lists of plain Python values, whose numbers are floats; for Taba's own Handlers, where all values are floats, float64 numpy arrays.
    Never changed by a fold.
    """

    times: Sequence[float]
    values: Sequence[Any]


class Sample(NamedTuple):
    """One figure as exporters show it: the Tab's name with `suffix`, and `labels` besides the Tab's own.

    `kind` is "counter" (only grows), "gauge" (may fall), or "summary" (a figure of a Prometheus summary: suffix "_count" or "_sum", or none
    and a label `quantile`).
    """

    suffix: str
    labels: Mapping[str, str]
    value: float
    kind: str


@attrs.frozen(eq=False, kw_only=True)
class Figures:
    """Columns of one length: `count` and `total`; where the Type has them `low` and `high`, and the bins: `bins`, how many each item
    has, and as flat columns `codes` (see `taba.codes`) and `counts`."""

    count: Numbers
    total: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    bins: Numbers | None = None
    codes: Numbers | None = None
    counts: Numbers | None = None


@attrs.frozen(eq=False, kw_only=True)
class Ever(Figures):
    """The all-time figures of several States: an item for each, in their order."""


@attrs.frozen(eq=False, kw_only=True)
class History(Figures):
    """What several States know of the past: slots as columns (lists or numpy arrays, equally long, in any order).

    `row` says whose slot it is (0 for the first State); what happened in it lies in `start` ≤ time < `end` (Unix seconds; at `now` for
    one that is not over). What happened before `since` is in the all-time figures alone, which are `ever`.
    """

    since: float
    row: Numbers
    start: Numbers
    end: Numbers
    ever: Ever


@implementer(IHandler, IPlugin)
class Handler:
    """The base of Handlers: set `type`, write `new_state`, `fold`, `project` and `aggregate`.

    States that msgpack can carry need no more (tuples come back as lists). Everything else has a default.
    """

    type: str = ""
    version: int = 1
    absolute: bool = False  # see IHandler
    shown: tuple[str, ...] | None = None  # see IHandler

    # Optional methods (see IOptional); None says that a Handler does not have them.
    # merge(states) -> State: the States of vanished Clients as one, so that totals never fall
    merge: ClassVar[Callable[..., Any] | None] = None
    # samples(projection) -> [Sample, …]: what exporters show
    samples: ClassVar[Callable[..., Any] | None] = None
    # history(states, now) -> History: their slots and all-time figures, from which rates and charts are made
    history: ClassVar[Callable[..., Any] | None] = None
    # detail(state, now) -> Projection: with the slots from which its figures are made, for ?detail=1
    detail: ClassVar[Callable[..., Any] | None] = None

    def new_state(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.new_state")

    def fold(self, state: Any, events: Events, now: float) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.fold")

    def project(self, state: Any, now: float) -> Projection:
        raise NotImplementedError(f"{type(self).__name__}.project")

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        raise NotImplementedError(f"{type(self).__name__}.aggregate")

    def render(self, projection: Projection) -> str:
        return render_text(projection)

    def dump(self, state: Any) -> bytes:
        packed: bytes = msgpack.packb(state)
        return packed

    def load(self, content: bytes) -> Any:
        size = len(content)  # no item can be longer than the whole, so msgpack's own limits never matter
        return msgpack.unpackb(content, strict_map_key=False, max_bin_len=size, max_str_len=size, max_array_len=size, max_map_len=size)

    def upgrade(self, content: bytes, version: int) -> Any:
        raise ValueError(f"{self.type} version {self.version} cannot read version {version}")

    def prunable(self, state: Any, now: float) -> bool:
        return False


@implementer(IArrayHandler)
class ArrayHandler(Handler):
    """The base of array Handlers: the plain methods are the array methods on one row, so there is one path to be right.

    A plain State is a list: the main part and the further parts, as bytes. `dump` and `load` carry the whole State, and `merge`,
    `history` and `detail` take it; what the Server keeps part by part goes through `load_array`, `dump_array` and `spill`.
    `upgrade_parts` is its `upgrade`.
    """

    further_parts: int = 0
    pairs: str | None = None

    # the version of what `edge_array` gives and `merge_array` takes; None for a Type that is folded by Servers alone
    edge: int | None = None
    # merge_array(states, rows, dumps, now) -> states, and count_array(dumps) -> Ints: see IOptional
    merge_array: ClassVar[Callable[..., Any] | None] = None
    count_array: ClassVar[Callable[..., Any] | None] = None

    # aggregate_array(states, parts, groups, total, now) -> [Aggregate, …]: see IOptional
    aggregate_array: ClassVar[Callable[..., Any] | None] = None

    def load_array(self, dumps: Sequence[bytes]) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.load_array")

    def fold_array(self, states: Any, rows: Any, times: Any, values: Any, now: float) -> Any:
        raise NotImplementedError(f"{type(self).__name__}.fold_array")

    def spilling(self, states: Any) -> Any:
        return ()

    def spill(self, states: Any, rows: Any, parts: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
        raise NotImplementedError(f"{type(self).__name__}.spill")

    def dump_array(self, states: Any) -> list[bytes]:
        raise NotImplementedError(f"{type(self).__name__}.dump_array")

    def project_array(self, states: Any, parts: Sequence[Sequence[bytes]], now: float) -> list[Projection]:
        raise NotImplementedError(f"{type(self).__name__}.project_array")

    def edge_array(self, rows: Any, times: Any, values: Any, total: int) -> list[bytes]:
        """Fresh States of `total` columns as `merge_array` takes them; only for a Type that has an `edge`. `rows` in any order.

        Of each column the times span at most EDGE_SECONDS. Nothing is held and nothing forgotten here: only a Server knows what time it is.
        """
        states = self.fold_array(self.load_array([b""] * total), rows, times, values, float(times.max(initial=0.0)))
        return self.dump_array(states)

    def edge_columns(self, starts: Any, times: Any, values: Any) -> list[bytes]:
        """The same of columns that stand one after the other: each from its one of `starts` (int64) to the next, of which the last is the
        end. None of them is empty."""
        import numpy

        total = len(starts) - 1
        return self.edge_array(numpy.repeat(numpy.arange(total), numpy.diff(starts)), times, values, total)

    def upgrade_parts(self, parts: Sequence[bytes], version: int) -> list[bytes]:
        """The parts of one State (the main part first), as this version dumps them, from those of an older `version`."""
        raise ValueError(f"{self.type} version {self.version} cannot read version {version}")

    def new_state(self) -> list[bytes]:
        return [b""] * (1 + self.further_parts)

    def fold(self, state: list[bytes], events: Events, now: float) -> list[bytes]:
        import numpy  # authors of plain Handlers do without it

        times = numpy.array(events.times, dtype=numpy.float64)
        values = column_of(events.values, self.pairs)
        states = self.fold_array(self.load_array(state[:1]), numpy.zeros(len(times), dtype=numpy.int64), times, values, now)
        further = list(state[1:])
        rows = self.spilling(states)
        if len(rows):
            [further] = self.spill(states, rows, [further])
        return self.dump_array(states) + further

    def project(self, state: list[bytes], now: float) -> Projection:
        [projection] = self.project_array(self.load_array(state[:1]), [state[1:]], now)
        return projection

    def dump(self, state: list[bytes]) -> bytes:
        return state[0] if len(state) == 1 else super().dump(state)

    def load(self, content: bytes) -> list[bytes]:
        if not self.further_parts:
            self.load_array([content])
            return [content]
        state = super().load(content)
        if not isinstance(state, list) or len(state) != 1 + self.further_parts or not all(isinstance(part, bytes) for part in state):
            raise ValueError(f"{self.type}: a State takes {1 + self.further_parts} parts of bytes")
        self.load_array(state[:1])
        return state
