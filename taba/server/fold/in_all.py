"""How many Tabs and Clients there may be in all buckets together, and how fast new ones come: what a cycle of any bucket keeps to.

No transaction spans buckets, so this is about: what the store had when it was last looked at, and what this Server has made since. Other
Servers make some meanwhile, until the next look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from taba.server.fold.bounds import Bounds


class Room(NamedTuple):
    """How many more there may be just now, and why no more."""

    tabs: float
    clients: float
    is_fast: tuple[bool, bool] = (False, False)  # of Tabs, of Clients: it is only for a while, since they come too fast


ENDLESS = Room(float("inf"), float("inf"))


class InAll:
    """The room that `bounds` leave in all. `seconds` is monotonic."""

    def __init__(self, bounds: Bounds, seconds: Callable[[], float]):
        self._bounds, self._seconds = bounds, seconds
        self.tabs = self.clients = 0
        """As far as this Server knows."""
        self._new_tabs, self._new_clients = float(bounds.all_tabs), float(bounds.all_clients)
        self._renewed = seconds()

    def learn(self, tabs: int, clients: int) -> None:
        """The store has so many."""
        self.tabs, self.clients = tabs, clients

    def made(self, tabs: int, clients: int) -> None:
        """A cycle of this Server made so many."""
        self.tabs += tabs
        self.clients += clients
        self._new_tabs -= tabs
        self._new_clients -= clients

    def room(self) -> Room:
        bounds, now = self._bounds, self._seconds()
        passed, self._renewed = now - self._renewed, now
        self._new_tabs = min(bounds.all_tabs, self._new_tabs + passed * bounds.new_tabs)
        self._new_clients = min(bounds.all_clients, self._new_clients + passed * bounds.new_clients)
        tabs, clients = bounds.all_tabs - self.tabs, bounds.all_clients - self.clients
        new_tabs, new_clients = max(0, int(self._new_tabs)), max(0, int(self._new_clients))
        return Room(min(tabs, new_tabs), min(clients, new_clients), (new_tabs < tabs, new_clients < clients))
