"""How answers look on a terminal: by their shape alone, never by the name of a Type.

What comes from elsewhere (names, values) is shown without its control characters: a label must not move the cursor.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from taba.cli import units
from taba.plural import many

LONG_KEY = 6  # characters; what is longer is no name of a field but somebody's value
LEAST_MOMENT = 1e9  # Unix seconds: 2001; what is less is hardly a moment, but a count that is called so, or a value beside another
MEASURED = 10_000  # columns: more than any terminal has, so that a table tells how wide it would like to be
OF_ASKERS = ("greatest", "each", "displaced")  # what is told of what has a bound where whoever asks has a share
MIN_COLUMN = 20  # of a terminal that is too narrow for anything
MAX_ROWS = 20  # of one list inside a Projection; --json has them all

AGE = "age"  # of a store, in minutes

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def plain(text: object) -> str:
    """`text` with every control character written as an escape."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in _UNSEEN else c for c in text)


def escaped(text: str) -> str:
    """JSON text without control characters, which stand as escapes of JSON then: it means the same."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(json.dumps(c)[1:-1] if c != "\n" and unicodedata.category(c) in _UNSEEN else c for c in text)


def number(value: Any) -> str:
    """A value in few characters: five significant digits below 1,000, whole above, nothing as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    if isinstance(value, float) and math.isfinite(value) and ((abs(value) < 1000 and not value.is_integer()) or abs(value) >= 1e15):
        return f"{value:.5g}"
    return f"{value:,.0f}"


def tab(title: str, content: Any, note: str = "", unit: str | None = None) -> RenderableType:
    """One Projection or Aggregate under its name. `unit`: of its values, which are shown as people read them."""
    head = Text(plain(title), style="bold")
    if note:
        head.append(f"  {plain(note)}", style="not bold cyan")
    return Group(head, Padding(shape(with_unit(content, unit)), (0, 0, 1, 2), expand=False))


class Figure(str):
    """A number as people read it: stands right in a table."""


def figure(key: str, value: Any, unit: str | None) -> Any:
    """What is shown of the figure `key`: a duration, a size or a moment as such, another value as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if key in units.TIMES and value >= LEAST_MOMENT:
        return units.moment(value) or value
    return Figure(units.scaled(value, unit)) if units.is_scaled(unit) and key not in units.COUNTS else value


def with_unit(content: Any, unit: str | None, key: str = "") -> Any:
    """A Projection or Aggregate whose figures are shown in `unit`."""
    if isinstance(content, Mapping):
        return {name: with_unit(value, unit, str(name)) for name, value in content.items()}
    if key == "values" and isinstance(content, list):
        return [_moved(item) for item in content]
    return figure(key, content, unit)


def _moved(item: Any) -> Any:
    """A value with its time, [time, value], with that as people read it; anything else as it is."""
    return [figure("time", item[0], None), item[1]] if isinstance(item, list) and len(item) == 2 else item


def shape(content: Any) -> RenderableType:
    """A dictionary as tables: dictionaries with the same keys are rows of one, plain values are lines."""
    if not isinstance(content, Mapping):
        return Text(number(content))
    if not content:
        return Text("empty", style="dim")
    parts: list[RenderableType] = []
    for keys, group in groupby(content.items(), key=lambda item: _row_keys(item[1])):
        items = list(group)
        parts.append(_plain_values(dict(items)) if keys is None else Rows(keys, items))
    return Group(*parts)


class Rows:
    """Dictionaries with the same keys as rows of one table; as its columns where that is too wide, or where one has long keys."""

    def __init__(self, keys: tuple[str, ...], items: list[tuple[str, Mapping[str, Any]]]):
        self.keys, self.items = keys, items

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = table(["", *self.keys], [[name, *values.values()] for name, values in self.items])
        wide.columns[0].style = "cyan"
        has_long_keys = len(self.items) == 1 and any(len(key) > LONG_KEY for key in self.keys)
        if not has_long_keys and Measurement.get(console, options.update(max_width=MEASURED), wide).maximum <= options.max_width:
            yield wide
            return
        tall = table(
            ["", *(name for name, _ in self.items)], [[key, *(values[key] for _, values in self.items)] for key in self.keys[:MAX_ROWS]]
        )
        tall.columns[0].style = "cyan"
        yield tall
        if len(self.keys) > MAX_ROWS:
            yield Text(f"… {len(self.keys) - MAX_ROWS} more", style="dim")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table; columns of numbers stand right."""
    rows = [list(row) for row in rows]
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold dim", show_edge=False)
    for index, column in enumerate(columns):
        numeric = all(row[index] is None or isinstance(row[index], (int, float, Figure)) for row in rows) and bool(rows)
        result.add_column(Text(plain(column)), justify="right" if numeric else "left", overflow="fold", no_wrap=numeric)
    for row in rows:
        result.add_row(*(Text(number(value)) for value in row))
    return result


def named_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Rows of texts as lines under the names of their columns, of `width` at the most; what is longer goes on below, in its column.

    The first of each row is a name, which is never cut or divided: one that leaves no room stands on a line of its own.
    """
    titles = [column.upper() for column in columns]
    told = [[plain(cell) for cell in row] for row in rows]
    between = [max(map(cell_len, (titles[place], *(row[place] for row in told)))) + 2 for place in range(1, len(columns) - 1)]
    last = max(map(cell_len, (titles[-1], *(row[-1] for row in told))))
    longest = max(map(cell_len, (titles[0], *(row[0] for row in told))))
    room = min(longest, max(MIN_COLUMN, width - 2 - sum(between) - min(last, width // 3)))
    left = max(MIN_COLUMN, width - 2 - room - sum(between))
    console = Console(width=left)
    for name, *cells in [titles, *told]:
        if cell_len(name) > room:
            yield name
            name = ""
        head = set_cell_size(name, room) + "  "
        head += "".join(set_cell_size(cell, size) for cell, size in zip(cells, between, strict=False))
        told_last = [cells[-1]] if cell_len(cells[-1]) <= left else [part.plain for part in Text(cells[-1]).wrap(console, left)]
        for part in told_last:
            yield (head + part).rstrip()
            head = " " * cell_len(head)


def _row_keys(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, Mapping) and value and not any(isinstance(item, Mapping) for item in value.values()):
        return tuple(value)
    return None


def _plain_values(values: dict[str, Any]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan")
    grid.add_column(overflow="fold")
    for key, value in values.items():
        if isinstance(value, Mapping):
            cell: RenderableType = shape(value)
        elif isinstance(value, list) and value and all(isinstance(item, list) for item in value):
            cell = Text("\n".join("  ".join(number(field) for field in item) for item in value[:MAX_ROWS]))
            if len(value) > MAX_ROWS:
                cell.append(f"\n… {len(value) - MAX_ROWS} more", style="dim")
        else:
            cell = Text(number(value))
        grid.add_row(Text(plain(key)), cell)
    return grid


def status(role: str, url: str, answer: Mapping[str, Any]) -> RenderableType:
    """What a Server or Agent says of itself; its problems last, where the eye rests."""
    if role == "Server" and "agent" in answer and "folded" not in answer:
        role = "Agent"  # whoever was taken for a Server says what it is
    head = Text(f"{role} ", style="bold").append(plain(url), style="cyan")
    rest = {key: value for key, value in answer.items() if key not in ("problems", "rings", "handlers")}
    parts: list[RenderableType] = [head, Padding(_settings(rest), (0, 0, 0, 2), expand=False)]
    for key in ("handlers", "rings"):
        if answer.get(key):
            parts.append(Padding(_listing(key, answer[key]), (1, 0, 0, 2), expand=False))
    problems = answer.get("problems") or []
    if problems:
        parts.append(Padding(Group(*(Text("! " + plain(problem), style="yellow") for problem in problems)), (1, 0, 0, 2), expand=False))
    else:
        parts.append(Text("  no problems", style="green"))
    return Group(*parts, Text(""))


def others(servers: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What is wrong at other Servers, as they said lately; those that are well are counted."""
    parts: list[RenderableType] = [Text(many(len(servers), "other Server"), style="bold")]
    well = 0
    for one in servers:
        problems = one.get("problems")
        if problems is None:
            parts.append(Text(f"  {plain(one.get('url'))}: has not said what is wrong there: ask it", style="yellow"))
        elif problems:
            parts += [Text(f"  ! {plain(one.get('url'))}: {plain(problem)}", style="yellow") for problem in problems]
        else:
            well += 1
    if well:
        parts.append(Text(f"  no problems at {well}", style="green"))
    return Group(*parts, Text(""))


def _settings(values: Mapping[str, Any]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan")
    grid.add_column(overflow="fold")
    for key, value in values.items():
        grid.add_row(plain(key).replace("_", " "), Text(_one_line(value, key)))
    return grid


def _one_line(value: Any, key: str = "", unit: str | None = None) -> str:
    """`unit`: of what holds it."""
    unit = units.unit_of(key) or unit
    if isinstance(value, Mapping) and {"count", "most"} <= value.keys() <= {"count", "most", *OF_ASKERS}:  # of what has a bound
        said = {name: number(_said(key, one, unit)) for name, one in value.items()}
        of_asker = f" (one asker {said['greatest']} of {said['each']})" if value.get("greatest") else ""
        gave_up = f", {said['displaced']} displaced" if value.get("displaced") else ""
        return f"{said['count']} of {said['most']}{of_asker}{gave_up}"
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(name)} {_one_line(item, str(name), unit)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_one_line(item, key, unit) for item in value) or "none"
    return number(_said(key, value, unit))


def _said(key: str, value: Any, unit: str | None = None) -> Any:
    """What a status says under `key`, as people read it: sizes and durations by the names that end so, or by what holds them."""
    if key == "pid":
        return str(value)
    if key == AGE and isinstance(value, int):
        return Figure(units.scaled(value * 60.0, units.SECONDS))
    return figure(key, value, units.unit_of(key) or unit)


def _listing(key: str, content: Any) -> RenderableType:
    rows: list[Mapping[str, Any]]
    if isinstance(content, Mapping):
        rows = [{key.rstrip("s"): name, **(item if isinstance(item, Mapping) else {"": item})} for name, item in content.items()]
    else:
        rows = [item if isinstance(item, Mapping) else {key: item} for item in content]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = (
        [
            _one_line(value, column) if isinstance(value, (Mapping, list)) else _said(column, value)
            for column, value in ((column, row.get(column)) for column in columns)
        ]
        for row in rows[:MAX_ROWS]
    )
    drawn: RenderableType = Listing(table([column.replace("_", " ") for column in columns], cells), rows[:MAX_ROWS])
    if len(rows) > MAX_ROWS:
        return Group(drawn, Text(f"… {len(rows) - MAX_ROWS} more", style="dim"))
    return drawn


class Listing:
    """Things as rows of a table; where that is too wide, each under the name of its Client, or else its first."""

    def __init__(self, wide: Table, rows: Sequence[Mapping[str, Any]]):
        self.wide, self.rows = wide, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if Measurement.get(console, options.update(max_width=MEASURED), self.wide).maximum <= options.max_width:
            yield self.wide
            return
        for row in self.rows:
            key = "client" if row.get("client") else next(iter(row), "")
            head = Text(f"{plain(key)} ", style="dim").append(plain(row.get(key, "")), style="not dim cyan")
            yield head
            yield Padding(Text(_one_line({name: value for name, value in row.items() if name != key})), (0, 0, 0, 2))
