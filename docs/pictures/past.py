"""Draws docs/pictures/past.svg: what one stretch of the past looks like to those who ask later. `python docs/pictures/past.py` writes it.

Two events a second, and pairs of bursts of twenty seconds at a hundred a second. The grey line is what happened; the other is the rate
that a CounterGroup still knows of it, at four ages. Everything is computed from the Type itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from taba.handlers import Events
from taba.handlers.counter_group import CounterGroup
from taba.handlers.percentile_group import PercentileGroup
from taba.history import curve

START = 1_800_000_000.0  # of the stretch that is looked at: a border of slots of every width
SECONDS = 900
BASE, BURST, BURST_SECONDS = 2, 100, 20
BURSTS = (200, 600, 660, 880)  # seconds after START; the last one is in the last minute
AGES = (("up to 1 min", 0), ("10 min", 600), ("1 h", 3600), ("1 d", 85_000))  # how long after the stretch is asked
WIDTH, HEIGHT, LEFT, GAP, TOP = 760, 88, 60, 34, 26
MOST = 110.0  # of the vertical axis, events a second


def rates() -> np.ndarray:
    """How many events there were in each second of the stretch."""
    found = np.full(SECONDS, BASE)
    for begin in BURSTS:
        found[begin : begin + BURST_SECONDS] = BURST
    return found


def folded(handler: Any, later: int) -> Any:
    """A State that saw the stretch, second by second, and steady events for so long after it."""
    state = handler.new_state()
    for second, count in enumerate(rates().tolist()):
        at = START + second + 0.5
        state = handler.fold(state, Events([at] * count, [1.0] * count), at + 0.5)
    for second in range(60, later + 1, 60):
        at = START + SECONDS + second - 0.5
        state = handler.fold(state, Events([at], [1.0]), at + 0.5)
    return state


def known(handler: Any, later: int) -> np.ndarray:
    """The rate of each second of the stretch as `handler` knows it so much later."""
    history = handler.history([folded(handler, later)], START + SECONDS + later)
    [counts], _ = curve(history, np.array([0]), 1, START + np.arange(SECONDS + 1))
    return np.diff(counts)


def peaks(handler: Any) -> list[int]:
    """The greatest rate that is still known, at each age: of the bursts before the last minute, but for the first."""
    found = []
    for _, later in AGES:
        line = known(handler, later)
        found.append(round(float(line.max() if not later else line[: SECONDS - 60].max())))
    return found


def svg() -> str:
    size = f"0 0 {WIDTH + LEFT + 20} {TOP + len(AGES) * (HEIGHT + GAP)}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="12">',
        "<title>One stretch of the past, asked at four ages</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
    ]
    for place, (age, later) in enumerate(AGES):
        top = TOP + place * (HEIGHT + GAP)
        line = known(CounterGroup(), later)
        lines += [
            f'<text x="{LEFT}" y="{top - 6}" fill="#222222">{age} old: at most {line.max():.0f} events/s</text>',
            f'<text x="{LEFT - 8}" y="{top + 10}" text-anchor="end" fill="#666666">{MOST:.0f}</text>',
            f'<text x="{LEFT - 8}" y="{top + HEIGHT}" text-anchor="end" fill="#666666">0</text>',
            f'<path d="{_steps(rates(), top)}" fill="none" stroke="#bbbbbb"/>',
            f'<path d="{_steps(line, top)}" fill="none" stroke="#0b63a5" stroke-width="1.6"/>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _steps(line: np.ndarray, top: float) -> str:
    """The outline of one value a second; a point only where it changes."""
    found = []
    last = None
    for second, value in enumerate([*np.round(line, 2).tolist(), None]):
        x = LEFT + WIDTH * second / SECONDS
        if value == last:
            continue
        if last is not None:
            found.append(f"{x:.1f} {top + HEIGHT * (1 - last / MOST):.1f}")
        if value is not None:
            found.append(f"{x:.1f} {top + HEIGHT * (1 - value / MOST):.1f}")
        last = value
    return "M " + " L ".join(found)


if __name__ == "__main__":
    Path(__file__).with_name("past.svg").write_text(svg())
    for handler in (CounterGroup(), PercentileGroup()):
        print(handler.type, peaks(handler))
