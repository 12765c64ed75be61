"""Which series there are: made of the names of Tabs, their Types and units, bucket by bucket, and kept while a bucket's Tabs are the same.

1. A look at all buckets comes before each answer (`taba.server.ask.index`), so that a Tab that has come is there.
2. Units are read with a bucket's Tabs, and again after MEANING_SECONDS: a unit that is told later renames series, in so much time.
3. Of two Tabs with one series the first in canonical order stays; the other is a problem. So is one with a name of Taba's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import merge
from typing import Any, NamedTuple

from taba.exposition import is_tabas
from taba.names import OWN_TABS
from taba.plural import many
from taba.series import BUCKET, COUNT, FIGURES, HISTOGRAM, NET, OTHERWISE, SUM, TEXT, family_of, labels_shown, plain
from taba.server.ask.choosing import QueryRefused
from taba.server.ask.filters import labels_of
from taba.server.ask.index import Index, Known
from taba.server.ask.meanings import meanings_of
from taba.server.router import IsReader
from taba.turns import SharedLook, Turns, in_order

MEANING_SECONDS = 10.0
SLICE_TABS = 50  # whose series are named between two looks at the time, some milliseconds
MAX_TABS = 200_000  # whose series are kept, some 300 MB; as many as names are
LOT_TABS = 1000  # whose meanings are read at a time, some 5 ms
MAX_PROBLEMS = 5  # Tabs that are named in the sentence
TABA = "Taba itself"


class Series(NamedTuple):
    """One figure of a Tab: one series over all Clients, or one for each. `name` is its name as it is, `labels` are the Tab's.

    `part`: BUCKET, COUNT or SUM of a distribution, "" for the distribution itself and for all else.
    """

    name: str
    tab: str
    type: str
    figure: str
    labels: Mapping[str, str]
    part: str = ""


class Family(NamedTuple):
    """What is said of a name: kind, help, and the word of the unit."""

    name: str
    kind: str
    help: str
    unit: str


class Catalogue(NamedTuple):
    """`by_name`: the series of each name, which is as it is or plain; `own`: the Tabs (with their labels) of Types that show `samples`.
    `names`: those of `by_name`, sorted once for all that ask.

    `families`: of each plain name of a family what is said of it; `others`: of those of which only States tell whether they are there.
    `problems`: sentences.
    """

    by_name: Mapping[str, Sequence[Series]]
    own: Sequence[Series]
    families: Mapping[str, Family]
    others: Mapping[str, Family]
    problems: Sequence[str]
    names: Sequence[str] = ()


class _Bucket(NamedTuple):
    types: Mapping[str, str]
    meanings: Mapping[str, Mapping[str, str | None]]
    made: float
    series: Sequence[tuple[Series, Family]]  # by Tab


class Catalogues:
    """Makes catalogues. `shown`: the figures of a Type (None: its samples), or ("",) where it has no Handler."""

    def __init__(
        self,
        router: IsReader,
        index: Index,
        turns: Turns,
        shown: Callable[[str], tuple[str, ...] | None],
        seconds: Callable[[], float],
    ):
        self._router, self._index, self._turns, self._shown, self._seconds = router, index, turns, shown, seconds
        self._buckets: dict[int, _Bucket] = {}
        self._last: tuple[dict[int, _Bucket], Catalogue] | None = None
        self._too_many: str | None = None
        self._looks: SharedLook[Catalogue] = SharedLook(self._look)

    @property
    def problems(self) -> Sequence[str]:
        """Of the last catalogue; that there is none where Tabs are too many for one."""
        if self._too_many is not None:
            return (self._too_many,)
        return () if self._last is None else self._last[1].problems

    async def look(self) -> Catalogue:
        """The series that there are now: made once for all that ask at the same time. Raises StoreUnavailable and QueryRefused."""
        return await self._looks.done()

    async def _look(self) -> Catalogue:
        looked = await self._index.look()
        now = self._seconds()
        tabs = sum(len(known.types) for known in looked.values())
        self._too_many = None
        if tabs > MAX_TABS:
            self._too_many = f"Prometheus' names are kept of at most {MAX_TABS} Tabs, and there are {tabs}: taba delete or taba prune some"
            raise QueryRefused(self._too_many)
        stale = {
            bucket: known
            for bucket, known in looked.items()
            if (kept := self._buckets.get(bucket)) is None or kept.types is not known.types or now - kept.made >= MEANING_SECONDS
        }
        if stale:
            await self._read(stale, now)
        current = {bucket: self._buckets[bucket] for bucket in looked if bucket in self._buckets}
        if self._last is not None and _are_same(self._last[0], current):
            return self._last[1]
        catalogue = await self._joined(current)
        self._last = current, catalogue
        return catalogue

    async def _read(self, stale: Mapping[int, Known], now: float) -> None:
        lot: dict[int, Known] = {}
        size = 0
        for number, (bucket, known) in enumerate(stale.items(), 1):
            lot[bucket] = known
            size += len(known.types)
            if size >= LOT_TABS or number == len(stale):
                await self._read_lot(lot, now)
                lot, size = {}, 0

    async def _read_lot(self, lot: Mapping[int, Known], now: float) -> None:
        meanings = await meanings_of(self._router, {tab: type for known in lot.values() for tab, type in known.types.items()})
        for bucket, known in lot.items():
            said = {tab: meanings[tab] for tab in known.types}
            kept = self._buckets.get(bucket)
            if kept is not None and kept.types is known.types and kept.meanings == said:
                self._buckets[bucket] = kept._replace(made=now)  # what is as it was stays the same, and nothing is made anew of it
                continue
            found: list[tuple[Series, Family]] = []
            for place, (tab, type) in enumerate(sorted(known.types.items()), 1):
                found += _series_of(tab, type, self._shown(type), said[tab])
                if place % SLICE_TABS == 0:
                    await self._turns.breathe()
            self._buckets[bucket] = _Bucket(known.types, said, now, found)
            await self._turns.breathe()

    async def _joined(self, buckets: Mapping[int, _Bucket]) -> Catalogue:
        every = merge(*(kept.series for kept in buckets.values()), key=lambda item: item[0].tab)
        by_name: dict[str, list[Series]] = {}
        own: list[Series] = []
        families: dict[str, Family] = {}
        others: dict[str, Family] = {}
        owners: dict[str, str] = {}
        taken: dict[Any, str] = {}
        doubles: list[tuple[str, str, str]] = []
        for place, (series, family) in enumerate(every):
            if place % (5 * SLICE_TABS) == 0:
                await self._turns.breathe()
            name = plain(family.name)
            is_other = series.figure in (NET, TEXT)  # of those only States tell whether they are there
            if is_tabas(name) and series.tab not in OWN_TABS:
                if not is_other:
                    doubles.append((series.tab, name, TABA))
                continue
            if not series.figure:
                own.append(series)
                continue
            known = (others if is_other else families).setdefault(name, family)
            owner = owners.setdefault(name, series.tab)
            parts = ("", BUCKET, COUNT, SUM) if family.kind == HISTOGRAM else ("",)
            if not is_other:
                labels = tuple(sorted(series.labels.items()))
                firsts = [taken.setdefault((plain(series.name + part), labels), series.tab) for part in parts]
                first = next((first for first in firsts if first != series.tab), series.tab if known.kind == family.kind else owner)
                if first != series.tab:
                    doubles.append((series.tab, name, first))
                    continue
            for part in parts:
                for called in dict.fromkeys((series.name + part, plain(series.name + part))):
                    by_name.setdefault(called, []).append(series._replace(name=series.name + part, part=part))
        return Catalogue(by_name, own, families, others, _sentences(doubles), await in_order(by_name, self._turns.breathe))


def _series_of(tab: str, type: str, shown: tuple[str, ...] | None, meaning: Mapping[str, str | None]) -> Iterable[tuple[Series, Family]]:
    base, labels = labels_of(tab)
    if shown is None:
        return [(Series(base, tab, type, "", labels_shown(labels)), Family(base, "", "", ""))]
    found = []
    for figure in shown:
        for called in (figure, *OTHERWISE.get(figure, ())):
            about = FIGURES[called]
            name = family_of(base, meaning["unit"], called)
            family = Family(name, about.kind, meaning["description"] or about.help, (meaning["unit"] or "") if about.has_unit else "")
            found.append((Series(name, tab, type, called, labels_shown(labels, about.labels)), family))
    return found


def _sentences(doubles: Sequence[tuple[str, str, str]]) -> list[str]:
    if not doubles:
        return []
    shown = "; ".join(f"{tab[:100]} as {name[:100]}, which {first[:100]} has" for tab, name, first in doubles[:MAX_PROBLEMS])
    more = f" and {len(doubles) - MAX_PROBLEMS} more" if len(doubles) > MAX_PROBLEMS else ""
    return [
        f"{many(len(doubles), 'series is', 'series are')} not shown to Prometheus, for want of a name of its own: {shown}{more}; "
        "rename one of each two"
    ]


def _are_same(one: Mapping[int, _Bucket], other: Mapping[int, _Bucket]) -> bool:
    return one.keys() == other.keys() and all(kept.series is other[bucket].series for bucket, kept in one.items())
