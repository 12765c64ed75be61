"""For pytest alone: where temporary directories lie, and how Hypothesis chooses (`tests/examples.py`)."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples import load_profile

load_profile()

gc.disable()  # until all is there: while modules and tests are made, garbage is looked for many times and hardly ever found


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary directories of trial's `mktemp` lie outside of the checkout."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("trial"))
    yield
    os.chdir(here)


def pytest_collection_finish() -> None:
    """All modules and tests are there and stay: no later look for garbage goes through them again."""
    gc.collect()
    gc.freeze()
    gc.enable()
