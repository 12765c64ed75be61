"""For pytest alone: where temporary directories lie, and how Hypothesis chooses.

Hypothesis tries the same examples each time and sets no deadline ("certain"), so that a red test is about the code.
`HYPOTHESIS_PROFILE=wide`, as `./run search` has it, draws other ones each time, and more of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a busy machine makes each of these checks fail, and says nothing about the code
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("certain", derandomize=True, database=None, max_examples=40, **_PATIENT)
settings.register_profile("wide", max_examples=300, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "certain"))


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary directories of trial's `mktemp` lie outside of the checkout."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("trial"))
    yield
    os.chdir(here)
