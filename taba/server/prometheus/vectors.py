"""Vectors over the steps of a question, and what PromQL does with them, in numpy. Pure.

1. A vector has a row a series and a column a step; `there` says where there is a sample, for NaN is a value, too.
2. A row may be a distribution instead of a number: then `spread` has its bins, and `values` count nothing.
3. What takes long is a generator that yields between pieces, so that others have their turn; whoever calls it goes through it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import attrs
import numpy as np
from numpy.typing import NDArray

from taba.codes import Floats, Ints, estimates_of, uppers_of
from taba.server.prometheus.syntax import Aggregation, Binary

Bools: TypeAlias = NDArray[np.bool_]
Labels: TypeAlias = dict[str, str]
Piecewise: TypeAlias = Generator[None, None, "Vector"]

NAME = "__name__"
PIECE_ROWS = 2000  # whose labels are looked at between two yields, some milliseconds
PIECE_VALUES = 200_000  # worked on between two yields, some milliseconds

COMPARISONS = {
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
}
ARITHMETIC = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "%": np.fmod, "^": np.power}
SETS = ("and", "or", "unless")


class Refused(ValueError):
    """The question is one that cannot be answered; says why."""


@attrs.frozen(eq=False)
class Spread:
    """Distributions: how many values lie in the bin of each of `codes` (series, steps, codes), how many there are, and their sum."""

    codes: Ints
    heat: Floats
    count: Floats
    total: Floats


@attrs.frozen(eq=False)
class Vector:
    """Series: their labels (NAME among them), and values and whether there is one (series, steps)."""

    labels: Sequence[Labels]
    values: Floats
    there: Bools
    spread: Spread | None = None

    @classmethod
    def empty(cls, steps: int) -> Vector:
        return cls([], np.zeros((0, steps)), np.zeros((0, steps), dtype=np.bool_))

    def numbers(self, what: str) -> Vector:
        """This, if its rows are numbers. Raises Refused."""
        if self.spread is not None:
            raise Refused(
                f"{what} takes numbers, not distributions: use histogram_quantile, histogram_count, histogram_sum or histogram_avg"
            )
        return self

    def distributions(self, what: str) -> Spread:
        """Its distributions; none where there are no series, which are of no kind. Raises Refused."""
        if self.spread is None:
            if not self.labels:
                return Spread(np.zeros(0, dtype=np.int64), np.zeros((*self.values.shape, 0)), self.values, self.values)
            raise Refused(f"{what} takes a distribution")
        return self.spread


def without(labels: Labels, names: Iterable[str]) -> Labels:
    """`labels` but for those."""
    return {name: value for name, value in labels.items() if name not in names}


def _nameless(series: Sequence[Labels]) -> Generator[None, None, list[Labels]]:
    """The labels of `series` but for their names."""
    found: list[Labels] = []
    for start in range(0, len(series), PIECE_ROWS):
        found += [without(labels, (NAME,)) for labels in series[start : start + PIECE_ROWS]]
        yield
    return found


def with_values(vector: Vector, values: Floats) -> Piecewise:
    """The same series, without their name, with other values."""
    labels = yield from _nameless(vector.labels)
    return Vector(labels, values, vector.there)


def key_of(labels: Labels) -> tuple[tuple[str, str], ...]:
    """What tells series apart; a label without value is none."""
    if "" in labels.values():
        labels = {name: value for name, value in labels.items() if value}
    return tuple(sorted(labels.items()))


def grouped(labels: Labels, by: tuple[str, ...] | None, left_out: tuple[str, ...]) -> Labels:
    """The labels of the group to which a series belongs."""
    if by is not None:
        return {name: labels[name] for name in by if labels.get(name)}
    return without(labels, (NAME, *left_out))


def uniquely(vector: Vector) -> Piecewise:
    """`vector`, if no two of its series have the same labels at one step. Raises Refused."""
    seen: dict[Any, Bools] = {}
    for place, (labels, there) in enumerate(zip(vector.labels, vector.there, strict=True)):
        key = key_of(labels)
        if key in seen and (seen[key] & there).any():
            raise Refused(f"several series of the answer have the same labels {dict(key)}: ask for one name at a time, or sum by (…)")
        seen[key] = seen[key] | there if key in seen else there
        if place % PIECE_ROWS == PIECE_ROWS - 1:
            yield
    return vector


# --- operators ---


def operated(op: str, left: Floats, right: Floats) -> Floats:
    """Arithmetic, or a comparison as 0 and 1, as floats."""
    with np.errstate(all="ignore"):
        found = (COMPARISONS.get(op) or ARITHMETIC[op])(left, right)
    return np.asarray(found, dtype=np.float64)


def _pieces(rows: int, steps: int, depth: int) -> Iterator[tuple[slice, slice]]:
    """(rows, steps) that have some PIECE_VALUES values each, `depth` of them at each step."""
    width = max(1, PIECE_VALUES // max(1, depth))
    many = max(1, width // max(1, steps))
    for row in range(0, rows, many):
        for step in range(0, steps, width):
            yield slice(row, row + many), slice(step, step + width)


def worked(function: Callable[[Floats], Floats], vector: Vector, what: str) -> Piecewise:
    """Each number by itself; `function` gets all steps of some series. Raises Refused."""
    values = vector.numbers(what).values
    found = np.empty(values.shape)
    for rows, _ in _pieces(len(values), 1, values.shape[1]):
        with np.errstate(all="ignore"):
            found[rows] = function(values[rows])
        yield
    return (yield from with_values(vector, found))


def scaled(vector: Vector, spread: Spread, by: Floats) -> Piecewise:
    """Distributions of so many times as many values, by a number a step."""
    heat = np.empty(spread.heat.shape)
    for rows, steps in _pieces(*spread.heat.shape):
        with np.errstate(all="ignore"):
            heat[rows, steps] = spread.heat[rows, steps] * by[steps, None]
        yield
    with np.errstate(all="ignore"):
        of_all = Spread(spread.codes, heat, spread.count * by, spread.total * by)
    labels = yield from _nameless(vector.labels)
    return Vector(labels, vector.values, vector.there, of_all)


def with_scalar(node: Binary, vector: Vector, scalar: Floats, is_left: bool) -> Piecewise:
    """Every series with one number a step; `is_left`: the vector stands on the left."""
    values = vector.numbers(node.op).values
    found = np.empty(values.shape)
    for rows, _ in _pieces(len(values), 1, values.shape[1]):
        found[rows] = operated(node.op, values[rows], scalar) if is_left else operated(node.op, scalar, values[rows])
        yield
    if node.op not in COMPARISONS or node.returns_bool:
        return (yield from with_values(vector, found))
    return Vector(vector.labels, values, vector.there & (found > 0))


def match_key(node: Binary, labels: Labels) -> Any:
    """What must be the same on both sides."""
    if node.on is not None:
        return tuple(labels.get(name, "") for name in node.on)
    return key_of(without(labels, (NAME, *node.ignoring)))


def set_operated(node: Binary, left: Vector, right: Vector) -> Piecewise:
    """and, or, unless."""
    others, kept = (left, right) if node.op == "or" else (right, left)
    if not kept.labels or not others.labels:
        # `and` needs both; the other two lose nothing to what is empty
        return left if not kept.labels else Vector.empty(kept.there.shape[1]) if node.op == "and" else kept
    found: dict[Any, Bools] = {}
    for place, (labels, there) in enumerate(zip(others.labels, others.there, strict=True)):
        key = match_key(node, labels)
        found[key] = found[key] | there if key in found else there
        if place % PIECE_ROWS == PIECE_ROWS - 1:
            yield
    there = kept.there.copy()
    for place, labels in enumerate(kept.labels):
        mask = found.get(match_key(node, labels))
        if node.op == "and":
            there[place] &= False if mask is None else mask
        elif mask is not None:
            there[place] &= ~mask
        if place % PIECE_ROWS == PIECE_ROWS - 1:
            yield
    if node.op != "or":
        return Vector(kept.labels, kept.values, there, kept.spread)
    values = np.concatenate((left.numbers("or").values, kept.numbers("or").values))
    return Vector([*left.labels, *kept.labels], values, np.concatenate((left.there, there)))


def matched(node: Binary, left: Vector, right: Vector) -> Piecewise:
    """Arithmetic or comparison of two vectors, series by series. Raises Refused where several match."""
    many, one = (right, left) if node.group == "right" else (left, right)
    many.numbers(node.op), one.numbers(node.op)
    of_one = yield from _merged(node, one, "right" if node.group != "right" else "left")
    if node.group is None:
        merged = yield from _merged(node, many, "left")
        rows = [(key, labels, values, there) for key, (labels, values, there) in merged.items()]
    else:
        rows = []
        for labels, values, there in zip(many.labels, many.values, many.there, strict=True):
            rows.append((match_key(node, labels), labels, values, there))
            if len(rows) % PIECE_ROWS == 0:
                yield
    is_filter = node.op in COMPARISONS and not node.returns_bool
    found_labels, found_values, found_there = [], [], []
    size = 0
    for key, labels, values, there in rows:
        if key not in of_one:
            continue
        labels_of_one, other, other_there = of_one[key]
        result = operated(node.op, other, values) if node.group == "right" else operated(node.op, values, other)
        both = there & other_there
        if is_filter:
            both = both & (result > 0)
            result = values if node.group is None or node.group == "left" else other
        found_labels.append(_result_labels(node, labels, labels_of_one, is_filter))
        found_values.append(result)
        found_there.append(both)
        size += max(result.size, PIECE_VALUES // PIECE_ROWS)
        if size >= PIECE_VALUES:
            size = 0
            yield
    if not found_labels:
        return Vector.empty(left.values.shape[1])
    return (yield from uniquely(Vector(found_labels, np.array(found_values), np.array(found_there))))


def _merged(node: Binary, vector: Vector, side: str) -> Generator[None, None, dict[Any, tuple[Labels, Floats, Bools]]]:
    """By what must match the one series that has it, made of those that have it at different steps."""
    found: dict[Any, tuple[Labels, Floats, Bools]] = {}
    for place, (labels, values, there) in enumerate(zip(vector.labels, vector.values, vector.there, strict=True)):
        key = match_key(node, labels)
        if key in found:
            first, known, where = found[key]
            if (where & there).any():
                raise Refused(
                    f"several series on the {side} of {node.op} match {key}: name more labels in on(), or use group_left or group_right"
                )
            found[key] = first, np.where(there, values, known), where | there
        else:
            found[key] = labels, values, there
        if place % 1000 == 999:
            yield
    return found


def _result_labels(node: Binary, labels: Labels, of_one: Labels, keeps_name: bool) -> Labels:
    found = dict(labels) if keeps_name else without(labels, (NAME,))
    if node.group is None:
        return {name: value for name, value in found.items() if name in node.on} if node.on is not None else without(found, node.ignoring)
    for name in node.include:
        found.pop(name, None)
        if of_one.get(name):
            found[name] = of_one[name]
    return found


# --- aggregations ---

_REDUCED = {"min": np.fmin, "max": np.fmax}


def aggregated(node: Aggregation, vector: Vector, parameter: Floats | None) -> Piecewise:
    """sum, count, avg, min, max, group, topk, bottomk, quantile."""
    groups: dict[Any, list[int]] = {}
    labels: dict[Any, Labels] = {}
    for row, of_row in enumerate(vector.labels):
        group = grouped(of_row, node.by, node.without)
        key = key_of(group)
        groups.setdefault(key, []).append(row)
        labels[key] = group
        if row % PIECE_ROWS == PIECE_ROWS - 1:
            yield
    if vector.spread is not None:
        return (yield from _aggregated_spreads(node, vector, vector.spread, groups, labels))
    steps = vector.values.shape[1]
    if node.op in ("topk", "bottomk"):
        there = np.zeros_like(vector.there)
        for rows in groups.values():
            yield from _ranked(node.op, vector, rows, parameter, there)
        return Vector(vector.labels, vector.values, there)
    values, found = np.empty((len(groups), steps)), np.zeros((len(groups), steps), dtype=np.bool_)
    for place, rows in enumerate(groups.values()):
        width = max(1, PIECE_VALUES // len(rows))
        for start in range(0, steps, width):
            part = slice(start, start + width)
            there = vector.there[rows, part]
            found[place, part] = there.any(axis=0)
            values[place, part] = _reduced(node.op, vector.values[rows, part], there, None if parameter is None else parameter[part])
            yield
    return Vector([labels[key] for key in groups], values, found)


def _reduced(op: str, values: Floats, there: Bools, parameter: Floats | None) -> Floats:
    counts: Floats = np.asarray(there.sum(axis=0), dtype=np.float64)
    with np.errstate(all="ignore"):
        if op == "group":
            return np.ones(len(counts))
        if op == "count":
            return counts
        if op in ("sum", "avg"):
            total = np.asarray(np.where(there, values, 0.0).sum(axis=0), dtype=np.float64)
            return total if op == "sum" else np.asarray(total / counts, dtype=np.float64)
        if op in ("min", "max"):
            return np.asarray(_REDUCED[op].reduce(np.where(there, values, np.nan), axis=0), dtype=np.float64)
        assert parameter is not None
        return _quantile(values, there, counts, parameter)


def _quantile(values: Floats, there: Bools, counts: Floats, rank: Floats) -> Floats:
    """As Prometheus: linear between the two values beside the rank."""
    ordered = np.sort(np.where(there, values, np.inf), axis=0)
    wanted = np.clip(rank, 0, 1) * (counts - 1)
    lower = np.clip(np.floor(np.nan_to_num(wanted)), 0, len(ordered) - 1).astype(np.int64)
    upper = np.clip(lower + 1, 0, np.maximum(counts - 1, 0)).astype(np.int64)
    at = np.arange(ordered.shape[1])
    share = wanted - np.floor(wanted)
    low, high = ordered[lower, at], ordered[upper, at]
    found = np.where(share == 0, low, low * (1 - share) + high * share)
    found = np.where(rank < 0, -np.inf, np.where(rank > 1, np.inf, found))
    return np.asarray(np.where(np.isnan(rank), np.nan, found), dtype=np.float64)


def _ranked(op: str, vector: Vector, rows: list[int], parameter: Floats | None, there: Bools) -> Generator[None, None, None]:
    assert parameter is not None
    steps = vector.values.shape[1]
    width = max(1, PIECE_VALUES // 4 // len(rows))
    for start in range(0, steps, width):
        part = slice(start, start + width)
        here = vector.there[rows, part]
        values = vector.values[rows, part]
        worst = np.where(np.isnan(values), np.inf, -values if op == "topk" else values)
        # those that are not there come last, NaN before them
        order = np.lexsort((worst, np.isnan(values), ~here), axis=0)
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.broadcast_to(np.arange(len(rows))[:, None], order.shape), axis=0)
        most = parameter[part]
        there[rows, part] = here & (ranks < np.floor(most))
        yield


def _aggregated_spreads(
    node: Aggregation, vector: Vector, spread: Spread, groups: dict[Any, list[int]], labels: dict[Any, Labels]
) -> Piecewise:
    there, counts = np.empty((len(groups), vector.there.shape[1]), dtype=np.bool_), np.empty((len(groups), vector.there.shape[1]))
    for place, rows in enumerate(groups.values()):
        there[place], counts[place] = vector.there[rows].any(axis=0), vector.there[rows].sum(axis=0)
        yield
    found = [labels[key] for key in groups]
    if node.op in ("count", "group"):
        return Vector(found, counts if node.op == "count" else np.ones_like(counts), there)
    if node.op not in ("sum", "avg"):
        raise Refused(f"{node.op} takes numbers, not distributions: use histogram_quantile or histogram_avg before it")
    summed = []
    for rows in groups.values():
        where = vector.there[rows]
        sums = [
            np.where(where[..., None] if column.ndim == 3 else where, column[rows], 0.0).sum(axis=0)
            for column in (spread.heat, spread.count, spread.total)
        ]
        if node.op == "avg":
            many = np.maximum(where.sum(axis=0), 1)
            sums = [sums[0] / many[:, None], sums[1] / many, sums[2] / many]
        summed.append(sums)
        yield
    if not summed:
        return Vector.empty(vector.values.shape[1])
    heat, count, total = (np.array(column) for column in zip(*summed, strict=True))
    return Vector(found, np.zeros_like(count), there, Spread(spread.codes, heat, count, total))


# --- distributions ---


def spread_quantiles(vector: Vector, ranks: Floats) -> Piecewise:
    """histogram_quantile of distributions, within 1 %."""
    spread = vector.distributions("histogram_quantile")
    values = np.full(vector.values.shape, np.nan)
    shares = np.clip(np.nan_to_num(ranks), 0, 1)
    for rows, steps in _pieces(*spread.heat.shape):
        values[rows, steps] = _estimates(spread.codes, spread.heat[rows, steps], shares[steps])
        yield
    values = np.where(ranks < 0, -np.inf, np.where(ranks > 1, np.inf, np.where(np.isnan(ranks), np.nan, values)))
    return (yield from with_values(vector, values))


def _estimates(codes: Ints, heat: Floats, ranks: Floats) -> Floats:
    """The values up to which the share of each step's rank lies: of counts, and of rates, which are no whole ones."""
    if not len(codes):
        return np.full(heat.shape[:-1], np.nan)
    running = np.cumsum(heat, axis=-1)
    whole = running[..., -1]
    wanted = np.maximum(ranks * whole * (1 - 1e-9), np.finfo(np.float64).tiny)  # sums of shares are not exact
    at = np.minimum((running < wanted[..., None]).sum(axis=-1), len(codes) - 1)
    return np.asarray(np.where(whole > 0, estimates_of(codes)[at], np.nan), dtype=np.float64)


def spread_fraction(vector: Vector, lower: Floats, upper: Floats) -> Piecewise:
    """histogram_fraction: the share of values beyond `lower` up to `upper`, linear within a bin."""
    spread = vector.distributions("histogram_fraction")
    tops, bottoms = uppers_of(spread.codes), -uppers_of(-spread.codes)
    widths = np.where(tops > bottoms, tops - bottoms, 1.0)

    def below(bound: Floats) -> Floats:
        at = bound[:, None]
        share = np.where(tops > bottoms, np.clip((at - bottoms) / widths, 0, 1), at >= tops)
        return np.where(np.isposinf(at), 1.0, np.where(np.isneginf(at), 0.0, share))

    values = np.full(vector.values.shape, np.nan)
    for rows, steps in _pieces(*spread.heat.shape):
        heat = spread.heat[rows, steps]
        with np.errstate(all="ignore"):
            shares = np.maximum(below(upper[steps]) - below(lower[steps]), 0.0)
            values[rows, steps] = (heat * shares).sum(axis=-1) / heat.sum(axis=-1)
        yield
    return (yield from with_values(vector, np.where(np.isnan(lower) | np.isnan(upper), np.nan, values)))


def bucket_quantiles(vector: Vector, ranks: Floats) -> Piecewise:
    """histogram_quantile of series with `le`, as Prometheus reckons it: linear within a bucket."""
    groups: dict[Any, tuple[Labels, list[tuple[float, int]]]] = {}
    for row, labels in enumerate(vector.labels):
        try:
            bound = float(labels.get("le", ""))
        except ValueError:
            continue  # as Prometheus: what has no bound is no bucket
        rest = without(labels, (NAME, "le"))
        groups.setdefault(key_of(rest), (rest, []))[1].append((bound, row))
        if row % PIECE_ROWS == PIECE_ROWS - 1:
            yield
    steps = vector.values.shape[1]
    values, there = np.full((len(groups), steps), np.nan), np.zeros((len(groups), steps), dtype=np.bool_)
    for place, (_, buckets) in enumerate(groups.values()):
        buckets.sort()
        bounds = np.array([bound for bound, _ in buckets])
        rows = [row for _, row in buckets]
        there[place] = vector.there[rows].any(axis=0)
        if len(bounds) >= 2 and np.isposinf(bounds[-1]):
            counts = np.maximum.accumulate(np.where(vector.there[rows], vector.values[rows], 0.0), axis=0)
            values[place] = _in_buckets(bounds, counts, ranks)
        yield
    return Vector([labels for labels, _ in groups.values()], values, there)


def _in_buckets(bounds: Floats, counts: Floats, ranks: Floats) -> Floats:
    whole = counts[-1]
    wanted = np.clip(np.nan_to_num(ranks), 0, 1) * whole
    at = np.minimum((counts < wanted).sum(axis=0), len(bounds) - 1)
    steps = np.arange(counts.shape[1])
    before = np.where(at > 0, counts[at - 1, steps], 0.0)
    start = np.where(at > 0, bounds[at - 1], 0.0)
    with np.errstate(all="ignore"):
        inside = start + (bounds[at] - start) * (wanted - before) / (counts[at, steps] - before)
    found = np.where(at == len(bounds) - 1, bounds[-2], np.where((at == 0) & (bounds[0] <= 0), bounds[0], inside))
    found = np.where(whole > 0, found, np.nan)
    found = np.where(ranks < 0, -np.inf, np.where(ranks > 1, np.inf, found))
    return np.asarray(np.where(np.isnan(ranks), np.nan, found), dtype=np.float64)
