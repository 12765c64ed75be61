"""One figure, and rows of figures: `taba get`, `taba watch`, `taba who`, and a line a Tab as `taba agg` shows it on a terminal."""

from __future__ import annotations

import math
import operator
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from taba import paths
from taba.cli import show
from taba.cli.sharing import AS_JSON, SERVER, TIMEOUT, print_drawn, print_json, query_of
from taba.query import Query, QueryError

F = TypeVar("F", bound=Callable[..., Any])

NO, COULD_NOT_ASK, TIMED_OUT = 1, 2, 124  # how commands end that answer a question; 0: yes
COLUMNS = (("NAME", 26), ("RATE", 8), ("1H", 8), ("P50", 7), ("P99", 7), ("TREND", 12), ("CLIENTS", 5))  # 79 with a blank between
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
WATCH_SECONDS = 1.0  # between two looks

_EXPRESSION = re.compile(r"\s*(\S.*?)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


# --- rows ---


def row(line: Mapping[str, Any], columns: int = 79, is_ascii: bool = False) -> str:
    """A row of an overview as one line of `columns` characters at the most; the name has what is left over."""
    spare = max(0, columns - 79)
    name = _cut_inside(show.plain(line["name"]), COLUMNS[0][1] + spare, is_ascii)
    if "error" in line and line.get("value") is None and line.get("1h") is None:
        return _cut(f"{name.ljust(COLUMNS[0][1] + spare)} ! {show.plain(line['error'])}", columns, is_ascii)
    unit = line.get("unit")
    cells = (
        scaled(line.get("rate")),
        scaled(line.get("1h")) if line.get("1h") is not None else scaled(line.get("value"), unit),
        scaled(line.get("p50"), unit),
        scaled(line.get("p99"), unit),
        sparkline(line.get("sparkline"), COLUMNS[5][1], is_ascii),
        scaled(line.get("clients")),
    )
    shown = [cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS[1:], strict=True)]
    shown[4] = cells[4].ljust(COLUMNS[5][1])
    return _cut(" ".join([name.ljust(COLUMNS[0][1] + spare), *shown]), columns, is_ascii)


def head(columns: int = 79) -> str:
    """The names of the columns, as `row` places them."""
    spare = max(0, columns - 79)
    shown = [name.rjust(width) for name, width in COLUMNS[1:5]]
    last = COLUMNS[6][0]  # longer than its column, and so above some of the one before
    trend = COLUMNS[5][0].ljust(COLUMNS[5][1] + 1 + COLUMNS[6][1] - len(last)) + last
    return " ".join([COLUMNS[0][0].ljust(COLUMNS[0][1] + spare), *shown, trend])


def scaled(value: Any, unit: str | None = None) -> str:
    """A number in at most seven characters and its sign, as people read it: 1.2 ms, 3.4 MiB, 12k; nothing is a dash."""
    text = _scaled(value, unit)
    return text if len(text.removeprefix("-")) <= 7 else text.replace(" ", "")


def _scaled(value: Any, unit: str | None) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "-"
    if not math.isfinite(value):
        return str(value)
    if unit == "seconds":
        for least, size, name in _TIMES:
            if abs(value) >= least:
                return f"{_digits(value / size)} {name}"
        return "0 s"
    steps = [(1024.0**power, f" {name}iB") for power, name in ((4, "T"), (3, "G"), (2, "M"), (1, "K"))] if unit == "bytes" else []
    steps = steps or [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")]
    for size, name in steps:
        if abs(value) >= size:
            return _digits(value / (1e3 if name == "k" else size)) + name
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    return _digits(value) + (" B" if unit == "bytes" else "")


_TIMES = (
    (172_800.0, 86_400.0, "d"),
    (7200.0, 3600.0, "h"),
    (120.0, 60.0, "min"),
    (1.0, 1.0, "s"),
    (1e-3, 1e-3, "ms"),
    (1e-6, 1e-6, "us"),
    (1e-9, 1e-9, "ns"),
)


def _digits(value: float) -> str:
    if abs(value) >= 1e4:
        return f"{value:.0e}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}"


def sparkline(counts: Sequence[float | None] | None, width: int, is_ascii: bool = False) -> str:
    """Counts as `width` blocks, the greatest the highest; blank where nothing is known."""
    if not counts:
        return ""
    counts = [*[None] * (width - len(counts)), *counts]
    size = len(counts) // width
    groups = [counts[start : start + size] for start in range(len(counts) - size * width, len(counts), size)]
    sums = [None if all(count is None for count in group) else sum(count or 0 for count in group) for group in groups]
    most = max((total for total in sums if total is not None), default=0)
    blocks = ASCII_BLOCKS if is_ascii else BLOCKS
    return "".join(" " if total is None else blocks[int(total / most * (len(blocks) - 1))] if most > 0 else blocks[0] for total in sums)


def _cut(text: str, width: int, is_ascii: bool) -> str:
    if len(text) <= width:
        return text
    mark = "~" if is_ascii else "…"
    return text[: width - 1] + mark


def _cut_inside(text: str, width: int, is_ascii: bool) -> str:
    """Cut in the middle: of Tabs of one name the labels, and of others often the last words, tell which is which."""
    if len(text) <= width:
        return text
    first = (width - 1) // 2
    return text[:first] + ("~" if is_ascii else "…") + text[len(text) - (width - 1 - first) :]


def sum_of(name: str, rows: Sequence[Mapping[str, Any]], aggregate: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the Aggregate of several rows' Tabs together."""
    figures = {key: paths.first(aggregate, places) for key, places in paths.FIGURES.items()}
    count = figures["1m"]
    lines = [line["sparkline"] for line in rows if line.get("sparkline")]
    return {
        "name": name,
        "unit": rows[0].get("unit"),
        "rate": math.fsum(line.get("rate") or 0 for line in rows) if count is None else count / 60,
        **{key: figures[key] for key in ("1h", "p50", "p99", "value")},
        "sparkline": [math.fsum(count or 0 for count in counts) for counts in zip(*lines, strict=True)] if lines else None,
    }


def print_rows(rows: Sequence[Mapping[str, Any]], columns: int) -> None:
    """Rows under their head, on a terminal."""
    try:
        (BLOCKS + "…").encode(sys.stdout.encoding or "ascii")
        is_ascii = False
    except UnicodeEncodeError:
        is_ascii = True
    print(head(columns))
    for line in rows:
        print(row(line, columns, is_ascii))


# --- one figure ---


def _command(name: str, example: str) -> Callable[[F], click.Command]:
    def decorate(function: F) -> click.Command:
        return click.command(name, epilog="\b\nExamples:\n" + example)(SERVER(TIMEOUT(function)))

    return decorate


def _path(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        try:
            paths.check(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return value


def aggregate_of(query: Query, name: str) -> Any:
    """The Aggregate of a Tab, or of all labelled Tabs of a base name together; NOTHING where there is none. Raises QueryError."""
    found = query.aggregates(name=name)
    if name in found:
        return found[name]
    return query.superaggregate(name=name) if found else paths.NOTHING


@_command("get", "  taba get bids_won 1m.count\n  taba get render_seconds 1h.p99 --above 0.25 && echo slow\n  taba get price 'pct.p99.9'")
@click.argument("name")
@click.argument("path", callback=_path)
@click.option("--above", type=float, metavar="N", help="Print nothing; end with 0 where the figure is above N, else with 1.")
@click.pass_context
def get(context: click.Context, server: str, timeout: float, name: str, path: str, above: float | None) -> None:
    """One figure of a Tab's Aggregate, as a raw number in base units.

    Ends with 0; with 1 where nothing is there (or it is not above N); with 2 where it could not be asked.
    """
    try:
        aggregate = aggregate_of(query_of(server, timeout=timeout), name)
    except QueryError as error:
        print(f"taba get: {error}", file=sys.stderr)
        context.exit(COULD_NOT_ASK)
    value = paths.NOTHING if aggregate is paths.NOTHING else paths.find(aggregate, path)
    if above is not None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        context.exit(0 if is_number and value > above else NO)
    if value is paths.NOTHING or value is None:
        why = aggregate.get("error") if isinstance(aggregate, dict) else None
        nothing = f"{name} has nothing at {path}; taba agg {name} --json shows what it has"
        what = f"no Tab {name!r}; taba names lists those that are there" if aggregate is paths.NOTHING else nothing
        print(f"taba get: {show.plain(what)}" + (f": {show.plain(why)}" if why else ""), file=sys.stderr)
        context.exit(NO)
    if isinstance(value, str):
        print(show.plain(value) if sys.stdout.isatty() else value)
    else:
        print_json(value)


def _until(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, str, float] | None:
    if value is None:
        return None
    match = _EXPRESSION.fullmatch(value)
    try:
        if match is None:
            raise ValueError("takes PATH, one of > >= < <= == !=, and a number, such as '1m.count > 100'")
        return paths.check(match[1]), match[2], float(match[3])
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None


@_command("watch", "  taba watch bids_won --until '1m.count > 100'\n  taba watch queue_depth --until 'sum == 0' --within 60")
@click.argument("name")
@click.option("--until", required=True, metavar="EXPRESSION", callback=_until, help="PATH, a comparison and a number.")
@click.option("--within", type=click.FloatRange(0, 1e9), metavar="SECONDS", help="How long to wait; without, for ever.")
@click.pass_context
def watch(context: click.Context, server: str, timeout: float, name: str, until: tuple[str, str, float], within: float | None) -> None:
    """Wait until a figure of a Tab is what you say; each value that it has meanwhile is a line.

    Ends with 0 when it is; with 124 when the time is over; with 2 where it could not be asked.
    """
    query, deadline = query_of(server, timeout=timeout), None if within is None else time.monotonic() + within
    path, sign, number = until
    shown: Any = paths.NOTHING
    while True:
        try:
            aggregate = aggregate_of(query, name)
        except QueryError as error:
            print(f"taba watch: {error}", file=sys.stderr)
            context.exit(COULD_NOT_ASK)
        value = paths.NOTHING if aggregate is paths.NOTHING else paths.find(aggregate, path)
        if value is not shown and value != shown and value is not paths.NOTHING:
            print_json(value)
            sys.stdout.flush()
            shown = value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and _COMPARE[sign](value, number):
            return
        left = WATCH_SECONDS if deadline is None else min(WATCH_SECONDS, deadline - time.monotonic())
        if left <= 0:
            print(f"taba watch: {show.plain(name)}: not {path} {sign} {number:g} within {within:g} s", file=sys.stderr)
            context.exit(TIMED_OUT)
        time.sleep(left)


@_command("who", "  taba who bids_won\n  taba who render_seconds 1h.p99 --limit 3")
@click.argument("name")
@click.argument("path", required=False, callback=_path)
@click.option("--limit", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N", help="How many Clients at either end.")
@AS_JSON
@click.pass_context
def who(context: click.Context, server: str, timeout: float, name: str, path: str | None, limit: int, as_json: bool) -> None:
    """Which Clients hold the greatest and the least of a figure, and what share of all each one has."""
    try:
        found = query_of(server, timeout=timeout).who(name=name, path=path, limit=limit)
    except QueryError as error:
        print(f"taba who: {error}", file=sys.stderr)
        context.exit(COULD_NOT_ASK)
    if as_json:
        print_json(found)
        return
    for tab, one in found.items():
        told = (
            f"{one['path'] or path or 'no figure'}, {one['clients']} Client{'' if one['clients'] == 1 else 's'}, skew {scaled(one['skew'])}"
        )
        if sys.stdout.isatty():
            rows = [[end, item["client"], item["value"], _share(item)] for end in ("greatest", "least") for item in one[end]]
            print(f"{show.plain(tab)}: {told}")
            print_drawn(show.table(["", "client", "value", "share"], rows))
        else:
            for end in ("greatest", "least"):
                for item in one[end]:
                    print(f"{tab}: {end} {item['client']} {item['value']} {_share(item)}")
        if "error" in one:
            print(f"{show.plain(tab)}: {show.plain(one['error'])}", file=sys.stderr)
    if not found:
        print(f"taba who: no Tab {show.plain(repr(name))}; taba names lists those that are there", file=sys.stderr)
        context.exit(NO)


def _share(item: Mapping[str, Any]) -> str:
    return "-" if item["share"] is None else f"{100 * item['share']:.1f} %"


COMMANDS = (get, watch, who)
