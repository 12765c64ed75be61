"""For pytest alone: where temporary directories lie, how Hypothesis chooses (`tests/examples.py`), what one process runs of several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import TestCase

import pytest

from tests.examples import load_profile

load_profile()


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary directories of trial's `mktemp` lie outside of the checkout."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("trial"))
    yield
    os.chdir(here)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a class that prepares something for all of them go to one process together; all others to whichever is free."""
    for item in items:
        case = getattr(item, "cls", None)
        if isinstance(case, type) and any("setUpClass" in vars(base) for base in case.__mro__ if base is not TestCase):
            item.add_marker(pytest.mark.xdist_group(case.__qualname__))
