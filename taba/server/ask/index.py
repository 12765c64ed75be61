"""Which Tabs there are: read from the store once, and again only where a bucket says that its Tabs have changed.

1. Every question that is not about exact names begins with a look at the counts of all buckets: one small command each, of which
   `tabs` says how often the bucket's Tabs have changed. The names of the buckets where it is what it was are those that are known.
2. A look begins after the question that it answers came in; those that come in meanwhile share the next one.
3. What is kept may be thrown away at any time: the store has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import NamedTuple

from taba.errors import StoreUnavailable
from taba.names import OWN_TABS
from taba.server import keys
from taba.server.router import IsRouter
from taba.turns import SharedLook, Turns, in_order

MAX_KEPT = 200_000  # names: some 40 MiB; those of further buckets are read for each question
LATELY_SECONDS = 1.0  # a look so old serves who only wants to know of further Tabs: so fresh is what is promised
AWAY_SECONDS = 10.0  # … and one so old while buckets are away: each look waits for them

_DEAD = b"dead:"


class Known(NamedTuple):
    """What one bucket has, at one moment."""

    changes: int  # of its Tabs, since ever
    dead: int  # Events that are dead letters now
    types: Mapping[str, str]  # Tab → Type
    labelled: Mapping[str, Sequence[str]]  # base name → its Tabs with labels


Looked = Mapping[int, Known]  # by bucket


class Index:
    """What is known of all buckets. `changes`: how often this Server itself has changed which Tabs there are."""

    def __init__(self, router: IsRouter, turns: Turns, changes: Callable[[], int]):
        self._router, self._turns, self._seconds, self._changes = router, turns, turns.seconds, changes
        self._last: tuple[float, int, Looked, bool] | None = None
        self._all: tuple[Looked, Sequence[str]] | None = None
        self._known: dict[int, Known] = {}
        self._kept = 0
        self._looks: SharedLook[tuple[Looked, dict[int, str]]] = SharedLook(self._look)

    async def look(self, away: MutableMapping[int, str] | None = None) -> Looked:
        """All buckets as they are now. Raises StoreUnavailable; with `away`, what cannot be had is in there instead, and why."""
        found, gone = await self._looks.done()
        if gone and away is None:
            raise StoreUnavailable(next(iter(gone.values())))
        if away is not None:
            away.update(gone)
        return found

    async def lately(self) -> Looked:
        """The buckets that answered as they were a moment ago, with all Tabs that this Server itself has made since."""
        if self._last is not None:
            began, changes, looked, is_whole = self._last
            if changes == self._changes() and self._seconds() - began < (LATELY_SECONDS if is_whole else AWAY_SECONDS):
                return looked
        return await self.look({})

    def forget(self) -> None:
        """Some Tabs were deleted: the last look serves nobody any more."""
        self._last = None

    async def all_of(self, looked: Looked) -> Sequence[str]:
        """All names of a look but Taba's own, sorted; sorted once, for all that ask while no Tab comes or goes; others have their turns."""
        if self._all is not None and _same_tabs(self._all[0], looked):
            return self._all[1]
        # a name is in one bucket, unless somebody put it into others: it is asked for once all the same
        every: set[str] = set()
        for known in looked.values():
            every.update(known.types)
            await self._turns.breathe()
        every.difference_update(OWN_TABS)
        names = await in_order(every, self._turns.breathe)
        self._all = (looked, names) if len(names) <= MAX_KEPT else None
        return names

    async def _look(self) -> tuple[Looked, dict[int, str]]:
        away: dict[int, str] = {}
        began, changes_here = self._seconds(), self._changes()
        counts = await self._router.read_many({bucket: [(b"HGETALL", keys.counts(bucket))] for bucket in range(self._router.buckets)}, away)
        found: dict[int, Known] = {}
        changed: list[int] = []
        for bucket, [pairs] in counts.items():
            changes, dead = _counted(pairs)
            known = self._known.get(bucket)
            if known is not None and known.changes == changes:
                found[bucket] = self._known[bucket] = known if known.dead == dead else known._replace(dead=dead)
            else:
                changed.append(bucket)
        if changed:
            # the counts again, and first: names that change between the two are kept under an old count, and read again
            both = {bucket: [(b"HGETALL", keys.counts(bucket)), (b"HGETALL", keys.tabs(bucket))] for bucket in changed}
            for bucket, [pairs, tabs] in (await self._router.read_many(both, away)).items():
                types = dict(zip(keys.texts_of(tabs[::2]), keys.texts_of(tabs[1::2]), strict=True))
                labelled: dict[str, list[str]] = {}
                for tab in types:
                    base, brace, _ = tab.partition("{")
                    if brace:
                        labelled.setdefault(base, []).append(tab)
                found[bucket] = Known(*_counted(pairs), types, labelled)
                self._keep(bucket, found[bucket])
                await self._turns.breathe()
        self._last = (began, changes_here, found, not away)
        return found, away

    def _keep(self, bucket: int, known: Known) -> None:
        before = self._known.pop(bucket, None)
        self._kept -= len(before.types) if before is not None else 0
        if self._kept + len(known.types) <= MAX_KEPT:
            self._known[bucket] = known
            self._kept += len(known.types)


def _same_tabs(one: Looked, other: Looked) -> bool:
    return one.keys() == other.keys() and all(known.types is other[bucket].types for bucket, known in one.items())


def _counted(pairs: Sequence[bytes]) -> tuple[int, int]:
    """(changes of Tabs, dead) of a bucket's counts."""
    changes = dead = 0
    for name, count in zip(pairs[::2], pairs[1::2], strict=True):
        if name == keys.TAB_CHANGES:
            changes = keys.count_of(count)
        elif name.startswith(_DEAD):
            dead += keys.count_of(count)
    return changes, dead
