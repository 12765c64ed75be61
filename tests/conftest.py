"""For pytest alone: where temporary directories lie, how Hypothesis chooses (`tests/examples.py`), that shared memory stays as it was."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.examples import load_profile

load_profile()

# what a test records into a ring by oversight is for no Agent of whoever runs them
os.environ["TABA_AGENT"] = f"none-{leftovers.RUN}"

gc.disable()  # until all is there: while modules and tests are made, garbage is looked for many times and hardly ever found


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary directories of trial's `mktemp` lie outside of the checkout."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("trial"))
    yield
    os.chdir(here)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run tests, the classes that take longest are begun first, or one process is left to go on alone."""
    if not hasattr(config, "workerinput"):
        return
    classes = [item.nodeid.rpartition("::")[0] for item in items]
    tests = Counter(classes)
    seconds = {name: _seconds(item) for name, item in zip(classes, items, strict=True)}
    place = {name: (-seconds[name], -tests[name], number) for number, name in enumerate(tests)}
    items.sort(key=lambda item: place[item.nodeid.rpartition("::")[0]])


def _seconds(item: pytest.Item) -> float:
    mark = item.get_closest_marker("takes")
    return 0.0 if mark is None else mark.kwargs["seconds"]


def pytest_collection_finish() -> None:
    """All modules and tests are there and stay: no later look for garbage goes through them again."""
    gc.collect()
    gc.freeze()
    gc.enable()


_left = pytest.StashKey[list[str]]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run whose processes left something in shared memory has failed: a ring that no Agent reads stays until the host boots."""
    if not leftovers.IS_FIRST or hasattr(session.config, "workerinput"):
        return
    left = session.config.stash[_left] = leftovers.left()
    leftovers.remove(left)
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left = config.stash.get(_left, [])
    if left:
        terminalreporter.section("left in shared memory, and removed")
        for name in left:
            terminalreporter.line(name)
