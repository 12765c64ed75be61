"""Answers questions from what the store has now: names, Clients, Types, Projections, Aggregates. Keeps nothing.

1. The owner key is read after the data (the Router does it), so that an answer never comes from a bucket that has moved away.
2. A big question is worked on in slices, and others are served between two of them.
3. What is too big is refused, with the bound.
4. What is there and cannot be answered is Unanswered, in its place; the others are answered. No answer says "none" of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

from twisted.internet.task import deferLater
from twisted.logger import Logger

from taba.errors import TabaError
from taba.history import Past, number, pasts
from taba.names import OWN_TABS, RETIRED_CLIENT
from taba.server import keys
from taba.server.ask.filters import Filter, group_name, has_labels
from taba.server.ask.matching import MatchElsewhere, simple_matcher
from taba.server.fold.cycle import bucket_of
from taba.server.fold.deadletters import decode_dead_letter
from taba.server.router import IsReader
from taba.server.work.bench import Bench
from taba.server.work.folding import further_parts
from taba.server.work.sandbox import PatternRefused

MAX_PROJECTIONS = 50_000  # in one answer; some 50 MiB of JSON
MAX_STATES = 1_000_000  # read for one answer
MAX_DETAILED = 2000  # Projections with detail in one answer, or behind it; each takes some 10 KiB and 1 ms
MAX_BURIED = 16  # buckets whose dead letters are looked through for names that were asked for; each may have some MiB of them
SLICE_STATES = 500  # read and projected at a time; some 10 ms
SLICE_DETAILED = 5  # projected at a time with detail; some 10 ms
SLICE_NAMES = 20  # looked at by a filter between two looks at the time; one of 1,000 characters and the longest name take 0.2 ms
SLICE_TABS = 500  # whose Clients are read at a time
TURN_SECONDS = 0.02  # of work on a question before others have a turn

log = Logger()


class QueryRefused(TabaError):
    """The question cannot be answered as it is; says how to ask."""


class Unanswered(NamedTuple):
    """Stands where a Projection or Aggregate would: why there is none of what is there."""

    error: str


class Projected(NamedTuple):
    """The Projections of one Tab by Client, as its Handler made them, or Unanswered."""

    tab: str
    type: str
    projections: dict[str, Any]


class Aggregated(NamedTuple):
    """The Aggregate of one name, and what is wrong with it: that some Clients are left out, or why there is none (then it is None)."""

    type: str
    aggregate: Any
    error: str | None = None


Lot = Sequence[tuple[str, list[str]]]  # Tabs and their Clients


class Query:
    """The questions."""

    def __init__(
        self,
        router: IsReader,
        bench: Bench,
        clock: Any,
        now: Callable[[], float],
        match_elsewhere: MatchElsewhere,
    ):
        self._router, self._bench = router, bench
        self._clock, self._now, self._match_elsewhere = clock, now, match_elsewhere
        self._turn_began = 0.0
        self.errors: Counter[str] = Counter()
        """States and Projections that Handlers failed on, by Type, since this process began."""

    def of(self, router: IsReader) -> Query:
        """These questions, asked of `router` instead."""
        other = copy(self)
        other._router = router
        return other

    async def types(self, wanted: Filter) -> dict[str, str]:
        """Tab → Type of all that match, sorted by name."""
        if wanted.names:
            by_bucket: dict[int, list[str]] = {}
            for name in wanted.names:
                by_bucket.setdefault(bucket_of(name, self._router.buckets), []).append(name)
            replies = await self._router.read_many(
                {bucket: [(b"HMGET", keys.tabs(bucket), *[name.encode() for name in names])] for bucket, names in by_bucket.items()}
            )
            found = {
                name: type.decode()
                for bucket, names in by_bucket.items()
                for name, type in zip(names, replies[bucket][0], strict=True)
                if type is not None
            }
        else:
            replies = await self._router.read_many({bucket: [(b"HGETALL", keys.tabs(bucket))] for bucket in range(self._router.buckets)})
            found = {}
            for [pairs] in replies.values():
                found.update(zip(map(bytes.decode, pairs[::2]), map(bytes.decode, pairs[1::2]), strict=True))
        chosen = sorted(tab for tab in found if tab not in OWN_TABS or wanted.is_about_own)
        if wanted.labels:
            chosen = await self._those(chosen, has_labels(wanted.labels))
        if wanted.match is not None:
            chosen = await self._match(wanted.match, chosen)
        if wanted.is_about_clients:
            chosen = [tab async for tab, clients in self._each_clients_of(chosen, wanted) if clients]
        return {tab: found[tab] for tab in chosen}

    async def names(self, wanted: Filter) -> list[str]:
        """The names of all Tabs that match, sorted."""
        return list(await self.types(wanted))

    async def clients(self, wanted: Filter) -> list[str]:
        """The Clients that have a State of a Tab that matches, sorted."""
        if wanted.names or wanted.match is not None or wanted.labels:
            tabs = list(await self.types(wanted._replace(clients=(), client_match=None)))
            found = {client async for _, clients in self._each_clients_of(tabs, Filter()) for client in clients}
        else:
            replies = await self._router.read_many({b: [(b"SMEMBERS", keys.clients(b))] for b in range(self._router.buckets)})
            found = {client.decode() for [clients] in replies.values() for client in clients}
        return await self._chosen_clients(wanted, sorted(found))

    async def projections(self, wanted: Filter, detail: bool = False) -> list[Projected]:
        """The Projections of all that match, by Tab and Client. Raises QueryRefused for more than MAX_PROJECTIONS."""
        found = [item async for item in self._projected(wanted, MAX_PROJECTIONS, detail)]
        only_dead = await self._only_dead(wanted, {item.tab for item in found})
        return found + [Projected(name, "", dict(by_client)) for name, by_client in only_dead.items()]

    async def aggregates(self, wanted: Filter, by: Sequence[str] = (), detail: bool = False) -> dict[str, Aggregated]:
        """Name → Aggregate of all that match. `by`: labels; Tabs of one base name are grouped by their values.

        A group of Tabs of several Types has no Aggregate. Of the names that were asked for, those that only dead letters know are there.
        """
        answer: dict[str, Aggregated] = {}
        if not by:
            if detail:
                async for item in self._projected(wanted, MAX_STATES, detail):
                    answer[item.tab] = await self._aggregate(item.type, list(item.projections.values()))
            else:
                async for lot, types in self._lots(wanted, MAX_STATES):
                    answer.update(await self._aggregate_lot(lot, types, wanted))
            for name, by_client in (await self._only_dead(wanted, answer)).items():
                answer[name] = await self._aggregate("", list(by_client.values()))
            return answer
        groups: dict[str, dict[str, list[Any]]] = {}
        async for item in self._projected(wanted, MAX_PROJECTIONS, detail):
            of_group = groups.setdefault(group_name(item.tab, by), {})
            of_group.setdefault(item.type, []).extend(item.projections.values())
        for name, by_type in sorted(groups.items()):
            if len(by_type) > 1:
                answer[name] = Aggregated("", None, f"Types differ: {', '.join(sorted(by_type))}"[:500])
                continue
            [(type, projections)] = by_type.items()
            answer[name] = await self._aggregate(type, projections)
        return answer

    async def superaggregate(self, wanted: Filter, detail: bool = False) -> Aggregated | None:
        """The Aggregate over everything that matches; None where nothing does. Raises QueryRefused for several Types."""
        types = sorted(set((await self.types(wanted)).values()))
        if len(types) > 1:
            raise QueryRefused(f"a superaggregate is over one Type; these match: {', '.join(types)[:500]}")
        projections: list[Any] = []
        async for item in self._projected(wanted, MAX_PROJECTIONS, detail):
            projections += item.projections.values()
        if not projections:
            return None
        return await self._aggregate(types[0], projections)

    async def slots(self, wanted: Filter) -> dict[str, Past | Unanswered]:
        """By Tab the slots of all Clients that match, at their own widths. Raises QueryRefused for more than MAX_DETAILED States."""
        answer: dict[str, Past | Unanswered] = {}
        async for lot, types in self._lots(wanted, MAX_DETAILED):
            answer.update(await self._slots_lot(lot, types, wanted))
            await self._breathe()
        for name, by_client in (await self._only_dead(wanted, answer)).items():
            answer[name] = next(iter(by_client.values()))
        return dict(sorted(answer.items()))

    async def render(self, type: str, values: Sequence[Any]) -> list[str]:
        """Projections or Aggregates of one Type, each as one line for people."""
        good = [value for value in values if not isinstance(value, Unanswered)]
        rendered = iter(await self._bench.render(type, good) if good else ())
        return [json.dumps({"error": value.error}) if isinstance(value, Unanswered) else next(rendered) for value in values]

    async def _match(self, pattern: str, texts: Sequence[str]) -> list[str]:
        matches = simple_matcher(pattern)
        if matches is not None:
            return await self._those(texts, matches)
        try:
            return await self._match_elsewhere(pattern, texts)
        except PatternRefused as error:
            raise QueryRefused(str(error)) from None

    async def _those(self, texts: Sequence[str], is_meant: Callable[[str], bool]) -> list[str]:
        """Those of `texts`, in turns: a filter may be large, and names may be many."""
        found: list[str] = []
        for start in range(0, len(texts), SLICE_NAMES):
            found += filter(is_meant, texts[start : start + SLICE_NAMES])
            await self._breathe()
        return found

    async def _chosen_clients(self, wanted: Filter, clients: list[str]) -> list[str]:
        if wanted.clients:
            exact = set(wanted.clients)
            clients = [client for client in clients if client in exact]
        if wanted.client_match is not None:
            clients = await self._match(wanted.client_match, clients)
        return clients

    async def _each_clients_of(self, tabs: Sequence[str], wanted: Filter) -> AsyncIterator[tuple[str, list[str]]]:
        """(Tab, its Clients that match), slice by slice, in the order of `tabs`."""
        for start in range(0, len(tabs), SLICE_TABS):
            some = tabs[start : start + SLICE_TABS]
            clients = await self._clients_of(some)
            if wanted.is_about_clients:
                kept = set(await self._chosen_clients(wanted, sorted({client for of_tab in clients.values() for client in of_tab})))
                clients = {tab: [client for client in of_tab if client in kept] for tab, of_tab in clients.items()}
            for tab in some:
                yield tab, clients[tab]
            await self._breathe()

    async def _clients_of(self, tabs: Sequence[str]) -> dict[str, list[str]]:
        by_bucket: dict[int, list[str]] = {}
        for tab in tabs:
            by_bucket.setdefault(bucket_of(tab, self._router.buckets), []).append(tab)
        replies = await self._router.read_many(
            {bucket: [(b"SMEMBERS", keys.clients_of(bucket, tab.encode())) for tab in of] for bucket, of in by_bucket.items()}
        )
        return {
            tab: sorted(client.decode() for client in members)
            for bucket, of in by_bucket.items()
            for tab, members in zip(of, replies[bucket], strict=True)
        }

    async def _projected(self, wanted: Filter, most: int, detail: bool) -> AsyncIterator[Projected]:
        async for lot, types in self._lots(wanted, min(most, MAX_DETAILED) if detail else most):
            for item in await self._project_lot(lot, types, wanted, detail):
                yield item
                await self._breathe()

    async def _lots(self, wanted: Filter, most: int) -> AsyncIterator[tuple[Lot, Mapping[str, str]]]:
        """(lot, Types): (Tab, its Clients that match) of some SLICE_STATES States at a time. Raises QueryRefused for more than `most`."""
        types = await self.types(wanted._replace(clients=(), client_match=None))
        lot: list[tuple[str, list[str]]] = []
        size = total = 0
        async for tab, clients in self._each_clients_of(list(types), wanted):
            if not clients:
                continue
            lot.append((tab, clients))
            size += len(clients)
            total += len(clients)
            if total > most:
                raise QueryRefused(f"more than {most} Projections match; ask with name=, match= or client=")
            if size >= SLICE_STATES:
                yield lot, types
                lot, size = [], 0
        if lot:
            yield lot, types

    async def _breathe(self) -> None:
        """Let others have a turn, where this question has had its own."""
        now = self._clock.seconds()
        if now - self._turn_began > TURN_SECONDS:
            await deferLater(self._clock, 0)
            self._turn_began = self._clock.seconds()

    async def _project_lot(self, lot: Lot, types: Mapping[str, str], wanted: Filter, detail: bool) -> list[Projected]:
        """The Projections of (Tab, Clients) pairs: one read a shard, one call a Type."""
        found, by_type = await self._read_lot(lot, types, wanted)
        for type, (owners, states) in by_type.items():
            for (tab, client), projection in zip(owners, await self._project(type, states, detail), strict=True):
                found.setdefault(tab, {})[client] = projection
        return [
            Projected(tab, types[tab], {client: found[tab][client] for client in [*clients, RETIRED_CLIENT] if client in found[tab]})
            for tab, clients in lot
            if tab in found
        ]

    async def _aggregate_lot(self, lot: Lot, types: Mapping[str, str], wanted: Filter) -> dict[str, Aggregated]:
        """The Aggregates of (Tab, Clients) pairs, without a Projection of each State where the Type can do without."""
        found, by_type = await self._read_lot(lot, types, wanted)
        pieces: dict[str, list[Any]] = {tab: list(of_tab.values()) for tab, of_tab in found.items()}
        clients = {tab: len(of_tab) for tab, of_tab in pieces.items()}
        for type, (owners, states) in by_type.items():
            for start in range(0, len(states), SLICE_STATES):
                some, of_tabs = states[start : start + SLICE_STATES], [tab for tab, _ in owners[start : start + SLICE_STATES]]
                groups, tabs = number(of_tabs)
                together = self._bench.aggregate_states(type, some, groups, len(tabs), self._now())
                if together is None:
                    together, tabs = await self._project(type, some, False), of_tabs
                for tab, piece in zip(tabs, together, strict=True):
                    pieces.setdefault(tab, []).append(piece)
                for tab in of_tabs:
                    clients[tab] = clients.get(tab, 0) + 1
                await self._breathe()
        return {tab: await self._aggregate(types[tab], pieces[tab], clients[tab]) for tab, _ in lot if tab in pieces}

    async def _slots_lot(self, lot: Lot, types: Mapping[str, str], wanted: Filter) -> dict[str, Past | Unanswered]:
        found, by_type = await self._read_lot(lot, types, wanted)
        answer: dict[str, Past | Unanswered] = {tab: next(iter(of_tab.values())) for tab, of_tab in found.items()}
        for type, (owners, states) in by_type.items():
            history = await self._bench.history(type, states, self._now())
            groups, tabs = number(tab for tab, _ in owners)
            if isinstance(history, str):
                self._count(type, history)
                answer.update((tab, Unanswered(history)) for tab in tabs)
            elif history is None:
                answer.update((tab, Unanswered(f"Type {type} keeps no slots")) for tab in tabs)
            else:
                answer.update((tab, past) for tab, past in zip(tabs, pasts(history, groups, len(tabs)), strict=True) if tab not in answer)
        return answer

    async def _read_lot(
        self, lot: Lot, types: Mapping[str, str], wanted: Filter
    ) -> tuple[dict[str, dict[str, Any]], dict[str, tuple[list[tuple[str, str]], list[list[keys.Framed]]]]]:
        """(found, by Type): by Tab and Client what cannot be read, as Unanswered; by Type (Tab, Client) and parts of the others."""
        fields: dict[int, list[bytes]] = {}
        places: list[tuple[str, str, int, int, int]] = []  # Tab, Client, bucket, the place of its fields, how many
        found: dict[str, dict[str, Any]] = {}
        for tab, clients in lot:
            if self._bench.get(types[tab]) is None:
                found[tab] = dict.fromkeys(clients, Unanswered(f"no Handler of Type {types[tab]}"))
                continue
            bucket = bucket_of(tab, self._router.buckets)
            of_bucket = fields.setdefault(bucket, [])
            further = further_parts(self._bench, types[tab])
            if not wanted.is_about_clients and RETIRED_CLIENT not in clients:
                # what was merged since the Clients were read is there, in the same command that no longer finds the others
                clients = [*clients, RETIRED_CLIENT]
            for client in clients:
                field = keys.state_field(tab, client)
                places.append((tab, client, bucket, len(of_bucket), 1 + further))
                of_bucket.append(field)
                if further:
                    of_bucket += keys.part_fields(field, further)
        replies = await self._router.read_many({bucket: [(b"HMGET", keys.states(bucket), *of)] for bucket, of in fields.items()})
        by_type: dict[str, tuple[list[tuple[str, str]], list[list[keys.Framed]]]] = {}
        for tab, client, bucket, place, count in places:
            contents = replies[bucket][0][place : place + count]
            if contents[0] is None:
                continue  # deleted between the two reads
            try:
                parts = [keys.unframe(content) for content in contents]
            except ValueError as error:
                self._count(types[tab], str(error))
                found.setdefault(tab, {})[client] = Unanswered(f"the State cannot be read: {error}")
                continue
            owners, states = by_type.setdefault(types[tab], ([], []))
            owners.append((tab, client))
            states.append(parts)
        return found, by_type

    async def _project(self, type: str, states: list[list[keys.Framed]], detail: bool) -> list[Any]:
        """The Projections of States of one Type; Unanswered for one that its Handler cannot project."""
        answers: list[Any] = []
        now = self._now()
        at_once = SLICE_DETAILED if detail else SLICE_STATES
        for start in range(0, len(states), at_once):
            if start:
                await self._breathe()
            answers += await self._bench.project(type, states[start : start + at_once], now, detail)
        for answer in answers:
            if isinstance(answer, str):
                self._count(type, answer)
        return [Unanswered(answer) if isinstance(answer, str) else answer for answer in answers]

    async def _aggregate(self, type: str, projections: list[Any], clients: int | None = None) -> Aggregated:
        """The Aggregate of what was answered of `projections`, at least one: of `clients` Clients, as many as there are by default."""
        good = [projection for projection in projections if not isinstance(projection, Unanswered)]
        errors = [projection.error for projection in projections if isinstance(projection, Unanswered)]
        if not good:
            return Aggregated(type, None, errors[0])
        answer = await self._bench.aggregate(type, good)
        if isinstance(answer, str):
            self._count(type, answer)
            return Aggregated(type, None, answer)
        if not errors:
            return Aggregated(type, answer)
        return Aggregated(type, answer, f"{len(errors)} of {clients or len(projections)} Clients left out: {errors[0]}")

    async def _only_dead(self, wanted: Filter, found: Container[str]) -> dict[str, dict[str, Unanswered]]:
        """Names that were asked for, have no State, and are named by dead letters: by Client why that is."""
        by_bucket: dict[int, set[str]] = {}
        for name in wanted.names:
            if name not in found and (len(by_bucket) < MAX_BURIED or bucket_of(name, self._router.buckets) in by_bucket):
                by_bucket.setdefault(bucket_of(name, self._router.buckets), set()).add(name)
        answer: dict[str, dict[str, Unanswered]] = {}
        for bucket, names in by_bucket.items():
            [contents] = (await self._router.read_many({bucket: [(b"LRANGE", keys.dead_letters(bucket), b"0", b"-1")]}))[bucket]
            for content in contents:
                letter = decode_dead_letter(content)
                if letter is not None and letter.tab in names:
                    why = f"no event was folded; they are dead letters: {letter.reason}: {letter.detail}"[:500]
                    answer.setdefault(letter.tab, {}).setdefault(letter.client, Unanswered(why))
            await self._breathe()
        return answer

    def _count(self, type: str, error: str) -> None:
        if not self.errors[type]:
            log.warn("Type {type}: {error}", type=type, error=error)
        self.errors[type] += 1
