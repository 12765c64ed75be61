"""One curve for all that is asked about the past: rates, increases, charts, heat maps, over any grouping of Clients.

1. A *history* (see `taba.handlers.History`) has the slots of several States as columns, and their all-time figures. C(t), how much there
   was at or before t, is all-time less what lies after t: exact at the borders of slots, linear within one, never falling for counts.
2. Every rate and every increase is a difference on that curve. `now` never enters: ranges may end wherever they like.
3. Before `since` slots do not know everything: C stays level there, and whatever needs it is NaN.
4. `groups` says for each State which group (0 … total − 1) it belongs to; merging over Clients and grouping by labels are that.

Pure; knows no Type.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import pairwise
from math import floor, inf, isfinite
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints, estimates_of

MAX_POINTS = 11_000  # of one line, as Prometheus' own bound

SlotColumn: TypeAlias = NDArray[Any]


@attrs.frozen(eq=False)
class PastSteps:
    """What happened in the steps that end at `times`, one row a group, NaN where nothing is known.

    `low`, `high` and the heat map (`codes` and, for each step, how many values lay in each of their bins) are None for a Type without.
    """

    times: Floats
    count: Floats
    total: Floats
    low: Floats | None
    high: Floats | None
    codes: Ints | None
    heat: Floats | None  # (groups, steps, codes)


@attrs.frozen
class Slot:
    """One slot of a group at its own width; `bins` are (code, count)."""

    start: float
    end: float
    count: int
    total: float
    low: float | None
    high: float | None
    bins: list[tuple[int, int]] | None


@attrs.frozen
class Past:
    """What a group knows of the past: its slots by start, from `since` on; and the all-time figures, as one slot that never began."""

    since: float
    slots: list[Slot]
    ever: Slot


def number(keys: Iterable[Hashable]) -> tuple[Ints, list[Any]]:
    """(groups, names): the number of each key's group, and what the groups are called, in the order of their first."""
    numbers: dict[Any, int] = {}
    groups = [numbers.setdefault(key, len(numbers)) for key in keys]
    return np.array(groups, dtype=np.int64), list(numbers)


def points(start: float, end: float, step: float) -> list[float]:
    """The times start, start + step, … up to and including end. Raises ValueError for a step that goes nowhere, or too many points."""
    if not 0 < step < inf:
        raise ValueError(f"a step of {step} seconds: takes more than 0")
    if end < start:
        return []
    steps = (end - start) / step  # infinite for a step that is small enough
    if not isfinite(start) or not isfinite(end):
        raise ValueError(f"from {start} to {end}: takes two times")
    if not steps + 1e-9 < MAX_POINTS:
        raise ValueError(f"{steps + 1:.15g} points: takes at most {MAX_POINTS}")
    count = floor(steps + 1e-9) + 1
    if count > 1 and (start + step == start or end - step == end):
        raise ValueError(f"a step of {step} seconds: goes nowhere from {start} on")
    return [start + step * place for place in range(count)]


def curve(history: Any, groups: Ints, total: int, times: Sequence[float] | Floats) -> tuple[Floats, Floats]:
    """C at `times` (rising) of count and of total, (total, len(times)) each."""
    count, amount = curves(history, groups, total, times, [(history.count, history.ever.count), (history.total, history.ever.total)])
    return count, amount


def curves(history: Any, groups: Ints, total: int, times: Sequence[float] | Floats, amounts: Sequence[tuple[Any, Any]]) -> list[Floats]:
    """C at `times` (rising) of each of `amounts`, which are (column of the slots, column of the States' all-time figures)."""
    slots = groups[np.asarray(history.row, dtype=np.int64)]
    ever = [_grouped(groups, whole, total) for _, whole in amounts]
    return _cumulated(slots, total, history, [column for column, _ in amounts], ever, np.asarray(times, dtype=np.float64))


def increases(history: Any, groups: Ints, total: int, begins: Floats, ends: Floats) -> tuple[Floats, Floats]:
    """How much C of count and of total grew from each of `begins` to the one of `ends` beside it; NaN where it begins before `since`."""
    amounts = [(history.count, history.ever.count), (history.total, history.ever.total)]
    count, amount = grown(history, groups, total, begins, ends, amounts)
    return count, amount


def grown(history: Any, groups: Ints, total: int, begins: Floats, ends: Floats, amounts: Sequence[tuple[Any, Any]]) -> list[Floats]:
    """How much C of each of `amounts` (see `curves`) grew from each of `begins` to the one of `ends` beside it; NaN likewise."""
    times = np.union1d(begins, ends)
    since, until = np.searchsorted(times, begins), np.searchsorted(times, ends)
    unknown = np.asarray(begins) < history.since
    found = []
    for line in curves(history, groups, total, times, amounts):
        with np.errstate(invalid="ignore"):  # an infinite total has no increase
            found.append(np.where(unknown, np.nan, line[:, until] - line[:, since]))
    return found


def resample(history: Any, groups: Ints, total: int, times: Sequence[float] | Floats, step: float) -> PastSteps:
    """What happened in the `step` seconds up to and including each of `times` (rising)."""
    until = np.asarray(times, dtype=np.float64)
    since = until - step
    count, amount = increases(history, groups, total, since, until)
    unknown = since < history.since
    low = high = codes = heat = None
    if history.low is not None:
        low, high = (
            np.where(unknown, np.nan, _extremes(history, groups, total, since, until, join, column, empty))
            for join, column, empty in ((np.minimum, history.low, np.inf), (np.maximum, history.high, -np.inf))
        )
    if history.codes is not None:
        codes, heat = heat_map(history, groups, total, since, until)
    return PastSteps(until, count, amount, low, high, codes, heat)


def each_group(steps: PastSteps) -> Iterator[PastSteps]:
    """The PastSteps of each group by itself, each with one row."""
    for group in range(len(steps.count)):
        one = slice(group, group + 1)
        yield PastSteps(
            steps.times,
            steps.count[one],
            steps.total[one],
            None if steps.low is None else steps.low[one],
            None if steps.high is None else steps.high[one],
            steps.codes,
            None if steps.heat is None else steps.heat[one],
        )


def heat_map(history: Any, groups: Ints, total: int, begins: Floats, ends: Floats) -> tuple[Ints, Floats]:
    """(codes, heat): how many values lay in the bin of each code between each of `begins` and of `ends`; (total, intervals, codes)."""
    row, bins, codes, counts = (np.asarray(column, dtype=np.int64) for column in (history.row, history.bins, history.codes, history.counts))
    start, end = (np.asarray(column, dtype=np.float64) for column in (history.start, history.end))
    begins, ends = np.asarray(begins, dtype=np.float64), np.asarray(ends, dtype=np.float64)
    touched = (end >= begins.min(initial=np.inf)) & (start <= ends.max(initial=-np.inf))
    first = (bins.cumsum() - bins)[touched]
    of, start, end, bins = groups[row[touched]], start[touched], end[touched], bins[touched]
    # Clients' slots of one group and time count together, so that what is left to do grows with times, not with Clients
    order = np.lexsort((end, start, of))
    of, start, end, first, bins = of[order], start[order], end[order], first[order], bins[order]
    fresh = np.ones(len(of), dtype=np.bool_)
    fresh[1:] = (np.diff(of) > 0) | (np.diff(start) > 0) | (np.diff(end) > 0)
    unlike = fresh.cumsum() - 1
    picked = first.repeat(bins) + np.arange(bins.sum()) - (bins.cumsum() - bins).repeat(bins)
    found, which = _numbered(codes[picked])
    weights = counts[picked]
    heat = np.zeros((total, len(begins), len(found)))
    of_unlike, start, end = of[fresh], start[fresh], end[fresh]
    edges = np.searchsorted(of_unlike, np.arange(total + 1))
    slots, limits = unlike.repeat(bins), np.append(0, bins.cumsum())[np.searchsorted(of, np.arange(total + 1))]
    for group in np.unique(of_unlike).tolist():
        low, high = edges[group], edges[group + 1]
        mine = slice(limits[group], limits[group + 1])
        cells = (slots[mine] - low) * len(found) + which[mine]
        table = np.bincount(cells, weights=weights[mine], minlength=(high - low) * len(found)).reshape(high - low, len(found))
        here = start[low:high], end[low:high]
        heat[group] = (_share(*here, ends) - _share(*here, begins)) @ table
    return found, np.where((begins < history.since)[None, :, None], np.nan, heat)


def _numbered(codes: Ints) -> tuple[Ints, Ints]:
    """(the different codes, rising; for each of `codes` which of these it is)."""
    if not len(codes):
        return codes, codes
    offsets = codes - codes.min()
    found = np.bincount(offsets).nonzero()[0]
    places = np.zeros(int(found[-1]) + 1, dtype=np.int64)
    places[found] = np.arange(len(found))
    return found + codes.min(), places[offsets]


def _share(start: Floats, end: Floats, times: Floats) -> Floats:
    """How much of each slot was there at each of `times`: (times, slots), 0 … 1."""
    widths = end - start
    late = times[:, None] - start
    share = np.clip(late / np.where(widths == 0, 1.0, widths), 0.0, 1.0)
    share[:, widths == 0] = late[:, widths == 0] >= 0
    return share


def quantiles(codes: Ints, heat: Floats, ranks: Sequence[float]) -> Floats:
    """The values below which the shares `ranks` (0 … 1) of a heat map's values lie; (…, len(ranks)), NaN where there are none."""
    running = np.cumsum(heat, axis=-1)
    found = np.full((*heat.shape[:-1], len(ranks)), np.nan)
    if not len(codes):
        return found
    whole = running[..., -1]
    filled = whole > 0  # not so for NaN
    values = estimates_of(codes)
    for place, rank in enumerate(ranks):
        # the item at rank ⌊rank · (n − 1)⌋ of n sorted ones; slots that were shared out leave fractions of items
        wanted = np.minimum(np.floor(rank * np.maximum(whole - 1, 0) + 1e-9), whole * (1 - 1e-12))
        at = (running <= wanted[..., None]).sum(axis=-1)
        found[..., place] = np.where(filled, values[np.minimum(at, len(codes) - 1)], np.nan)
    return found


def joined(history: Any, groups: Ints, total: int) -> Iterator[list[Slot]]:
    """The slots of each group at their own widths, by start; those of one start and end are one."""
    row, start, end = (np.asarray(column) for column in (history.row, history.start, history.end))
    of = groups[row.astype(np.int64)]
    order = np.lexsort((end, start, of))
    edges = np.ones(len(order), dtype=np.bool_)
    for column in (of, start, end):
        ordered = column[order]
        edges[1:] &= ordered[1:] == ordered[:-1]
    edges[:1] = False
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.cumsum(~edges) - 1
    firsts = order[np.flatnonzero(~edges)]
    count, amount = _grouped(places, history.count, len(firsts)), _grouped(places, history.total, len(firsts))
    low = high = None
    if history.low is not None:
        low, high = np.full(len(firsts), np.inf), np.full(len(firsts), -np.inf)
        np.minimum.at(low, places, np.asarray(history.low, dtype=np.float64))
        np.maximum.at(high, places, np.asarray(history.high, dtype=np.float64))
    bins: list[dict[int, int]] | None = None
    if history.codes is not None:
        bins = [{} for _ in firsts]
        slots = places.repeat(np.asarray(history.bins, dtype=np.int64)).tolist()
        for slot, code, many in zip(slots, np.asarray(history.codes).tolist(), np.asarray(history.counts).tolist(), strict=True):
            bins[slot][code] = bins[slot].get(code, 0) + many
    found: list[list[Slot]] = [[] for _ in range(total)]
    for place, first in enumerate(firsts.tolist()):
        found[int(of[first])].append(
            Slot(
                float(start[first]),
                float(end[first]),
                int(count[place]),
                float(amount[place]),
                None if low is None else float(low[place]),
                None if high is None else float(high[place]),
                None if bins is None else sorted(bins[place].items()),
            )
        )
    return iter(found)


def pasts(history: Any, groups: Ints, total: int) -> list[Past]:
    """What each group knows of the past."""
    ever = history.ever
    whole = _Whole(np.arange(len(ever.count)), ever)
    return [
        Past(float(history.since), slots, of_all)
        for slots, [of_all] in zip(joined(history, groups, total), joined(whole, groups, total), strict=True)
    ]


@attrs.frozen(eq=False)
class _Ever:
    """The all-time figures of one State."""

    count: SlotColumn
    total: SlotColumn
    low: SlotColumn | None
    high: SlotColumn | None
    bins: SlotColumn | None
    codes: SlotColumn | None
    counts: SlotColumn | None


@attrs.frozen(eq=False)
class _Together(_Ever):
    """A history of one State."""

    since: float
    row: SlotColumn
    start: SlotColumn
    end: SlotColumn
    ever: _Ever


def together(histories: Sequence[Any]) -> Any:
    """Histories of one Type, one at least, as that of a single State: what all of them were, slots of the same time being one.

    So what is asked of States lot by lot is no larger than what one State knows.
    """
    start, end = (np.concatenate([np.asarray(getattr(one, name), dtype=np.float64) for one in histories]) for name in ("start", "end"))
    order = np.lexsort((end, start))
    start, end = start[order], end[order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (np.diff(start) != 0) | (np.diff(end) != 0)
    slots = np.empty(len(order), dtype=np.int64)
    slots[order] = np.cumsum(is_first) - 1  # of each slot, as it stood, which one it becomes
    evers = [one.ever for one in histories]
    ever = _summed(evers, np.zeros(sum(len(one.count) for one in evers), dtype=np.int64), 1)
    found = _summed(histories, slots, int(is_first.sum()))
    row = np.zeros(len(found["count"]), dtype=np.int64)
    since = max(float(one.since) for one in histories)
    return _Together(**found, since=since, row=row, start=start[is_first], end=end[is_first], ever=_Ever(**ever))


def _summed(several: Sequence[Any], of: Ints, total: int) -> dict[str, Any]:
    """The figures of several histories one after the other, added up: item by item `of` says into which of `total`."""
    found: dict[str, Any] = {}
    with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite, and shown as no value
        for name in ("count", "total"):
            column = np.concatenate([np.asarray(getattr(one, name), dtype=np.float64) for one in several])
            found[name] = np.bincount(of, weights=column, minlength=total).astype(np.float64)
    for name, join in (("low", np.fmin), ("high", np.fmax)):
        found[name] = None
        if all(getattr(one, name) is not None for one in several):
            found[name] = np.full(total, np.nan)
            join.at(found[name], of, np.concatenate([np.asarray(getattr(one, name), dtype=np.float64) for one in several]))
    found |= {"bins": None, "codes": None, "counts": None}
    if all(one.codes is not None for one in several):
        bins, codes, counts = (
            np.concatenate([np.asarray(getattr(one, name), dtype=np.int64) for one in several]) for name in ("bins", "codes", "counts")
        )
        used, places = np.unique(codes, return_inverse=True)
        cells = of.repeat(bins) * len(used) + places
        weights = np.bincount(cells, weights=counts, minlength=total * len(used)).reshape(total, len(used))
        filled = weights > 0
        found |= {"bins": filled.sum(axis=1), "codes": np.broadcast_to(used, weights.shape)[filled], "counts": weights[filled]}
    return found


class _Whole:
    """All-time figures as a history of one slot for each State."""

    def __init__(self, row: Ints, ever: Any):
        self.row, self.start, self.end = row, np.full(len(row), -np.inf), np.full(len(row), np.inf)
        self.count, self.total, self.low, self.high = ever.count, ever.total, ever.low, ever.high
        self.bins, self.codes, self.counts = ever.bins, ever.codes, ever.counts


def _grouped(groups: Ints, column: Any, total: int) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite, and shown as no value
        sums: Floats = np.bincount(groups, weights=np.asarray(column, dtype=np.float64), minlength=total).astype(np.float64)
    return sums


def _cumulated(
    of: Ints, total: int, history: Any, amounts: Sequence[Any], ever: Sequence[Floats], times: Floats, slots: Ints | None = None
) -> list[Floats]:
    """For each column of `amounts` the curves of `total` groups at `times`. `of`: the group of each item; `slots`: its slot."""
    curves = [np.repeat(whole[:, None], len(times), axis=1) for whole in ever]
    if not len(times):
        return curves
    start, end = (np.asarray(column, dtype=np.float64) for column in (history.start, history.end))
    late = end > times[0]  # what ended before is in the curve from the first of its points on
    if slots is None:
        slots = np.flatnonzero(late)
        of = of[slots]
        columns: list[SlotColumn] = [np.asarray(column, dtype=np.float64)[slots] for column in amounts]
    else:
        kept = late[slots]
        slots, of = slots[kept], of[kept]
        columns = [np.asarray(column, dtype=np.float64)[kept] for column in amounts]
    if not len(slots):
        return curves
    start, end = start[slots], end[slots]
    run, order = _runs(of, start, end)
    of, run, start, end = of[order], run[order], start[order], end[order]
    joins = np.zeros(len(order), dtype=np.bool_)  # of several Clients' slots of one time
    joins[1:] = (run[1:] == run[:-1]) & (start[1:] == start[:-1])
    firsts = np.flatnonzero(~joins)
    with np.errstate(over="ignore", invalid="ignore"):
        columns = [np.add.reduceat(column[order], firsts) for column in columns]
    of, run, start, end = of[firsts], run[firsts], start[firsts], end[firsts]
    begins = np.flatnonzero(np.diff(run, prepend=-1))
    bounds = np.append(begins, len(run))
    place = np.empty((len(begins), len(times)), dtype=np.int64)
    for number, (first, last) in enumerate(pairwise(bounds.tolist())):
        place[number] = start[first:last].searchsorted(times, "right")
    place += begins[:, None] - 1
    before = place < begins[:, None]
    place[before] = 0
    widths = end - start
    pointed = widths == 0
    share = np.minimum((times - start[place]) / np.where(pointed, 1.0, widths)[place], 1.0)
    if pointed.any():
        share[pointed[place]] = 1.0
    share[before] = 0.0
    groups = of[begins]
    heads = np.flatnonzero(np.diff(groups, prepend=-1))
    for line, column in zip(curves, columns, strict=True):
        sums = np.empty(len(column) + 1)
        with np.errstate(over="ignore", invalid="ignore"):
            wholes = np.empty(len(begins))
            for number, (first, last) in enumerate(pairwise(bounds.tolist())):  # each by itself: an infinite sum spoils no other
                sums[first] = 0.0
                np.cumsum(column[first : last - 1], out=sums[first + 1 : last])
                wholes[number] = sums[last - 1] + column[last - 1]
            reached = sums[place] + np.where(share > 0, column[place] * share, 0.0)
            # from all there is, what these slots have not reached yet: exact for counts, as they are whole at borders
            left = wholes[:, None] - np.where(before, 0.0, reached)
            line[groups[heads]] -= np.add.reduceat(left, heads, axis=0)
    return curves


def _runs(of: Ints, start: Floats, end: Floats) -> tuple[Ints, Ints]:
    """(run, order): the slots of one run are of one group and do not overlap, or are of one start and end; by run, then by start.

    The slots of a Type that has a few widths are a run for each; others are laid where they fit.
    """
    widths, lane = np.unique(end - start, return_inverse=True)
    run = of * len(widths) + lane
    order = _order(run, start)
    one, other = order[:-1], order[1:]
    overlap = (run[one] == run[other]) & (start[other] < end[one]) & ((start[one] != start[other]) | (end[one] != end[other]))
    if overlap.any():
        lane = np.zeros(len(of), dtype=np.int64)
        free: dict[int, list[tuple[float, float]]] = {}
        for place in np.lexsort((end, start, of)).tolist():
            last = free.setdefault(int(of[place]), [])
            span = (float(start[place]), float(end[place]))
            fits = next((at for at, kept in enumerate(last) if kept == span or (kept[1] <= span[0] and kept[0] < span[0])), len(last))
            last[fits : fits + 1] = [span]
            lane[place] = fits
        run = of * max(map(len, free.values())) + lane
        order = _order(run, start)
    return run, order


def _order(run: Ints, start: Floats) -> Ints:
    """The order by run, then by start: of whole numbers by one key, which is several times faster."""
    offsets = start - start.min()
    whole = offsets.astype(np.int64)
    if (whole == offsets).all() and whole.max() < 1 << 34 and run.max() < 1 << 28:
        return np.argsort((run << 34) + whole, kind="stable")
    return np.lexsort((start, run))


def _extremes(history: Any, groups: Ints, total: int, begins: Floats, ends: Floats, join: Any, column: Any, empty: float) -> Floats:
    """The least or greatest value (by `join`) of all slots that have a share in each interval; NaN where there is none."""
    found = np.full((total, len(begins)), empty)
    start, end = (np.asarray(column, dtype=np.float64) for column in (history.start, history.end))
    first = ends.searchsorted(start, "right")  # the first interval that ends after the slot's start
    last = np.maximum(begins.searchsorted(end, "left"), first)  # the first that begins at its end or later
    last = np.where(end == start, np.minimum(ends.searchsorted(start, "left") + 1, len(begins)), last)
    first = np.where(end == start, ends.searchsorted(start, "left"), first)
    spans = np.maximum(last - first, 0)
    slots = np.arange(len(start)).repeat(spans)
    at = np.arange(len(slots)) - (spans.cumsum() - spans).repeat(spans) + first[slots]
    of = groups[np.asarray(history.row, dtype=np.int64)[slots]]
    join.at(found, (of, at), np.asarray(column, dtype=np.float64)[slots])
    return np.where(np.isfinite(found), found, np.nan)
