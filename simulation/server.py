"""A Server of a world: put together of the real one's parts as its service does it, but for sockets and HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from simulation.arrived import call_of
from simulation.clockwork import Process
from simulation.ground import Ground, Part, router_of
from taba.calls import HTTPError
from taba.caps import Caps
from taba.errors import MalformedBatch, StoreUnavailable
from taba.handlers.lookup import Lookup
from taba.server.aging import LOOK_SECONDS as AGE_SECONDS
from taba.server.aging import StoreAge
from taba.server.ask.answers import Unanswered
from taba.server.ask.filters import Filter
from taba.server.ask.query import Query
from taba.server.fold.envelopes import Envelopes
from taba.server.fold.ingest import Ingest
from taba.server.fold.plain import Plain, PlainSteps, fold_plain
from taba.server.fold.posts import Posts
from taba.server.health import Health
from taba.server.http import Routes as ServerRoutes
from taba.server.keep.jobs import Jobs
from taba.server.keep.retrying import Retry
from taba.server.starts import Starts
from taba.server.status import Status
from taba.server.steady import SteadyClock
from taba.server.work.bench import Bench
from taba.server.work.rows import Folding, Work
from taba.server.work.sandbox import Sandbox

SLIGHT_STEP_SECONDS = 3.0  # that the time of folds may go by at once


class Server(Part):
    """A Server: Router, fold cycles, marks, posts and questions, as its service wires them."""

    def __init__(self, world: Ground, name: str, url: str, buckets: int):
        super().__init__(world, name)
        self.url, self.buckets = url, buckets
        self.is_future = False  # it reads the next version of batches alone
        self.is_older = False  # from its next start on it merges nothing of what Agents fold
        self.lookup: Lookup = world.lookup
        self.problems: list[str] | None = None  # that its status said when it was asked last; None: it has not answered

    def live(self) -> None:
        world, process = self.world, self.process
        assert process is not None
        reactor: Any = process.reactor
        self.router = router_of(world, process, self.buckets)
        self.lookup = world.older_lookup if self.is_older else world.lookup
        sandbox = Sandbox(self.lookup, reactor, {})  # all Handlers here are Taba's own: no child is started
        bench = WatchedBench(world, process, self.lookup, sandbox)
        self.now = SteadyClock(process.wall, process.seconds)
        self.age = StoreAge(self.router, process.seconds, process.wall)
        self.ingest = Ingest(self.router, bench, reactor, self.now, self.age, world.bounds)
        self.posts = Posts(self.router, self.ingest, self.age, process.random.randbytes, reactor)
        served = lambda store: store == self.router.store_id  # noqa: E731
        self.envelopes = Envelopes(self.router, self.ingest, self.posts, process.random.randbytes, process.seconds, self.now.heard, served)
        self.query = Query(self.router, bench, reactor, self.now, sandbox.match, lambda: self.ingest.tab_changes)
        self.health = Health(self.router, reactor)
        self.jobs = Jobs(self.router, self.now, self.age, reactor)
        self.jobs.register("retry", Retry(self.router, bench, self.now, self.age, reactor, world.bounds, self.ingest.in_all))
        site: Any = Nowhere()
        about = self.now, 1, "memory:", reactor, self.health, self.jobs, Starts(None, 0), world.bounds, Caps(), lambda: site
        self.status = Status(self.router, self.lookup, self.ingest, self.envelopes, self.query, sandbox, self.age, *about)
        nobody: Any = None  # these routes are not asked here
        rooms = self.router, self.lookup, self.ingest, self.envelopes, self.posts, self.query
        self.routes = ServerRoutes(*rooms, nobody, nobody, nobody, nobody, nobody, nobody, nobody, self.now, self.age, ())
        ensureDeferred(self._connect()).addErrback(self._failed)

    def _failed(self, failure: Any) -> None:
        if self.is_alive and not failure.check(StoreUnavailable):
            self.world.unexpected(failure.value, self.process)

    async def _connect(self) -> None:
        process = self.process
        await self.router.connect()
        if process is None or not process.is_alive:
            return
        self._aging = LoopingCall(self._look)
        self._aging.clock = cast(IReactorTime, process.reactor)
        self._aging.start(AGE_SECONDS)
        self.health.start()
        self.world.network.listening[self.url] = (process, self.answer)

    def _look(self) -> Deferred[None]:
        return ensureDeferred(self._look_at_age())

    async def _look_at_age(self) -> None:
        try:
            await self.age.look()
            self.now.look(self.age.store_time, self.age.record and self.age.record.wall)
        except StoreUnavailable:
            self.world.fired["a look at the age failed"] += 1

    def died(self) -> None:
        self.world.network.listening.pop(self.url, None)
        super().died()

    def retry(self) -> None:
        """Somebody asks it to fold dead letters again."""
        if self.process is not None and self.url in self.world.network.listening:
            self.world.fired["asked for a retry"] += 1
            self.world.run(self.process, lambda: ensureDeferred(self.jobs.start("retry")).addErrback(self._failed))

    def ask_for_problems(self) -> None:
        """Have `problems` say what its status says now; as this Server's process, as soon as its store answers."""

        def told(status: dict[str, Any]) -> None:
            self.problems = list(status["problems"])

        self.problems = None
        if self.process is not None and self.url in self.world.network.listening:
            self.world.run(self.process, lambda: ensureDeferred(self.status.describe()).addCallbacks(told, self._failed))

    def answer(self, path: str, body: bytes) -> Deferred[tuple[int, dict[str, str], bytes]]:
        """What arrives by HTTP."""
        return ensureDeferred(self._answer(path, body))

    async def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        name, _, key = path.partition("/")
        call = call_of(body, key)
        try:
            if name == "envelopes":
                answer = await self.routes.envelopes(call)
                return 200, {name: value for name, value in answer.headers.items() if isinstance(value, str)}, answer.content
            if name == "status":
                handlers = {type: {"edge": edge} for type, edge in self.lookup.edges.items()}
                return 200, {}, json.dumps({"store": self.router.describe(), "handlers": handlers}).encode()
            if name == "servers":
                told = [{"url": url, "roles": [], "started": 0, "edges": self.world.edges_of(url)} for url in self.world.urls]
                return 200, {}, json.dumps(told).encode()
            if name == "count":
                return 200, {}, json.dumps(await self._count(key)).encode()
            if name == "events":
                return 200, {}, json.dumps((await self.routes.events(call)).content).encode()
        except HTTPError as error:
            return error.status, {}, error.detail.encode()
        except MalformedBatch as error:
            return 400, {}, f"{error}".encode()
        except StoreUnavailable as error:
            return 503, {}, f"{error}".encode()
        except Exception as error:  # to the sender it looks as if no answer came, which it survives
            self.world.unexpected(error, self.process)
            raise
        return 404, {}, b""

    async def _count(self, asked: str) -> dict[str, Any]:
        """What a question says of Censuses, by what it is a figure of: "aggregates/tab", "projections/tab" or "superaggregate/tab,tab".

        Nothing where there is none, or not of all Clients.
        """
        question, _, tabs = asked.partition("/")
        wanted = await self.query.ask(Filter(names=tuple(tabs.split(","))))
        if question == "projections":
            found = [projected async for projected in self.query.projections(wanted)]
            by_client = {f"{one.tab} of {client}": its for one in found for client, its in one.projections.items()}
            return {} if any(isinstance(its, Unanswered) for its in by_client.values()) else by_client
        if question == "superaggregate":
            total = await self.query.superaggregate(wanted)
            return {} if total is None or total.error is not None else {tabs: total.aggregate}
        return {tab: total.aggregate async for tab, total in self.query.aggregates(wanted) if total.error is None}


class WatchedBench(Bench):
    """The real one, which counts the folds of States, and whose `now` is steady: only a step that others agree with is followed."""

    def __init__(self, world: Ground, process: Process, lookup: Lookup, sandbox: Any):
        super().__init__(lookup, sandbox)
        self._world, self._process = world, process
        self._offset: float | None = None  # of `now` from the monotonic clock
        self._may_begin = True  # it may find once that Servers have recorded a later time

    def folding(self, type: str, work: Work, now: float) -> Folding:
        self._world.folds += len(work.states)
        self._look_at(now)
        return super().folding(type, work, now)

    def fold_plain(self, plain: Sequence[Plain], now: float, age: int) -> PlainSteps:
        """As the function: what ordinary buckets have of arrays does not come to `folding`."""
        if plain:
            self._look_at(now)
        outcomes = yield from fold_plain(plain, self, now, age)
        self._world.folds += sum(len(group.fields) for one in plain if one.bucket in outcomes for group in one.plan.groups)
        return outcomes

    def _look_at(self, now: float) -> None:
        offset = now - self._process.seconds()
        before, self._offset = self._offset, offset
        if before is not None and abs(offset - before) > SLIGHT_STEP_SECONDS:
            if not (self._may_begin or self._world.agrees(now)):
                self._world.errors.append(f"{self._process.name}: the time of folds went by {offset - before:+.0f} s, and nobody agrees")
            self._may_begin = False


class Nowhere:
    """What a Server says of where it listens: here it does so nowhere."""

    def describe(self) -> dict[str, Any]:
        return {}

    def problems(self, unix_now: float) -> list[str]:
        return []
