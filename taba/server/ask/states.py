"""The States of the Tabs that a question is about, some at a time: which are read together, and what is read.

All States of a Tab are as of one moment, or its slices are read again: a job that merges Clients into `_retired` must not have some of them
counted twice, or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from taba.names import RETIRED_CLIENT
from taba.server import keys
from taba.server.ask.answers import Unanswered
from taba.server.ask.choosing import Chooser, Chosen
from taba.server.ask.filters import Filter
from taba.server.fold.cycle import bucket_of
from taba.server.keys import state_fields, unframe, unframe_all
from taba.server.router import IsReader
from taba.server.work.bench import Bench
from taba.server.work.knowing import further_parts
from taba.turns import Turns

SLICE_STATES = 500  # read and projected at a time; some 10 ms
WEIGHT = 8  # States that are arrays, as which one of another Type counts: it may be some 80 KiB, and one of a foreign Type more
LEAST_AT_ONCE = 5  # of those, where others come more at a time
MOST_MERGES = 5  # into `_retired`, each while a Tab of many Clients was read in slices; then it is read at one stroke

ByType: TypeAlias = dict[str, tuple[list[tuple[str, str]], list[list[keys.Framed]]]]  # Type → (Tab, Client) and the parts of each State


class Lot(NamedTuple):
    """Some States: by Tab and Client those that cannot be read, and by Type (Tab, Client) and parts of the others.

    `large`: of each Tab of many Clients what was made of its slices, in the place of its States.
    """

    unread: Mapping[str, Mapping[str, Any]]
    by_type: ByType
    large: Mapping[str, Sequence[Any]] = {}


Take: TypeAlias = Callable[[Lot], Awaitable[Any]]  # what is to be made of one slice of a Tab of many Clients


class Part(NamedTuple):
    """Some Clients of a Tab; whether those are the last, and whether they are all."""

    tab: str
    clients: list[str]
    is_last: bool
    is_all: bool


class States:
    """Reads States of Tabs that were chosen. `away`: buckets that cannot be reached, and why; `failed` is told of a State that cannot be
    read, by Type; `count` of how many were."""

    def __init__(
        self,
        router: IsReader,
        bench: Bench,
        chooser: Chooser,
        turns: Turns,
        failed: Callable[[str, str], None],
        count: Counter[str],
        away: Mapping[int, str],
    ):
        self._router, self._bench, self._chooser, self._turns = router, bench, chooser, turns
        self._failed, self._count, self._away = failed, count, away

    def why_away(self, tab: str) -> str | None:
        """Why a Tab that was there when the question began is so no longer; None where it is."""
        return self._away.get(bucket_of(tab, self._router.buckets)) if self._away else None

    def weight(self, tab: str, chosen: Chosen) -> int:
        """As how many a State of this Tab counts among those that are read at a time."""
        return 1 if tab in chosen.dead or self._bench.is_plain_array(chosen.type_of(tab)) else WEIGHT

    def is_large(self, part: Part, chosen: Chosen) -> bool:
        """Whether a Tab that is not divided has more States than are read at a time."""
        return len(part.clients) * self.weight(part.tab, chosen) > SLICE_STATES and part.tab not in chosen.dead

    async def parts(self, chosen: Chosen, wanted: Filter, most: int, is_whole: bool = False) -> AsyncIterator[list[Part]]:
        """Parts of Tabs, in the order of `chosen`, with some `most` States at a time. `is_whole`: no Tab is divided."""
        lot: list[Part] = []
        size = 0
        async for tab, clients in self._chooser.each_clients_of(chosen.tabs, wanted):
            weight = min(self.weight(tab, chosen), max(1, most // LEAST_AT_ONCE))
            step = len(clients) if is_whole or len(clients) * weight < most else max(1, most // weight)
            for start in range(0, len(clients) or 1, step or 1):
                some = clients[start : start + step] if step < len(clients) else clients
                is_last = start + len(some) >= len(clients)
                lot.append(Part(tab, some, is_last, is_last and not start))
                size += (len(some) + 1) * weight
                if size >= most:
                    yield lot
                    lot, size = [], 0
        if lot:
            yield lot

    async def in_slices(self, part: Part, chosen: Chosen, wanted: Filter, take: Take) -> list[Any]:
        """What `take` makes of a Tab of many Clients, slice by slice: no more than one slice of its States is held at a time.

        `_retired` is read with each slice, and counted with the last: where it is another than with the first, Clients were
        merged meanwhile, and all is read again. Nothing of a Tab that went away between two slices: a part is not the whole.
        """
        clients = part.clients if wanted.is_about_clients else [client for client in part.clients if client != RETIRED_CLIENT]
        step = max(1, SLICE_STATES // self.weight(part.tab, chosen))
        for _ in range(MOST_MERGES):
            made: list[Any] = []
            merged: Any = None
            for start in range(0, len(clients), step):
                some = clients[start : start + step]
                found, by_type = await self.read([Part(part.tab, some, True, False)], chosen, wanted)
                if self.why_away(part.tab) is not None:
                    return []
                if not wanted.is_about_clients:
                    retired = _take_client(part.tab, RETIRED_CLIENT, found, by_type, is_kept=start + step >= len(clients))
                    if start and retired != merged:
                        break
                    merged = retired
                made.append(await take(Lot(found, by_type)))
                await self._turns.breathe()
            else:
                return made
        return [await take(Lot(*await self.read([part], chosen, wanted)))]

    async def read(self, lot: Sequence[Part], chosen: Chosen, wanted: Filter) -> tuple[dict[str, dict[str, Any]], ByType]:
        """(found, by Type): by Tab and Client what cannot be read, as Unanswered; by Type (Tab, Client) and parts of the others.

        Who is not there any more may have been merged into `_retired` since the Clients were read. So that is read with the last of a Tab's
        Clients, in one command; of a Tab that is read at one stroke, only where one of them is gone: then once more, with it.
        """
        found: dict[str, dict[str, Any]] = {}
        by_type: ByType = {}
        again = await self._read_parts(lot, chosen, wanted, found, by_type)
        if again:
            await self._read_parts([part._replace(is_all=False) for part in again], chosen, wanted, found, by_type)
        return found, {type: of_type for type, of_type in by_type.items() if of_type[1]}

    async def _read_parts(
        self,
        lot: Sequence[Part],
        chosen: Chosen,
        wanted: Filter,
        found: dict[str, dict[str, Any]],
        by_type: ByType,
    ) -> list[Part]:
        """Put what is read in `found` and `by_type`, but nothing of those that it returns: Tabs at one stroke of which Clients are gone."""
        fields: dict[int, list[bytes]] = {}
        places: list[tuple[Part, str, list[str], int, int, int]] = []  # part, Type, Clients, bucket, first field, parts of each
        buckets = self._router.buckets
        known: dict[str, int] = {}  # Type → its further parts; −1: it has no Handler
        dead, type_of, states_read = chosen.dead, chosen.type_of, 0
        may_be_retired = not wanted.is_about_clients
        for part in lot:
            tab, clients, is_last, is_all = part
            if tab in dead:
                continue
            type = type_of(tab)
            if type not in known:
                known[type] = -1 if self._bench.get(type) is None else further_parts(self._bench, type)
            further = known[type]
            if further < 0:
                found.setdefault(tab, {}).update(dict.fromkeys(clients, Unanswered(f"no Handler of Type {type}")))
                continue
            bucket = bucket_of(tab, buckets)
            if is_last and not is_all and may_be_retired and RETIRED_CLIENT not in clients:
                # what was merged since the Clients were read is there, in the same command that no longer finds the others
                clients = [*clients, RETIRED_CLIENT]
            if not clients:
                continue  # none of those that are meant has it, and nothing is read of its bucket for it
            of_bucket = fields.setdefault(bucket, [])
            places.append((part, type, clients, bucket, len(of_bucket), 1 + further))
            of_bucket += state_fields(tab, clients, further)
            states_read += len(clients)
        self._count["states"] += states_read
        replies = await self._router.read_many({bucket: [(b"HMGET", keys.states(bucket), *of)] for bucket, of in fields.items() if of})
        await self._turns.breathe()  # many questions' replies may come at once
        framed = {bucket: _unframed(contents) for bucket, [contents] in replies.items()}
        again: list[Part] = []
        for part, type, clients, bucket, start, count in places:
            owners, states = by_type.setdefault(type, ([], []))
            contents, tab = replies[bucket][0], part.tab
            if (
                part.is_all
                and may_be_retired
                and RETIRED_CLIENT not in clients
                and None in contents[start : start + len(clients) * count : count]
            ):
                again.append(part)
                continue
            its: Sequence[int] = range(start, start + len(clients) * count, count)
            whole = framed[bucket]
            if whole is None:
                self._unframe_each(part, clients, [contents[first : first + count] for first in its], type, found, by_type[type])
                continue
            if None in contents[start : start + len(clients) * count : count]:  # deleted between the two reads
                clients = [client for first, client in zip(its, clients, strict=True) if contents[first] is not None]
                its = [first for first in its if contents[first] is not None]
            states += [whole[first : first + count] for first in its]
            owners += [(tab, client) for client in clients]
        return again

    def _unframe_each(
        self,
        part: Part,
        clients: Sequence[str],
        contents: Sequence[Sequence[bytes | None]],
        type: str,
        found: dict[str, dict[str, Any]],
        of_type: tuple[list[tuple[str, str]], list[list[keys.Framed]]],
    ) -> None:
        """Of States, each by its parts, those that are some; why others are none is `found`."""
        owners, states = of_type
        for client, parts in zip(clients, contents, strict=True):
            if parts[0] is None:
                continue  # deleted between the two reads
            try:
                states.append([unframe(content) for content in parts])
            except ValueError as error:
                self._failed(type, str(error))
                found.setdefault(part.tab, {})[client] = Unanswered(f"the State cannot be read: {error}")
                continue
            owners.append((part.tab, client))


def _unframed(contents: Sequence[bytes | None]) -> list[keys.Framed] | None:
    """All of them, or None where one is no part of a State."""
    try:
        return unframe_all(contents)
    except ValueError:
        return None


def _take_client(tab: str, client: str, found: dict[str, dict[str, Any]], by_type: ByType, is_kept: bool) -> tuple[Any, Any]:
    """What `read` found of one Client, which is taken out of it unless `is_kept`: why it cannot be read, and its State."""
    unread = found.get(tab, {}).get(client)
    if unread is not None and not is_kept:
        del found[tab][client]
    for owners, states in by_type.values():
        if (tab, client) in owners:
            place = owners.index((tab, client))
            state = states[place]
            if not is_kept:
                del owners[place], states[place]
            return unread, state
    return unread, None
