"""The Server as a service: wires router, ingest, query and HTTP; or, with several workers, runs them as processes.

`Options` and `makeService` are what the twistd plugin looks for.
"""

from __future__ import annotations

import atexit
import os
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.runner.procmon import ProcessMonitor

from taba.caps import Caps
from taba.clocks import make_monotonic
from taba.connections import BoundedSite, make_site
from taba.descriptors import Descriptors
from taba.directories import python_of
from taba.errors import ConfigurationError, StoreUnavailable
from taba.listening import freeze_when_running, front_of, listen_at, on_hangup, raise_descriptor_limit
from taba.options import Listen, checked_state_directory, state_directory
from taba.pins import Pin
from taba.server.aging import LOOK_SECONDS, StoreAge
from taba.server.ask.live import Live
from taba.server.ask.overview import Overview
from taba.server.ask.query import Query
from taba.server.fold.bounds import Bounds
from taba.server.fold.envelopes import Envelopes
from taba.server.fold.ingest import Ingest
from taba.server.fold.posts import Posts
from taba.server.health import Health
from taba.server.heap import keep_heap
from taba.server.held import held_here
from taba.server.http import Routes
from taba.server.keep.checking import Check
from taba.server.keep.discarding import Discard
from taba.server.keep.jobs import JobConflict, Jobs
from taba.server.keep.letters import Letters
from taba.server.keep.pruning import PERIOD_SECONDS, Prune
from taba.server.keep.retrying import Retry
from taba.server.keep.upgrading import Upgrade
from taba.server.notes import Notes
from taba.server.options import ServerOptions as Options
from taba.server.options import Store
from taba.server.page.boards import Boards
from taba.server.page.files import PageFiles
from taba.server.page.login import Login
from taba.server.problems import Happened, Recent, restarted
from taba.server.prometheus.api import PrometheusApi
from taba.server.prometheus.catalogue import Catalogues
from taba.server.prometheus.metrics import Metrics
from taba.server.served import FOUND, Found, Served
from taba.server.starts import Starts
from taba.server.status import PRESENCE_SECONDS, Presence, Status
from taba.server.steady import SteadyClock
from taba.server.work.bench import Bench
from taba.server.work.probing import find_safely
from taba.server.work.sandbox import Sandbox
from taba.shard import EmbeddedStore, Router, parse_store
from taba.shard.maps import succeed
from taba.telling import Teller, by_kind
from taba.web import Api

__all__ = ["Options", "makeService"]

STOP_SECONDS = 2.0  # for the cycles that are under way, and again to say goodbye to the store
FIRST_RESTART_SECONDS = 0.2
LAST_RESTART_SECONDS = 5.0
PRUNE_LOOK_SECONDS = 600.0  # about how often a Server looks whether it is time to prune
TELL_SECONDS = 10.0  # between two looks at what is wrong, for the log
PRUNE = "prune"
STEADY_SECONDS = 5.0  # a worker that lived so long is restarted without growing delay

QUERY_AWAY_SECONDS = 1.2  # a question is answered, or told which shard is away, within two seconds

log = Logger()


def makeService(options: Options) -> MultiService:
    """The whole Server. Exits with one line for what is wrong with the options."""
    from twisted.internet import reactor

    make_monotonic(reactor)
    try:
        server, serving = make_server(options, reactor)
    except ConfigurationError as failure:
        raise SystemExit(f"{options.program}: {failure}") from None
    if serving is None:
        freeze_when_running(reactor)
    else:
        keep_heap()
        freeze_when_running(reactor, serving.quiet_seconds, serving.ended)
    return server


def make_server(options: Options, reactor: Any) -> tuple[MultiService, Server | None]:
    """The Server's services, and the one that serves in this process. Raises ConfigurationError."""
    whole = MultiService()
    store: Store = options["store"]
    embedded: EmbeddedStore | None = None
    shown = store.url.text
    if store.url.is_embedded:
        directory = store.url.directory or str(checked_state_directory(options.environ) / "store")
        embedded = EmbeddedStore(directory, reactor)
        embedded.setServiceParent(whole)
        options["store"] = Store(embedded.url, parse_store(embedded.url))
        shown = f"embedded:{embedded.directory}"
    kind = Workers if options["workers"] > 1 else Server
    serving = kind(options, reactor, embedded, shown)
    serving.setServiceParent(whole)
    on_hangup(reactor, serving.hang_up)
    return whole, serving if isinstance(serving, Server) else None


def give_up(program: str, failure: ConfigurationError, reactor: Any) -> None:
    """End this process with one line and a failure, although the reactor runs already."""
    log.critical("{program}: {failure}", program=program, failure=failure)  # a daemon's standard error leads nowhere
    os.write(2, f"{program}: {failure}\n".encode())  # sys.stderr leads to the log by now

    def fail() -> None:
        # twistd itself always ends with success; it has removed its pid file by now
        sys.stdout.flush()
        os._exit(1)

    atexit.register(fail)
    if reactor.running:
        reactor.stop()
    else:
        reactor.callWhenRunning(reactor.stop)


class _Connected(Service):
    """What Server and Workers share: the store is started and reached, and what cannot be right ends the process."""

    def __init__(
        self,
        options: Options,
        reactor: Any,
        embedded: EmbeddedStore | None = None,
        shown: str | None = None,
        found: Found | None = None,
    ):
        """`shown`: the store's address as people know it, where it is not that of the option; `found`: what a parent found of its pin."""
        store: Store = options["store"]
        self._options, self._embedded, self._reactor = options, embedded, reactor
        self._shown = shown or store.url.text
        # a port that the kernel chooses says of no Server which one it is
        listen = None if options["listen"].port == 0 else options["listen"].text
        self._served = Served(state_directory(options.environ), listen, reactor.seconds, found)
        known = self._served.pin
        # an embedded store whose directory is gone is new on purpose; lost while it runs, it never is
        self._follows = known if embedded is not None and embedded.is_new else None
        pin = known if self._follows is None else None
        self.router = Router(
            store.url,
            options["buckets"],
            reactor,
            wait_replicas=options["wait-replicas"],
            away_seconds=QUERY_AWAY_SECONDS,
            pinned=pin.store if pin is not None else None,
            pinned_at=pin.url if pin is not None else "",
        )

    def startService(self) -> None:
        super().startService()
        ensureDeferred(self._start()).addErrback(self._failed)

    async def _start(self) -> None:
        await self.open()
        if self._embedded is not None:
            while self.running:
                try:
                    await self._embedded.wait_running()
                    break
                except StoreUnavailable as failure:
                    log.error("{failure}", failure=failure)
        if self.running:
            await self.router.connect()
            if self._follows is not None and self._follows.store != self.router.store_id:
                await succeed(list(self.router.atlas.by_name.values()), [self._follows.store])
                log.warn("a new embedded store: it follows {store}, which was in this directory before", store=self._follows.store)
            self.remember_store()
            await self.ready()

    def remember_store(self) -> None:
        """Pin the store that is served, where that has changed."""
        self._served.remember(Pin(self.router.atlas.pinned or "", self._shown))

    async def open(self) -> None:
        """What happens at once, whether or not the store answers."""

    async def ready(self) -> None:
        """What happens once the store is there."""

    def _failed(self, failure: Any) -> None:
        if failure.check(ConfigurationError):
            give_up(Options.program, failure.value, self._reactor)
        elif self.running:
            log.failure("the Server could not start", failure=failure)
            give_up(Options.program, ConfigurationError("taba-server", failure.type.__name__, failure.getErrorMessage()), self._reactor)


class Server(_Connected):
    """One worker: listens, folds, answers."""

    def __init__(
        self,
        options: Options,
        reactor: Any,
        embedded: EmbeddedStore | None = None,
        shown: str | None = None,
        workers: int = 1,
        starts: Starts | None = None,
        found: Found | None = None,
    ):
        """`workers`: how many there are, of which this is one; `starts`: how often each of them was."""
        super().__init__(options, reactor, embedded, shown, found)
        self._front = front_of(options, reactor.seconds)
        self._descriptors = Descriptors("Server", reactor.seconds)
        bounds = Bounds(
            options["max-tabs"], options["max-clients"], all_tabs=options["max-all-tabs"], all_clients=options["max-all-clients"]
        )
        caps = Caps(*(options[f"max-{name}"] for name in ("client-tabs", "agent-tabs", "new-tabs", "agent-clients", "new-clients")))
        self.lookup = find_safely()
        self.site: BoundedSite
        self.sandbox = Sandbox(self.lookup, reactor)
        self.bench = bench = Bench(self.lookup, self.sandbox)
        self.now = now = SteadyClock(time.time, reactor.seconds)
        self.age = StoreAge(self.router, reactor.seconds, time.time)
        self.ingest = Ingest(self.router, bench, reactor, now, self.age, bounds)
        posts = Posts(self.router, self.ingest, self.age, os.urandom, reactor)
        envelopes = Envelopes(self.router, self.ingest, posts, os.urandom, reactor.seconds, now.heard, self._is_served)
        self.query = Query(self.router, bench, reactor, now, self.sandbox.match, lambda: self.ingest.tab_changes)
        self.presence = Presence(self.router, now, reactor, self.ingest.moving, tuple(sorted(self.lookup.edges.items())))
        self.overview = Overview(self.query, self.presence.moving, reactor, now)
        self.live = Live(self.query, self.router, reactor, now)
        self.jobs = Jobs(self.router, now, self.age, reactor)
        self.jobs.register(PRUNE, Prune(self.router, bench, self.age, now, options["forget"]), has_dry_run=True)
        self.jobs.register("check", Check(self.router))
        self.jobs.register("upgrade", Upgrade(self.router, bench, now))
        retry, discard = Retry(self.router, bench, now, self.age, reactor, bounds, self.ingest.in_all), Discard(self.router)
        self.jobs.register("retry", retry)
        self.jobs.register("discard", discard, has_dry_run=True)
        self.notes = Notes(self.router, self.age, os.urandom)
        self.health = Health(self.router, reactor)
        self.catalogues = Catalogues(self.router, self.query.index, self.query.turns, self.query.shown, reactor.seconds)
        about = (
            now,
            workers,
            self._shown,
            reactor,
            self.health,
            self.jobs,
            starts or Starts(None, 0),
            bounds,
            caps,
            lambda: self.site,
            embedded,
            lambda: [*self._descriptors.problems, *self._served.problems, *self.catalogues.problems],
            lambda: held_here(self.site, self.ingest, envelopes, self.sandbox, self.live, prometheus.seats, metrics.seats),
        )
        self.status = Status(self.router, self.lookup, self.ingest, envelopes, self.query, self.sandbox, self.age, *about)
        prometheus: PrometheusApi = PrometheusApi(self.query, self.catalogues, self.sandbox.parse, self.sandbox.rewrite, now, self.notes)
        metrics: Metrics = Metrics(self.query, self.catalogues, self.status, now)
        routes = Routes(
            self.router,
            self.lookup,
            self.ingest,
            envelopes,
            posts,
            self.query,
            self.overview,
            self.live,
            self.status,
            self.presence,
            self.jobs,
            self.notes,
            self.health,
            now,
            self.age,
            [
                *prometheus.routes(),
                *metrics.routes(),
                *Letters(self.router, retry, discard).routes(),
                *Boards(self.router).routes(),
                *Login(self._front.guard).routes(),
                *PageFiles().routes(),
            ],
        )
        self.site = make_site(Api(routes.table(), self._front.guard))
        self._port: Any = None
        self._announcement: Deferred[None] | None = None
        self._announcing = LoopingCall(self._begin_announcement)
        self._announcing.clock = reactor
        self._aging = LoopingCall(self._begin_aging)
        self._aging.clock = reactor
        self._age_look: Deferred[None] | None = None
        self._pruning: Any = None
        self._teller = Teller(log)
        self._telling = LoopingCall(lambda: ensureDeferred(self._tell()))
        self._telling.clock = reactor

    def quiet_seconds(self) -> float:
        """For how long no request has taken long."""
        return self.site.turns.quiet_seconds

    def ended(self) -> int:
        """Connections that are gone, since this process began."""
        return self.site.ended

    def hang_up(self) -> list[str]:
        """Read tokens and certificates again; what is wrong with them, in sentences."""
        return self._front.guard.reload()

    async def open(self) -> None:
        self._telling.start(TELL_SECONDS, now=False)
        self.bench.start()
        self.site.bound_places(raise_descriptor_limit())
        self._port = await listen_at(self._front, self.site, self._reactor, self._descriptors)
        if not self.running:
            await self._port.stopListening()
            return
        for problem in self._front.guard.problems(self.now()):
            log.warn("{problem}", problem=problem)
        if self._front.listen.port is not None:
            self.presence.url = self._options["url"] or self._front.url(self._port.getHost().port)
            log.info("listening at {url}", url=self.presence.url)

    def _is_served(self, store: str) -> bool:
        return store == self.router.store_id

    async def ready(self) -> None:
        log.info("the store is connected: {store}", store=self.router.url)
        self._aging.start(LOOK_SECONDS)
        self.health.start()
        self._announcing.start(PRESENCE_SECONDS)
        self._prune_later()

    def _prune_later(self) -> None:
        # every Server looks, at its own time, whether one of them has lately
        self._pruning = self._reactor.callLater(PRUNE_LOOK_SECONDS * (0.5 + random.random()), self._begin_pruning)

    def _begin_pruning(self) -> None:
        ensureDeferred(self._prune()).addErrback(lambda failure: log.failure("could not begin to prune", failure=failure))

    async def _prune(self) -> None:
        try:
            await self.jobs.start(PRUNE, quiet_seconds=PERIOD_SECONDS)
        except (StoreUnavailable, JobConflict) as failure:
            log.info("pruning waits: {failure}", failure=failure)
        finally:
            if self.running:
                self._prune_later()

    def _begin_aging(self) -> Deferred[None]:
        self._age_look = ensureDeferred(self._every_so_often("the store's age", self._look_at_age))
        return self._age_look

    async def _look_at_age(self) -> None:
        await self.age.look()
        self.now.look(self.age.store_time, self.age.record and self.age.record.wall)

    async def _every_so_often(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do what is done again in a moment: what keeps it from being done is told, and ends nothing."""
        try:
            await work()
        except StoreUnavailable as failure:
            log.debug("{what}: {failure}", what=what, failure=failure)
        except CancelledError:
            log.debug("{what}: the Server stops", what=what)
        except Exception:
            log.failure("{what}: it could not be told", what=what)

    async def _tell(self) -> None:
        self.remember_store()
        try:
            problems = (await self.status.describe())["problems"]
        except Exception:
            log.failure("could not tell what is wrong")  # told again in a moment
        else:
            self.presence.problems = problems
            if self.running:
                self._teller.tell(by_kind(problems), self._reactor.seconds())

    def _begin_announcement(self) -> Deferred[None]:
        self._announcement = ensureDeferred(self._every_so_often("presence", self._announce))
        return self._announcement

    async def _announce(self) -> None:
        await self.presence.announce()
        await self.jobs.look()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        for looping in (self._announcing, self._aging, self._telling):
            if looping.running:
                looping.stop()
        # readiness goes first, and each answer says that its connection ends; then Agents learn from the others that this one has gone;
        # what is under way is decided, what waits is told `later`, and only then nobody is listened to any more
        self.health.stop()
        self.site.is_closing = True
        self.live.close()
        for under_way in (self._announcement, self._age_look):
            if under_way is not None:
                under_way.cancel()
        if self._pruning is not None and self._pruning.active():
            self._pruning.cancel()
        await self._leave(self.presence.withdraw())
        await self.ingest.drain(STOP_SECONDS)
        await self._leave(self.jobs.close())
        if self._port is not None:
            await self._port.stopListening()
        await self.sandbox.close()
        await self.router.close()

    async def _leave(self, leaving: Any) -> None:
        deferred = ensureDeferred(leaving)
        deferred.addTimeout(STOP_SECONDS, self._reactor)
        try:
            await deferred
        except Exception as failure:
            log.info("left without saying so: {failure}", failure=failure)  # the others notice by themselves


class Workers(_Connected):
    """Several workers, as processes on consecutive ports: restarted when they die, gone when this one is."""

    def __init__(self, options: Options, reactor: Any, embedded: EmbeddedStore | None = None, shown: str | None = None):
        super().__init__(options, reactor, embedded, shown)
        monitor: Any = ProcessMonitor(reactor)
        monitor.minRestartDelay = FIRST_RESTART_SECONDS
        monitor.maxRestartDelay = LAST_RESTART_SECONDS
        monitor.threshold = STEADY_SECONDS
        self._monitor = monitor
        self._starts = Starts.make(options["workers"])
        self._recent, self._teller = Recent(reactor.seconds), Teller(log)
        self._telling = LoopingCall(self._tell)
        self._telling.clock = reactor
        front_of(options, reactor.seconds)  # what is wrong is said once, not by each worker

    def hang_up(self) -> list[str]:
        """Have the workers read tokens and certificates again; they say themselves what is wrong."""
        for protocol in list(self._monitor.protocols.values()):
            with suppress(ProcessExitedAlready):  # it is started again, and reads them then
                protocol.transport.signalProcess("HUP")
        return []

    async def open(self) -> None:
        listen: Listen = self._options["listen"]
        workers: int = self._options["workers"]
        assert listen.port is not None
        # every option as it was given, and what differs from worker to worker; nothing as an argument: those are for all to see
        environ = {**self._options.environ, **self._options.as_environment()}
        environ |= {"TABA_SERVER_STORE": self._options["store"].text, "TABA_SERVER_WORKERS": "1"}
        if self._served.found is not None:  # they are asked what is wrong, and find the file whole
            environ[FOUND] = str(self._served.found)
        for port in range(listen.port, listen.port + workers):
            check_free(listen, port)
        url: str | None = self._options["url"]
        for number, port in enumerate(range(listen.port, listen.port + workers)):
            text = listen.text.replace(str(listen.port), str(port), 1)
            about = [str(os.getpid()), self._starts.path, str(number), str(workers), self._shown]
            arguments = python_of("taba.server.worker", *about)
            if url is not None:
                environ["TABA_SERVER_URL"] = next_url(url, number)
            self._monitor.addProcess(f"worker {number}", arguments, env={**environ, "TABA_SERVER_LISTEN": text})
        self._monitor.startService()
        self._telling.start(TELL_SECONDS, now=False)

    def _tell(self) -> None:
        """Tell the log of workers that die: one that dies at once cannot, and nobody may be left to ask."""
        again = enumerate(self._starts.again())
        problems = self._recent.problems(Happened(f"worker {number}", times, restarted(number)) for number, times in again)
        self._teller.tell(by_kind(problems), self._reactor.seconds())

    async def ready(self) -> None:
        log.info("the store is connected: {store}", store=self.router.url)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return ensureDeferred(self._stop())

    async def _stop(self) -> None:
        if self._telling.running:
            self._telling.stop()
        if self._monitor.running:
            self._monitor.stopService()  # SIGTERM, and SIGKILL to what does not obey
        while self._monitor.protocols:
            await deferLater(self._reactor, 0.05)
        self._starts.close()
        await self.router.close()


def next_url(url: str, number: int) -> str:
    """The URL of the worker that is `number` ports further."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}:{(parts.port or (443 if parts.scheme == 'https' else 80)) + number}"


def check_free(listen: Listen, port: int) -> None:
    """Raises ConfigurationError where a worker could not listen on `port`."""
    family, kind, protocol, _, address = socket.getaddrinfo(listen.interface, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as failure:
            raise ConfigurationError("--listen", listen.text, f"takes ports that are free; {port}: {failure.strerror}") from None
