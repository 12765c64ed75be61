"""How much a bucket takes. Apart from the cycle, so that options need neither numpy nor a reactor."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_MAX_TABS = 100_000  # in one bucket, also where it is the only one; more are a sign of data in names
DEFAULT_MAX_CLIENTS = 100_000  # in one bucket, all its Tabs together; more are a sign of ids that no slot has


class Bounds(NamedTuple):
    """How many Tabs and Clients a bucket has at the most: Events for more become dead letters."""

    tabs: int = DEFAULT_MAX_TABS
    clients: int = DEFAULT_MAX_CLIENTS


DEFAULT_BOUNDS = Bounds()
