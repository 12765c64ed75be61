"""Draws a report of `./run bench --json` as SVG: `python -m benchmarks.charts REPORT DIRECTORY`, or `./run bench --charts DIRECTORY`.

A chart for each benchmark of the report that CHARTS names; the same report gives the same bytes. No script, nothing from elsewhere: an
<img> shows it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from benchmarks.rows import shown

OURS, THEIRS, FLOOR = "#0a7d6c", "#9aa5b1", "#d9822b"
WIDTH, LEFT, RIGHT = 860, 380, 120  # pixels: of all, for names, for figures
TOP, STEP, THICK, FOOT = 44, 24, 16, 18
GRID, INK, PALE = "#e3e6ea", "#222222", "#6b7480"


class Bar(NamedTuple):
    """One figure of a chart."""

    name: str
    figure: float
    unit: str
    colour: str


Rows = list[dict[str, Any]]


class Chart(NamedTuple):
    """What is drawn of one benchmark's rows."""

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
        yield Bar(row["name"], row["median"], row["unit"], OURS if "Taba" in row["name"] else THEIRS)


def _served(rows: Rows) -> Iterator[Bar]:
    for row in rows:
        if row["unit"] == "%":
            yield Bar(row["name"], max(row["median"], 0.0), row["unit"], OURS if "Taba" in row["name"] else THEIRS)


def _aggregators(rows: Rows) -> Iterator[Bar]:
    for row in rows:
        yield _bar(row)


def _freshness(rows: Rows) -> Iterator[Bar]:
    for row in rows:
        if row["unit"] in ("s", "cores"):
            yield Bar(row["name"], row["median"], row["unit"], OURS)


def _bar(row: Mapping[str, Any], before: str = "") -> Bar:
    is_peer = row["name"].startswith("peer: ")
    name = row["name"].removeprefix("peer: ") if is_peer else before + row["name"]
    return Bar(name, row["median"], row["unit"], THEIRS if is_peer else OURS)


CHARTS = (
    Chart("record", "What one record costs the application, in ns (logarithmic)", True, _record),
    Chart("beside", "One hot metric, four at once: ns a call of all together (logarithmic)", True, _beside),
    Chart("served", "What 20 events add to a request of an application, in %", False, _served),
    Chart("aggregators", "Lines of StatsD a second of one core", False, _aggregators),
    Chart("cluster", "The cluster of 2012 on this machine: seconds to visible, cores", False, _freshness),
    Chart("where", "Where the time of Agent and Server goes, in cores", False, _freshness),
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
    """What must be known to read the figures: the machine, and whether they mean anything."""
    about = report.get("machine", {})
    said = [f"{about['cpu']}, {about['cores']} cores, Python {about['python']}"] if about else []
    if report.get("quick"):
        said.append("a quick run, which shows orders of magnitude alone")
    if about and about["load_at_start"] > about["cores"] / 2:
        said.append(f"others had the machine as well (load {about['load_at_start']:.0f})")
    return "; ".join(said)


def render(chart: Chart, bars: list[Bar], circumstances: str = "") -> str:
    """The SVG of one chart, its bars in their order from the top; of a logarithmic one all figures are above 0."""
    foot = FOOT if circumstances else 0
    height = TOP + STEP * len(bars) + 34 + foot
    least, most = _range([bar.figure for bar in bars], chart.is_logarithmic)

    def across(figure: float) -> float:
        share = math.log(figure / least, most / least) if chart.is_logarithmic else figure / most
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def text(x: float, y: float, content: str, more: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(content)}</text>'

    lines = [text(12, 24, chart.title, f'fill="{INK}" font-size="15" font-weight="600"')]
    for mark in _marks(least, most, chart.is_logarithmic):
        x = across(mark)
        lines.append(f'<path d="M{x:.1f} {TOP - 6}V{height - 26 - foot}" stroke="{GRID}"/>')
        lines.append(text(x, height - 10 - foot, f"{mark:,g}", f'fill="{PALE}" text-anchor="middle"'))
    for place, bar in enumerate(bars):
        y, end = TOP + STEP * place, across(bar.figure)
        middle = y + THICK / 2 + 4
        lines.append(text(LEFT - 8, middle, bar.name, f'fill="{INK}" text-anchor="end"'))
        lines.append(f'<rect x="{LEFT}" y="{y}" width="{max(end - LEFT, 1):.1f}" height="{THICK}" rx="2" fill="{bar.colour}"/>')
        lines.append(text(max(end, LEFT + 1) + 6, middle, shown(bar.figure, bar.unit), f'fill="{INK}"'))
    if circumstances:
        lines.append(text(12, height - 10, circumstances, f'fill="{PALE}" font-size="11"'))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    font = 'font-family="system-ui, sans-serif" font-size="12"'
    return f'{head} {font} role="img">\n<title>{escape(chart.title)}</title>\n<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(
        [*lines, "</svg>\n"]
    )


def _range(figures: list[float], is_logarithmic: bool) -> tuple[float, float]:
    """Where the axis begins and ends: at powers of ten, or at 0 and a round number."""
    most = max(figures) or 1.0
    if is_logarithmic:
        # a bar that would end where the axis begins could not be seen
        return 10 ** math.floor(math.log10(min(figures) * 0.99)), 10 ** math.ceil(math.log10(most))
    size = 10 ** math.floor(math.log10(most))
    return 0.0, math.ceil(most / size) * size


def _marks(least: float, most: float, is_logarithmic: bool) -> list[float]:
    if is_logarithmic:
        return [least * 10**power for power in range(round(math.log10(most / least)) + 1)]
    return [most * quarter / 4 for quarter in range(5)]


def main(report: str, directory: str) -> None:
    for path in draw(json.loads(Path(report).read_text()), Path(directory)):
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
