"""Aggregates that many listen to: looked at each second, made once for all that ask the same.

1. A look begins with a cheap sign of change: how many Events each bucket has folded. States are read of Tabs in buckets where that
   differs, or that were read QUIET_SECONDS ago: windows move on where nothing happens.
2. An event has all Aggregates of its question, so that whoever missed some knows all with the next. Where nothing has changed, none comes.
3. A look that takes more than COSTLY_SECONDS is the cause of fewer: looking never takes more than a fifth of a question's time. The event
   says how often one comes.
4. A store that is away is said in the event, and looked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from taba.bounds import KiB, MiB
from taba.broadcast import Broadcast, Said, event
from taba.errors import StoreUnavailable, TabaError
from taba.names import bucket_of
from taba.places import ASKER, Crowded, Places
from taba.server.ask.answering import aggregate_written, dumped
from taba.server.ask.answers import Asked
from taba.server.ask.choosing import QueryRefused
from taba.server.ask.filters import Filter
from taba.server.ask.query import QUIET_SECONDS, Query
from taba.server.ask.reachable import Reachable
from taba.shard import Router

EVERY_SECONDS = 1.0
COSTLY_SECONDS = 0.2
SLOWEST_SECONDS = 30.0  # between two looks, however long one takes
TOLD_SECONDS = 0.5  # by which the time between two looks differs before that alone is an event
CHOOSE_SECONDS = 5.0  # after which a question is asked anew which Tabs it means: so soon a further one is heard of
MURMUR_SECONDS = 10.0  # of silence, before something that means nothing is sent: proxies and peers cut what says nothing
MAX_LIVE_TABS = 200  # of one question; some 150 KiB an event
MAX_TAB_CHARS = 256 * KiB  # of one Tab's Aggregate in an event
MAX_EVENT_CHARS = 2 * MiB  # of all of them: each that is slow to take it holds one
MAX_LIVE = 64  # questions …
LIVE_OF_ASKER = MAX_LIVE // 2  # … of one asker: who asked first for what others listen to as well
MURMUR = Said(":\n\n")

log = Logger()


class Stopping(TabaError):
    """This Server stops."""


class _Kept(NamedTuple):
    made: float  # by the monotonic clock
    folded: int  # of its bucket, before it was read; -1: not known
    text: str


class Live:
    """All questions that are listened to. `clock`: the reactor."""

    def __init__(self, query: Query, router: Router, clock: Any, now: Callable[[], float]):
        self._query, self._router, self._clock, self._now = query, router, clock, now
        self.questions: dict[Filter, _Question] = {}
        self.places = Places("different questions that are listened to", MAX_LIVE, LIVE_OF_ASKER)
        self._is_closed = False

    async def hear(self, wanted: Filter) -> Broadcast:
        """What is said about `wanted` from now on. Raises QueryRefused, Crowded, Stopping."""
        if self._is_closed:
            raise Stopping("this Server stops")
        question = self.questions.get(wanted)
        if question is None:
            asker = ASKER.get()
            self.places.take_now(asker)
            question = self.questions[wanted] = _Question(wanted, self._query, self._router, self._clock, self._now)
            question.begin(lambda: self._forget(wanted, asker))
        await question.ready()
        return question.broadcast

    def _forget(self, wanted: Filter, asker: str) -> None:
        if self.questions.pop(wanted, None) is not None:
            self.places.give_back(asker)

    def close(self) -> None:
        """Tell all that this Server stops."""
        self._is_closed = True
        for question in list(self.questions.values()):
            question.close()
        self.questions.clear()


class _Question:
    """One question, and what was last said about it."""

    def __init__(self, wanted: Filter, query: Query, router: Router, clock: Any, now: Callable[[], float]):
        self._wanted, self._query, self._router, self._clock, self._now = wanted, query, router, clock, now
        self.broadcast = Broadcast()
        self._asker = ASKER.get()  # who asked first, of all that listen
        self._asked: Asked | None = None
        self._chosen_at = 0.0
        self._kept: dict[str, _Kept] = {}
        self._said: tuple[list[str], str | None] = [], None  # the texts and what is wrong, as they were last said
        self._said_at = 0.0
        self._said_every = self.every = EVERY_SECONDS
        self._number = 0
        self._next: Any = None
        self._looking: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] | None = []  # for the first look; None: it is over
        self._forget: Callable[[], object] = lambda: None

    def begin(self, forget: Callable[[], object]) -> None:
        """Look again and again while anybody listens; `forget` is called when nobody does any more, or nothing can be said."""
        self._forget = forget
        self._looking = ensureDeferred(self.look(is_first=True))
        self._looking.addCallbacks(lambda _: self._look_later(), self._failed)

    async def ready(self) -> None:
        """Wait for the end of the first look. Raises what it raised."""
        if self._waiting is not None:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting

    def close(self) -> None:
        """The end of all."""
        if self._next is not None and self._next.active():
            self._next.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self._begun(Failure(Stopping("this Server stops")))
        self.broadcast.end(event(dumped({"why": "this Server stops"}), "end"))

    def _begun(self, outcome: Failure | None) -> None:
        waiting, self._waiting = self._waiting or (), None
        for one in waiting:
            if not one.called:  # who waited may be gone
                one.callback(None) if outcome is None else one.errback(outcome)

    def _look_later(self) -> None:
        self._next = self._clock.callLater(self.every, self._look_again)
        self._begun(None)

    def _look_again(self) -> None:
        if not self.broadcast.listeners:
            self._forget()
            self.broadcast.has_ended = True
            return
        self._looking = ensureDeferred(self.look())
        self._looking.addCallbacks(lambda _: self._look_later(), self._failed)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._forget()
            if not self._waiting and not self.broadcast.listeners:
                log.failure("what nobody listens to any more failed", failure=failure)
            self._begun(failure)
            self.broadcast.fail(failure)

    async def look(self, is_first: bool = False) -> None:
        """Look once, and say what has changed. Raises QueryRefused and Crowded where it is the first time; later they are said."""
        ASKER.set(self._asker)  # a look that the clock begins has none
        began = self._clock.seconds()
        reachable = Reachable(self._router, self._wanted.scope)
        try:
            texts = await self._aggregates(reachable)
            wrong = reachable.sentence() or None
        except StoreUnavailable as error:
            texts, wrong = self._said[0], self._wanted.scope.why(str(error))
        except (QueryRefused, Crowded) as error:
            if is_first:
                raise
            texts, wrong = [], str(error)
        if wrong is None:  # else it is the waiting that takes time, not the work
            took = self._clock.seconds() - began
            self.every = min(SLOWEST_SECONDS, max(EVERY_SECONDS, took * EVERY_SECONDS / COSTLY_SECONDS))
        await self._say(texts, wrong)

    async def _aggregates(self, reachable: Reachable) -> list[str]:
        """`"name": aggregate` of each Tab, of which the States are read where they may have changed."""
        query = self._query.of(reachable)
        now = self._clock.seconds()
        if self._asked is None or now - self._chosen_at >= CHOOSE_SECONDS:
            asked = await query.ask(self._wanted)
            if len(asked.chosen.tabs) > MAX_LIVE_TABS:
                raise QueryRefused(
                    f"{len(asked.chosen.tabs)} Tabs match; at most {MAX_LIVE_TABS} can be listened to at once: "
                    "narrow name=, label= or match=, or ask /v1/overview"
                )
            self._asked, self._chosen_at = (asked if not reachable.away else None), now
        else:
            asked = self._asked
        tabs = asked.chosen.tabs
        buckets = {tab: bucket_of(tab, query.buckets) for tab in tabs}
        folded = await query.folded(set(buckets.values()))
        stale = [tab for tab in tabs if self._is_stale(self._kept.get(tab), folded.get(buckets[tab], -1), now)]
        made: dict[str, _Kept] = {}
        if stale:
            chosen = asked.chosen._replace(tabs=stale)
            async for name, item in query.aggregates(asked._replace(chosen=chosen)):
                text = f"{dumped(name)}: {aggregate_written(item)}"
                if len(text) > MAX_TAB_CHARS:
                    text = _left_out(name, f"its Aggregate takes {len(text)} characters; in an event one Tab has {MAX_TAB_CHARS}")
                # of one that is away the text says why, and it is looked for again
                made[name] = _Kept(now, folded.get(buckets[name], -1) if query.why_away(name) is None else -1, text)
        read = set(stale)
        self._kept = {tab: kept for tab in tabs if (kept := made.get(tab) if tab in read else self._kept.get(tab)) is not None}
        texts: list[str] = []
        size = 0
        for tab, kept in self._kept.items():
            if size + len(kept.text) <= MAX_EVENT_CHARS:
                size += len(kept.text)
                texts.append(kept.text)
            else:
                texts.append(_left_out(tab, f"no room for it in the {MAX_EVENT_CHARS} characters of an event: listen to fewer Tabs"))
        return texts

    @staticmethod
    def _is_stale(kept: _Kept | None, folded: int, now: float) -> bool:
        return kept is None or kept.folded != folded or folded < 0 or now - kept.made >= QUIET_SECONDS

    async def _say(self, texts: Sequence[str], wrong: str | None) -> None:
        now = self._clock.seconds()
        is_same = self.broadcast.last is not None and (texts, wrong) == self._said
        if is_same and abs(self.every - self._said_every) < TOLD_SECONDS:
            if now - self._said_at >= MURMUR_SECONDS:
                self._said_at = now
                await self.broadcast.murmur(MURMUR, self._query.breathe)
            return
        self._said, self._said_at, self._said_every = (list(texts), wrong), now, self.every
        self._number += 1
        head = dumped({"time": self._now(), "every": round(self.every, 1), **({"error": wrong} if wrong is not None else {})})
        content = f'{head[:-1]}, "aggregates": {{{", ".join(texts)}}}}}'
        await self.broadcast.say(event(content, number=self._number), self._query.breathe)


def _left_out(tab: str, why: str) -> str:
    """What stands for a Tab of which an event has no Aggregate."""
    return f"{dumped(tab)}: {dumped({'error': why})}"
