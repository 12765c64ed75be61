"""The list of mutations: how each is put into the real code, in which worlds or by which test it is found, and from which seed on."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import unittest
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hypothesis import Phase, settings

from simulation.census import FOLDING, RECORDED
from simulation.play import play

Patch = Callable[[Callable[[Any, str, Any], None]], None]
ALL: dict[str, Patch] = {}

AGENT = "kill agent,agent's fuse,server cut off"
CLIENT = "kill client,client's fuse,kill agent,agent's fuse"
STORE = "store cut before,store cut after,store late,store dies,server's fuse"
LATE = "messages late,messages repeated,messages lost,kill agent"
SPOOL = "memory full,server cut off,kill agent,agent's fuse"
MOVED = "memory full,move's fuse,kill agent,store dies"
BACK = "store goes back,messages late,messages repeated"
MOVING = "buckets move,kill mover,mover's fuse,mover interrupted,mover stopped,mover naps"
HOME = "outbox removed,second Agent,kill agent,memory full"

RATE = 4.0  # a second and Client: more makes worlds longer, not stranger


# what a mutation ends with whose place in the real code is another one now: nothing is found by it
STALE = re.compile(r"\b(AttributeError|TypeError|ImportError|ModuleNotFoundError|NameError|UnboundLocalError)\b")


RAISED = re.compile(r"(E\s+)?[\w.]+(Error|Exception|FailTest)\b")  # a traceback's last line


class Found(NamedTuple):
    """What a mutation was found by, in the world of this seed, or 0 for a test.

    `is_stale`: it is the mutation itself that fails, and not a check of what it does.
    """

    seed: int
    error: str
    is_stale: bool


class Focus(NamedTuple):
    """The worlds that find a mutation, and the first seed of one that does: worlds change with the code, and the search goes on from it."""

    kinds: tuple[str, ...]  # of faults
    duration: float
    density: float  # of faults, about so many a second
    seed: int
    types: tuple[str, ...]


FOCUS: dict[str, Focus] = {}
BESIDE: dict[str, str] = {}  # which test finds a mutation of what the world does not have


def focused(
    kinds: str, duration: float = 20.0, density: float = 0.5, *, seed: int, types: tuple[str, ...] = RECORDED
) -> Callable[[Patch], Patch]:
    """A mutation that these kinds of faults find, in worlds so long, with about so many of them a second."""

    def note(function: Patch) -> Patch:
        FOCUS[function.__name__] = Focus(tuple(kinds.split(",")), duration, density, seed, types)
        return _mutation(function)

    return note


def at_edge(kinds: str, duration: float = 20.0, density: float = 0.5, *, seed: int) -> Callable[[Patch], Patch]:
    """The same, in worlds whose Agents fold."""
    return focused(kinds, duration, density, seed=seed, types=FOLDING)


def beside(test: str) -> Callable[[Patch], Patch]:
    """A mutation of what the world does not have; `test` finds it."""

    def note(function: Patch) -> Patch:
        BESIDE[function.__name__] = test
        return _mutation(function)

    return note


def _mutation(function: Patch) -> Patch:
    assert function.__name__ not in ALL, function.__name__
    ALL[function.__name__] = function
    return function


@contextlib.contextmanager
def applied(name: str) -> Iterator[None]:
    """Taba with this fault."""
    undo: list[tuple[Any, str, Any]] = []

    def put(where: Any, attribute: str, instead: Any) -> None:
        where = next((kind for kind in getattr(where, "__mro__", ()) if attribute in kind.__dict__), where)  # what a class inherits, there
        undo.append((where, attribute, where.__dict__[attribute]))
        setattr(where, attribute, instead)

    try:
        ALL[name](put)
        yield
    finally:
        for where, attribute, before in reversed(undo):
            setattr(where, attribute, before)


@contextlib.contextmanager
def instead(where: Any, name: str, value: Any) -> Iterator[None]:
    """Another value for a name, for a while."""
    before = getattr(where, name)
    setattr(where, name, value)
    try:
        yield
    finally:
        setattr(where, name, before)


def find(name: str, seed: int, seeds: int) -> Found | None:
    """The first of these seeds in which something is wrong with the mutation, and what."""
    if name in BESIDE:
        return _find_beside(name)
    focus = FOCUS[name]
    options: dict[str, Any] = {"kinds": focus.kinds, "duration": focus.duration, "density": focus.density, "types": focus.types}
    for number in range(seed, seed + seeds):
        with applied(name):
            try:
                error = play(number, rate=RATE, **options).error
            except Exception as raised:  # what a mutation breaks may break more than an invariant
                error = f"{type(raised).__name__}: {raised}"
        if error is not None:
            return Found(number, error, STALE.search(error) is not None)
    return None


def _find_beside(name: str) -> Found | None:
    before, result = os.getcwd(), unittest.TestResult()
    # whatever is found will do: to make it short takes Hypothesis several times as long
    settings.register_profile("as found", settings(phases=(Phase.explicit, Phase.generate)))
    settings.load_profile("as found")
    with applied(name), tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)  # what a test makes goes with it
        try:
            unittest.defaultTestLoader.loadTestsFromName(BESIDE[name]).run(result)
        finally:
            os.chdir(before)
    assert result.testsRun == 1, BESIDE[name]
    found = [(said, False) for _, said in result.failures] + [(said, STALE.search(said) is not None) for _, said in result.errors]
    if not found:
        return None
    said, is_stale = found[0]
    lines = said.strip().splitlines()
    return Found(0, next((line for line in reversed(lines) if RAISED.match(line)), lines[-1]), is_stale)  # Hypothesis says more behind it
