"""A PromQL question from its nodes to its answer. What it reads of States, and what it has done elsewhere, it is given.

1. Nodes stand in a list, parts behind what is made of them (`syntax`): they are gone through from the end, and nothing recurs.
2. First the selectors are found, with what is right above each (a function over its range, a sum); they are read; the rest is arithmetic.
3. Whatever Taba does not answer is Refused, with a sentence: never a figure that means something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from taba.codes import Floats
from taba.series import number_text
from taba.server.prometheus.leaf import OVER_TIME, RANGED, Leaf
from taba.server.prometheus.syntax import (
    EQUAL,
    Aggregation,
    Binary,
    Called,
    Negated,
    Node,
    Number,
    Same,
    Selector,
    Text,
    Unsupported,
)
from taba.server.prometheus.vectors import (
    ARITHMETIC,
    COMPARISONS,
    NAME,
    PIECE_ROWS,
    SETS,
    Labels,
    Piecewise,
    Refused,
    Vector,
    aggregated,
    bucket_quantiles,
    matched,
    operated,
    scaled,
    set_operated,
    spread_fraction,
    spread_quantiles,
    uniquely,
    with_scalar,
    with_values,
    without,
    worked,
)
from taba.turns import in_order, in_slices

PLAIN: dict[str, Callable[[Floats], Floats]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "floor": np.floor,
    "ln": np.log,
    "exp": np.exp,
    "sqrt": np.sqrt,
}
AGGREGATIONS = ("sum", "avg", "min", "max", "count", "group", "topk", "bottomk", "quantile")
FUNCTIONS = (
    *RANGED,
    *OVER_TIME,
    *PLAIN,
    "absent",
    "clamp",
    "clamp_max",
    "clamp_min",
    "histogram_avg",
    "histogram_count",
    "histogram_fraction",
    "histogram_quantile",
    "histogram_sum",
    "label_replace",
    "round",
    "scalar",
    "time",
    "timestamp",
    "vector",
)
_LABEL = re.compile("[A-Za-z_][A-Za-z0-9_]*")
SLICE_REWRITTEN = 5000  # values of a label that go to a child at a time, some 3 ms
MAX_LEAVES = 50  # selectors of one question: each is read by itself


class Asking(Protocol):
    """What a question needs of others."""

    async def read(self, leaf: Leaf) -> Vector: ...

    async def breathe(self) -> None: ...

    async def rewrite(self, pattern: str, template: str, texts: Sequence[str]) -> list[str | None]: ...


class Scalar(NamedTuple):
    """One number a step."""

    values: Floats


Value = Vector | Scalar | str


async def evaluate(nodes: Sequence[Node], times: Floats, asking: Asking) -> Value:
    """The answer at each of `times`: a Vector, a Scalar or a text. Raises Refused, and what `asking` raises."""
    found: list[Value | None] = [None] * len(nodes)
    leaves = _leaves(nodes)
    work = _Work(times, asking)
    for place in range(len(nodes) - 1, -1, -1):
        node = nodes[place]
        if place in leaves:
            leaf = leaves[place]
            found[place] = None if leaf is None else await asking.read(leaf)
            continue
        parts = [cast(Value, found[part]) for part in getattr(node, "parts", ())]
        found[place] = await work.do(node, parts, [_within(nodes, part) for part in getattr(node, "parts", ())])
        for part in getattr(node, "parts", ()):
            found[part] = None  # what is used up is held no longer
        await asking.breathe()
    answer = found[0]
    assert answer is not None
    return answer


def _leaves(nodes: Sequence[Node]) -> dict[int, Leaf | None]:
    """By place the selectors with what is right above them, at the uppermost of these; None at what is below it. Raises Refused."""
    found: dict[int, Leaf | None] = {}
    above: dict[int, int] = {}
    for place, node in enumerate(nodes):
        if isinstance(node, Unsupported):
            raise Refused(node.why)
        for part in getattr(node, "parts", ()):
            above[part] = place
    many = 0
    for place, node in enumerate(nodes):
        if not isinstance(node, Selector):
            continue
        many += 1
        if many > MAX_LEAVES:
            raise Refused(f"more than {MAX_LEAVES} selectors in one query: ask several")
        at, below = place, [place]
        leaf = Leaf(node.matchers, node.offset, None, node.range or 0.0)
        if node.range is not None:
            at, caller = _above(nodes, above, at, below)
            if not isinstance(caller, Called) or caller.name not in (*RANGED, *OVER_TIME):
                what = f"{caller.name} is not answered; there are " + ", ".join((*RANGED, *OVER_TIME)) if isinstance(caller, Called) else ""
                raise Refused(what or "a range, as x[5m], is taken by functions only, such as rate(x[5m]): Taba keeps no single samples")
            leaf = leaf._replace(function=caller.name)
            below.append(at)
        beside: list[int] = []
        upper, aggregation = _above(nodes, above, at, beside)
        if isinstance(aggregation, Aggregation) and aggregation.op == "sum":
            leaf = leaf._replace(sums=True, by=aggregation.by, without=aggregation.without)
            below += [*beside, upper]
        top = below.pop()
        found.update(dict.fromkeys(below))
        found[top] = leaf
    return found


def _above(nodes: Sequence[Node], above: dict[int, int], place: int, between: list[int]) -> tuple[int, Node | None]:
    """(place, node) of what takes the part at `place`; the brackets around it are added to `between`."""
    while True:
        upper = above.get(place)
        if upper is None:
            return place, None
        if not isinstance(nodes[upper], Same):
            return upper, nodes[upper]
        between.append(upper)
        place = upper


def _within(nodes: Sequence[Node], place: int) -> Node:
    """The node there, or what stands in the brackets there."""
    while isinstance(node := nodes[place], Same):
        [place] = node.parts
    return node


class _Work:
    """Each node from its parts. The nodes of parts are those without brackets around them."""

    def __init__(self, times: Floats, asking: Asking):
        self._times, self._asking = times, asking

    async def do(self, node: Node, parts: Sequence[Value], nodes: Sequence[Node]) -> Value:
        if isinstance(node, Number):
            return Scalar(np.full(len(self._times), node.value))
        if isinstance(node, Text):
            return node.value
        if isinstance(node, Same):
            return parts[0]
        if isinstance(node, Negated):
            [part] = parts
            return Scalar(-part.values) if isinstance(part, Scalar) else await self._plain(np.negative, self._vector(part, "-"))
        if isinstance(node, Binary):
            return await self._binary(node, *parts)
        if isinstance(node, Aggregation):
            return await self._aggregation(node, parts)
        assert isinstance(node, Called)
        return await self._called(node, parts, nodes)

    async def _through(self, working: Any) -> Vector:
        """Go through what works piece by piece."""
        while True:
            try:
                next(working)
            except StopIteration as stop:
                return cast(Vector, stop.value)
            await self._asking.breathe()

    async def _unique(self, vector: Vector) -> Vector:
        return await self._through(uniquely(vector))

    async def _valued(self, vector: Vector, values: Floats) -> Vector:
        return await self._unique(await self._through(with_values(vector, values)))

    async def _binary(self, node: Binary, left: Value, right: Value) -> Value:
        if node.op not in COMPARISONS and node.op not in ARITHMETIC and node.op not in SETS:
            raise Refused(f"{node.op} is not answered")
        if isinstance(left, str) or isinstance(right, str):
            raise Refused(f"{node.op} takes no text")
        if isinstance(left, Scalar) and isinstance(right, Scalar):
            return Scalar(operated(node.op, left.values, right.values))
        if isinstance(left, Scalar) or isinstance(right, Scalar):
            vector, scalar = (right, left) if isinstance(left, Scalar) else (left, right)
            assert isinstance(vector, Vector) and isinstance(scalar, Scalar)
            return await self._unique(await self._through(self._scaled(node, vector, scalar, isinstance(left, Vector))))
        if node.op in SETS:
            return await self._through(set_operated(node, left, right))
        return await self._through(matched(node, left, right))

    def _scaled(self, node: Binary, vector: Vector, scalar: Scalar, is_left: bool) -> Piecewise:
        if vector.spread is not None and (node.op == "*" or (node.op == "/" and is_left)):
            by = scalar.values if node.op == "*" else operated("/", np.ones(len(scalar.values)), scalar.values)
            return scaled(vector, vector.spread, by)
        return with_scalar(node, vector, scalar.values, is_left)

    async def _aggregation(self, node: Aggregation, parts: Sequence[Value]) -> Vector:
        if node.op not in AGGREGATIONS:
            raise Refused(f"{node.op} is not answered; there are {', '.join(AGGREGATIONS)}")
        parameter = parts[1] if len(parts) > 1 else None
        if parameter is not None and not isinstance(parameter, Scalar):
            raise Refused(f"the first argument of {node.op} is a number")
        if node.op in ("topk", "bottomk") and parameter is not None and not np.isfinite(parameter.values).all():
            raise Refused(f"the first argument of {node.op} is a number of series, not {number_text(_odd(parameter.values))}")
        return await self._through(aggregated(node, self._vector(parts[0], node.op), None if parameter is None else parameter.values))

    def _vector(self, part: Value, what: str) -> Vector:
        if not isinstance(part, Vector):
            raise Refused(f"{what} takes series: a selector, or what is made of one")
        return part

    def _scalar(self, part: Value, what: str) -> Floats:
        if not isinstance(part, Scalar):
            raise Refused(f"{what} takes a number: of series, scalar() makes one")
        return part.values

    async def _plain(self, function: Callable[[Floats], Floats], vector: Vector, what: str = "-") -> Vector:
        return await self._unique(await self._through(worked(function, vector, what)))

    async def _called(self, node: Called, parts: Sequence[Value], nodes: Sequence[Node]) -> Value:
        name = node.name
        steps = len(self._times)
        if name not in FUNCTIONS:
            raise Refused(f"{name} is not answered; there are {', '.join(sorted(FUNCTIONS))}")
        if name == "time":
            return Scalar(self._times)
        if name == "vector":
            return Vector([{}], self._scalar(parts[0], name)[None, :], np.ones((1, steps), dtype=np.bool_))
        if name == "absent":
            vector = self._vector(parts[0], name)
            nowhere = np.logical_not(vector.there.any(axis=0)).reshape(1, steps)
            return Vector([_absent_labels(nodes[0])], np.ones((1, steps)), nowhere)
        if name == "histogram_quantile":
            return await self._quantile(self._scalar(parts[0], name), self._vector(parts[1], name))
        if name == "histogram_fraction":
            lower, upper = self._scalar(parts[0], name), self._scalar(parts[1], name)
            return await self._unique(await self._through(spread_fraction(self._vector(parts[2], name), lower, upper)))
        if name == "label_replace":
            return await self._label_replace(parts)
        vector = self._vector(parts[0], name)
        if name == "scalar":
            numbers = vector.numbers(name)
            alone = numbers.there.sum(axis=0) == 1
            with np.errstate(invalid="ignore"):
                return Scalar(np.where(alone, np.where(numbers.there, numbers.values, 0.0).sum(axis=0), np.nan))
        if name == "timestamp":
            return await self._valued(vector, np.broadcast_to(self._times, vector.there.shape).copy())
        if name in ("histogram_count", "histogram_sum", "histogram_avg"):
            spread = vector.distributions(name)
            with np.errstate(all="ignore"):
                values = {"count": spread.count, "sum": spread.total}.get(name[10:], spread.total / spread.count)
            return await self._valued(vector, values)
        if name in PLAIN:
            return await self._plain(PLAIN[name], vector, name)
        others = [self._scalar(part, name) for part in parts[1:]]
        if name == "round":
            to = others[0] if others else np.ones(steps)
            with np.errstate(all="ignore"):
                inverse = 1.0 / to  # as Prometheus does: what 0.1 times a whole number is has more digits than what that is over 10
            return await self._plain(lambda values: np.floor(values * inverse + 0.5) / inverse, vector, name)
        if name not in ("clamp", "clamp_min", "clamp_max"):
            raise Refused(f"{name} takes a range, as {name}(x[5m])")
        least = others[0] if name != "clamp_max" else np.full(steps, -np.inf)
        most = others[-1] if name != "clamp_min" else np.full(steps, np.inf)
        clamped = await self._plain(lambda values: np.minimum(np.maximum(values, least), most), vector, name)
        return Vector(clamped.labels, clamped.values, clamped.there & ~(least > most))  # between NaN and anything lies NaN

    async def _quantile(self, ranks: Floats, vector: Vector) -> Vector:
        if vector.spread is not None:
            return await self._unique(await self._through(spread_quantiles(vector, ranks)))
        return await self._through(bucket_quantiles(vector, ranks))

    async def _label_replace(self, parts: Sequence[Value]) -> Vector:
        vector = self._vector(parts[0], "label_replace")
        if not all(isinstance(part, str) for part in parts[1:]):
            raise Refused("label_replace takes four texts after the series")
        target, template, source, pattern = (cast(str, part) for part in parts[1:])
        if target != NAME and not _LABEL.fullmatch(target):
            raise Refused(f"label_replace: {target[:100]!r} is no name of a label")
        texts: set[str] = set()
        async for some in in_slices(vector.labels, PIECE_ROWS, self._asking.breathe):
            texts.update(labels.get(source, "") for labels in some)
        values = await in_order(texts, self._asking.breathe)
        written: dict[str, str | None] = {}
        for start in range(0, len(values) or 1, SLICE_REWRITTEN):  # where there is none, too: it may be no expression
            lot = values[start : start + SLICE_REWRITTEN]
            written.update(zip(lot, await self._asking.rewrite(pattern, template, lot), strict=True))
            await self._asking.breathe()
        replaced: list[Labels] = []
        async for some in in_slices(vector.labels, PIECE_ROWS, self._asking.breathe):
            for labels in some:
                text = written[labels.get(source, "")]
                replaced.append(labels if text is None else {**without(labels, (target,)), **({target: text} if text else {})})
        return await self._unique(Vector(replaced, vector.values, vector.there, vector.spread))


def _odd(values: Floats) -> float:
    """The first of them that is not finite."""
    return float(values[~np.isfinite(values)][0])


def _absent_labels(node: Node) -> Labels:
    """What `absent` says of what is not there: the labels that a selector asks for by =, each once."""
    if not isinstance(node, Selector):
        return {}
    names = [matcher.name for matcher in node.matchers]
    return {
        matcher.name: matcher.value
        for matcher in node.matchers
        if matcher.op == EQUAL and matcher.name != NAME and matcher.value and names.count(matcher.name) == 1
    }
