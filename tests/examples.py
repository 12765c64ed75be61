"""How many examples Hypothesis draws, and how: one number stands at each test, and the profile says what part of it is tried.

`./run test` looks at a few that are the same each time ("certain"), `./run check` at all of that number, the same each time as well
("thorough"), `./run search` at other ones each time, and more of them ("wide"). HYPOTHESIS_PROFILE names the profile.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

FEWEST = 10  # below that a shape of input is easily not among them
USUAL = 60  # at a test that names no number
SHARES = {"certain": 0.2, "thorough": 1.0, "wide": 5.0}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "certain")


def share(number: int) -> int:
    """How many are tried of this number."""
    return max(FEWEST, round(number * SHARES[PROFILE]))


def examples(number: int) -> settings:
    """For a test that needs another number than the usual one."""
    return settings(max_examples=share(number))


def load_profile() -> None:
    # no deadline, and patience: a busy machine says nothing about the code
    is_random = PROFILE == "wide"
    settings.register_profile(
        PROFILE,
        derandomize=not is_random,
        max_examples=share(USUAL),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        **({} if is_random else {"database": None}),
    )
    settings.load_profile(PROFILE)
