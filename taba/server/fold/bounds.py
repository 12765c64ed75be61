"""How much a bucket takes. Apart from the cycle, so that options need neither numpy nor a reactor."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_MAX_TABS = 100_000  # in one bucket, also where it is the only one; more are a sign of data in names
DEFAULT_MAX_CLIENTS = 100_000  # in one bucket, all its Tabs together; more are a sign of ids that no slot has
DEFAULT_ALL_TABS = 2_000_000  # in all buckets together: twice what the largest site was seen to name; 1 GB of States
DEFAULT_ALL_CLIENTS = 20_000_000  # Clients of all buckets, each counted in each that has it: 40,000 that record everywhere
NEW_TABS = 1_000  # a second, by one Server, once it has made as many as there may be: what goes and comes fills no store
NEW_CLIENTS = 10_000  # likewise

MEANINGS_OF_ABSENT = 100  # Tabs that are not there, of which a bucket keeps unit and description: they may come, or come back
MAX_STREAMS = 32_768  # open in one bucket: of ten thousand Agents three generations, 2 MiB


class Bounds(NamedTuple):
    """How many Tabs and Clients a bucket has at the most, and all buckets together: Events for more become dead letters. And how many
    streams a bucket has: more must wait."""

    tabs: int = DEFAULT_MAX_TABS
    clients: int = DEFAULT_MAX_CLIENTS
    streams: int = MAX_STREAMS
    all_tabs: int = DEFAULT_ALL_TABS
    all_clients: int = DEFAULT_ALL_CLIENTS
    new_tabs: int = NEW_TABS
    new_clients: int = NEW_CLIENTS


DEFAULT_BOUNDS = Bounds()
