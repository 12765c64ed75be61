"""./run simulate: one world after another, each from its seed, until something is not as it must be or there have been enough."""

from __future__ import annotations

import argparse
import gc
import logging
import math
import sys
import time
from collections import Counter
from typing import Any

from twisted.logger import globalLogBeginner

from simulation.census import FOLDING, RECORDED
from simulation.faults import KINDS, silent
from simulation.play import Result, play
from simulation.shrinking import shrink

DEFAULT_STEPS = 200_000
POINT = "killed at "
SHOWN_LINES = 60  # of a trace
YARDSTICK_TYPES = ("TotalsCounter", "CounterGroup")  # a cheap one, and one that is not
YARDSTICK_SEEDS, YARDSTICK_SECONDS = (1, 2), 30.0  # as long as most worlds


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="./run simulate", description=__doc__)
    made.add_argument("--seed", type=int, default=1, metavar="N", help="the first seed (1)")
    made.add_argument("--seeds", type=int, metavar="K", help="so many seeds; with --seed alone one")
    made.add_argument("--steps", type=int, metavar="M", help=f"seeds until there were so many steps ({DEFAULT_STEPS:,})")
    made.add_argument("--hours", type=hours, metavar="H", help="seeds for so long")
    made.add_argument("--without", type=numbers, default=frozenset(), metavar="N,N,…", help="without these faults: a trace made short")
    made.add_argument("--kinds", type=kinds, default=tuple(KINDS), metavar="KIND,KIND,…", help="faults of these kinds alone")
    made.add_argument("--folding", action="store_true", help="worlds whose Agents fold what is recorded before it travels")
    made.add_argument("--trace", action="store_true", help="what happened, also where nothing is wrong")
    return made


def hours(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:  # so no NaN, of which a search would have no end, or none at all
        raise ValueError(text)
    return number


def numbers(text: str) -> frozenset[int]:
    return frozenset(int(number) for number in text.split(",") if number)


def kinds(text: str) -> tuple[str, ...]:
    found = tuple(kind.strip() for kind in text.split(",") if kind.strip())
    unknown = [kind for kind in found if kind not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}: takes {', '.join(KINDS)}")
    return found


def prepare() -> None:
    """Once a process: logs go nowhere but to the world that looks at them, and what lives for ever is not looked through each time."""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    logging.disable(logging.CRITICAL)
    # coroutines of killed processes are collected in the end, in the middle of what they did
    sys.unraisablehook = lambda unraisable: None
    gc.collect()
    gc.freeze()


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    prepare()
    given = "--seed" in " ".join(arguments).replace("--seeds", "") and options.seeds is None and options.steps is None
    most_seeds = options.seeds if options.seeds is not None else (1 if given and options.hours is None else None)
    most_steps = options.steps if options.steps is not None else (DEFAULT_STEPS if most_seeds is None and options.hours is None else None)
    end = None if options.hours is None else time.monotonic() + 3600.0 * options.hours
    began, seed = time.process_time(), options.seed
    steps = folds = seeds = 0
    fired: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    while True:
        result = play(seed, options.without, kinds=options.kinds, types=types_of(options))
        steps, folds, seeds = steps + result.steps, folds + result.folds, seeds + 1
        fired += result.fired
        drawn.update(fault.kind for fault in result.faults)
        if result.error is not None:
            report(result, options)
            return 1
        if options.trace:
            print("\n".join(result.trace))
            print(f"digest {result.digest:08x}")
        seed += 1
        if most_seeds is not None and seeds >= most_seeds:
            break
        if most_steps is not None and steps >= most_steps:
            break
        if end is not None and time.monotonic() >= end:
            break
    print(f"seeds {options.seed} to {seed - 1}: {pace(steps, folds, began)}; nothing is wrong")
    if not given:
        for type in YARDSTICK_TYPES:
            began = time.process_time()
            played = [play(seed, kinds=(), types=(type,) * 3, duration=YARDSTICK_SECONDS) for seed in YARDSTICK_SEEDS]
            steps, folds = sum(result.steps for result in played), sum(result.folds for result in played)
            print(f"{len(played)} worlds without faults whose Type is {type}: {pace(steps, folds, began)}")
    print("faults, as often as they were drawn: " + ", ".join(f"{kind} {drawn[kind]}" for kind in options.kinds))
    points = {what: count for what, count in fired.items() if what.startswith(POINT)}
    print("what they did: " + ", ".join(f"{what} {count}" for what, count in sorted(fired.items()) if what not in points))
    killed = ", ".join(f"{what.removeprefix(POINT)} {count}" for what, count in sorted(points.items()))
    print(f"where somebody was killed: {killed or 'nowhere'}")
    holes = silent(options.kinds, fired)
    if holes:
        print(f"did nothing, so not tried: {', '.join(f'{kind} (drawn {drawn[kind]} times)' for kind in holes)}")
    return 0


def types_of(options: Any) -> tuple[str, ...]:
    """The Types of what is recorded."""
    return FOLDING if options.folding else RECORDED


def pace(steps: int, folds: int, began: float) -> str:
    """How many in a minute of one core: of this process's own time, whatever else the machine does."""
    seconds = time.process_time() - began
    return f"{steps:,} steps, {folds:,} folds of States ({60 * steps / seconds:,.0f} and {60 * folds / seconds:,.0f} a minute of one core)"


def report(result: Result, options: Any) -> None:
    """What is wrong, its shortest trace, and how to see it again."""
    print(f"seed {result.seed} is wrong: {result.error}")
    left = [fault.number for fault in result.faults if fault.number not in options.without]

    def fails(without: frozenset[int]) -> bool:
        return play(result.seed, options.without | without, kinds=options.kinds, types=types_of(options)).error is not None

    print(f"making the trace of {len(left)} faults short …", flush=True)
    without = options.without | shrink(left, fails)
    short = play(result.seed, without, kinds=options.kinds, types=types_of(options))
    print(f"\nwith {len(result.faults) - len(without)} faults: {short.error}\n")
    print("\n".join(short.trace[-SHOWN_LINES:]))
    command = ["./run simulate", f"--seed {result.seed}"]
    if without:
        command.append(f"--without {','.join(map(str, sorted(without)))}")
    if tuple(options.kinds) != tuple(KINDS):
        command.append(f"--kinds '{','.join(options.kinds)}'")
    if options.folding:
        command.append("--folding")
    print(f"\nto see it again: {' '.join(command)}")
