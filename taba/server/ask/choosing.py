"""Which Tabs and Clients a question means, and what stands in the place of those that only dead letters know.

1. What is chosen is names alone; States are read by who answers, lot by lot.
2. A filter works in slices, and others have their turns between them; expressions are matched in another process.
3. A Tab is there although nothing of it could be folded: then its dead letters say why, and it is never simply left out.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from taba.errors import TabaError
from taba.matching import MatchElsewhere, simple_matcher
from taba.names import OWN_TABS
from taba.server import keys
from taba.server.ask.filters import Filter, base_of, has_labels, pattern_of
from taba.server.ask.index import Index, Looked
from taba.server.fold.cycle import bucket_of
from taba.server.fold.deadletters import address_of
from taba.server.router import IsReader
from taba.server.work.patterns import PatternRefused
from taba.turns import Turns, in_order, in_slices

MAX_BURIED = 16  # buckets whose dead letters one question looks through; each may have some MiB of them
MAX_DEAD_TABS = 1000  # that are named for one question
SLICE_NAMES = 20  # looked at by a filter between two looks at the time; one of 1,000 characters and the longest name take 0.2 ms
SLICE_PLAIN = 5000  # names that are looked at without an expression between two, some 2 ms
SLICE_MATCHED = 10_000  # that go to a child at a time, some 5 ms
MATCHED_SECONDS = 20.0  # for one expression over all names, with what it waits for others between two lots
SLICE_LETTERS = 200  # of dead letters read and looked at between two
FIRST_TABS = 1  # whose Clients are read at first; then as many as have some SLICE_CLIENTS, as far as those before tell
SLICE_CLIENTS = 300  # names of Clients at a time, some 24 KiB: a reader that has stopped reading has us hold them
MAX_SLICE_TABS = 500
FEW_CLIENTS = 16  # named in full, of which each Tab is asked whether it has them; of more, it is asked for all that it has


class QueryRefused(TabaError):
    """The question cannot be answered as it is; says how to ask."""


class Chosen(NamedTuple):
    """`tabs`: the names that are meant, sorted. `dead`: of those among them that have no State, by Client, why; the Client "" stands for
    all of one that was asked for by its name and is away. `type_of` has the others.
    """

    tabs: Sequence[str]
    type_of: Callable[[str], str]
    dead: Mapping[str, Mapping[str, str]]


class Chooser:
    """Finds what is meant. `away`: where buckets that cannot be had are noted, and left out; None: then StoreUnavailable is raised."""

    def __init__(
        self,
        router: IsReader,
        index: Index,
        turns: Turns,
        match_elsewhere: MatchElsewhere,
        away: MutableMapping[int, str] | None = None,
    ):
        self._router, self._index, self._turns, self._match_elsewhere = router, index, turns, match_elsewhere
        self._away = away

    async def tabs(self, wanted: Filter) -> Chosen:
        """Everything that matches, also what only dead letters know. Raises QueryRefused."""
        types = await self._exact(wanted.names)
        missing = [name for name in wanted.names if name not in types]
        if wanted.is_of_exact_names:
            names: Sequence[str] = sorted(types)
            type_of: Callable[[str], str] = types.__getitem__
            buried = {bucket_of(name, self._router.buckets) for name in missing}
        else:
            # whose names are all there are answered whatever else is away, or slow
            is_answered = bool(wanted.names) and not missing and not wanted.globs
            looked = await (self._index.lately() if is_answered else self._index.look(self._away))
            names = await self._named(wanted, looked, types)
            type_of = _Types(looked, self._router.buckets, types)
            buried = set() if is_answered else {bucket for bucket, known in looked.items() if known.dead}
        chosen = await self._those_that_match(wanted, names)
        dead = await self._dead(wanted, type_of, buried) if buried else {}
        for name in wanted.scope.of_tabs(sorted(wanted.names)) if self._away else ():
            why = self._away.get(bucket_of(name, self._router.buckets)) if self._away else None
            if why is not None and name not in types and name not in dead:
                dead = {**dead, name: {"": why}}
        if wanted.is_about_clients:
            chosen = [tab async for tab, clients in self.each_clients_of(chosen, wanted) if clients]
        there = set(chosen) if dead else set()  # what went, or came, between two looks
        dead = {tab: why for tab, why in dead.items() if tab not in there}
        return Chosen(sorted([*chosen, *dead]) if dead else chosen, type_of, dead)

    async def clients(self, wanted: Filter) -> list[str]:
        """The Clients that have a State of a Tab that matches, sorted."""
        if wanted.names or wanted.globs or wanted.match is not None or wanted.labels or wanted.scope.prefixes:
            chosen = await self.tabs(wanted.of_tabs())
            tabs = [tab for tab in chosen.tabs if tab not in chosen.dead]
            found = {client async for _, clients in self.each_clients_of(tabs, Filter()) for client in clients}
        else:
            replies = await self._router.read_many({b: [(b"SMEMBERS", keys.clients(b))] for b in range(self._router.buckets)})
            found = {client for [clients] in replies.values() for client in keys.texts_of(clients)}
        return await self._chosen_clients(wanted, sorted(found))

    async def each_clients_of(self, tabs: Sequence[str], wanted: Filter) -> AsyncIterator[tuple[str, list[str]]]:
        """(Tab, its Clients that match), slice by slice, in the order of `tabs`."""
        start = many = 0
        step = FIRST_TABS
        while start < len(tabs):
            some = tabs[start : start + step]
            start += len(some)
            clients = await self._clients_of(some, wanted)
            many += sum(map(len, clients.values()))
            step = max(1, min(MAX_SLICE_TABS, SLICE_CLIENTS * start // max(many, 1)))
            if wanted.is_about_clients:
                kept = set(await self._chosen_clients(wanted, sorted({client for of_tab in clients.values() for client in of_tab})))
                clients = {tab: [client for client in of_tab if client in kept] for tab, of_tab in clients.items()}
            for tab in some:
                yield tab, clients.pop(tab)
            await self._turns.breathe()

    async def _exact(self, names: Sequence[str]) -> dict[str, str]:
        """Name → Type of those that are there."""
        by_bucket: dict[int, list[str]] = {}
        for name in names:
            by_bucket.setdefault(bucket_of(name, self._router.buckets), []).append(name)
        if not by_bucket:
            return {}
        replies = await self._router.read_many(
            {bucket: [(b"HMGET", keys.tabs(bucket), *[name.encode() for name in of])] for bucket, of in by_bucket.items()}
        )
        return {
            name: keys.text_of(type)
            for bucket, of in by_bucket.items()
            for name, type in zip(of, replies[bucket][0], strict=True)
            if type is not None
        }

    async def _named(self, wanted: Filter, looked: Looked, exact: Mapping[str, str]) -> Sequence[str]:
        """The names that `names` and `globs` mean, of those that have States, sorted; all, where there are neither."""
        if wanted.names and not wanted.globs:  # what else there is, however much, does not matter
            return await in_order(self._with_labels(wanted, looked, exact), self._turns.breathe)
        names = await self._index.all_of(looked)
        if wanted.is_about_own:
            names = [*names]
            for tab in {tab for known in looked.values() for tab in OWN_TABS if tab in known.types}:  # a few
                insort(names, tab)
        if not wanted.globs:
            return names
        found = self._with_labels(wanted, looked, exact)
        bases_there: set[str] = set()
        async for some in in_slices(names, SLICE_PLAIN, self._turns.breathe):
            bases_there.update(base_of(name) for name in some if "{" in name)
        async for some in in_slices(names, SLICE_PLAIN, self._turns.breathe):
            bases_there.difference_update(some)
        texts = [*names, *await in_order(bases_there, self._turns.breathe)] if bases_there else names
        matching = set(await self.match(pattern_of(wanted.globs), texts))
        meant: list[str] = []
        async for some in in_slices(names, SLICE_PLAIN, self._turns.breathe):
            meant += [name for name in some if name in matching or base_of(name) in matching]
        if not found:
            return meant  # in the order of `names`: many take long to sort
        found.update(meant)
        return await in_order(found, self._turns.breathe)

    @staticmethod
    def _with_labels(wanted: Filter, looked: Looked, exact: Mapping[str, str]) -> set[str]:
        """The Tabs that are named as they are, and those that a base name means."""
        found = set(exact)
        bases = [name for name in wanted.names if "{" not in name]
        for known in looked.values():
            if known.labelled:
                for base in bases:
                    found.update(known.labelled.get(base, ()))
        return found

    async def _those_that_match(self, wanted: Filter, names: Sequence[str]) -> Sequence[str]:
        names = wanted.scope.of_tabs(names)
        if wanted.labels:
            names = await self._those(names, has_labels(wanted.labels))
        if wanted.match is not None:
            names = await self.match(wanted.match, names)
        return names

    async def _dead(self, wanted: Filter, type_of: Callable[[str], str], buried: set[int]) -> dict[str, dict[str, str]]:
        """What only dead letters know and is meant: by Tab and Client why."""
        found: dict[str, dict[str, str]] = {}
        for bucket in sorted(buried)[:MAX_BURIED]:
            async for tab, client, why in self._letters(bucket):
                if len(found) < MAX_DEAD_TABS or tab in found:
                    found.setdefault(tab, {}).setdefault(client, why)
        names: Sequence[str] = sorted(await self._without_states(found))
        if wanted.names or wanted.globs:
            globbed = set(await self.match(pattern_of(wanted.globs), sorted({*names, *map(base_of, names)}))) if wanted.globs else set()
            meant = globbed.union(wanted.names)
            names = [name for name in names if name in meant or base_of(name) in meant]
        names = await self._those_that_match(wanted, names)
        dead = {name: found[name] for name in names}
        if wanted.is_about_clients:
            kept = set(await self._chosen_clients(wanted, sorted({client for of_tab in dead.values() for client in of_tab})))
            dead = {name: {client: why for client, why in of_tab.items() if client in kept} for name, of_tab in dead.items()}
        return {name: of_tab for name, of_tab in dead.items() if of_tab}

    async def _without_states(self, tabs: Mapping[str, Any]) -> set[str]:
        return set(tabs) - set(await self._exact(list(tabs))) if tabs else set()

    async def _letters(self, bucket: int) -> AsyncIterator[tuple[str, str, str]]:
        """(Tab, Client, why) of a bucket's dead letters, newest first."""
        start = 0
        while True:
            span = (b"%d" % start, b"%d" % (start + SLICE_LETTERS - 1))
            [contents] = (await self._router.read_many({bucket: [(b"LRANGE", keys.dead_letters(bucket), *span)]}))[bucket]
            for content in contents:
                address = address_of(content)
                if address is not None and address.tab:
                    why = f"no event was folded; they are dead letters: {address.reason}: {address.detail}"[:500]
                    yield address.tab, address.client, why
            await self._turns.breathe()
            start += SLICE_LETTERS
            if len(contents) < SLICE_LETTERS:
                return

    async def match(self, pattern: str, texts: Sequence[str]) -> list[str]:
        """Those of `texts` that the whole pattern matches. Raises QueryRefused."""
        matches = simple_matcher(pattern)
        if matches is not None:
            return await self._those(texts, matches)
        began, found = self._turns.seconds(), list[str]()
        try:
            for start in range(0, len(texts) or 1, SLICE_MATCHED):  # where there is nothing to match, too: it may be no expression
                await self._turns.breathe()
                found += await self._match_elsewhere(pattern, texts[start : start + SLICE_MATCHED])
                if self._turns.seconds() - began > MATCHED_SECONDS:
                    raise PatternRefused(f"the regular expression {pattern[:100]!r} takes too long to match {len(texts)} names")
        except PatternRefused as error:
            raise QueryRefused(str(error)) from None
        return found

    async def _those(self, texts: Sequence[str], is_meant: Callable[[str], bool]) -> list[str]:
        """Those of `texts`, in turns: a filter may be large, and names may be many."""
        found: list[str] = []
        for start in range(0, len(texts), SLICE_NAMES):
            found += filter(is_meant, texts[start : start + SLICE_NAMES])
            await self._turns.breathe()
        return found

    async def _chosen_clients(self, wanted: Filter, clients: list[str]) -> list[str]:
        if wanted.scope.clients:
            clients = await self._those(clients, wanted.scope.covers_client)
        if wanted.clients or wanted.client_globs:
            exact = set(wanted.clients)
            if wanted.client_globs:
                exact.update(await self.match(pattern_of(wanted.client_globs), clients))
            clients = [client for client in clients if client in exact]
        if wanted.client_match is not None:
            clients = await self.match(wanted.client_match, clients)
        return clients

    async def _clients_of(self, tabs: Sequence[str], wanted: Filter) -> dict[str, list[str]]:
        """Tab → its Clients, sorted; at least those of them that are wanted."""
        by_bucket: dict[int, list[str]] = {}
        buckets = self._router.buckets
        for tab in tabs:
            by_bucket.setdefault(bucket_of(tab, buckets), []).append(tab)
        if wanted.clients and not wanted.client_globs and len(wanted.clients) <= FEW_CLIENTS:
            few = sorted(set(wanted.clients))
            asked = [client.encode() for client in few]
            replies = await self._router.read_many(
                {b: [(b"SMISMEMBER", keys.clients_of(b, tab.encode()), *asked) for tab in of] for b, of in by_bucket.items()}
            )
            return {
                tab: [client for client, is_there in zip(few, found, strict=True) if is_there]
                for bucket, of in by_bucket.items()
                for tab, found in zip(of, replies[bucket], strict=True)
            }
        replies = await self._router.read_many(
            {bucket: [(b"SMEMBERS", keys.clients_of(bucket, tab.encode())) for tab in of] for bucket, of in by_bucket.items()}
        )
        return {
            tab: sorted(keys.texts_of(members))
            for bucket, of in by_bucket.items()
            for tab, members in zip(of, replies[bucket], strict=True)
        }


class _Types:
    """Tab → Type, of a look and beside it: called with the name."""

    def __init__(self, looked: Looked, buckets: int, beside: Mapping[str, str]):
        self._looked, self._buckets, self._beside = looked, buckets, beside

    def __call__(self, tab: str) -> str:
        # "" of a name that is no Tab's, and lies in another bucket than one would: a disk, or somebody, put it there
        known = self._looked.get(bucket_of(tab, self._buckets))
        return self._beside.get(tab) or (known.types.get(tab, "") if known is not None else "")
