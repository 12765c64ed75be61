"""PercentileGroup: percentiles over the last 1m, 10m, 1h and 1d, and of all values.

As in `taba.handlers.counter_group`, with a sketch in every slot, and so fewer and wider slots. A State's main part is its journal of
15-second slots, at most JOURNAL_SLOTS, with the all-time count and total; when there are more slots, those of more than a minute ago move
into the further parts: the archive, blocks of slots of 2 min, 10 min and 1 h; and one sketch of all that ever left the journal. So the
all-time sketch is that one and the journal's, and a fold that spills nothing does not touch it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from taba.bounds import KiB
from taba.codes import Floats, Ints, codes_of
from taba.handlers.base import EDGE_SECONDS, ArrayHandler, Ever, History, Projection, Sample
from taba.handlers.bins import is_dense
from taba.handlers.detail import WindowSlots, aggregate_slots
from taba.handlers.ever import dump_sketches, load_sketches
from taba.handlers.figures import amounts_of, finite_pairs, show_tallies, sum_tallies
from taba.handlers.folded import FoldedDumps, fold_binned
from taba.handlers.fresh import bins_of, counted, figures_of, slots_of, sums_of, unsound
from taba.handlers.percentiles import aggregate_percentiles, percentiles
from taba.handlers.ragged import (
    Buffer,
    MalformedRow,
    Shape,
    bounds_of,
    by_rows,
    count_rows,
    cut_rows,
    join_rows,
    refuse,
    run_lengths,
    run_starts,
    sum_rows,
)
from taba.handlers.samples import percentile_samples
from taba.handlers.sketch import MAX_BINS, bins_per_row, codes_in, gather_bins, keys_of, merge_bins, rows_of, tally
from taba.handlers.slots import rows_in, slot_keys, starts_in
from taba.handlers.spread import HEADER as BLOCK
from taba.handlers.spread import Slots, SpreadLayout, Spreads, Written, join_spreads, read_slots
from taba.handlers.windows import MAX_AHEAD_SECONDS, WINDOWS, Ladder
from taba.parts import find

LADDER = Ladder(15, 120, 600, 3600)
JOURNAL_SLOTS = 18  # after a spill at most 13 are left, so the next is over a minute away
MAX_TALLY = 2**32 - 1  # where the counts of refused, held and old events stop

_TALLIES = np.dtype(
    [("refused", "<u4"), ("held", "<u4"), ("old", "<u4"), ("mark", "<u4"), ("count", "<i8"), ("total", "<f8")]
)  # 32 bytes, before the block's header
_MARK = 0x4750_5351  # the same in every dump: other bytes are seldom taken for one
_HEAD = _TALLIES.itemsize + BLOCK.itemsize
_LEVELS = 3  # of the archive
_BLOCKS = _LEVELS * BLOCK.itemsize
_NO_ARCHIVE = bytes(_BLOCKS)
LOT_BYTES = 512 * KiB  # of archives that are looked through at a time: some 250,000 bins, whose columns a cache holds
_PLACES = len(WINDOWS) + 1  # the windows, and what none of them covers


def _empty() -> bytes:
    tallies = np.zeros(1, dtype=_TALLIES)
    tallies["mark"] = _MARK
    return tallies.tobytes() + bytes(BLOCK.itemsize)


_EMPTY = _empty()
_NONE = np.zeros(0, dtype=np.int64)

_spreads = find("taba.handlers._spreads")  # without it the arrays do it all


class PercentileStates:
    """Main parts as columns: tallies and the all-time count and total a row, and the journal's slots."""

    __slots__ = ("count", "journal", "now", "rows", "tallies", "total")

    def __init__(self, tallies: dict[str, Any], count: Ints, total: Floats, journal: Spreads):
        self.rows = len(count)
        self.tallies = tallies
        self.count = count
        self.total = total
        self.journal = journal
        self.now = np.inf  # of the last fold


class PercentileGroup(ArrayHandler):
    """Percentiles over the last 1m, 10m, 1h, 1d, and ever, within 1 %; count, total, least and greatest, exact to the slot."""

    type = "PercentileGroup"
    version = 2
    shown = ("distribution",)
    further_parts = 2
    pairs = "times"
    edge = 1

    def load_array(self, dumps: Sequence[bytes]) -> PercentileStates:
        buffer, starts, lengths = join_rows(dumps, _EMPTY, _HEAD)
        tallies = buffer.headers(_TALLIES, starts)
        refuse((tallies["mark"] != _MARK) | (tallies["count"] < 0), "no State of a PercentileGroup")
        header = buffer.headers(BLOCK, starts + _TALLIES.itemsize)
        layout = _layout(header, starts + _HEAD)
        refuse(layout.ends != starts + lengths, "a length that its header does not explain")
        rows = np.arange(len(starts))
        journal = read_slots(buffer, header, layout, np.full(len(starts), LADDER.widths[0]), rows).spreads()
        counted = {name: tallies[name].astype(np.int64) for name in ("refused", "held", "old")}
        return PercentileStates(counted, tallies["count"].astype(np.int64), tallies["total"].copy(), journal)

    def fold_array(self, states: PercentileStates, rows: Ints, times: Floats, values: Floats, now: float) -> PercentileStates:
        states.now = now
        rows, values, times, many = finite_pairs(states.tallies["refused"], rows, values, times)
        if not len(rows):
            return states
        if many is None:
            states.count += count_rows(rows, states.rows)
        else:
            np.add.at(states.count, rows, many)
        amounts = amounts_of(values, many)
        first = run_starts(rows)
        with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite, and shown as no value
            states.total[rows[first]] += np.add.reduceat(amounts, first)
        slots, ahead = LADDER.hold(times, now)
        if ahead.any():
            states.tallies["held"] += count_rows(rows[ahead], states.rows)
        oldest = LADDER.oldest(now)
        if slots.min() < oldest:
            states.tallies["old"] += count_rows(rows[slots < oldest], states.rows)
        if many is None:
            keys, values = by_rows(slot_keys(rows, slots), values)
            amounts = values
        else:
            keys, values, amounts, many = by_rows(slot_keys(rows, slots), values, amounts, many)
        starts = run_starts(keys)
        places = np.arange(len(starts)).repeat(run_lengths(starts, len(keys)))
        with np.errstate(over="ignore", invalid="ignore"):
            totals = np.add.reduceat(amounts, starts)
            new_bins = tally(places, codes_of(values), many)
            new = Spreads(keys[starts], totals, np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts), *new_bins)
            states.journal.add(new)
        self._hold(states, now)
        return states

    def fold_dumps(
        self, dumps: list[bytes], rows: Ints, times: Floats, values: Floats, now: float, version: int = 0, frame: bytes = b""
    ) -> FoldedDumps | None:
        """As CounterGroup's."""
        return fold_binned(None if _spreads is None else _spreads.fold, dumps, rows, times, values, now, version, frame)

    def edge_array(self, rows: Ints, times: Floats, values: Floats, total: int) -> list[bytes]:
        if times.max() - times.min() <= EDGE_SECONDS:  # as CounterGroup's
            folded = self.fold_dumps([b""] * total, rows, times, values, float(times.max()))
            return super().edge_array(rows, times, values, total) if folded is None else folded.dumps
        slots, of, starts = slots_of(rows, times, int(LADDER.widths[0]), total)
        figures = figures_of(slots, values, len(of))
        bins = bins_of(slots, values, len(of))
        journal = Spreads(slot_keys(of, starts), figures["total"], figures["low"], figures["high"], *bins)
        counted = {name: np.zeros(total, np.int64) for name in ("refused", "held", "old")}
        return self.dump_array(PercentileStates(counted, count_rows(rows, total), sums_of(of, figures["total"], total), journal))

    def edge_columns(self, starts: Ints, times: Floats, values: Floats) -> list[bytes]:
        dumps: list[bytes] | None = None if _spreads is None else _spreads.edge(starts, times, values)
        return super().edge_columns(starts, times, values) if dumps is None else dumps

    def count_array(self, dumps: Sequence[bytes]) -> Ints:
        counts = None if _spreads is None else _spreads.counted(list(dumps))
        return self._edge(dumps)[0].count if counts is None else np.frombuffer(counts, np.int64)

    def merge_dumps(self, dumps: list[bytes], edges: list[bytes], now: float, version: int = 0) -> FoldedDumps | None:
        """As CounterGroup's."""
        found = None if _spreads is None else _spreads.merge(dumps, edges, now, version, b"")
        return None if found is None else FoldedDumps(found[0], np.frombuffer(found[1], np.int32), now)

    def merge_array(self, states: PercentileStates, rows: Ints, dumps: Sequence[bytes], now: float) -> PercentileStates:
        edge, counts = self._edge(dumps)
        states.now = now
        np.add.at(states.count, rows, edge.count)
        with np.errstate(over="ignore", invalid="ignore"):
            np.add.at(states.total, rows, edge.total)
        journal = edge.journal
        starts, ahead = LADDER.hold_slots(starts_in(journal.keys), now)
        of = rows[rows_in(journal.keys)]
        old = starts < LADDER.oldest(now)
        np.add.at(states.tallies["held"], of[ahead], counts[ahead])
        np.add.at(states.tallies["old"], of[old], counts[old])
        with np.errstate(over="ignore", invalid="ignore"):
            states.journal.add(journal.renamed(slot_keys(of, starts)))
        self._hold(states, now)
        return states

    def _edge(self, dumps: Sequence[bytes]) -> tuple[PercentileStates, Ints]:
        """(States, how many Events each of their slots holds)."""
        edge = self.load_array(dumps)
        journal = edge.journal
        of_slots = counted(journal.bin_counts, bounds_of(bins_per_row(journal.bin_keys, len(journal.keys))))
        whole = np.zeros(edge.rows, dtype=np.int64)
        np.add.at(whole, rows_in(journal.keys), of_slots)
        odd = (whole == 0) | (whole != edge.count) | ~np.isfinite(edge.total)
        odd[rows_in(journal.keys[unsound(journal.lows, journal.highs, journal.totals)])] = True
        for column in edge.tallies.values():
            odd |= column > 0
        refuse(odd, "a State that no edge made")
        return edge, of_slots

    def _hold(self, states: PercentileStates, now: float) -> None:
        """Hold slots to now that a wrong clock put far ahead. What no window covers any more stays until it is spilled into the sketch."""
        journal = states.journal
        starts = starts_in(journal.keys)
        if starts.max() > now + MAX_AHEAD_SECONDS:
            [slot], _ = LADDER.hold(np.array([now]), now)
            held = np.where(starts > now + MAX_AHEAD_SECONDS, slot, starts)
            states.journal = journal.renamed(slot_keys(rows_in(journal.keys), held))

    def spilling(self, states: PercentileStates | FoldedDumps) -> Ints:
        if isinstance(states, FoldedDumps):
            return np.flatnonzero(states.slots > JOURNAL_SLOTS) if states.slots.max() > JOURNAL_SLOTS else _NONE
        return np.flatnonzero(count_rows(rows_in(states.journal.keys), states.rows) > JOURNAL_SLOTS)

    def spill(self, states: PercentileStates | FoldedDumps, rows: Ints, parts: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
        if isinstance(states, FoldedDumps):
            return self._spill_dumps(states, rows, parts)
        journal = states.journal
        starts, of = starts_in(journal.keys), rows_in(journal.keys)
        steady = LADDER.steady(of, starts, states.rows, states.now)
        chosen = np.zeros(states.rows, dtype=np.bool_)
        chosen[rows] = True
        places = np.zeros(states.rows, dtype=np.int64)
        places[rows] = np.arange(len(rows))
        leaving = chosen[of] & LADDER.leaves(starts, steady[of])
        moved = journal.picked(leaving)
        with MalformedRow.among(rows):
            archive_rows, archive_starts, archive_levels, archive = _load_archives([part[0] for part in parts])
        archives = _dump_archives(
            np.concatenate((archive_rows, places[of[leaving]])),
            np.concatenate((archive_starts, starts[leaving])),
            np.concatenate((archive_levels, np.ones(len(moved.keys), dtype=np.int64))),
            join_spreads(archive, moved),
            steady[rows],
            states.now,
        )
        states.journal = journal.picked(~leaving)
        with MalformedRow.among(rows):
            lows, highs, keys, counts = load_sketches([part[1] for part in parts])
        left = places[of[leaving]]
        np.minimum.at(lows, left, moved.lows)
        np.maximum.at(highs, left, moved.highs)
        new = gather_bins(left[rows_of(moved.bin_keys)], codes_in(moved.bin_keys), moved.bin_counts)
        sketches = dump_sketches(lows, highs, *merge_bins(keys, counts, *new))
        return [[archive, sketch] for archive, sketch in zip(archives, sketches, strict=True)]

    def _spill_dumps(self, states: FoldedDumps, rows: Ints, parts: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
        of = rows.tolist()
        dumps = [states.dumps[row] for row in of]
        found = _spreads.spill(dumps, [part[0] for part in parts], [part[1] for part in parts], states.now, states.framed)
        if found is None:  # what is out of the ordinary
            loaded = self.load_array(states.bare(of))
            loaded.now = states.now
            with MalformedRow.among(rows):
                further = self.spill(loaded, np.arange(len(of)), parts)
            states.replace(of, self.dump_array(loaded))
            return further
        dumps, *columns = found
        for row, dump in zip(of, dumps, strict=True):
            states.dumps[row] = dump
        return [list(both) for both in zip(*columns, strict=True)]

    def merge(self, states: Sequence[list[bytes]]) -> list[bytes]:
        """The States of several Clients as one."""
        loaded = self.load_array([state[0] for state in states])
        tallies = {name: np.array([column.sum()]) for name, column in loaded.tallies.items()}
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.array([loaded.total.sum()])
        journal = loaded.journal.renamed(starts_in(loaded.journal.keys))
        merged = PercentileStates(tallies, np.array([loaded.count.sum()]), total, journal)
        rows, starts, levels, archive = _load_archives([state[1] for state in states])
        newest = np.array([max(merged.journal.keys.max(initial=0), starts.max(initial=0))], dtype=np.float64)
        [archived] = _dump_archives(np.zeros_like(rows), starts, levels, archive, newest)
        lows, highs, keys, counts = load_sketches([state[2] for state in states])
        bins = gather_bins(np.zeros_like(keys), codes_in(keys), counts)
        further = [archived, *dump_sketches(lows.min(keepdims=True), highs.max(keepdims=True), *bins)]
        if len(self.spilling(merged)):
            [further] = self.spill(merged, np.array([0]), [further])
        return self.dump_array(merged) + further

    def dump_array(self, states: PercentileStates | FoldedDumps) -> list[bytes]:
        if isinstance(states, FoldedDumps):
            return states.dumps
        journal = states.journal
        written = Written(journal, rows_in(journal.keys), starts_in(journal.keys) // LADDER.widths[0], states.rows)
        edges = bounds_of(written.lengths + _HEAD)
        content = bytearray(int(edges[-1]))
        buffer = Buffer(content)
        tallies = np.zeros(states.rows, dtype=_TALLIES)
        tallies["mark"] = _MARK
        for name, column in states.tallies.items():
            tallies[name] = np.minimum(column, MAX_TALLY)
        tallies["count"], tallies["total"] = states.count, states.total
        buffer.put_headers(edges[:-1], tallies)
        buffer.put_headers(edges[:-1] + _TALLIES.itemsize, written.headers)
        written.write(buffer, edges[:-1] + _HEAD)
        return cut_rows(content, edges)

    def project_array(self, states: PercentileStates, parts: Sequence[Sequence[bytes]], now: float) -> list[Projection]:
        return self._project(states, parts, now, np.arange(states.rows), states.rows)

    def aggregate_array(
        self, states: PercentileStates, parts: Sequence[Sequence[bytes]], groups: Ints, total: int, now: float
    ) -> list[Projection]:
        return self._project(states, parts, now, groups, total)

    def aggregate_dumps(
        self, dumps: list[bytes], parts: Sequence[Sequence[bytes]], groups: Ints, total: int, now: float
    ) -> list[Projection] | None:
        """As CounterGroup's."""
        if _spreads is None:
            return None
        archives, sketches = ([part[place] if part else b"" for part in parts] for place in range(2))
        found = _spreads.windows(dumps, archives, sketches, groups, total, now, LOT_BYTES)
        if found is None:
            return None
        tallies, windows, ever = found
        columns = zip(("refused", "held", "old"), np.frombuffer(tallies, np.int64).reshape(-1, total), strict=True)
        return _projections(_shown(*windows), _shown(*ever), dict(columns))

    def _project(
        self, states: PercentileStates, parts: Sequence[Sequence[bytes]], now: float, groups: Ints, total: int
    ) -> list[Projection]:
        """The Projections of rows that are put together in `total` groups."""
        windows = _Windows(total, now)
        journal = states.journal
        windows.add(
            groups[rows_in(journal.keys)], starts_in(journal.keys), np.zeros(len(journal.keys), dtype=np.int64), journal, journal.counted
        )
        for begin, archives in _in_lots([part[0] if part else b"" for part in parts]):
            with MalformedRow.among(np.arange(begin, begin + len(archives))):
                rows, levels, slots = _read_archives(archives, np.float64)
            windows.add(groups[begin + rows], slots.starts, levels, slots, slots.chains.counted)
        ever = _Ever(states, [part[1] if part else b"" for part in parts], groups, total)
        tallies = {name: np.zeros(total, dtype=np.int64) for name in states.tallies}
        for name, column in states.tallies.items():
            np.add.at(tallies[name], groups, column)
        return _projections(windows.percentiles(), ever.percentiles(), tallies)

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        aggregate: Projection = {}
        for name in WINDOWS:
            windows = [projection[name] for projection in projections]
            aggregate[name] = {**aggregate_percentiles(windows), **aggregate_slots(windows, aggregate_percentiles)}
        aggregate["_ever"] = aggregate_percentiles([projection["_ever"] for projection in projections])
        return {**aggregate, **sum_tallies(projections)}

    def detail(self, state: list[bytes], now: float) -> Projection:
        """The Projection, each window with its slots, and how many Events were refused, held to now, and too old."""
        projection = show_tallies(self.project(state, now))
        starts, levels, spreads = self._all_slots(state)
        for level, name in enumerate(WINDOWS):
            slots = WindowSlots(LADDER, starts, levels, now, level)
            which = np.full(len(starts), -1)
            which[slots.covers] = slots.places
            projection[name].update(slots.shown(_grouped(spreads, which, len(slots.times))))
        return projection

    def samples(self, projection: Projection) -> list[Sample]:
        windows = [sample for name in WINDOWS for sample in percentile_samples(projection[name], "_window", {"window": name}, "gauge")]
        return percentile_samples(projection["_ever"]) + windows

    def history(self, states: Sequence[list[bytes]], now: float) -> History:
        loaded = self.load_array([state[0] for state in states])
        rows, starts, levels, archive = _load_archives([state[1] for state in states])
        journal = loaded.journal
        own = starts_in(journal.keys)
        rows, starts = np.concatenate((rows_in(journal.keys), rows)), np.concatenate((own, starts))
        levels, spreads = np.concatenate((np.zeros_like(own), levels)), join_spreads(journal, archive)
        since = LADDER.oldest(now)
        known = starts >= since
        if not known.all():
            rows, starts, levels, spreads = rows[known], starts[known], levels[known], spreads.picked(known)
        ever = _Ever(loaded, [state[2] for state in states], np.arange(loaded.rows), loaded.rows)
        bins = bins_per_row(spreads.bin_keys, len(starts))
        return History(
            since=since,
            row=rows,
            start=starts,
            end=LADDER.ends(starts, levels, now),
            count=sum_rows(spreads.bin_counts, bounds_of(bins)),
            total=spreads.totals,
            low=spreads.lows,
            high=spreads.highs,
            bins=bins,
            codes=codes_in(spreads.bin_keys),
            counts=spreads.bin_counts,
            ever=Ever(
                count=loaded.count,
                total=loaded.total,
                low=ever.lows,
                high=ever.highs,
                bins=bins_per_row(ever.keys, loaded.rows),
                codes=codes_in(ever.keys),
                counts=ever.counts,
            ),
        )

    def _all_slots(self, state: list[bytes]) -> tuple[Ints, Ints, Spreads]:
        """(starts, levels, spreads) of all slots of one State."""
        journal = self.load_array(state[:1]).journal
        _, starts, levels, archive = _load_archives(state[1:2])
        own = starts_in(journal.keys)
        return np.concatenate((own, starts)), np.concatenate((np.zeros_like(own), levels)), join_spreads(journal, archive)


def _shown(figures: bytes, bins: bytes, codes: bytes, weights: bytes) -> list[dict[str, Any]]:
    """P of each, of columns that were made in C."""
    columns = np.frombuffer(codes, np.int32).astype(np.int64), np.frombuffer(weights, np.int64), np.frombuffer(bins, np.int64)
    return percentiles(*columns, *np.frombuffer(figures).reshape(3, -1))


def _projections(windows: list[dict[str, Any]], ever: list[dict[str, Any]], tallies: dict[str, Ints]) -> list[Projection]:
    """`windows` of each, one after the other, and P of all of the time."""
    found = iter(windows)
    projections: list[Projection] = [{**{name: next(found) for name in WINDOWS}, "_ever": of_all} for of_all in ever]
    for name, column in tallies.items():
        for projection, count in zip(projections, column.tolist(), strict=True):
            projection["_" + name] = count
    return projections


class _Ever:
    """The all-time figures of rows that are put together in `total` groups: what left the journals, and the journals."""

    def __init__(self, states: PercentileStates, sketches: Sequence[bytes], groups: Ints, total: int):
        lows, highs, keys, counts = load_sketches(sketches)
        journal = states.journal
        rows = rows_in(journal.keys)
        self.lows, self.highs = np.full(total, np.inf), np.full(total, -np.inf)
        for of, low, high in ((groups, lows, highs), (groups[rows], journal.lows, journal.highs)):
            np.minimum.at(self.lows, of, low)
            np.maximum.at(self.highs, of, high)
        with np.errstate(over="ignore", invalid="ignore"):
            self.totals = np.bincount(groups, weights=states.total, minlength=total).astype(np.float64)
        of_bins = np.concatenate((groups[rows_of(keys)], groups[rows[rows_of(journal.bin_keys)]]))
        codes = np.concatenate((codes_in(keys), codes_in(journal.bin_keys)))
        self.keys, self.counts = gather_bins(of_bins, codes, np.concatenate((counts, journal.bin_counts)))

    def percentiles(self) -> list[dict[str, Any]]:
        """P of each group."""
        bins = bins_per_row(self.keys, len(self.totals))
        return percentiles(codes_in(self.keys), self.counts, bins, self.totals, self.lows, self.highs)


class _Windows:
    """The windows of many rows at `now`, from the slots that are added.

    Each window covers what the one before it covers: so a slot counts once, in the least window that covers it, and the others are
    sums over the windows.
    """

    def __init__(self, rows: int, now: float):
        self._rows, self._now = rows, now
        self._totals = np.zeros((rows, _PLACES))
        self._lows, self._highs = np.full(self._totals.shape, np.inf), np.full(self._totals.shape, -np.inf)
        self._bins: list[tuple[Ints, Ints]] = []

    def add(self, rows: Ints, starts: Ints, levels: Ints, slots: Spreads | Slots, counted: Callable[[Ints], tuple[Ints, Ints]]) -> None:
        """Slots of `rows`, which start at `starts`; `counted` gives their bins by the place of each."""
        if not len(rows):
            return
        least = len(WINDOWS) - sum(covers.astype(np.int64) for covers in LADDER.covered(starts, levels, self._now))
        places = rows * _PLACES + least
        with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite, and shown as no value
            self._totals += np.bincount(places, weights=slots.totals, minlength=self._totals.size).reshape(self._totals.shape)
            np.minimum.at(self._lows.reshape(-1), places, slots.lows)
            np.maximum.at(self._highs.reshape(-1), places, slots.highs)
        self._bins.append(counted(places))

    def percentiles(self) -> list[dict[str, Any]]:
        """P of each window of each row, in that order."""
        with np.errstate(over="ignore", invalid="ignore"):
            figures = [
                np.ascontiguousarray(join.accumulate(column[:, :-1], axis=1)).reshape(-1)
                for join, column in ((np.add, self._totals), (np.minimum, self._lows), (np.maximum, self._highs))
            ]
        keys, counts = self._of_windows()
        return percentiles(codes_in(keys), counts, bins_per_row(keys, len(figures[0])), *figures)

    def _of_windows(self) -> tuple[Ints, Ints]:
        """A table of all windows' bins; its rows are the windows."""
        if not any(len(keys) for keys, _ in self._bins):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        keys, counts = (np.concatenate(columns) for columns in zip(*self._bins, strict=True))
        places, codes = rows_of(keys), codes_in(keys)
        least = int(codes.min())
        span = int(codes.max()) - least + 1
        if span < MAX_BINS and is_dense(self._rows * _PLACES * span, counts):
            cells = np.bincount(places * span + (codes - least), weights=counts, minlength=self._rows * _PLACES * span)
            by_window = cells.reshape(self._rows, _PLACES, span)
            for window in range(1, len(WINDOWS)):
                by_window[:, window] += by_window[:, window - 1]
            table = by_window[:, :-1].reshape(-1)
            filled = table.nonzero()[0]
            return keys_of(filled // span, filled % span + least), table[filled].astype(np.int64)
        rows, windows = np.divmod(places, _PLACES)
        times = len(WINDOWS) - windows  # in how many windows each counts
        later = np.arange(times.sum()) - (times.cumsum() - times).repeat(times)
        return gather_bins((rows * len(WINDOWS) + windows).repeat(times) + later, codes.repeat(times), counts.repeat(times))


def _in_lots(archives: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
    """(place of the first, archives), LOT_BYTES at a time."""
    begin = size = 0
    for place, archive in enumerate(archives):
        size += len(archive)
        if size >= LOT_BYTES:
            yield begin, archives[begin : place + 1]
            begin, size = place + 1, 0
    if begin < len(archives):
        yield begin, archives[begin:]


def _grouped(spreads: Spreads, groups: Ints, total: int) -> list[dict[str, Any]]:
    """P of each of `total` groups of slots; `groups` says which is each slot's, and −1 that it is in none."""
    chosen = groups >= 0
    of = groups[chosen]
    lows, highs = np.full(total, np.inf), np.full(total, -np.inf)
    np.minimum.at(lows, of, spreads.lows[chosen])
    np.maximum.at(highs, of, spreads.highs[chosen])
    with np.errstate(over="ignore", invalid="ignore"):
        totals = np.bincount(of, weights=spreads.totals[chosen], minlength=total).astype(np.float64)
    slots = rows_of(spreads.bin_keys)
    bins = chosen[slots]
    keys, counts = gather_bins(groups[slots[bins]], codes_in(spreads.bin_keys[bins]), spreads.bin_counts[bins])
    return percentiles(codes_in(keys), counts, bins_per_row(keys, total), totals, lows, highs)


def _layout(header: Any, starts: Ints) -> SpreadLayout:
    slots, bins, codes = (header[name].astype(np.int64) for name in ("slots", "bins", "codes"))
    return SpreadLayout(Shape(slots), Shape(bins), codes, starts)


def _load_archives(archives: Sequence[bytes]) -> tuple[Ints, Ints, Ints, Spreads]:
    """(rows, starts, levels, spreads) of all slots in archives; b"" is an empty one."""
    rows, levels, slots = _read_archives(archives)
    return rows, slots.starts, levels, slots.spreads()


def _read_archives(archives: Sequence[bytes], weights: Any = np.int64) -> tuple[Ints, Ints, Slots]:
    """(rows, levels, slots) of all slots in archives, their bins' counts as `weights`; b"" is an empty one."""
    buffer, starts, lengths = join_rows(archives, _NO_ARCHIVE, _BLOCKS)
    header = buffer.headers(BLOCK, (starts[:, None] + np.arange(_LEVELS) * BLOCK.itemsize).reshape(-1))
    # the blocks of a row follow each other: as if each began at 0, then moved behind those before it
    layout = _layout(header, np.zeros(len(header), dtype=np.int64))
    sizes = layout.ends.reshape(-1, _LEVELS)
    ends = np.cumsum(sizes, axis=1) + _BLOCKS
    refuse(ends[:, -1] != lengths, "an archive of a length that its header does not explain")
    layout.move((starts[:, None] + ends - sizes).reshape(-1))
    levels = np.tile(np.arange(1, _LEVELS + 1), len(archives))
    dumps = np.repeat(np.arange(len(archives)), _LEVELS)
    slots = read_slots(buffer, header, layout, LADDER.widths[levels], dumps, weights)
    return dumps[slots.blocks], levels[slots.blocks], slots


def _dump_archives(rows: Ints, starts: Ints, levels: Ints, spreads: Spreads, steady: Floats, now: float = np.inf) -> list[bytes]:
    """Archives of all these slots (in any order), one for each of `steady`, the time as of which its slots widen.

    Slots that no window covers are left out; those far ahead of `now` are held to it.
    """
    archives = len(steady)
    starts = np.where(starts > now + MAX_AHEAD_SECONDS, steady[rows].astype(np.int64), starts)
    gone = LADDER.gone(starts, steady[rows])
    if gone.any():
        kept = ~gone
        spreads, rows, starts, levels = spreads.picked(kept), rows[kept], starts[kept], levels[kept]
    starts, levels = LADDER.widen(starts, levels, steady[rows])
    spreads = spreads.renamed(slot_keys(rows * _LEVELS + levels - 1, starts))
    blocks = rows_in(spreads.keys)
    written = Written(spreads, blocks, starts_in(spreads.keys) // LADDER.widths[blocks % _LEVELS + 1], archives * _LEVELS)
    sizes = written.lengths.reshape(-1, _LEVELS)
    edges = bounds_of(sizes.sum(axis=1) + _BLOCKS)
    at = edges[:-1, None]
    content = bytearray(int(edges[-1]))
    buffer = Buffer(content)
    buffer.put_headers((at + np.arange(_LEVELS) * BLOCK.itemsize).reshape(-1), written.headers)
    written.write(buffer, (at + _BLOCKS + np.cumsum(sizes, axis=1) - sizes).reshape(-1))
    return cut_rows(content, edges)
