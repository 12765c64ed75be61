"""PromQL as text: what may be parsed at all, and what the parser found, as a list of nodes.

1. The parser is recursive, and dies of depth: length, nesting and operators are counted before it sees a text.
2. It runs in the child process of patterns (`flattened`); what comes back is a flat list, of any depth, that msgpack carries.
3. A node stands before whatever it is made of: whoever goes through the list from its end has the parts of a node before the node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from taba.installing import install_hint

MAX_TEXT = 10_000  # characters of a query
MAX_NESTING = 100  # brackets within brackets; people reach ten
MAX_OPERATORS = 500  # each is a level of the tree where they stand in a row
MAX_TIME = 2.0**40  # seconds: whatever offset or range is longer than all of time is none

EQUAL, UNEQUAL, MATCHES, UNMATCHED = "=", "!=", "=~", "!~"

# a text without its end reaches to the end of all: looked for again from each quote within it, it would take for ever
_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"?|\'(?:[^\'\\]|\\.)*\'?|`[^`]*`?|#[^\n]*|[A-Za-z_:][A-Za-z0-9_:]*|[-+*/%^<>=!]=?~?|[(\[{]|[)\]}]', re.DOTALL
)
_WORDS = frozenset(("and", "or", "unless", "atan2", "bool", "offset"))
_OPENS, _CLOSES = frozenset("([{"), frozenset(")]}")
_SYMBOLS = frozenset("-+*/%^<>=!")


class Matcher(NamedTuple):
    """What a selector asks of one label; `op` is EQUAL, UNEQUAL, MATCHES or UNMATCHED."""

    op: str
    name: str
    value: str


class Number(NamedTuple):
    """A number that stands in the text."""

    value: float


class Text(NamedTuple):
    """A text that stands in the text."""

    value: str


class Selector(NamedTuple):
    """Series, at an instant, or over the `range` seconds before it; `offset` seconds earlier."""

    matchers: tuple[Matcher, ...]
    offset: float
    range: float | None


class Called(NamedTuple):
    """A function; `parts` are the places of its arguments."""

    name: str
    parts: tuple[int, ...]


class Negated(NamedTuple):
    """Unary minus."""

    parts: tuple[int, ...]


class Binary(NamedTuple):
    """An operation of two sides. `on`: the labels that match them; `ignoring` likewise; `group`: the side of the many,
    "left" or "right"."""

    op: str
    returns_bool: bool
    on: tuple[str, ...] | None
    ignoring: tuple[str, ...]
    group: str | None
    include: tuple[str, ...]
    parts: tuple[int, ...]


class Aggregation(NamedTuple):
    """An aggregation; `by` or `without`; of the two parts the second, where there is one, is its parameter."""

    op: str
    by: tuple[str, ...] | None
    without: tuple[str, ...]
    parts: tuple[int, ...]


class Same(NamedTuple):
    """Brackets around the one part."""

    parts: tuple[int, ...]


class Unsupported(NamedTuple):
    """What PromQL has and Taba does not; `why` is a sentence."""

    why: str


Node = Number | Text | Selector | Called | Negated | Binary | Aggregation | Same | Unsupported


def check(text: str) -> None:
    """Raises ValueError for what the parser must not see."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"the query has {len(text)} characters; takes at most {MAX_TEXT}")
    depth = deepest = operators = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPENS:
            depth += 1
            deepest = max(deepest, depth)
        elif token in _CLOSES:
            depth -= 1
        elif token[0] in _SYMBOLS or token.lower() in _WORDS:
            operators += 1
    if deepest > MAX_NESTING:
        raise ValueError(f"the query nests brackets {deepest} deep; takes at most {MAX_NESTING}")
    if operators > MAX_OPERATORS:
        raise ValueError(f"the query has {operators} operators and matchers; takes at most {MAX_OPERATORS}")


def flattened(text: str) -> list[list[Any]]:
    """What promql-parser makes of a text, as lists. Raises ValueError with its sentence. Runs where a crash harms nobody."""
    try:
        import promql_parser
    except ImportError as error:
        raise ValueError(f"PromQL takes the package promql-parser: {install_hint('prometheus')} ({error})") from None
    found = [promql_parser.parse(text)]
    nodes: list[list[Any]] = []
    place = 0
    while place < len(found):
        node, parts = _described(promql_parser, found[place])
        nodes.append([*node, list(range(len(found), len(found) + len(parts)))])
        found += parts
        place += 1
    return nodes


def _described(parser: Any, expression: Any) -> tuple[list[Any], list[Any]]:
    """(kind and fields, the expressions that it is made of)."""
    kind = type(expression).__name__
    if kind == "NumberLiteral":
        return ["number", expression.val], []
    if kind == "StringLiteral":
        return ["text", expression.val], []
    if kind == "ParenExpr":
        return ["same"], [expression.expr]
    if kind == "UnaryExpr":
        return ["negated"], [expression.expr]
    if kind in ("VectorSelector", "MatrixSelector"):
        selector = expression if kind == "VectorSelector" else expression.vector_selector
        return _selected(parser, selector, getattr(expression, "range", None)), []
    if kind == "Call":
        return ["called", expression.func.name], list(expression.args)
    if kind == "AggregateExpr":
        modifier = expression.modifier
        is_by = modifier is not None and modifier.type == parser.AggModifierType.By
        labels = [] if modifier is None else list(modifier.labels)
        fields = ["aggregation", str(expression.op), labels if is_by else None, [] if is_by else labels, modifier is None]
        return fields, [expression.expr, *([expression.param] if expression.param is not None else [])]
    if kind == "BinaryExpr":
        return _binary(parser, expression), [expression.lhs, expression.rhs]
    if kind == "SubqueryExpr":
        return ["unsupported", "subqueries are not answered: rate and increase are differences on a curve, at any time"], []
    return ["unsupported", f"{kind} is not answered"], []


def _selected(parser: Any, selector: Any, within: Any) -> list[Any]:
    if selector.at is not None:
        return ["unsupported", "@ is not answered: use offset"]
    if selector.matchers.or_matchers:
        return ["unsupported", "or between matchers is not answered: use or between selectors, or =~"]
    matchers = [[_operator(parser.MatchOp, matcher.op), matcher.name, matcher.value] for matcher in selector.matchers.matchers]
    if selector.name is not None:
        matchers.insert(0, [EQUAL, "__name__", selector.name])
    offset = 0.0 if selector.offset is None else selector.offset.total_seconds()
    seconds = None if within is None else within.total_seconds()
    return ["selector", matchers, offset, seconds]


def _operator(ops: Any, op: Any) -> str:
    return EQUAL if op == ops.Equal else UNEQUAL if op == ops.NotEqual else MATCHES if op == ops.Re else UNMATCHED


def _binary(parser: Any, expression: Any) -> list[Any]:
    modifier = expression.modifier
    if modifier is None:
        return ["binary", str(expression.op), False, None, [], None, []]
    fill = modifier.fill_values
    if fill is not None and (fill.lhs is not None or fill.rhs is not None):
        return ["unsupported", "fill is not answered"]
    matching = modifier.matching
    labels = [] if matching is None else list(matching.labels)
    is_on = matching is not None and matching.type == parser.LabelModifierType.Include
    cards = parser.VectorMatchCardinality
    group = "left" if modifier.card == cards.ManyToOne else "right" if modifier.card == cards.OneToMany else None
    include = list(modifier.group_labels or [])
    return ["binary", str(expression.op), modifier.return_bool, labels if is_on else None, [] if is_on else labels, group, include]


def nodes_of(flat: Sequence[Any]) -> list[Node]:
    """The nodes that `flattened` described."""
    return [_node(fields[0], *fields[1:-1], parts=tuple(fields[-1])) for fields in flat]


def _node(kind: str, *fields: Any, parts: tuple[int, ...]) -> Node:
    if kind == "number":
        return Number(float(fields[0]))
    if kind == "text":
        return Text(fields[0])
    if kind == "same":
        return Same(parts)
    if kind == "negated":
        return Negated(parts)
    if kind == "called":
        return Called(fields[0], parts)
    if kind == "selector":
        matchers, offset, seconds = fields
        if abs(offset) > MAX_TIME or (seconds is not None and seconds > MAX_TIME):
            return Unsupported("an offset or a range of more than all of time")
        return Selector(tuple(Matcher(*matcher) for matcher in matchers), offset, seconds)
    if kind == "aggregation":
        op, by, without, is_whole = fields
        return Aggregation(op, () if is_whole else None if by is None else tuple(by), tuple(without), parts)
    if kind == "binary":
        op, returns_bool, on, ignoring, group, include = fields
        return Binary(op, returns_bool, None if on is None else tuple(on), tuple(ignoring), group, tuple(include), parts)
    return Unsupported(fields[0])
