"""The Agent's HTTP routes."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from typing import Any

from taba import __version__
from taba.agent.ages import Moment
from taba.agent.encoding import packing
from taba.agent.grants import RETRY_SECONDS, Grants, TooManyKeys
from taba.agent.keys import Keys
from taba.agent.posting import OtherRequest, PostNaming, TooManyNames, post
from taba.agent.pump import RingPump
from taba.agent.status import as_families, as_text, within
from taba.agent.tallies import lots_of
from taba.bounds import MAX_PATTERN
from taba.calls import Answer, Call, HTTPError
from taba.errors import TabaError
from taba.events import NotCovered, events_route, key_part, reading
from taba.exposition import NotInstalled, of_process, writer_for
from taba.guard import Guard
from taba.matching import simple_matcher
from taba.openapi import describe
from taba.routes import JSON, LINES, Parameter, Route
from taba.tokens import ANY, OPEN, READ, WRITE
from taba.web import Api

MAX_DRAINS = 64  # of one request: what rings of 256 MiB hold, several times over; what is recorded meanwhile is for the next

MATCH = Parameter("match", "Names, .* and |, of which a Tab's whole name matches one: these Tabs, too.")


class Routes:
    """The Agent's routes.

    `status` gives what `GET /v1/status` answers; `clock` monotonic seconds, and what age is told by; `wall`
    the Unix time of events that come without one. `on_posted` is called after events were published.
    """

    def __init__(
        self,
        pump: RingPump,
        keys: Keys,
        grants: Grants,
        status: Callable[[], dict[str, Any]],
        clock: Callable[[], tuple[float, Moment]],
        wall: Callable[[], float],
        on_posted: Callable[[], None],
    ):
        self._pump, self._keys, self._grants = pump, keys, grants
        self._status = status
        self._clock, self._wall = clock, wall
        self._on_posted = on_posted
        self._is_stopping = False

    def stop(self) -> None:
        """The Agent is no longer ready; what comes meanwhile is taken as before."""
        self._is_stopping = True

    def api(self, guard: Guard | None) -> Api:
        return Api(self.table(), guard)

    def table(self) -> list[Route]:
        """The definitions."""
        return [
            Route("GET", "/v1/status", self.status, "how the Agent does, and what needs a person", ANY),
            events_route(self.events),
            Route("POST", "/v1/drain", self.drain, "drains the rings now, and tells how many batches wait for a Server", WRITE),
            Route(
                "GET",
                "/metrics",
                self.metrics,
                "the Agent's health as Prometheus scrapes it, and with match= what its rings have held since it began",
                READ,
                (MATCH,),
                produces=(LINES,),
                is_lenient=True,
            ),
            Route("GET", "/openapi.json", self.openapi, "this API, as OpenAPI describes it", ANY, produces=(JSON,)),
            Route("GET", "/healthz", self.healthz, "200 while the process runs", OPEN),
            Route("GET", "/readyz", self.readyz, "200 only while it can do its work", OPEN),
        ]

    async def status(self, call: Call) -> Answer:
        content = within(self._status(), call.grant.scope)
        return Answer(content, text=lambda: as_text(content))

    async def metrics(self, call: Call) -> Answer:
        try:
            writer = writer_for(call.header("accept") or "")
            families = [*as_families(self._status()), *of_process()]
        except NotInstalled as error:
            raise HTTPError(501, "not_installed", str(error)) from None
        pattern = call.values["match"]
        if pattern is None:
            return Answer(b"".join(map(writer.write, families)) + writer.end, content_type=writer.content_type)
        matches = simple_matcher(pattern) if len(pattern) <= MAX_PATTERN else None
        if matches is None:
            simple = f"match=: an Agent takes names with .* and | between them, {MAX_PATTERN} characters at the most"
            raise HTTPError(400, "bad_request", f"{simple}; a Server takes any regular expression")
        families += await self._pump.tallies.families(matches, call.breathe)

        async def pieces() -> AsyncIterator[bytes]:
            for family in families:
                for lot, is_more in lots_of(family, is_grouped=not writer.end):
                    yield writer.write(lot, is_more)
                    await call.breathe()
            yield writer.end

        return Answer(pieces(), content_type=writer.content_type, is_joined=True)

    async def events(self, call: Call) -> Answer:
        key = call.once("idempotency-key")
        buckets = self._pump.buckets
        if buckets is None:
            raise HTTPError(503, "not_ready", "no Server has told the number of buckets yet; try later")
        try:
            body = await call.body()
            posted = await call.in_turns(
                reading(body, self._wall(), buckets, key is not None, call.grant.scope, lambda *what: self._begin(key, *what))
            )
            packed = await call.in_turns(packing(posted.lots))
            await call.breathe()  # what follows takes all of it at once
            part = key_part(posted.client, key, posted.digest) if key is not None else None
        except NotCovered as error:
            raise HTTPError(403, "other_token", str(error)) from None
        except TooManyNames as error:
            raise HTTPError(429, "too_many_tabs", str(error), {"retry-after": "1"}) from None
        except ValueError as error:
            raise HTTPError(400, "bad_request", str(error)) from None
        if self._pump.buckets != buckets:  # while it was read; it was cut up for as many as there were
            raise HTTPError(503, "not_ready", "the store has another number of buckets by now; try again")
        if posted.accepted or part is not None:  # a key stands for its request, whatever became of that
            now, moment = self._clock()
            try:
                is_kept = post(self._pump.keeper, self._keys, self._grants, posted, packed, part, now, moment, call.poster, buckets)
            except OtherRequest as error:
                raise HTTPError(422, "other_request", str(error)) from None
            except TooManyKeys as error:
                raise HTTPError(429, "too_many_keys", str(error), {"retry-after": str(RETRY_SECONDS)}) from None
            if not is_kept:
                raise HTTPError(503, "spool_full", "outbox and spool have no room; try later")
            self._on_posted()
        rejected = [{"index": rejection.place, "reason": rejection.reason} for rejection in posted.rejected]
        return Answer({"accepted": posted.accepted, "rejected": rejected})

    async def drain(self, call: Call) -> Answer:
        if self._pump.buckets is None:
            raise HTTPError(503, "not_ready", "no Server has told the number of buckets yet; try later")
        try:
            for _ in range(MAX_DRAINS):
                is_more = self._pump.drain_now(*self._clock())
                self._on_posted()
                if not is_more:
                    break
                await call.breathe()
        except (OSError, sqlite3.Error, TabaError) as error:  # a full disk, say; the loop says so, too, and tries again
            raise HTTPError(503, "not_drained", f"{error}"[:200]) from None
        keeper = self._pump.keeper
        batches = keeper.unacknowledged + keeper.waiting_on_disk
        age = keeper.oldest(self._clock()[1]) if batches else 0.0
        content = {"recorded": keeper.books.recorded + sum(self._pump.live_drops().values()), "batches": batches, "age": age}
        return Answer(content)

    def _begin(self, key: str | None, client: str, digest: bytes) -> PostNaming | None:
        """Under which names a post goes: of one that came before all is decided."""
        if key is not None and self._keys.digest(key_part(client, key, digest).key) is not None:
            return None
        return PostNaming(self._pump.rings.admission, client, key is not None)

    async def openapi(self, call: Call) -> Answer:
        return Answer(describe(self.table(), "Taba Agent", __version__))

    async def healthz(self, call: Call) -> Answer:
        return Answer({"alive": True}, text=lambda: "alive\n")

    async def readyz(self, call: Call) -> Answer:
        if self._is_stopping:
            raise HTTPError(503, "not_ready", "this Agent stops")
        if self._pump.buckets is None:
            raise HTTPError(503, "not_ready", "no Server has told the number of buckets yet")
        return Answer({"ready": True}, text=lambda: "ready\n")
