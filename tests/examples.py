"""How many examples Hypothesis draws, and how: one number stands at each test, and the profile says what part of it is tried.

`./run test` looks at a few that are the same each time ("certain"), `./run check` at half of that number, the same each time as well
("thorough"): nothing that they passed once do they find later but by a change. `./run search` looks at other ones each time, and at five
times that number ("wide"). HYPOTHESIS_PROFILE names the profile.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

FEWEST = 10  # below that a shape of input is easily not among them
USUAL = 60  # at a test that names no number
SHARES = {"certain": 0.2, "thorough": 0.5, "wide": 5.0}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "certain")


def share(number: int) -> int:
    """How many are tried of this number."""
    return max(FEWEST, round(number * SHARES[PROFILE]))


def _how() -> dict[str, Any]:
    # no deadline, and patience: a busy machine says nothing about the code
    is_random = PROFILE == "wide"
    how = {"derandomize": not is_random, "deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    return how if is_random else {**how, "database": None}


def examples(number: int) -> settings:
    """For a test that needs another number than the usual one. Says all, for where no profile was loaded, as without conftest.py."""
    return settings(max_examples=share(number), **_how())


def load_profile() -> None:
    settings.register_profile(PROFILE, max_examples=share(USUAL), **_how())
    settings.load_profile(PROFILE)
