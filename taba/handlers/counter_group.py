"""CounterGroup: count, total and average over the last 1m, 10m, 1h and 1d, and percentiles of all values.

A State's main part is a header with the all-time figures, the bins of the sketch, and a *journal*: the slots of 5 s that were
written lately, sparse, at most JOURNAL_SLOTS. When there are more, those of more than a minute ago move into the further part, the
*archive*: blocks of slots of 30 s, 150 s and 15 min. So a cycle reads and writes some 400 bytes a State, and an archive once in a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from taba.codes import Floats, Ints, codes_of
from taba.handlers.base import EDGE_SECONDS, ArrayHandler, Ever, History, Projection, Sample
from taba.handlers.bins import BinLayout, bin_codes, bins_from, deltas_of
from taba.handlers.detail import WindowSlots, aggregate_slots
from taba.handlers.figures import add_figures, add_heads, amounts_of, empty_dump, finite_pairs, show_tallies, sum_tallies
from taba.handlers.folded import FoldedDumps, fold_binned
from taba.handlers.fresh import MAX_COUNT, bins_of, counted, figures_of, slots_of, sums_of, unsound
from taba.handlers.percentiles import aggregate_percentiles, percentiles
from taba.handlers.ragged import (
    Buffer,
    MalformedRow,
    Shape,
    aligned,
    bounds_of,
    count_rows,
    cut_rows,
    join_rows,
    merge_tables,
    reduce_table,
    refuse,
    run_lengths,
    run_starts,
    sum_rows,
)
from taba.handlers.samples import count_and_sum, percentile_samples
from taba.handlers.sketch import bins_per_row, codes_in, gather_bins, merge_bins, rows_of, tally
from taba.handlers.slots import HEADER as BLOCK
from taba.handlers.slots import (
    HEADER_FIELDS,
    MAX_SLOTS,
    Layout,
    block_codes,
    check_slots,
    grouped_sums,
    rows_in,
    slot_keys,
    starts_in,
)
from taba.handlers.windows import MAX_AHEAD_SECONDS, WINDOWS, Ladder
from taba.parts import find

LADDER = Ladder(5, 30, 150, 900)
JOURNAL_SLOTS = 32  # with 20 bins, a main part of some 450 bytes; after a spill at most 19 are left, so the next is 13 slots away
SPILL_SLOTS = 26  # a journal of more spills with another one of its cycle; half-way, so that a State spills at most twice as often
MAX_TALLY = 2**32 - 1  # where the counts of refused and held events stop

_HEADER = np.dtype(
    [
        ("total", "<f8"),
        ("low", "<f8"),
        ("high", "<f8"),
        ("refused", "<u4"),
        ("held", "<u4"),
        ("bins", "<u2"),
        ("first", "<i2"),
        ("bin_codes", "<u1"),
        ("mark", "<u1"),
        ("spare", "<u2"),
        *HEADER_FIELDS,
    ]
)  # 48 bytes
_MARK = 0x43  # the same in every dump: other bytes are seldom taken for one
_LEVELS = 3  # of the archive
_BLOCKS = _LEVELS * BLOCK.itemsize
_NO_ARCHIVE = bytes(_BLOCKS)
_EMPTY = empty_dump(_HEADER, mark=_MARK)
_NONE = np.zeros(0, dtype=np.int64)


_rows = find("taba.handlers._rows")  # without it the arrays do it all


class CounterStates:
    """Main parts as columns: all-time figures a row, a table of bins, a table of journal slots."""

    __slots__ = ("bin_counts", "bin_keys", "head", "now", "rows", "slot_counts", "slot_keys", "slot_totals")

    def __init__(self, head: dict[str, Any], bin_keys: Ints, bin_counts: Ints, keys: Ints, counts: Ints, totals: Floats):
        self.rows = len(head["total"])
        self.head = head
        self.bin_keys = bin_keys
        self.bin_counts = bin_counts
        self.slot_keys = keys
        self.slot_counts = counts
        self.slot_totals = totals
        self.now = np.inf  # of the last fold


class CounterGroup(ArrayHandler):
    """Count, total and average over the last 1m, 10m, 1h, 1d, exact to the slot; percentiles of all values."""

    type = "CounterGroup"
    version = 1
    shown: tuple[str, ...] = ("total", "events")
    further_parts = 1
    pairs: str | None = "times"
    edge: int | None = 1

    def load_array(self, dumps: Sequence[bytes]) -> CounterStates:
        buffer, starts, lengths = join_rows(dumps, _EMPTY, _HEADER.itemsize)
        header = buffer.headers(_HEADER, starts)
        bins = Shape(header["bins"].astype(np.int64))
        refuse((header["mark"] != _MARK) | ((bins.counts > 0) & ~(header["low"] <= header["high"])), "no State of a CounterGroup")
        bin_layout = BinLayout(bins, header["bin_codes"].astype(np.int64), starts + _HEADER.itemsize)
        layout = Layout(Shape(header["slots"].astype(np.int64)), header["codes"].astype(np.int64), aligned(bin_layout.ends, 3))
        refuse(layout.ends != starts + lengths, "a length that its header does not explain")
        rows = np.arange(len(starts))
        weights, deltas = bin_layout.read(buffer)
        bin_keys = bins_from(rows, header["first"].astype(np.int64), deltas, weights, bins, rows)
        slot_starts, counts, totals = layout.read(buffer, header["base"].astype(np.int64), int(LADDER.widths[0]))
        slot_rows = rows.repeat(layout.shape.counts)
        keys = slot_keys(slot_rows, slot_starts)
        check_slots(keys, slot_starts, counts, slot_rows)
        head: dict[str, Any] = {name: header[name].copy() for name in ("total", "low", "high")}
        head["refused"] = header["refused"].astype(np.int64)
        head["held"] = header["held"].astype(np.int64)
        return CounterStates(head, bin_keys, weights, keys, counts, totals)

    def fold_array(self, states: CounterStates, rows: Ints, times: Floats, values: Floats, now: float) -> CounterStates:
        states.now = now
        head = states.head
        rows, values, times, many = finite_pairs(head["refused"], rows, values, times)
        if len(rows):
            add_figures(head, rows, values, many)
            states.bin_keys, states.bin_counts = merge_bins(states.bin_keys, states.bin_counts, *tally(rows, codes_of(values), many))
            self.add_slots(states, rows, times, amounts_of(values, many), many, now)
        return states

    def add_slots(self, states: CounterStates, rows: Ints, times: Floats, amounts: Floats, many: Ints | None, now: float) -> None:
        """Add sorted `rows`' `amounts`, one or more, to the journals' slots."""
        states.now = now
        slots, ahead = LADDER.hold(times, now)
        if ahead.any():
            states.head["held"] += count_rows(rows[ahead], states.rows)
        keys = slot_keys(rows, slots)
        runs = run_starts(keys)  # a row's events come nearly in order, so most of one slot stand together
        counts = run_lengths(runs, len(keys)) if many is None else np.add.reduceat(many, runs)
        with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond all floats is infinite, and shown as no value
            new_keys, new_columns = reduce_table(keys[runs], [counts, np.add.reduceat(amounts, runs)])
            states.slot_keys, [states.slot_counts, states.slot_totals] = merge_tables(
                states.slot_keys, [states.slot_counts, states.slot_totals], new_keys, new_columns
            )
        self._forget(states, now)

    def fold_dumps(
        self, dumps: list[bytes], rows: Ints, times: Floats, values: Floats, now: float, version: int = 0, frame: bytes = b""
    ) -> FoldedDumps | None:
        """What `load_array` and `fold_array` would make, in one pass over the bytes; None where that is not to be had.

        Each row must have Events. With a `version` each dump stands behind a frame, as the store keeps it, which has to say that one.
        Before each new one stands `frame`.
        """
        return fold_binned(None if _rows is None else _rows.fold, dumps, rows, times, values, now, version, frame)

    def edge_array(self, rows: Ints, times: Floats, values: Floats, total: int) -> list[bytes]:
        if times.max() - times.min() <= EDGE_SECONDS:  # nearly always: then nothing is held or forgotten by a fold either
            folded = self.fold_dumps([b""] * total, rows, times, values, float(times.max()))
            return super().edge_array(rows, times, values, total) if folded is None else folded.dumps
        head = {**figures_of(rows, values, total), "refused": np.zeros(total, np.int64), "held": np.zeros(total, np.int64)}
        bins = bins_of(rows, values, total)
        slots, of, starts = slots_of(rows, times, int(LADDER.widths[0]), total)
        totals = head["total"] if slots is rows else sums_of(slots, values, len(of))
        return self.dump_array(CounterStates(head, *bins, slot_keys(of, starts), count_rows(slots, len(of)), totals))

    def edge_columns(self, starts: Ints, times: Floats, values: Floats) -> list[bytes]:
        dumps: list[bytes] | None = None if _rows is None else _rows.edge(starts, times, values)
        return super().edge_columns(starts, times, values) if dumps is None else dumps

    def count_array(self, dumps: Sequence[bytes]) -> Ints:
        counts = None if _rows is None else _rows.counted(list(dumps))
        return self._edge(dumps)[1] if counts is None else np.frombuffer(counts, np.int64)

    def merge_dumps(self, dumps: list[bytes], edges: list[bytes], now: float, version: int = 0) -> FoldedDumps | None:
        """What `load_array` and `merge_array` would make, to each of `dumps` one of `edges` added; else as `fold_dumps`."""
        found = None if _rows is None else _rows.merge(dumps, edges, now, version, b"")
        return None if found is None else FoldedDumps(found[0], np.frombuffer(found[1], np.int32), now)

    def merge_array(self, states: CounterStates, rows: Ints, dumps: Sequence[bytes], now: float) -> CounterStates:
        edge, _ = self._edge(dumps)
        add_heads(states.head, rows, edge.head)
        new = gather_bins(rows[rows_of(edge.bin_keys)], codes_in(edge.bin_keys), edge.bin_counts)
        states.bin_keys, states.bin_counts = merge_bins(states.bin_keys, states.bin_counts, *new)
        states.now = now
        starts, ahead = LADDER.hold_slots(starts_in(edge.slot_keys), now)
        of = rows[rows_in(edge.slot_keys)]
        np.add.at(states.head["held"], of[ahead], edge.slot_counts[ahead])
        with np.errstate(over="ignore", invalid="ignore"):
            keys, columns = reduce_table(slot_keys(of, starts), [edge.slot_counts, edge.slot_totals])
            states.slot_keys, [states.slot_counts, states.slot_totals] = merge_tables(
                states.slot_keys, [states.slot_counts, states.slot_totals], keys, columns
            )
        self._forget(states, now)
        return states

    def _edge(self, dumps: Sequence[bytes]) -> tuple[CounterStates, Ints]:
        """(States, how many Events each holds)."""
        edge = self.load_array(dumps)
        counts = counted(edge.bin_counts, bounds_of(bins_per_row(edge.bin_keys, edge.rows)))
        slots = np.zeros(edge.rows, dtype=np.int64)
        np.add.at(slots, rows_in(edge.slot_keys), np.minimum(edge.slot_counts, MAX_COUNT + 1))
        odd = (edge.head["refused"] > 0) | (edge.head["held"] > 0) | (counts == 0) | (slots != counts)
        odd |= unsound(edge.head["low"], edge.head["high"], edge.head["total"])
        odd[rows_in(edge.slot_keys[~np.isfinite(edge.slot_totals)])] = True
        refuse(odd, "a State that no edge made")
        return edge, counts

    def _forget(self, states: CounterStates, now: float) -> None:
        """Hold journal slots to now that a wrong clock put far ahead; leave out those that no window covers any more."""
        starts = starts_in(states.slot_keys)
        if starts.max() > now + MAX_AHEAD_SECONDS:
            [slot], _ = LADDER.hold(np.array([now]), now)
            held = np.where(starts > now + MAX_AHEAD_SECONDS, slot, starts)
            states.slot_keys, [states.slot_counts, states.slot_totals] = reduce_table(
                slot_keys(rows_in(states.slot_keys), held), [states.slot_counts, states.slot_totals]
            )
            starts = starts_in(states.slot_keys)
        if starts.min() < LADDER.oldest(now):
            rows = rows_in(states.slot_keys)
            kept = ~LADDER.gone(starts, LADDER.steady(rows, starts, states.rows, now)[rows])
            states.slot_keys = states.slot_keys[kept]
            states.slot_counts, states.slot_totals = states.slot_counts[kept], states.slot_totals[kept]

    def spilling(self, states: CounterStates | FoldedDumps) -> Ints:
        if isinstance(states, FoldedDumps):
            slots = states.slots
            if slots.max() <= JOURNAL_SLOTS:
                return _NONE
        else:
            slots = count_rows(rows_in(states.slot_keys), states.rows)
        # most of a spill's cost is its first row: those that soon would go with it, and from then on together
        return np.flatnonzero(slots > (SPILL_SLOTS if slots.max(initial=0) > JOURNAL_SLOTS else JOURNAL_SLOTS))

    def spill(self, states: CounterStates | FoldedDumps, rows: Ints, parts: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
        if isinstance(states, FoldedDumps):
            return self._spill_dumps(states, rows.tolist(), parts)
        starts, of = starts_in(states.slot_keys), rows_in(states.slot_keys)
        steady = LADDER.steady(of, starts, states.rows, states.now)
        chosen = np.zeros(states.rows, dtype=np.bool_)
        chosen[rows] = True
        leaving = chosen[of] & LADDER.leaves(starts, steady[of])
        places = np.zeros(states.rows, dtype=np.int64)
        places[rows] = np.arange(len(rows))
        with MalformedRow.among(rows):
            old_rows, old_starts, old_levels, old_counts, old_totals = _load_archives([part[0] for part in parts])
        moved = int(leaving.sum())
        merged = _dump_archives(
            np.concatenate((old_rows, places[of[leaving]])),
            np.concatenate((old_starts, starts[leaving])),
            np.concatenate((old_levels, np.ones(moved, dtype=np.int64))),
            np.concatenate((old_counts, states.slot_counts[leaving])),
            np.concatenate((old_totals, states.slot_totals[leaving])),
            steady[rows],
            states.now,
        )
        kept = ~leaving
        states.slot_keys = states.slot_keys[kept]
        states.slot_counts, states.slot_totals = states.slot_counts[kept], states.slot_totals[kept]
        return [[archive] for archive in merged]

    def _spill_dumps(self, states: FoldedDumps, rows: list[int], parts: Sequence[Sequence[bytes]]) -> list[list[bytes]]:
        dumps = states.dumps
        found = _rows.spill([dumps[row] for row in rows], [part[0] for part in parts], states.now, states.framed)
        if found is None:  # what is out of the ordinary
            loaded = self.load_array(states.bare(rows))
            loaded.now = states.now
            archives = self.spill(loaded, np.arange(len(rows)), parts)
            states.replace(rows, self.dump_array(loaded))
            return archives
        for row, dump in zip(rows, found[0], strict=True):
            dumps[row] = dump
        return [[archive] for archive in found[1]]

    def merge(self, states: Sequence[list[bytes]]) -> list[bytes]:
        """The States of several Clients as one."""
        loaded = self.load_array([state[0] for state in states])
        head = {
            "total": np.array([loaded.head["total"].sum()]),
            "low": np.array([loaded.head["low"].min()]),
            "high": np.array([loaded.head["high"].max()]),
            "refused": np.array([loaded.head["refused"].sum()]),
            "held": np.array([loaded.head["held"].sum()]),
        }
        bins = gather_bins(np.zeros(len(loaded.bin_keys), dtype=np.int64), codes_in(loaded.bin_keys), loaded.bin_counts)
        slots, [counts, totals] = reduce_table(starts_in(loaded.slot_keys), [loaded.slot_counts, loaded.slot_totals])
        merged = CounterStates(head, *bins, slots, counts, totals)
        rows, starts, levels, old_counts, old_totals = _load_archives([state[1] for state in states])
        newest = np.array([max(slots.max(initial=0), starts.max(initial=0))], dtype=np.float64)
        further = _dump_archives(np.zeros_like(rows), starts, levels, old_counts, old_totals, newest)
        if len(self.spilling(merged)):
            [further] = self.spill(merged, np.array([0]), [further])
        return self.dump_array(merged) + further

    def dump_array(self, states: CounterStates | FoldedDumps) -> list[bytes]:
        if isinstance(states, FoldedDumps):
            return states.dumps
        bins = Shape(bins_per_row(states.bin_keys, states.rows))
        firsts, deltas = deltas_of(codes_in(states.bin_keys), bins)
        widths = bin_codes(states.bin_counts, deltas, bins)
        slot_rows = rows_in(states.slot_keys)
        slots = Shape(count_rows(slot_rows, states.rows))
        refuse(slots.counts > MAX_SLOTS, "more journal slots than a dump takes; it had to spill")
        numbers = starts_in(states.slot_keys) // LADDER.widths[0]
        bases, codes, offsets = block_codes(numbers, slots, states.slot_counts, states.slot_totals)
        # every row as if it began at 0; then one after the other
        bin_layout = BinLayout(bins, widths, np.full(states.rows, _HEADER.itemsize))
        layout = Layout(slots, codes, aligned(bin_layout.ends, 3))
        edges = bounds_of(layout.ends)
        at = edges[:-1]
        bin_layout.move(at)
        layout.move(at)
        content = bytearray(int(edges[-1]))
        buffer = Buffer(content)
        header = np.zeros(states.rows, dtype=_HEADER)
        for name in ("total", "low", "high"):
            header[name] = states.head[name]
        header["refused"] = np.minimum(states.head["refused"], MAX_TALLY)
        header["held"] = np.minimum(states.head["held"], MAX_TALLY)
        header["bins"], header["first"] = bins.counts, firsts
        header["bin_codes"], header["mark"] = widths, _MARK
        header["base"], header["slots"], header["codes"] = bases, slots.counts, codes
        buffer.put_headers(at, header)
        bin_layout.write(buffer, states.bin_counts, deltas)
        layout.write(buffer, offsets, states.slot_counts, states.slot_totals)
        return cut_rows(content, edges)

    def project_array(self, states: CounterStates, parts: Sequence[Sequence[bytes]], now: float) -> list[Projection]:
        return self._project(states, parts, now, np.arange(states.rows), states.rows)

    def aggregate_array(
        self, states: CounterStates, parts: Sequence[Sequence[bytes]], groups: Ints, total: int, now: float
    ) -> list[Projection]:
        head = states.head
        lows, highs = np.full(total, np.inf), np.full(total, -np.inf)
        np.minimum.at(lows, groups, head["low"])
        np.maximum.at(highs, groups, head["high"])
        with np.errstate(over="ignore", invalid="ignore"):
            joined = {"total": np.bincount(groups, weights=head["total"], minlength=total), "low": lows, "high": highs}
        for name in ("refused", "held"):
            joined[name] = np.zeros(total, dtype=np.int64)
            np.add.at(joined[name], groups, head[name])
        bins = gather_bins(groups[rows_of(states.bin_keys)], codes_in(states.bin_keys), states.bin_counts)
        together = CounterStates(joined, *bins, states.slot_keys, states.slot_counts, states.slot_totals)
        return self._project(together, parts, now, groups, total)

    def aggregate_dumps(
        self, dumps: list[bytes], parts: Sequence[Sequence[bytes]], groups: Ints, total: int, now: float
    ) -> list[Projection] | None:
        """What `load_array` and `aggregate_array` would make, from the bytes; None where that is not to be had."""
        if _rows is None:
            return None
        found = _rows.windows(dumps, [part[0] if part else b"" for part in parts], groups, total, now)
        if found is None:
            return None
        low, high, *sums = np.frombuffer(found[0]).reshape(-1, total)[1:]
        refused, held = np.frombuffer(found[1], np.int64).reshape(-1, total)
        bins, codes, weights = np.frombuffer(found[2], np.int64), np.frombuffer(found[3], np.int32), np.frombuffer(found[4], np.int64)
        pct = percentiles(codes.astype(np.int64), weights, bins, np.frombuffer(found[0], count=total), low, high)
        windows = [_windows(*columns) for columns in zip(sums[: len(WINDOWS)], sums[len(WINDOWS) :], strict=True)]
        return _projections(windows, pct, refused, held)

    def _project(self, states: CounterStates, parts: Sequence[Sequence[bytes]], now: float, groups: Ints, total: int) -> list[Projection]:
        """The Projections of `total` groups of slots' rows, whose all-time figures are put together already."""
        rows, starts, levels, counts, totals = _all_slots(states, parts)
        rows = groups[rows]
        windows = []
        for covers in LADDER.covered(starts, levels, now):
            with np.errstate(over="ignore", invalid="ignore"):
                windows.append(_windows(*grouped_sums(rows, total, covers, counts, totals)))
        bins = bins_per_row(states.bin_keys, total)
        head = states.head
        pct = percentiles(codes_in(states.bin_keys), states.bin_counts, bins, head["total"], head["low"], head["high"])
        return _projections(windows, pct, head["refused"], head["held"])

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        aggregate = self.aggregate_windows(projections)
        aggregate["pct"] = aggregate_percentiles([projection["pct"] for projection in projections])
        return {**aggregate, **sum_tallies(projections)}

    def aggregate_windows(self, projections: Sequence[Projection]) -> Projection:
        """The Aggregate of the windows alone."""
        aggregate: Projection = {}
        for name in WINDOWS:
            windows = [projection[name] for projection in projections]
            aggregate[name] = {**_aggregate_windows(windows), **aggregate_slots(windows, _aggregate_windows)}
        return aggregate

    def detail(self, state: list[bytes], now: float) -> Projection:
        """The Projection, each window with its slots, and how many Events were refused, and held to now."""
        projection = show_tallies(self.project(state, now))
        _, starts, levels, counts, totals = _all_slots(self.slots_of(state), [state[1:]])
        for level, name in enumerate(WINDOWS):
            slots = WindowSlots(LADDER, starts, levels, now, level)
            columns = zip(slots.sums(counts).astype(np.int64).tolist(), slots.sums(totals).tolist(), strict=True)
            projection[name].update(slots.shown([_window(*column) for column in columns]))
        return projection

    def samples(self, projection: Projection) -> list[Sample]:
        found = percentile_samples(projection["pct"])
        for name in WINDOWS:
            found += count_and_sum(projection[name], "_window", {"window": name}, "gauge")
        return found

    def history(self, states: Sequence[list[bytes]], now: float) -> History:
        loaded = self.load_array([state[0] for state in states])
        head, bins = loaded.head, bins_per_row(loaded.bin_keys, loaded.rows)
        ever = Ever(
            count=sum_rows(loaded.bin_counts, bounds_of(bins)),
            total=head["total"],
            low=head["low"],
            high=head["high"],
            bins=bins,
            codes=codes_in(loaded.bin_keys),
            counts=loaded.bin_counts,
        )
        return self.slot_history(loaded, [state[1:] for state in states], ever, now)

    def slot_history(self, states: CounterStates, parts: Sequence[Sequence[bytes]], ever: Ever, now: float) -> History:
        """The History of journals and archives."""
        rows, starts, levels, counts, totals = _all_slots(states, parts)
        since = LADDER.oldest(now)
        known = starts >= since
        ends = LADDER.ends(starts, levels, now)
        return History(
            since=since, row=rows[known], start=starts[known], end=ends[known], count=counts[known], total=totals[known], ever=ever
        )

    def slots_of(self, state: list[bytes]) -> CounterStates:
        """The main part of one State, with its journal."""
        return self.load_array(state[:1])


def _window(count: int, total: float) -> dict[str, Any]:
    return {"count": count, "total": total, "average": total / count if count else None}


def _windows(counts: Floats, totals: Floats) -> list[dict[str, Any]]:
    """As `_window`, of which a thousand Aggregates have four thousand."""
    columns = zip(counts.astype(np.int64).tolist(), totals.tolist(), strict=True)
    return [{"count": many, "total": amount, "average": amount / many if many else None} for many, amount in columns]


def _projections(windows: list[list[dict[str, Any]]], pct: list[dict[str, Any]], refused: Ints, held: Ints) -> list[Projection]:
    names = (*WINDOWS, "pct", "_refused", "_held")
    return [dict(zip(names, row, strict=True)) for row in zip(*windows, pct, refused.tolist(), held.tolist(), strict=True)]


def _aggregate_windows(windows: Sequence[Any]) -> dict[str, Any]:
    return _window(sum(window["count"] for window in windows), sum(window["total"] for window in windows))


def _all_slots(states: CounterStates, parts: Sequence[Sequence[bytes]]) -> tuple[Ints, Ints, Ints, Ints, Floats]:
    """(rows, starts, levels, counts, totals) of all slots in journals and archives."""
    rows, starts, levels, counts, totals = _load_archives([part[0] if part else b"" for part in parts])
    keys = states.slot_keys
    return (
        np.concatenate((rows_in(keys), rows)),
        np.concatenate((starts_in(keys), starts)),
        np.concatenate((np.zeros(len(keys), dtype=np.int64), levels)),
        np.concatenate((states.slot_counts, counts)),
        np.concatenate((states.slot_totals, totals)),
    )


def _load_archives(archives: Sequence[bytes]) -> tuple[Ints, Ints, Ints, Ints, Floats]:
    """(rows, starts, levels, counts, totals) of all slots in archives; b"" is an empty one."""
    buffer, starts, lengths = join_rows(archives, _NO_ARCHIVE, _BLOCKS)
    header = buffer.headers(BLOCK, (starts[:, None] + np.arange(_LEVELS) * BLOCK.itemsize).reshape(-1))
    slots = header["slots"].astype(np.int64)
    # the blocks of a row follow each other: as if each began at 0, then moved behind those before it
    layout = Layout(Shape(slots), header["codes"].astype(np.int64), np.zeros(len(slots), dtype=np.int64))
    sizes = layout.ends.reshape(-1, _LEVELS)
    ends = np.cumsum(sizes, axis=1) + _BLOCKS
    refuse(ends[:, -1] != lengths, "an archive of a length that its header does not explain")
    layout.move((starts[:, None] + ends - sizes).reshape(-1))
    rows = np.repeat(np.arange(len(archives)), _LEVELS)
    levels = np.tile(np.arange(1, _LEVELS + 1), len(archives))
    slot_starts, counts, totals = layout.read(buffer, header["base"].astype(np.int64), LADDER.widths[levels])
    slot_rows = np.repeat(rows, slots)
    check_slots(slot_keys(np.repeat(np.arange(len(slots)), slots), slot_starts), slot_starts, counts, slot_rows)
    return slot_rows, slot_starts, np.repeat(levels, slots), counts, totals


def _dump_archives(
    rows: Ints, starts: Ints, levels: Ints, counts: Ints, totals: Floats, steady: Floats, now: float = np.inf
) -> list[bytes]:
    """Archives of all these slots (in any order), one for each of `steady`, the time as of which its slots widen.

    Slots that no window covers are left out; those far ahead of `now` are held to it.
    """
    archives = len(steady)
    starts = np.where(starts > now + MAX_AHEAD_SECONDS, steady[rows].astype(np.int64), starts)
    kept = ~LADDER.gone(starts, steady[rows])
    rows, counts, totals = rows[kept], counts[kept], totals[kept]
    starts, levels = LADDER.widen(starts[kept], levels[kept], steady[rows])
    keys, [counts, totals] = reduce_table(slot_keys(rows * _LEVELS + levels - 1, starts), [counts, totals])
    blocks = rows_in(keys)
    slots = Shape(count_rows(blocks, archives * _LEVELS))
    numbers = starts_in(keys) // LADDER.widths[blocks % _LEVELS + 1]
    bases, codes, offsets = block_codes(numbers, slots, counts, totals)
    layout = Layout(slots, codes, np.zeros(archives * _LEVELS, dtype=np.int64))
    sizes = layout.ends.reshape(-1, _LEVELS)
    edges = bounds_of(sizes.sum(axis=1) + _BLOCKS)
    at = edges[:-1, None]
    content = bytearray(int(edges[-1]))
    buffer = Buffer(content)
    header = np.zeros(archives * _LEVELS, dtype=BLOCK)
    header["base"], header["slots"], header["codes"] = bases, slots.counts, codes
    buffer.put_headers((at + np.arange(_LEVELS) * BLOCK.itemsize).reshape(-1), header)
    layout.move((at + _BLOCKS + np.cumsum(sizes, axis=1) - sizes).reshape(-1))
    layout.write(buffer, offsets, counts, totals)
    return cut_rows(content, edges)
