"""What is counted of parts in C, as a program that callgrind runs: each function is called with few things and with many.

The difference is what one more takes. It says which dump of callgrind's is of which call, and imports no numpy, which takes a minute there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any, NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def part(whole: str) -> Any:
    """The part in C of this name, without its package."""
    folder, _, name = whole.replace(".", "/").rpartition("/")
    spec = PathFinder.find_spec(name, [os.path.join(ROOT, folder)])
    if spec is None or spec.loader is None or not (spec.origin or "").endswith(".so"):
        from unittest import SkipTest  # only here: callgrind would walk through its import

        raise SkipTest(f"{whole} is not built: needs a compiler")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_something(found: Any) -> bool:
    """Whether the part has done it: else it leaves it to Python."""
    return found is not None


def is_nothing(found: Any) -> bool:
    """Of those that only write where they are told to."""
    return found is None


class Case(NamedTuple):
    """`make` gives what is called, and with what, for so many things; `function` is what callgrind calls it."""

    function: str
    few: int
    many: int
    make: Callable[[int], tuple[Callable[..., Any], tuple[Any, ...]]]
    is_done: Callable[[Any], bool] = is_something


def _dumps(folder: str) -> int:
    """How many there are: numbered from 1 on, beside one that is written at the end."""
    return sum(name.startswith("dump.") for name in os.listdir(folder))


def run(cases: Mapping[str, Case], folder: str) -> None:
    """Call each twice, and say by which dumps in `folder`; and once before, which makes what is made once and finds what it calls."""
    for name, case in cases.items():
        for time, count in enumerate((case.many, case.few, case.many)):
            call, arguments = case.make(count)
            before = _dumps(folder)
            found = call(*arguments)
            dumps = _dumps(folder)
            if not case.is_done(found) or dumps != before + 1:
                raise AssertionError(f"{name}: {found!r:.200} and {dumps - before} dumps")
            if time:
                sys.stdout.write(f"{name}\t{count}\t{dumps}\n")
