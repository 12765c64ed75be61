"""Who is still taken when no Server takes anything and the room for it ends: the last part of the spool is shared out among Clients.

Until then who records much may fill it. In the last part each Client has as much as any other; what a Client records beyond that is dropped
and counted, and the others go on. What Servers take meanwhile each may record again; once there is room again all begins anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

RESERVE_SHARE = 8  # this part of the spool's bound is shared out
EVENT_BYTES = 17  # of a float in a batch; of another value its own are added
TAB_BYTES = 128  # and of a Tab, with its names
MAX_DROPPERS = 1000  # Clients whose drops are known by name; what more drop is under `OTHERS`
OTHERS = "_others"  # no client id
MAX_SHOWN = 100  # in a status


class Rest(NamedTuple):
    """What an Agent has for what comes, in bytes."""

    is_spooling: bool  # Servers take too little: what comes goes to the spool, or is about to
    left: int  # of the spool, once all that waits in memory is there
    room: int  # of spool and memory together, now
    reserve: int  # the last part of the spool
    taken: int  # by Servers, ever


class Reserve:
    """What each Client has used of the last part of the spool."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()
        self._is_short = False
        self._taken = 0

    def spent(self, rest: Rest, clients: Iterable[str]) -> frozenset[str]:
        """The Clients that have used up what is theirs."""
        taken, self._taken = rest.taken - self._taken, rest.taken
        # a move to the spool makes room in memory, and none for what comes: it does not end it
        self._is_short = rest.left < rest.reserve and (rest.is_spooling or self._is_short)
        if not self._is_short:
            self._used.clear()
            return frozenset()
        those = set(clients)
        if taken:
            self._used = Counter({client: used - taken for client, used in self._used.items() if used > taken})
        share = min(rest.reserve, rest.room + self._used.total()) / max(1, len(those))
        return frozenset(client for client in those if self._used[client] >= share)

    def use(self, client: str, bytes: int) -> None:
        """This Client takes so many; of one that has spent its share nothing is taken any more."""
        self._used[client] += bytes


class Drops:
    """Events that were dropped, by Client and reason, since this Agent began: by itself, and by processes whose rings are gone."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[str]] = {}

    def count(self, client: str, dropped: Mapping[str, int]) -> None:
        """So many events of this Client more."""
        if not any(dropped.values()):
            return
        if client not in self._counts and len(self._counts) >= MAX_DROPPERS:
            client = OTHERS
        self._counts.setdefault(client, Counter()).update(dropped)

    def most(self, reason: str, live: Mapping[str, Mapping[str, int]]) -> tuple[str, int]:
        """The Client that dropped most for this reason, with what open rings tell, and how many; "" where nobody knows."""
        known = Counter({client: counts[reason] for client, counts in self._counts.items() if client != OTHERS and counts[reason]})
        known.update({client: counts[reason] for client, counts in live.items() if counts.get(reason)})
        return max(known.items(), key=lambda item: item[1], default=("", 0))

    def total(self, client: str, live: Mapping[str, Mapping[str, int]]) -> int:
        """How many this Client dropped, whatever the reason, with what its open rings tell; of who is one of OTHERS only that."""
        return self._counts.get(client, Counter()).total() + sum(live.get(client, {}).values())

    def worst(self, live: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
        """Of those that dropped most, with what their open rings tell, the counts by reason."""
        totals = {client: counts.copy() for client, counts in self._counts.items()}
        for client, counts in live.items():
            totals.setdefault(client, Counter()).update(counts)
        order = sorted(totals, key=lambda client: (-sum(totals[client].values()), client))[:MAX_SHOWN]
        return {client: dict(sorted((+totals[client]).items())) for client in order}
