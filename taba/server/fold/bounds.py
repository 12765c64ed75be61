"""How much a bucket takes. Apart from the cycle, so that options need neither numpy nor a reactor."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_MAX_TABS = 100_000  # in one bucket, also where it is the only one; more are a sign of data in names
DEFAULT_MAX_CLIENTS = 100_000  # in one bucket, all its Tabs together; more are a sign of ids that no slot has


MEANINGS_OF_ABSENT = 100  # Tabs that are not there, of which a bucket keeps unit and description: they may come, or come back
MAX_STREAMS = 32_768  # open in one bucket: of ten thousand Agents three generations, 2 MiB


class Bounds(NamedTuple):
    """How many Tabs and Clients a bucket has at the most: Events for more become dead letters. And how many streams: more must wait."""

    tabs: int = DEFAULT_MAX_TABS
    clients: int = DEFAULT_MAX_CLIENTS
    streams: int = MAX_STREAMS


DEFAULT_BOUNDS = Bounds()
