"""Who sends more Tabs or Clients than a bucket takes: counted by base name and Client, and named where a person looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from taba.plural import many
from taba.server.fold.bounds import Bounds

MAX_SENDERS = 1000  # pairs of base name and Client that are told apart; those of others count without a name
MAX_NAMED = 3  # of them in a sentence
EXCESS_SECONDS = 600.0  # for which it is a problem: after that nobody needs to look


TABS, CLIENTS = "Tabs", "Clients"  # of a bucket …
ALL_TABS, ALL_CLIENTS = "all Tabs", "all Clients"  # … of all …
NEW_TABS, NEW_CLIENTS = "new Tabs", "new Clients"  # … and such as come too fast
CLOSER = "take what differs in each name out of names and labels, or raise "
KEPT_IDS = "have programs keep their client ids, or raise "


class Beyond(NamedTuple):
    """What there was no room for: new Tabs, or new Clients, of a base name by a Client."""

    what: str  # one of the words above
    base: str
    client: str


NOBODY = Beyond("", "", "")


class Excess:
    """`seconds` is monotonic."""

    def __init__(self, bounds: Bounds, seconds: Callable[[], float]):
        self._bounds, self._seconds = bounds, seconds
        self.events: Counter[Beyond] = Counter()
        self._last: dict[str, float] = {}

    def note(self, beyond: Mapping[Beyond, int]) -> None:
        """A cycle had no room for these Events."""
        self._forget()
        for one, events in beyond.items():
            known = one if one in self.events or len(self.events) < MAX_SENDERS else NOBODY._replace(what=one.what)
            self.events[known] += events
            self._last[one.what] = self._seconds()

    @property
    def problems(self) -> list[str]:
        """Sentences, with those that sent most."""
        self._forget()
        return [self._sentence(what) for what in sorted(self._last)]

    def _forget(self) -> None:
        # who sent too much then has no part in what is wrong now, and takes the name of nobody else
        now = self._seconds()
        for what in [what for what, last in self._last.items() if now - last >= EXCESS_SECONDS]:
            del self._last[what]
            for one in [one for one in self.events if one.what == what]:
                del self.events[one]

    def _sentence(self, what: str) -> str:
        of = Counter({one: events for one, events in self.events.items() if one.what == what})
        named = [f"{one.base} by {one.client} ({events})" for one, events in of.most_common(MAX_NAMED) if one.client]
        most = f"most are of {', '.join(named)}: " if named else ""
        why, cure = why_of(what, self._bounds)
        return f"{many(of.total(), 'event')} found no room, since {why}, and went to the dead letters; {most}{cure}; then taba retry"


def why_of(what: str, bounds: Bounds) -> tuple[str, str]:
    """What bound was met, and the cure."""
    return {
        TABS: (f"a bucket takes {bounds.tabs} Tabs", f"{CLOSER}--max-tabs"),
        CLIENTS: (f"a bucket takes {bounds.clients} Clients", f"{KEPT_IDS}--max-clients"),
        ALL_TABS: (f"all buckets together take {bounds.all_tabs} Tabs", f"{CLOSER}--max-all-tabs"),
        ALL_CLIENTS: (
            f"all buckets together take {bounds.all_clients} Clients, each as often as buckets have it",
            f"{KEPT_IDS}--max-all-clients",
        ),
        NEW_TABS: (f"this Server takes {bounds.new_tabs} new Tabs a second by now", f"{CLOSER}--max-all-tabs"),
        NEW_CLIENTS: (f"this Server takes {bounds.new_clients} new Clients a second by now", f"{KEPT_IDS}--max-all-clients"),
    }[what]
