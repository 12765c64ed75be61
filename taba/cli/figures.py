"""One figure, and rows of figures: `taba get`, `taba watch`, `taba who`, and a line a Tab as `taba agg` shows it on a terminal."""

from __future__ import annotations

import math
import operator
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click
from rich.cells import cell_len, set_cell_size

from taba import paths
from taba.bounds import MAX_WHO
from taba.cli import show
from taba.cli.sharing import (
    FORMATS,
    PARTIAL,
    SERVER,
    TIMEOUT,
    Number,
    command_with,
    complete_names,
    form,
    meant_by,
    print_drawn,
    print_json,
    print_rows,
    query_of,
)
from taba.cli.units import scaled
from taba.plural import many
from taba.query import Query, QueryError

NO, COULD_NOT_ASK, TIMED_OUT = 1, 2, 124  # how commands end that answer a question; 0: yes
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.:-=+*#"
WATCH_SECONDS = 1.0  # between two looks

_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')
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


class ShownColumn(NamedTuple):
    """One column of a table of Tabs or Clients; `least`: of how many columns a terminal has to be for it to have room."""

    title: str
    width: int
    show: Callable[[Mapping[str, Any], bool], str]
    least: int = 0


def _value(key: str) -> Callable[[Mapping[str, Any], bool], str]:
    return lambda line, is_ascii: _told(line.get(key), line.get("unit"), is_ascii)


def _told(value: Any, unit: str | None, is_ascii: bool) -> str:
    """A number with its unit; of what is a text its beginning."""
    return _cut(show.plain(value), TEXT, is_ascii) if isinstance(value, str) else scaled(value, unit)


def _count(key: str) -> Callable[[Mapping[str, Any], bool], str]:
    return lambda line, is_ascii: scaled(line.get(key))


def _hour(line: Mapping[str, Any], is_ascii: bool) -> str:
    """What came within the hour; of a Type without windows what it is now, marked as that."""
    if line.get("1h") is not None:
        return scaled(line["1h"])
    now = line.get("value")
    return "-" if now is None else f"={_told(now, line.get('unit'), is_ascii)}"


def _trend(line: Mapping[str, Any], is_ascii: bool) -> str:
    return sparkline(line.get("sparkline"), TREND, is_ascii).ljust(TREND)


NAME, TREND, TEXT = 26, 12, 10
OF_TABS = (  # 79 with the name and a blank between
    ShownColumn("RATE", 8, _count("rate")),
    ShownColumn("1M", 8, _count("1m"), 97),
    ShownColumn("1H", 8, _hour),
    ShownColumn("P50", 7, _value("p50")),
    ShownColumn("P99", 7, _value("p99")),
    ShownColumn("MAX", 7, _value("max"), 97),
    ShownColumn("TREND", TREND, _trend),
    ShownColumn("CLIENTS", 5, _count("clients")),
)
OF_GROUPS = (
    ShownColumn("RATE", 8, _count("rate")),
    ShownColumn("1M", 8, _count("1m")),
    ShownColumn("1H", 8, _hour),
    ShownColumn("P50", 7, _value("p50")),
    ShownColumn("P99", 7, _value("p99")),
    ShownColumn("MAX", 7, _value("max")),
)
OF_CLIENTS = (
    ShownColumn("1M", 8, _count("1m")),
    ShownColumn("1H", 8, _count("1h")),
    ShownColumn("P50", 7, _value("p50")),
    ShownColumn("P99", 7, _value("p99")),
    ShownColumn("MAX", 7, _value("max")),
    ShownColumn("VALUE", TEXT, _value("value")),
)


def row(line: Mapping[str, Any], columns: int = 79, is_ascii: bool = False, shown: Sequence[ShownColumn] = OF_TABS) -> str:
    """A row of figures as one line of `columns` characters at the most; the name has what is left over."""
    there = [column for column in shown if column.least <= columns]
    room = max(NAME, columns - sum(column.width + 1 for column in there))
    name = set_cell_size(_cut_inside(_without_keys(show.plain(line["name"]), room), room, is_ascii), room)
    if "error" in line and line.get("value") is None and line.get("1h") is None:
        return _cut(f"{name} ! {show.plain(line['error'])}", columns, is_ascii)
    cells = [column.show(line, is_ascii) for column in there]
    # by the width on the screen: an ideogram takes two places
    cells = [" " * (column.width - cell_len(cell)) + cell for column, cell in zip(there, cells, strict=True)]
    return _cut(" ".join([name, *cells]), columns, is_ascii)


def head(columns: int = 79, shown: Sequence[ShownColumn] = OF_TABS, name: str = "NAME") -> str:
    """The names of the columns, as `row` places them."""
    there = [column for column in shown if column.least <= columns]
    cells = [name.ljust(max(NAME, columns - sum(column.width + 1 for column in there)))]
    for column in there:
        title = column.title.ljust(column.width) if column.show is _trend else column.title.rjust(column.width)
        # one that is longer than its column stands above some of the one before
        cells[-1] = cells[-1][: len(cells[-1]) - (len(title) - column.width)]
        cells.append(title)
    return " ".join(cells)


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
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1) + _mark(is_ascii)


def _mark(is_ascii: bool) -> str:
    return "~" if is_ascii else "…"


def _without_keys(name: str, width: int) -> str:
    """A Tab's name; where that is too long its labels' values alone, which tell it from others of its base name."""
    if cell_len(name) <= width or not name.endswith("}"):
        return name
    base = name.partition("{")[0]
    return f"{base}{{{','.join(value for _, value in _LABEL.findall(name[len(base) :]))}}}"


def _cut_inside(text: str, width: int, is_ascii: bool) -> str:
    """Cut in the middle: of Tabs of one name the labels, and of others often the last words, tell which is which."""
    if cell_len(text) <= width:
        return text
    first = (width - 1) // 2
    last = set_cell_size(text[::-1], width - 1 - first)[::-1]
    return set_cell_size(text, first) + _mark(is_ascii) + last


def sum_of(name: str, rows: Sequence[Mapping[str, Any]], aggregate: Mapping[str, Any]) -> dict[str, Any]:
    """One row of the Aggregate of several rows' Tabs together."""
    figures = {key: paths.first(aggregate, places) for key, places in paths.FIGURES.items()}
    count = figures["1m"]
    lines = [line["sparkline"] for line in rows if line.get("sparkline")]
    return {
        "name": name,
        "unit": rows[0].get("unit"),
        "rate": math.fsum(line.get("rate") or 0 for line in rows) if count is None else count / 60,
        **figures,
        "sparkline": [math.fsum(count or 0 for count in counts) for counts in zip(*lines, strict=True)] if lines else None,
    }


def print_table(rows: Sequence[Mapping[str, Any]], columns: int, shown: Sequence[ShownColumn] = OF_TABS, name: str = "NAME") -> None:
    """Rows under their head, on a terminal."""
    is_ascii = knows_ascii_only()
    columns = _enough(rows, columns, shown)
    print(head(columns, shown, name))
    for line in rows:
        print(row(line, columns, is_ascii, shown))


def _enough(rows: Sequence[Mapping[str, Any]], columns: int, shown: Sequence[ShownColumn]) -> int:
    """What such a table needs of a terminal of so many columns: figures stand near their names."""
    longest = max((cell_len(show.plain(line["name"])) for line in rows), default=NAME)
    there = [column for column in shown if column.least <= columns]
    needed = max(NAME, longest) + sum(column.width + 1 for column in there)
    return min(columns, max(needed, *(column.least for column in there)))


def print_groups(found: Mapping[str, Any], units: Mapping[str, str | None], limit: int, columns: int) -> None:
    """Aggregates of groups of Tabs as rows, what moves most first."""
    rows = []
    for name, aggregate in found.items():
        figures = {key: paths.first(aggregate, places) for key, places in paths.FIGURES.items()}
        error = {"error": str(aggregate["error"])} if isinstance(aggregate, Mapping) and "error" in aggregate else {}
        rate = None if figures["1m"] is None else figures["1m"] / 60
        rows.append({"name": name, "unit": units.get(name), "rate": rate, **figures, **error})
    rows.sort(key=lambda line: -math.inf if line["rate"] is None else line["rate"], reverse=True)
    print_table(rows[:limit], columns, OF_GROUPS)
    if len(rows) > limit:
        print(f"{len(rows) - limit} more; --limit shows them")


def knows_ascii_only() -> bool:
    """Whether what reads this has no blocks."""
    try:
        (BLOCKS + "…").encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return True
    return False


def print_clients(tab: str, by_client: Mapping[str, Any], unit: str | None, limit: int, columns: int) -> None:
    """The Clients of a Tab as rows, those with the greatest first."""
    rows = [_client_row(client, projection, unit) for client, projection in by_client.items()]
    rows.sort(key=lambda line: -math.inf if line["rank"] is None else line["rank"], reverse=True)
    print(show.plain(tab))
    print_table(rows[:limit], columns, OF_CLIENTS, "CLIENT")
    if len(rows) > limit:
        print(f"{len(rows) - limit} more; --limit shows them")
    print()


def _client_row(client: str, projection: Any, unit: str | None) -> dict[str, Any]:
    figures: dict[str, Any] = {key: paths.first(projection, places) for key, places in paths.FIGURES.items()}
    if isinstance(projection, Mapping):
        if figures["value"] is None and isinstance(projection.get("value"), str):
            figures["value"] = projection["value"]
        if "error" in projection:
            figures["error"] = str(projection["error"])
    rank = next((figures[key] for key in ("1h", "value", "p99") if isinstance(figures[key], (int, float))), None)
    return {"name": client, "unit": unit, "rank": rank, **figures}


# --- one figure ---


_command = command_with(SERVER, TIMEOUT)


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
@click.argument("name", shell_complete=complete_names)
@click.argument("path", callback=_path)
@click.option("--above", type=Number(), metavar="N", help="Print no figure; end with 0 where it is above N, else with 1.")
@click.pass_context
def get(context: click.Context, server: str, timeout: float, name: str, path: str, above: float | None) -> None:
    """One figure of a Tab's Aggregate, as a raw number in base units.

    Ends with 0; with 1 where nothing is there (or it is not above N); with 2 where it could not be asked.
    """
    try:
        query = query_of(server, timeout=timeout)
        aggregate = aggregate_of(query, name)
    except QueryError as error:
        print(f"taba get: {show.plain(error)}", file=sys.stderr)
        context.exit(COULD_NOT_ASK)
    value = paths.NOTHING if aggregate is paths.NOTHING else paths.find(aggregate, path)
    wrong = _why_nothing(query, name, path, aggregate, value, wants_number=above is not None)
    if wrong is not None:
        print(f"taba get: {show.plain(wrong)}", file=sys.stderr)
        context.exit(NO)
    if above is not None:
        context.exit(0 if value > above else NO)
    if isinstance(value, str):
        print(show.plain(value) if sys.stdout.isatty() else value)
    else:
        print_json(value)


def _why_nothing(query: Query, name: str, path: str, aggregate: Any, value: Any, wants_number: bool) -> str | None:
    """What is wrong with the figure at a path, or None."""
    if aggregate is paths.NOTHING:
        return f"no Tab {name!r}; {meant_by(name, query)}"
    why = f": {aggregate['error']}" if isinstance(aggregate, Mapping) and aggregate.get("error") else ""
    if value is paths.NOTHING or value is None:
        return f"{name} has nothing at {path}; taba agg {name} --json shows what it has{why}"
    if wants_number and not is_number(value):
        return f"{name} has no number at {path}; taba agg {name} --json shows what it has{why}"
    return None


def is_number(value: Any) -> bool:
    """Whether it can be compared with one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
@click.argument("name", shell_complete=complete_names)
@click.option("--until", required=True, metavar="EXPRESSION", callback=_until, help="PATH, a comparison and a number.")
@click.option("--within", type=Number(0, 1e9), metavar="SECONDS", help="How long to wait; without, for ever.")
@click.pass_context
def watch(context: click.Context, server: str, timeout: float, name: str, until: tuple[str, str, float], within: float | None) -> None:
    """Wait until a figure of a Tab is what you say; each value that it has meanwhile is a line.

    Ends with 0 when it is; with 124 when the time is over; with 2 where it could not be asked.
    """
    query, deadline = query_of(server, timeout=timeout), None if within is None else time.monotonic() + within
    path, sign, number = until
    shown: Any = paths.NOTHING
    is_told = False
    while True:
        try:
            aggregate = aggregate_of(query, name)
            value = paths.NOTHING if aggregate is paths.NOTHING else paths.find(aggregate, path)
            if not (is_number(value) or is_told):
                is_told = True
                wrong = _why_nothing(query, name, path, aggregate, value, wants_number=True)
                print(f"taba watch: waiting: {show.plain(wrong)}", file=sys.stderr, flush=True)
        except QueryError as error:
            print(f"taba watch: {show.plain(error)}", file=sys.stderr)
            context.exit(COULD_NOT_ASK)
        if value is not shown and value != shown and value is not paths.NOTHING:
            print_json(value)
            sys.stdout.flush()
            shown = value
        if is_number(value) and _COMPARE[sign](value, number):
            return
        left = WATCH_SECONDS if deadline is None else min(WATCH_SECONDS, deadline - time.monotonic())
        if left <= 0:
            print(f"taba watch: {show.plain(name)}: not {path} {sign} {number:g} within {within:g} s", file=sys.stderr)
            context.exit(TIMED_OUT)
        time.sleep(left)


@_command("who", "  taba who bids_won\n  taba who render_seconds 1h.p99 --limit 3")
@click.argument("name", shell_complete=complete_names)
@click.argument("path", required=False, callback=_path)
@click.option("--limit", type=click.IntRange(1, MAX_WHO), default=5, show_default=True, metavar="N", help="How many Clients at either end.")
@PARTIAL
@FORMATS
@click.pass_context
def who(context: click.Context, server: str, timeout: float, name: str, path: str | None, limit: int, as_json: bool) -> None:
    """Which Clients hold the greatest and the least of a figure, and what share of all each one has.

    Ends with 0; with 1 where no Client has such a figure; with 2 where it could not be asked.
    """
    try:
        query = query_of(server, timeout=timeout)
        found = query.who(name=name, path=path, limit=limit)
    except QueryError as error:
        print(f"taba who: {show.plain(error)}", file=sys.stderr)
        context.exit(COULD_NOT_ASK)
    if as_json:
        print_json(found)
        return
    if form() is not None:
        ends = ((tab, end, item, one) for tab, one in found.items() for end in ("greatest", "least") for item in one[end])
        columns = ("tab", "path", "end", "client", "value", "share")
        print_rows(columns, ([tab, one["path"], end, item["client"], item["value"], item["share"]] for tab, end, item, one in ends))
    for tab, one in found.items():
        if form() is None:
            _print_ends(tab, one)
        if "error" in one:
            print(f"{show.plain(tab)}: {show.plain(one['error'])}", file=sys.stderr)
    if not any(one["clients"] for one in found.values()):
        if not found:
            print(f"taba who: {show.plain(f'no Tab {name!r}; {meant_by(name, query)}')}", file=sys.stderr)
        context.exit(NO)


def _print_ends(tab: str, one: Mapping[str, Any]) -> None:
    """The Clients at either end of one Tab's figure, for people."""
    if not one["clients"]:
        return  # the reason is told beside
    if not sys.stdout.isatty():
        for end in ("greatest", "least"):
            for item in one[end]:
                print(show.plain(f"{tab}: {end} {item['client']} {item['value']} {_share(item)}"))
        return
    told = f"{one['path']}, {many(one['clients'], 'Client')}, skew {scaled(one['skew'])}"
    greatest = {item["client"] for item in one["greatest"]}
    least = [item for item in one["least"] if item["client"] not in greatest]  # of few Clients nobody stands at both ends
    ends = (("greatest", one["greatest"]), ("least", least[::-1]))
    rows = [[end, item["client"], _figure(one, item["value"]), _share(item)] for end, items in ends for item in items]
    print(f"{show.plain(tab)}: {told}")
    print_drawn(show.table(["", "client", "value", "share"], rows))


def _figure(one: Mapping[str, Any], value: Any) -> str:
    """A figure with its unit, where its path is not that of a count."""
    return show.number(show.figure(str(one["path"] or "").rpartition(".")[2], value, one.get("unit")))


def _share(item: Mapping[str, Any]) -> str:
    return "-" if item["share"] is None else f"{100 * item['share']:.1f} %"


COMMANDS = (get, watch, who)
