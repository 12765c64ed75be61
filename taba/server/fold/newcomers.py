"""The Tabs and Clients that a cycle makes, as far as there is room: in its bucket, and in all. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from taba.batch import Block, Column
from taba.names import OWN_TABS
from taba.server import keys
from taba.server.fold.bounds import Bounds
from taba.server.fold.burying import TOO_MANY_CLIENTS, TOO_MANY_TABS, Burial
from taba.server.fold.cycle import Cycle, Reads
from taba.server.fold.excess import ALL_CLIENTS, ALL_TABS, CLIENTS, NEW_CLIENTS, NEW_TABS, TABS, Beyond, why_of
from taba.server.fold.in_all import Room

OWN = frozenset(tab.encode() for tab in OWN_TABS)


class Newcomers:
    """Of a cycle, whose rows are `fields` and have the States `kept`. `types`: of each Tab, as it is there or as the cycle makes it."""

    def __init__(
        self,
        cycle: Cycle,
        fields: list[bytes],
        kept: Sequence[bytes | None],
        types: dict[str, str],
        bounds: Bounds,
        in_all: Room,
        burial: Burial,
    ):
        self._cycle, self._fields, self._kept, self._bounds, self._burial = cycle, fields, kept, bounds, burial
        self.types, self.in_all = types, in_all
        self.new_types: dict[str, str] = {}
        self.new_clients: set[str] = set()
        self.made_tabs = self.made_clients = 0
        self.beyond: Counter[Beyond] = Counter()
        self.has_absent = not _BYTES.issuperset(map(_type_of, kept))  # some State is not there yet
        self._room = bounds

    def measure(self, accepted: list[int]) -> Generator[Reads, Any, None]:
        """Learn how much room the bucket has, where there will be new States: hot cycles pay nothing for it."""
        if not self.has_absent:
            return
        bucket, key = self._cycle.bucket, keys.clients(self._cycle.bucket)
        rows: Iterable[int] = range(len(self._fields))
        if len(accepted) < len(self._cycle.waiting):
            rows = dict.fromkeys(row for index in accepted for _, its in self._cycle.sections[index] for row in its if row >= 0)
        absent = [self._fields[row].partition(b"\0") for row in rows if self._kept[row] is None]
        clients = list(dict.fromkeys([client for _, _, client in absent]))
        if clients:
            own = sorted(OWN.intersection([tab for tab, _, _ in absent]))
            tabs, are_there, *sizes = yield Reads(
                [
                    (b"HLEN", keys.tabs(bucket)),
                    (b"SMISMEMBER", key, *clients),
                    (b"SCARD", key),
                    *((b"SCARD", keys.clients_of(bucket, tab)) for tab in own),
                ]
            )
            self._room = self._bounds._replace(tabs=self._bounds.tabs - tabs, clients=self._bounds.clients - max(sizes))
            self.new_clients = {client.decode() for client, is_there in zip(clients, are_there, strict=True) if not is_there}

    def has_room(self, column: Column, is_new_tab: bool) -> bool:
        """Whether a new State of `column` stays within the bounds; else it is buried."""
        is_new_client = column.client in self.new_clients
        what = self._beyond(is_new_tab, is_new_client)
        if what is not None:
            self.beyond[Beyond(what, column.tab.partition("{")[0], column.client)] += column.weight
            reason = TOO_MANY_TABS if what in (TABS, ALL_TABS, NEW_TABS) else TOO_MANY_CLIENTS
            self._burial.bury(column, reason, why_of(what, self._bounds)[0])
            return False
        self.new_clients.discard(column.client)
        self.made_tabs += is_new_tab
        self.made_clients += is_new_client
        return True

    def _beyond(self, is_new_tab: bool, is_new_client: bool) -> str | None:
        """What there is no room for; None where there is."""
        room, in_all = self._room, self.in_all
        if is_new_tab and self.made_tabs >= room.tabs:
            return TABS
        if is_new_client and self.made_clients >= room.clients:
            return CLIENTS
        if is_new_tab and self.made_tabs >= in_all.tabs:
            return NEW_TABS if in_all.is_fast[0] else ALL_TABS
        if is_new_client and self.made_clients >= in_all.clients:
            return NEW_CLIENTS if in_all.is_fast[1] else ALL_CLIENTS
        return None

    def make_all(self, block: Block, absent: list[tuple[bytes, bytes, bytes]]) -> bool:
        """Whether there is room for all of a block's new Tabs, and for the Clients of the States that are absent; then it is taken."""
        types, room, in_all = self.types, self._room, self.in_all
        tabs = dict.fromkeys([tab for tab in {tab.decode(): None for tab, _, _ in absent} if tab not in types])
        clients = self.new_clients.intersection([client.decode() for _, _, client in absent]) if self.new_clients else ()
        if self.made_tabs + len(tabs) > min(room.tabs, in_all.tabs) and tabs:
            return False
        if self.made_clients + len(clients) > min(room.clients, in_all.clients) and clients:
            return False
        # looked up, and no set of all that are known: a cycle may have ten thousand blocks of one column
        if not all([tab in types or tab in tabs for tab in block.moved]):
            return False  # States whose Tab is not known: one by one
        self.new_clients.difference_update(clients)
        self.made_clients += len(clients)
        self.made_tabs += len(tabs)
        made = dict.fromkeys(tabs, block.type)
        types.update(made)
        self.new_types.update(made)
        return True


_type_of = type
_BYTES = {bytes}
