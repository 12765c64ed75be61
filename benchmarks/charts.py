"""Draws a report of `./run bench --json` as SVG: `python -m benchmarks.charts REPORT DIRECTORY`, or `./run bench --charts DIRECTORY`.

A chart for each benchmark of the report that CHARTS names; the same report gives the same bytes. No script, nothing from elsewhere: an
<img> shows it, dark where whoever looks prefers that.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from benchmarks.aggregators import WHOLE
from benchmarks.rows import shown
from benchmarks.served import AGAIN

OURS, THEIRS, FLOOR = "ours", "theirs", "floor"  # whose a bar is: its class
WIDTH, LEFT, RIGHT = 860, 350, 160  # pixels: of all, for names, for figures
TOP, STEP, THICK = 44, 24, 16
FOOT_CHARACTERS = 140  # of what stands at the foot, a line
HEADING, AXIS = 26, 34  # of a part: its title above, the figures of its axis below
NOTE_STEP, NOTE_CHARACTERS = 14, 86  # a line of what must be known beside a figure, as long as there is room for
STEPS_MOST = 7  # along a plain axis
STYLE = """<style>
.ground { fill: #ffffff } .grid { stroke: #e3e6ea } .zero { stroke: #6b7480 } .ink { fill: #222222 }
.pale { fill: #59636e; stroke: #ffffff; stroke-width: 3; paint-order: stroke }
.ours { fill: #0a7d6c } .theirs { fill: #9aa5b1 } .floor { fill: #d9822b }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117 } .grid { stroke: #2b323b } .zero { stroke: #8b949e } .ink { fill: #e6edf3 }
.pale { fill: #9aa5b1; stroke: #0d1117 }
.ours { fill: #2bb8a3 } .theirs { fill: #6b7785 } .floor { fill: #d9822b }
}
</style>"""


class Bar(NamedTuple):
    """One figure of a chart, in the part of it that has this heading."""

    name: str
    figure: float
    unit: str
    whose: str
    note: str = ""  # what it does not do, or what must be known to read it
    heading: str = ""
    mark: str = ""  # beside the figure


Rows = list[dict[str, Any]]


class Chart(NamedTuple):
    """What is drawn of one benchmark's rows. Bars of one heading stand together, and have an axis of their own."""

    benchmark: str
    title: str
    is_logarithmic: bool
    bars: Callable[[Rows], Iterator[Bar]]


def _record(rows: Rows) -> Iterator[Bar]:
    for row in rows:
        if row["unit"] == "ns" and (
            row["name"].startswith("peer: ") or row["name"] in ("record(1.0)", "inc()", "record(1.0), pure Python")
        ):
            yield _bar(row, "Taba, ")
    floor = next((row["floor"] for row in rows if row["floor"]), None)
    if floor:
        yield Bar(f"floor: {floor['name']}", floor["median"], "ns", FLOOR)


def _beside(rows: Rows) -> Iterator[Bar]:
    for row in rows:
        of_whom, _, name = row["name"].partition(", ")
        yield Bar(name, row["median"], row["unit"], OURS if name.startswith("Taba") else THEIRS, row["note"], of_whom)


def _served(rows: Rows) -> Iterator[Bar]:
    for row in rows:
        if row["unit"] == "%":
            whose = OURS if "Taba" in row["name"] else FLOOR if row["name"].startswith(AGAIN) else THEIRS
            rounds = f"its rounds: {shown(row['least'], '%')} to {shown(row['most'], '%')}"
            note = "; ".join(filter(None, (rounds, row["note"])))
            yield Bar(row["name"].removeprefix("20 events: "), row["median"], row["unit"], whose, note)


def _aggregators(rows: Rows) -> Iterator[Bar]:
    for row in rows:
        yield _bar(row)._replace(mark="durable" if row["name"] == WHOLE else "")


def _cluster(rows: Rows) -> Iterator[Bar]:
    for heading, unit in (("seconds from the record until all see it", "s"), ("cores that Agent, Server and store use", "cores")):
        for row in rows:
            if row["unit"] == unit:
                rate, _, what = row["name"].partition(": ")
                yield Bar(f"{rate}, {what.split()[-1]}" if unit == "s" else rate, row["median"], unit, OURS, row["note"], heading)


def _where(rows: Rows) -> Iterator[Bar]:
    for row in rows:
        if row["unit"] == "cores":
            yield Bar(row["name"], row["median"], row["unit"], OURS)


def _bar(row: Mapping[str, Any], before: str = "") -> Bar:
    is_peer = row["name"].startswith("peer: ")
    name = row["name"].removeprefix("peer: ") if is_peer else before + row["name"]
    return Bar(name, row["median"], row["unit"], THEIRS if is_peer else OURS, row["note"])


CHARTS = (
    Chart("record", "What one record costs the application, in ns (logarithmic)", True, _record),
    Chart("beside", "One hot metric, four at once: ns a call of all together (logarithmic)", True, _beside),
    Chart("served", "What 20 events add to a request of an application, in % of its processor time", False, _served),
    Chart("aggregators", "Lines of StatsD a second of one core", False, _aggregators),
    Chart("cluster", "The cluster of 2012 on this machine, by events a minute", False, _cluster),
    Chart("where", "Where the time of Agent and Server goes, in cores", False, _where),
)


def draw(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """A file for each benchmark of the report that has a chart; those."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for chart in CHARTS:
        found = report["benchmarks"].get(chart.benchmark, {})
        if "rows" in found and (bars := [bar for bar in chart.bars(found["rows"]) if not chart.is_logarithmic or bar.figure > 0]):
            path = directory / f"bench-{chart.benchmark}.svg"
            path.write_text(render(chart, bars, _circumstances(report)))
            drawn.append(path)
    return drawn


def _circumstances(report: Mapping[str, Any]) -> str:
    """What must be known to read the figures: the machine, its phase, and whether they mean anything."""
    about = report.get("machine", {})
    said = [f"{about['cpu']}, {about['cores']} cores, Python {about['python']}"] if about else []
    if phase := about.get("empty_call_ns"):
        said.append(f"an empty C call took {phase['begin']:.3g} to {phase['end']:.3g} ns")
    if report.get("quick"):
        said.append("a quick run, which shows orders of magnitude alone")
    if about and about["load_at_start"] > about["cores"] / 2:
        said.append(f"others had the machine as well (load {about['load_at_start']:.0f})")
    return "; ".join(said)


def render(chart: Chart, bars: list[Bar], circumstances: str = "") -> str:
    """The SVG of one chart, its bars in their order from the top; of a logarithmic one all figures are above 0."""
    lines = [_text(12, 24, chart.title, "ink", 'font-size="15" font-weight="600"')]
    y = TOP
    for heading, of_part in groupby(bars, lambda bar: bar.heading):
        if heading:
            lines.append(_text(12, y + 12, heading, "ink", 'font-weight="600"'))
            y += HEADING
        part, y = _part(list(of_part), y, chart.is_logarithmic)
        lines += part
    for line in textwrap.wrap(circumstances, FOOT_CHARACTERS):
        lines.append(_text(12, y + 8, line, "pale", 'font-size="11"'))
        y += NOTE_STEP
    y += 4
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}"'
    font = 'font-family="system-ui, sans-serif" font-size="12"'
    ground = '<rect class="ground" width="100%" height="100%"/>'
    return "\n".join([f'{head} {font} role="img">', f"<title>{escape(chart.title)}</title>", STYLE, ground, *lines, "</svg>\n"])


def _part(bars: list[Bar], top: int, is_logarithmic: bool) -> tuple[list[str], int]:
    """Bars along one axis from `top` on, and where what comes next begins."""
    marks = _marks([bar.figure for bar in bars], is_logarithmic)
    least, most = marks[0], marks[-1]

    def across(figure: float) -> float:
        share = math.log(figure / least, most / least) if is_logarithmic else (figure - least) / (most - least)
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    zero = across(least if is_logarithmic else 0.0)
    drawn, y = [], top
    for bar in bars:
        end, middle = across(bar.figure), y + THICK / 2 + 4
        begin, width = min(zero, end), max(abs(end - zero), 1.0)
        drawn.append(_text(LEFT - 8, middle, bar.name, "ink", 'text-anchor="end"'))
        drawn.append(f'<rect class="{bar.whose}" x="{begin:.1f}" y="{y}" width="{width:.1f}" height="{THICK}" rx="2"/>')
        figure = shown(bar.figure, bar.unit) + (f" · {bar.mark}" if bar.mark else "")
        drawn.append(_text(begin + width + 6, middle, figure, "ink"))
        y += STEP
        for line in textwrap.wrap(bar.note, NOTE_CHARACTERS):
            drawn.append(_text(LEFT, y + 4, line, "pale", 'font-size="11"'))
            y += NOTE_STEP
    axis = []
    for mark in marks:
        x = across(mark)
        name = "zero" if mark == 0 and least < 0 else "grid"
        axis.append(f'<path class="{name}" d="M{x:.1f} {top - 6}V{y + 2}"/>')
        axis.append(_text(x, y + 16, f"{mark / 1e6:g} M" if mark >= 1e6 else f"{mark:,g}", "pale", 'text-anchor="middle"'))
    return axis + drawn, y + AXIS


def _text(x: float, y: float, content: str, name: str, more: str = "") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}"{more and " " + more}>{escape(content)}</text>'


def _marks(figures: list[float], is_logarithmic: bool) -> list[float]:
    """Where the axis begins and ends, and what is marked between: powers of ten, or round numbers, with 0 among them."""
    least, most = min(figures), max(figures)
    if is_logarithmic:
        # a bar that would end where the axis begins, or a little after, could not be seen: half of the least is on it, too
        first, last = math.floor(math.log10(least / 2)), math.ceil(math.log10(most))
        return [10.0**power for power in range(first, last + 1)]
    least, most = min(least, 0.0), max(most, 0.0)
    if least == most:
        most = 1.0
    size = 10.0 ** math.floor(math.log10(most - least))
    step = next(step for times in (0.1, 0.2, 0.5, 1, 2, 5) if (most - least) / (step := times * size) <= STEPS_MOST - 1)
    return [step * number for number in range(math.floor(least / step), math.ceil(most / step) + 1)]


def main(report: str, directory: str) -> None:
    for path in draw(json.loads(Path(report).read_text()), Path(directory)):
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
