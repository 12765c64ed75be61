"""Answers questions from what the store has now: names, Clients, Types, Projections, Aggregates. Keeps nothing that a restart could lose.

1. The owner key is read after the data (the Router does it), so that an answer never comes from a bucket that has moved away.
2. A big answer is made lot by lot, as whoever reads it takes it; a lot is gone before the next is read. Others are served between two.
3. What is too big to be one answer is refused, with the bound, before its first byte.
4. What is there and cannot be answered is Unanswered, in its place; the others are answered. No answer says "none" of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
from twisted.logger import Logger

from taba.history import Past, PastSteps, each_group, number, pasts, resample, together
from taba.matching import MatchElsewhere
from taba.names import RETIRED_CLIENT
from taba.series import FIGURES
from taba.server import keys
from taba.server.ask.answers import WHOLE, Aggregated, Asked, Page, Paged, Projected, Summary, Total, Unanswered
from taba.server.ask.choosing import Chooser, Chosen, QueryRefused
from taba.server.ask.filters import Filter, group_name
from taba.server.ask.index import Index
from taba.server.ask.reachable import Reachable
from taba.server.ask.states import SLICE_STATES, ByType, Lot, Part, States, Take
from taba.server.router import IsReader, IsRouter
from taba.server.work.bench import Bench
from taba.turns import Turns

MAX_DETAILED = 2000  # Projections with detail in one answer, or behind it; each takes some 10 KiB and 1 ms
QUIET_SECONDS = 15.0  # an answer so old is made anew though nothing was folded: windows move on where nothing happens
SLICE_SHOWN = 60  # of these where each is shown: some 40 KiB of JSON, which is what a reader that has stopped reading holds
SLICE_DETAILED = 5  # projected at a time with detail; some 10 ms
SLICE_GROUPED = 200  # names whose groups are looked for between two looks at the time; a long one takes 0.1 ms
SLICE_EACH = 5  # States, or pieces of an Aggregate, of Types that take each by itself: sketches of long texts 1 ms, large lists 2 and more
MAX_PIECES = 200  # of one Aggregate, until they are made one

log = Logger()


class Query:
    """The questions. `changes`: how often this Server itself has changed which Tabs there are."""

    def __init__(
        self,
        router: IsRouter,
        bench: Bench,
        clock: Any,
        now: Callable[[], float],
        match_elsewhere: MatchElsewhere,
        changes: Callable[[], int],
    ):
        self._router: IsReader = router
        self._bench, self._now, self._match_elsewhere = bench, now, match_elsewhere
        self.turns = Turns.of(clock)
        self.index = Index(router, self.turns, changes)
        self._chooser = Chooser(router, self.index, self.turns, match_elsewhere)
        self._away: Mapping[int, str] = {}
        self.errors: Counter[str] = Counter()
        """States and Projections that Handlers failed on, by Type, since this process began."""
        self.read: Counter[str] = Counter()
        """How many `states` were read to answer questions, since this process began."""
        self._states = self._states_of(router, self._chooser)

    def of(self, reachable: Reachable) -> Query:
        """These questions, of what can be reached."""
        other = copy(self)
        other._router, other._away = reachable, reachable.away
        other._chooser = Chooser(reachable, self.index, self.turns, self._match_elsewhere, reachable.away)
        other._states = other._states_of(reachable, other._chooser)
        return other

    def _states_of(self, router: IsReader, chooser: Chooser) -> States:
        return States(router, self._bench, chooser, self.turns, self._count, self.read, self._away)

    def type_has_past(self, type: str) -> bool:
        """Whether the Type keeps slots."""
        return getattr(self._bench.get(type), "history", None) is not None

    def shown(self, type: str) -> tuple[str, ...] | None:
        """The figures that are shown of a Type (`taba.series`), or None: its samples; nothing where it has no Handler."""
        handler = self._bench.get(type)
        if handler is None:
            return ()
        shown = getattr(handler, "shown", None)
        if not isinstance(shown, (list, tuple)):
            return None
        return tuple(figure for figure in shown if isinstance(figure, str) and figure in FIGURES)

    @property
    def buckets(self) -> int:
        """How many there are."""
        return self._router.buckets

    def why_away(self, tab: str) -> str | None:
        """Why a Tab that was there when the question began is so no longer; None where it is."""
        return self._states.why_away(tab)

    async def breathe(self) -> None:
        """Let others have a turn, where this process has worked on questions for long."""
        await self.turns.breathe()

    async def folded(self, buckets: Collection[int]) -> dict[int, int]:
        """By bucket how many Events were folded there since ever: a cheap sign of change. Of those that are away, nothing."""
        if not buckets:
            return {}
        replies = await self._router.read_many({bucket: [(b"HMGET", keys.counts(bucket), b"folded")] for bucket in sorted(buckets)})
        return {bucket: keys.count_of(count) for bucket, [[count]] in replies.items() if bucket not in self._away}

    # --- names ---

    async def types(self, wanted: Filter, page: Page = WHOLE) -> tuple[dict[str, str], str | None]:
        """(Tab → Type of all that match and have States, sorted by name; the next page's cursor)."""
        chosen = await self._chooser.tabs(wanted)
        paged = Paged.of([tab for tab in chosen.tabs if tab not in chosen.dead] if chosen.dead else chosen.tabs, page)
        found: dict[str, str] = {}
        for start in range(0, len(paged.names), SLICE_STATES):
            found.update((tab, chosen.type_of(tab)) for tab in paged.names[start : start + SLICE_STATES])
            await self.turns.breathe()
        return found, paged.next

    async def names(self, wanted: Filter, page: Page = WHOLE) -> Paged:
        """The names of all Tabs that match and have States."""
        chosen = await self._chooser.tabs(wanted)
        return Paged.of([tab for tab in chosen.tabs if tab not in chosen.dead] if chosen.dead else chosen.tabs, page)

    async def clients(self, wanted: Filter, page: Page = WHOLE) -> Paged:
        """The Clients that have a State of a Tab that matches."""
        return Paged.of(await self._chooser.clients(wanted), page)

    # --- what the States say ---

    async def ask(self, wanted: Filter, by: Sequence[str] = (), detail: bool = False, page: Page = WHOLE) -> Asked:
        """What a question about States is about. `by`: labels; Tabs of one base name are grouped by their values.

        Raises QueryRefused, also for `detail` of more than MAX_DETAILED States.
        """
        chosen = await self._chooser.tabs(wanted)
        groups: dict[str, Sequence[str]] = {}
        if by:
            found: dict[str, list[str]] = {}
            for start in range(0, len(chosen.tabs), SLICE_GROUPED):
                for tab in chosen.tabs[start : start + SLICE_GROUPED]:
                    found.setdefault(group_name(tab, by), []).append(tab)
                await self.turns.breathe()
            paged = Paged.of(sorted(found), page)
            groups = {name: found[name] for name in paged.names}
            chosen = chosen._replace(tabs=[tab for of in groups.values() for tab in of])
        else:
            paged = Paged.of(chosen.tabs, page)
            chosen = chosen._replace(tabs=paged.names)
        if detail:
            await self._check_detailed(chosen, wanted)
        return Asked(chosen, wanted, detail, groups, paged.next)

    async def projections(self, asked: Asked) -> AsyncIterator[Projected]:
        """The Projections, by Tab; those of a Tab of many Clients one part after the other.

        A Client that is merged into `_retired` between two parts is in both: with it last, nothing is left out.
        """
        async for lot in self._states.parts(asked.chosen, asked.wanted, SLICE_DETAILED if asked.detail else SLICE_SHOWN):
            by_tab = await self._project_lot(lot, asked.chosen, asked.wanted, asked.detail)
            for part in lot:
                if part.tab in asked.chosen.dead:
                    of_dead = {client: Unanswered(why) for client, why in asked.chosen.dead[part.tab].items()}
                    yield Projected(part.tab, "", of_dead)
                elif part.tab in by_tab:
                    yield Projected(part.tab, asked.chosen.type_of(part.tab), by_tab.pop(part.tab))
                elif (why := self.why_away(part.tab)) is not None:
                    yield Projected(part.tab, "", {"": Unanswered(why)})
            await self.turns.breathe()

    async def aggregates(self, asked: Asked) -> AsyncIterator[tuple[str, Aggregated]]:
        """The Aggregate of each Tab, or of each group. A group of Tabs of several Types has none."""
        if not asked.groups:
            async for tab, total in self._totals(asked.chosen, asked.wanted, asked.detail):
                yield tab, await self._aggregated(total)
            return
        groups = iter(asked.groups.items())
        name, left = "", 0
        whole: Total | None = None
        async for _, total in self._totals(asked.chosen, asked.wanted, asked.detail, with_empty=True):
            if not left:
                name, of_group = next(groups)
                left, whole = len(of_group), None
            whole = total if whole is None else whole.with_other(total)
            await self._shorten(whole)
            left -= 1
            if not left and not whole.is_empty:
                yield name, await self._aggregated(whole)

    async def superaggregate(self, asked: Asked) -> Aggregated | None:
        """The Aggregate over everything that matches; None where nothing does. Raises QueryRefused for several Types."""
        types = sorted({asked.chosen.type_of(tab) for tab in asked.chosen.tabs if tab not in asked.chosen.dead})
        if len(types) > 1:
            raise QueryRefused(f"a superaggregate is over one Type; these match: {', '.join(types)[:500]}; narrow name=, label= or match=")
        whole: Total | None = None
        async for _, total in self._totals(asked.chosen, asked.wanted, asked.detail):
            whole = total if whole is None else whole.with_other(total)
            await self._shorten(whole)
        return None if whole is None else await self._aggregated(whole)

    async def summaries(self, asked: Asked, steps: int, step: float) -> AsyncIterator[Summary]:
        """Each Tab in one, with the last `steps` steps of `step` seconds. Of several Tabs one after the other."""
        now = self._now()
        times = [now - step * place for place in range(steps - 1, -1, -1)]

        async def take(lot: Lot) -> tuple[dict[str, Total], list[Any]]:
            """What one slice comes to, and its history: none where there are no States, None where it cannot be had."""
            totals = await self._totalled(lot.unread, lot.by_type, asked.chosen)
            for type, (_, states) in lot.by_type.items():  # one Tab has one
                await self.turns.breathe()
                history = await self._bench.history(type, states, now)
                return totals, [None if history is None or isinstance(history, str) else together([history])]
            return totals, []

        async for lot in self._states.parts(asked.chosen, asked.wanted, SLICE_STATES, is_whole=True):
            large = [part for part in lot if self._states.is_large(part, asked.chosen)]
            others = [part for part in lot if part not in large] if large else lot
            found, by_type = await self._states.read(others, asked.chosen, asked.wanted)
            totals = await self._totalled(found, by_type, asked.chosen)
            past: dict[str, PastSteps] = {}
            for type, (owners, states) in by_type.items():
                await self.turns.breathe()
                history = await self._bench.history(type, states, now)
                if history is None or isinstance(history, str):
                    continue  # what is wrong with it, its Aggregate tells, too
                groups, tabs = number(tab for tab, _ in owners)
                past.update(zip(tabs, each_group(resample(history, groups, len(tabs), times, step)), strict=True))
            for part in large:
                slices = await self._states.in_slices(part, asked.chosen, asked.wanted, take)
                for of_slice, _ in slices:
                    for tab, total in of_slice.items():
                        totals[tab] = totals[tab].with_other(total) if tab in totals else total
                        await self._shorten(totals[tab])
                histories = [history for _, of_slice in slices for history in of_slice]
                if histories and all(history is not None for history in histories):  # without one of them the others are not the whole
                    [past[part.tab]] = each_group(resample(together(histories), np.zeros(1, dtype=np.int64), 1, times, step))
            for part in lot:
                if part.tab in asked.chosen.dead:
                    errors = list(asked.chosen.dead[part.tab].values())
                    totals[part.tab] = Total("", [], len(errors), len(errors), errors[0])
                total = totals.get(part.tab)
                if total is not None and not total.is_empty:
                    yield Summary(part.tab, total.type, await self._aggregated(total), total.clients, past.get(part.tab))

    async def slots(self, asked: Asked) -> AsyncIterator[tuple[str, Past | Unanswered]]:
        """By Tab the slots of all Clients that match, at their own widths, of a few Tabs at a time: one may have thousands of bins."""
        async for lot in self._states.parts(asked.chosen, asked.wanted, SLICE_DETAILED, is_whole=True):
            large = [part for part in lot if self._states.is_large(part, asked.chosen)]
            found = await self._slots_lot([part for part in lot if part not in large], asked.chosen, asked.wanted)
            for part in large:
                found.update(await self._slots_in_slices(part, asked.chosen, asked.wanted))
            for part in lot:
                if part.tab in asked.chosen.dead:
                    yield part.tab, Unanswered(next(iter(asked.chosen.dead[part.tab].values())))
                elif part.tab in found:
                    yield part.tab, found.pop(part.tab)
                elif (why := self.why_away(part.tab)) is not None:
                    yield part.tab, Unanswered(why)
            await self.turns.breathe()

    async def lots(
        self, tabs: Sequence[str], type_of: Callable[[str], str], wanted: Filter, most: int, take: Take | None
    ) -> AsyncIterator[Lot]:
        """The States of `tabs`, some `most` at a time. With `take` no Tab is divided, but into slices of which `take` makes something.

        Without it a Tab's Clients may come in several lots; one that is merged meanwhile may be in two of them, with `_retired`.
        """
        chosen = Chosen(tabs, type_of, {})
        async for lot in self._states.parts(chosen, wanted, most, is_whole=take is not None):
            made: dict[str, Sequence[Any]] = {}
            others = [part for part in lot if take is None or not self._states.is_large(part, chosen)]
            if take is not None:
                for part in lot:
                    if self._states.is_large(part, chosen):
                        made[part.tab] = await self._states.in_slices(part, chosen, wanted, take)
            yield Lot(*await self._states.read(others, chosen, wanted), made)
            await self.turns.breathe()

    async def history(self, type: str, states: list[list[keys.Framed]], now: float) -> Any:
        """The History of States as of `now`, None where the Type has none, or Unanswered."""
        history = await self._bench.history(type, states, now)
        if isinstance(history, str):
            self._count(type, history)
            return Unanswered(history)
        return history

    async def aggregate(self, type: str, projections: Sequence[Any]) -> Any:
        """One Aggregate of Projections, or Unanswered."""
        answer = await self._aggregate(type, projections)
        if isinstance(answer, str):
            self._count(type, answer)
            return Unanswered(answer)
        return answer

    async def project(self, type: str, states: list[list[keys.Framed]]) -> list[Any]:
        """The Projections, or Unanswered."""
        return await self._project(type, states, False)

    async def samples(self, type: str, projections: Sequence[Any]) -> list[Any]:
        """For each Projection what exporters show, or Unanswered."""
        answers = await self._bench.samples(type, projections)
        for answer in answers:
            if isinstance(answer, str):
                self._count(type, answer)
        return [Unanswered(answer) if isinstance(answer, str) else answer for answer in answers]

    async def match(self, pattern: str, texts: Sequence[str]) -> list[str]:
        """Those of `texts` that the whole pattern matches. Raises QueryRefused."""
        return await self._chooser.match(pattern, texts)

    async def clients_of(self, tabs: Sequence[str]) -> AsyncIterator[tuple[str, list[str]]]:
        """(Tab, its Clients), in the order of `tabs`."""
        async for tab, clients in self._chooser.each_clients_of(tabs, Filter()):
            yield tab, clients

    async def render(self, type: str, values: Sequence[Any]) -> list[str]:
        """Projections or Aggregates of one Type, each as one line for people."""
        good = [value for value in values if not isinstance(value, Unanswered)]
        rendered = iter(await self._bench.render(type, good) if good else ())
        return [json.dumps({"error": value.error}) if isinstance(value, Unanswered) else next(rendered) for value in values]

    # --- lots ---

    async def _check_detailed(self, chosen: Chosen, wanted: Filter) -> None:
        total = 0
        async for _, clients in self._chooser.each_clients_of([tab for tab in chosen.tabs if tab not in chosen.dead], wanted):
            total += len(clients)
            if total > MAX_DETAILED:
                raise QueryRefused(f"more than {MAX_DETAILED} Projections match; ask with name=, match=, client= or limit=")

    async def _totals(self, chosen: Chosen, wanted: Filter, detail: bool, with_empty: bool = False) -> AsyncIterator[tuple[str, Total]]:
        """What each Tab comes to; one of which nothing is there is left out, or empty."""
        # all States of a Tab are as of one moment: a job that merges Clients must not have some of them counted twice, or not at all
        async for lot in self._states.parts(chosen, wanted, SLICE_STATES, is_whole=True):
            large = [part for part in lot if self._states.is_large(part, chosen) and not detail]
            others = [part for part in lot if part not in large] if large else lot
            found: dict[str, Total] = await (self._detail_lot if detail else self._total_lot)(others, chosen, wanted)
            for part in large:
                found.update(await self._total_in_slices(part, chosen, wanted))
            for part in lot:
                if part.tab in chosen.dead:
                    errors = list(chosen.dead[part.tab].values())
                    total = Total("", [], len(errors), len(errors), errors[0])
                elif part.tab in found:
                    total = found.pop(part.tab)
                else:
                    total = Total(chosen.type_of(part.tab))
                    if (why := self.why_away(part.tab)) is not None:
                        total.add(Unanswered(why))
                if with_empty or not total.is_empty:
                    yield part.tab, total
            await self.turns.breathe()

    async def _project_lot(self, lot: Sequence[Part], chosen: Chosen, wanted: Filter, detail: bool) -> dict[str, dict[str, Any]]:
        """By Tab and Client the Projections: one read a shard, one call a Type."""
        found, by_type = await self._states.read(lot, chosen, wanted)
        for type, (owners, states) in by_type.items():
            for (tab, client), projection in zip(owners, await self._project(type, states, detail), strict=True):
                found.setdefault(tab, {})[client] = projection
        return {
            part.tab: {client: found[part.tab][client] for client in [*part.clients, RETIRED_CLIENT] if client in found[part.tab]}
            for part in lot
            if part.tab in found
        }

    async def _detail_lot(self, lot: Sequence[Part], chosen: Chosen, wanted: Filter) -> dict[str, Total]:
        found = await self._project_lot(lot, chosen, wanted, True)
        return {tab: Total.of(chosen.type_of(tab), list(by_client.values())) for tab, by_client in found.items()}

    async def _total_lot(self, lot: Sequence[Part], chosen: Chosen, wanted: Filter) -> dict[str, Total]:
        """What the Tabs come to, without a Projection of each State where the Type can do without."""
        found, by_type = await self._states.read(lot, chosen, wanted)
        return await self._totalled(found, by_type, chosen)

    async def _total_in_slices(self, part: Part, chosen: Chosen, wanted: Filter) -> dict[str, Total]:
        """What a Tab of many Clients comes to."""

        async def take(lot: Lot) -> dict[str, Total]:
            return await self._totalled(lot.unread, lot.by_type, chosen)

        totals: dict[str, Total] = {}
        for of_slice in await self._states.in_slices(part, chosen, wanted, take):
            for tab, total in of_slice.items():
                totals[tab] = totals[tab].with_other(total) if tab in totals else total
                await self._shorten(totals[tab])
        return totals

    async def _totalled(self, found: Mapping[str, Mapping[str, Any]], by_type: ByType, chosen: Chosen) -> dict[str, Total]:
        totals = {tab: Total.of(chosen.type_of(tab), list(of_tab.values())) for tab, of_tab in found.items()}
        for type, (owners, states) in by_type.items():
            for start in range(0, len(states), SLICE_STATES):
                some, of_tabs = states[start : start + SLICE_STATES], [tab for tab, _ in owners[start : start + SLICE_STATES]]
                groups, tabs = number(of_tabs)
                await self.turns.breathe()
                together = self._bench.aggregate_states(type, some, groups, len(tabs), self._now())
                counts = Counter(of_tabs)
                is_made = together is not None
                if together is None:
                    together, tabs, counts = await self._project(type, some, False), of_tabs, Counter()
                for tab, piece in zip(tabs, together, strict=True):
                    totals.setdefault(tab, Total(type)).add(piece, counts[tab] or 1, is_made)
        return totals

    async def _slots_lot(self, lot: Sequence[Part], chosen: Chosen, wanted: Filter) -> dict[str, Past | Unanswered]:
        found, by_type = await self._states.read(lot, chosen, wanted)
        answer: dict[str, Past | Unanswered] = {tab: next(iter(of_tab.values())) for tab, of_tab in found.items() if of_tab}
        for type, (owners, states) in by_type.items():
            await self.turns.breathe()
            groups, tabs = number(tab for tab, _ in owners)
            answer = {**self._pasts(type, await self._bench.history(type, states, self._now()), groups, tabs), **answer}
        return answer

    async def _slots_in_slices(self, part: Part, chosen: Chosen, wanted: Filter) -> dict[str, Past | Unanswered]:
        """The slots of a Tab of many Clients."""
        now = self._now()

        async def take(lot: Lot) -> list[Any]:
            """What one slice comes to: why it is not known, or its Type and history; nothing where there are no States."""
            unread = [why for of_tab in lot.unread.values() for why in of_tab.values()]
            for type, (_, states) in lot.by_type.items():
                await self.turns.breathe()
                history = await self._bench.history(type, states, now)
                return [*unread, (type, history if history is None or isinstance(history, str) else together([history]))]
            return unread

        made = [one for of_slice in await self._states.in_slices(part, chosen, wanted, take) for one in of_slice]
        unread = next((one for one in made if isinstance(one, Unanswered)), None)
        if unread is not None or not made:
            return {} if unread is None else {part.tab: unread}
        type, histories = made[0][0], [history for _, history in made]
        whole = next((history for history in histories if history is None or isinstance(history, str)), ...)
        return self._pasts(type, together(histories) if whole is ... else whole, np.zeros(1, dtype=np.int64), [part.tab])

    def _pasts(self, type: str, history: Any, groups: Any, tabs: Sequence[str]) -> dict[str, Past | Unanswered]:
        """What a history of these Tabs is; of one that cannot be had, or that a Type does not keep, why there is none."""
        if isinstance(history, str):
            self._count(type, history)
            return dict.fromkeys(tabs, Unanswered(history))
        if history is None:
            return dict.fromkeys(tabs, Unanswered(f"Type {type} keeps no slots"))
        return dict(zip(tabs, pasts(history, groups, len(tabs)), strict=True))

    async def _project(self, type: str, states: list[list[keys.Framed]], detail: bool) -> list[Any]:
        """The Projections of States of one Type; Unanswered for one that its Handler cannot project."""
        answers: list[Any] = []
        now = self._now()
        at_once = SLICE_DETAILED if detail else SLICE_EACH if self._bench.takes_each(type) else SLICE_STATES
        for start in range(0, len(states), at_once):
            await self.turns.breathe()
            answers += await self._bench.project(type, states[start : start + at_once], now, detail)
        for answer in answers:
            if isinstance(answer, str):
                self._count(type, answer)
        return [Unanswered(answer) if isinstance(answer, str) else answer for answer in answers]

    async def _aggregate(self, type: str, pieces: Sequence[Any]) -> Any:
        """The Aggregate of Projections and Aggregates, or a sentence: where a Type takes each by itself, some at a time become one."""
        while len(pieces) > SLICE_EACH and self._bench.takes_each(type):
            made: list[Any] = []
            for start in range(0, len(pieces), SLICE_EACH):
                await self.turns.breathe()
                made.append(await self._bench.aggregate(type, pieces[start : start + SLICE_EACH]))
                if isinstance(made[-1], str):
                    return made[-1]
            pieces = made
        await self.turns.breathe()
        return await self._bench.aggregate(type, pieces)

    async def _shorten(self, total: Total) -> None:
        """Make one of many pieces, so that none is held for each of many Clients or Tabs."""
        if len(total.pieces) >= MAX_PIECES and not total.differs:
            answer = await self._aggregate(total.type, total.pieces)
            if isinstance(answer, str):
                self._count(total.type, answer)
                total.fail(answer)
            else:
                total.pieces, total.made = [answer], 1

    async def _aggregated(self, total: Total) -> Aggregated:
        if total.differs:
            return Aggregated("", None, f"Types differ: {', '.join(sorted(total.differs))}"[:500])
        if not total.pieces:
            return Aggregated(total.type, None, total.error)
        if total.is_made:
            [answer] = total.pieces
        else:
            answer = await self._aggregate(total.type, total.pieces)
        if isinstance(answer, str):
            self._count(total.type, answer)
            return Aggregated(total.type, None, answer)
        if total.error is None:
            return Aggregated(total.type, answer)
        return Aggregated(total.type, answer, f"{total.left_out} of {total.clients} Clients left out: {total.error}")

    def _count(self, type: str, error: str) -> None:
        if not self.errors[type]:
            log.warn("Type {type}: {error}", type=type, error=error)
        self.errors[type] += 1
