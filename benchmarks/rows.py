"""What a benchmark gives: rows, each a figure beside its budget, its floor and its peer; and how they are shown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
from rich import box
from rich.table import Table
from rich.text import Text

from benchmarks.budgets import Budget


@attrs.frozen
class Figure:
    """The median of several rounds, with the least and the most of them."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, samples: Iterable[float]) -> Figure:
        found = list(samples)
        return cls(statistics.median(found), min(found), max(found), len(found))


@attrs.frozen
class Beside:
    """What a figure stands beside: a floor (what nobody can go below) or a peer, in the same unit, from the same rounds."""

    name: str
    figure: Figure


@attrs.frozen
class Row:
    """One figure. `note` says what must be known to read it."""

    name: str
    figure: Figure
    unit: str
    budget: Budget | None = None
    floor: Beside | None = None
    peer: Beside | None = None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **attrs.asdict(self.figure),
            "unit": self.unit,
            "budget": self.budget and {"sign": self.budget.sign, "bound": self.budget.bound},
            "met": self.budget and self.budget.is_met(self.figure.median),
            "floor": _beside_json(self.floor, self.figure),
            "peer": _beside_json(self.peer, self.figure),
            "note": self.note,
        }


def interleave(cases: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Run all cases in turn, `rounds` times over, so that a slow phase of the machine touches all alike; what each gave, by name."""
    found: dict[str, list[Any]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            found[name].append(case())
    return found


def table(title: str, rows: Sequence[Row]) -> Table:
    """The rows of one benchmark, for people."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("what", "figure", "budget", "met", "beside it, in the same rounds"):
        made.add_column(heading, justify="right" if heading == "figure" else "left", overflow="fold")
    for row in rows:
        name = Text(row.name)
        if row.note:
            name.append(f"\n  {row.note}", style="dim")
        made.add_row(name, shown(row.figure.median, row.unit), _budget(row), _met(row), _beside(row))
    return made


def shown(figure: float, unit: str) -> str:
    """A figure as people read it."""
    size = abs(figure)
    if unit.endswith("/s") and size >= 1e6:
        return f"{figure / 1e6:.2f} M {unit}"
    digits = 0 if size >= 100 or figure == int(figure) else 1 if size >= 10 else 2 if size >= 0.1 else 4
    return f"{figure:,.{digits}f} {unit}"


def _ratio(figure: Figure, other: Figure) -> float | None:
    return figure.median / other.median if other.median else None


def _beside_json(beside: Beside | None, figure: Figure) -> dict[str, Any] | None:
    if beside is None:
        return None
    return {"name": beside.name, **attrs.asdict(beside.figure), "ratio": _ratio(figure, beside.figure)}


def _beside(row: Row) -> Text:
    lines = []
    for kind, beside in (("floor", row.floor), ("peer", row.peer)):
        if beside is not None:
            ratio = _ratio(row.figure, beside.figure)
            times = "" if ratio is None else f" (× {ratio:.3g})"
            lines.append(f"{kind}: {beside.name} {shown(beside.figure.median, row.unit)}{times}")
    return Text("\n".join(lines))


def _budget(row: Row) -> str:
    if row.budget is None:
        return ""
    return f"{row.budget.sign} {shown(row.budget.bound, row.unit)}"


def _met(row: Row) -> Text:
    if row.budget is None:
        return Text("")
    return Text("yes", style="green") if row.budget.is_met(row.figure.median) else Text("no", style="red")
