"""The Agent as a Twisted service: wires keeper, rings, forwarder and HTTP, and keeps them going."""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import sys
import time
import zlib
from pathlib import Path
from typing import Any, cast

from twisted.application import service
from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure

from taba.agent.ages import Moment
from taba.agent.alive import Alive
from taba.agent.credentials import Credentials, credentials_of
from taba.agent.discover import Rings, sweep_slots
from taba.agent.dispatch import Dispatch
from taba.agent.forward import Forwarder, client_over, connection_pool
from taba.agent.home import CannotOpen, Home
from taba.agent.http import Routes
from taba.agent.keeper import Keeper
from taba.agent.locks import AgentRunning
from taba.agent.options import Options
from taba.agent.outbox import OutboxCorrupt, OutboxFull
from taba.agent.pin import Pin, Store
from taba.agent.problems import Problems, Room
from taba.agent.pump import TICK_SECONDS, RingPump
from taba.agent.status import describe
from taba.agent.telling import Life
from taba.clocks import boot_id, boot_seconds, make_monotonic
from taba.connections import make_site
from taba.errors import ConfigurationError, TabaError
from taba.listening import Front, front_of, listen_at, on_hangup, raise_descriptor_limit
from taba.ring import SHM_DIRECTORY as SHM

SWEEP_SECONDS = 60.0  # between looks for the slots of processes that were killed
LOOK_SECONDS = 1.0  # between looks for problems, and words to the log
KEEP_SECONDS = 0.05  # between looks at outbox and spool

log = Logger()

__all__ = ["AgentService", "CannotStart", "Options", "makeService"]


class CannotStart(TabaError):
    """The Agent cannot be one here; twistd's parent process says why when it was to go to the background."""


class AgentService(service.Service):
    """One Agent. Nothing is opened before `startService`, which ends the process with one line where it cannot be an Agent."""

    def __init__(
        self,
        reactor: Any,
        agent: str,
        servers: list[str],
        front: Front,
        spool: Path,
        spool_bytes: int,
        outbox_bytes: int,
        shm: str = SHM,
        is_daemon: bool = False,
        credentials: Credentials | None = None,
        ring_group: int | None = None,
    ):
        self._ring_group = ring_group
        self._credentials = credentials or Credentials()
        self._reactor = reactor
        self._is_daemon = is_daemon
        self.agent = agent
        self._urls, self._front, self._directory = servers, front, spool
        self._spool_bytes, self._outbox_bytes, self._shm = spool_bytes, outbox_bytes, shm
        self._random = random.SystemRandom()
        self._own: dict[str, str] = {}  # problems that nobody else knows of
        self._loop_problem: str | None = None
        self._name_problem: str | None = None
        self._is_ending = False
        self._store_age: int | None = None  # as the last answer told
        self._port: Any = None
        self._call: Any = None
        self._next_keep = self._next_look = self._next_sweep = 0.0

    # --- life ---

    def startService(self) -> None:
        super().startService()
        try:
            self._home = Home(self.agent, self._directory, self._spool_bytes, self._outbox_bytes, self._shm, lambda: os.urandom(16))
        except CannotOpen as error:
            raise self._exit(f"{error}") from None
        try:
            self._start(self._home)
        except BaseException:
            self._home.abandon()
            raise

    def _start(self, home: Home) -> None:
        for place, problem in enumerate(home.problems):
            self._own[f"start {place}"] = problem
        raise_descriptor_limit()
        boot = boot_id()
        # where nobody says which boot this is, no other is the same
        self._boot = zlib.crc32(boot.encode()) if boot else self._random.getrandbits(32)
        now, moment = self._clock()
        self.keeper = Keeper(home.outbox, home.spool, home.history, lambda: os.urandom(16), now, moment)
        self.keeper.recover(now)
        home.keys.add(self.keeper.keys)
        self.keeper.before_publish = self._keep_name
        self.rings = Rings(self.agent, self._shm, self._ring_group)
        self.pump = RingPump(self.keeper, self.rings, home.register)
        self.alive = Alive(self.pump, self.unix_now)
        self.pin = Pin(self._directory / f"{self.agent}.store")
        host = socket.gethostname()[:255]
        self.dispatch = Dispatch(self.keeper, self._urls, self._random)
        self._problems = Problems(self.keeper, self.pump, self.dispatch, self._shm, self._room, now)
        self._life = Life(log, self.keeper, self.dispatch)
        self._pool = connection_pool(self._reactor)
        client = client_over(self._reactor, self._pool, self._credentials.tls)
        times = self.moment, self.unix_now
        about = self._reactor, client, self.dispatch, self.agent, host
        self.forwarder = Forwarder(
            *about, *times, self._store_id, self._on_store, self._on_store_age, shown=lambda: self._credentials.headers, pool=self._pool
        )
        if self.pin.store is not None:
            self.pump.set_buckets(self.pin.store.buckets, moment)
        routes = Routes(self.pump, home.keys, self.status, self._clock, self.unix_now, self.forwarder.pump)
        outcome: list[Any] = []
        self._site = make_site(routes.api(self._front.guard))
        defer.ensureDeferred(listen_at(self._front, self._site, self._reactor)).addBoth(outcome.append)
        # TCP and unix endpoints tell at once
        if not outcome or isinstance(outcome[0], Failure):
            raise self._exit(outcome[0].getErrorMessage() if outcome else f"--listen: {self._front.listen.text!r}: no answer")
        self._port = outcome[0]
        log.info(
            "Agent {agent} reads rings of TABA_AGENT={agent} in {shm} and sends to {urls}; spool {spool}, status at {listen}",
            agent=self.agent,
            shm=self._shm,
            urls=", ".join(self._urls),
            spool=home.spool.path,
            listen=self._front.listen.text,
        )
        if self.keeper.unacknowledged or home.spool.batches:
            log.info(
                "an earlier Agent left {outbox} batches in the outbox and {spool} in the spool: they are sent",
                outbox=self.keeper.unacknowledged,
                spool=home.spool.batches,
            )
        self._call = self._reactor.callLater(0, self._tick)

    async def _stop(self) -> None:
        if self._call is not None and self._call.active():
            self._call.cancel()
        if self._port is not None:
            await self._port.stopListening()
        self.forwarder.stop()
        await self._pool.closeCachedConnections()
        try:
            if self.pump.buckets is not None:
                while self.pump.drain(*self._clock()):  # what is in the rings is safe in the outbox for the next start
                    pass
            self.keeper.settle_totals()
            if self._name_problem is not None:
                self.keeper.spool_all(*self._clock())
        except (OSError, sqlite3.Error, OutboxCorrupt):
            log.failure("the last drain failed")
        log.info(
            "Agent {agent} ends: {outbox} batches are left in the outbox, {spool} in the spool",
            agent=self.agent,
            outbox=self.keeper.unacknowledged,
            spool=self.keeper.spool.batches,
        )
        self.rings.close()
        self._home.close()

    def stopService(self) -> defer.Deferred[None]:
        super().stopService()
        return defer.ensureDeferred(self._stop())

    def moment(self) -> Moment:
        """What age is told by."""
        return Moment(boot_seconds(), self._boot, self._store_age)

    def _clock(self) -> tuple[float, Moment]:
        return self._reactor.seconds(), self.moment()

    def unix_now(self) -> float:
        """Unix time."""
        return time.time()

    def _exit(self, line: str) -> BaseException:
        """What to raise to end the process with this line, which the log gets too."""
        line = " ".join(line.split())
        log.critical("taba-agent: {line}", line=line)
        if self._is_daemon:
            return CannotStart(line)  # the process in front waits for word, and gets none of a SystemExit
        if sys.__stderr__ is not None:  # twistd has taken `sys.stderr` for its log by now
            sys.__stderr__.write(f"taba-agent: {line}\n")
            sys.__stderr__.flush()
        return SystemExit(1)

    # --- the loop ---

    def _tick(self) -> None:
        delay = TICK_SECONDS
        try:
            now, moment = self._clock()
            self._keep_name()
            if self._name_problem is not None:
                self.keeper.spool_all(now, moment)  # what lies in memory that nobody finds again
            delay = self.pump.tick(now, moment)
            self.alive.tick(now, moment)
            if now >= self._next_keep:
                self._next_keep = now + KEEP_SECONDS
                self.keeper.tick(now, moment)
                self.forwarder.tick()
                if now >= self._next_look:
                    self._next_look = now + LOOK_SECONDS
                    self._life.tell(self.look(), now)
                if now >= self._next_sweep:
                    self._next_sweep = now + SWEEP_SECONDS
                    sweep_slots(self._shm)
            else:
                self.forwarder.pump()
            self._loop_problem = None
            if self._is_ending and self.pump.hand_over() and not self.keeper.holds_any:
                log.critical("taba-agent: {problem}; all that it held is in the spool: it ends", problem=self._name_problem)
                self._end()
                return
        except Exception as error:  # a full disk, a segment cut short: shown, and tried again; the rest works on
            if self._loop_problem is None:
                log.failure("a step of the Agent's loop failed")
            self._loop_problem = _words(error)
            delay = 1.0
        self._call = self._reactor.callLater(delay, self._tick)

    def _keep_name(self) -> None:
        """Before anything is published: the outbox is where the next Agent of this name finds it, or this one ends."""
        if self._is_ending:
            return
        try:
            if self._home.keep_name():
                log.warn("the outbox {path} had been removed: it is made anew, with all that it held", path=self._home.segment.path)
            self._name_problem = None
        except AgentRunning as error:
            self._name_problem, self._is_ending = f"{error}", True
        except (OSError, OutboxFull) as error:
            path, reason = self._home.segment.path, _words(error)
            self._name_problem = f"{path} was removed and cannot be made anew ({reason}): all goes through the spool; make room there"
        self.keeper.is_homeless = self._name_problem is not None

    def _end(self) -> None:
        self._reactor.stop()

    def _on_store_age(self, age: int) -> None:
        self._store_age = age

    def _store_id(self) -> str | None:
        return None if self.pin.store is None else self.pin.store.id

    def _on_store(self, store: Store) -> bool:
        before = self._store_id()
        if not self.pin.meets(store):
            return False
        if self._store_id() != before:
            self.pump.meanings.forget()
        if self.pump.buckets is not None and self.pump.buckets != store.buckets:
            self._own["buckets"] = (
                f"the store has {store.buckets} buckets; until now this Agent knew {self.pump.buckets}: if that is not meant, see --server"
            )
        if self.pump.buckets != store.buckets:
            self.pump.set_buckets(store.buckets, self.moment())
        return True

    # --- what routes ask for ---

    def status(self) -> dict[str, Any]:
        """What `GET /v1/status` answers."""
        servers = list(self.dispatch.servers.values())
        return describe(self.agent, self.keeper, self.pump, servers, self.problems(), self._reactor.seconds(), self.unix_now())

    def look(self) -> dict[str, str]:
        """What needs a person now: sentences, by a key each."""
        own = dict(self._own)
        heard = [*self._site.problems(self.unix_now()), *self._credentials.problems(list(self.dispatch.servers))]
        own |= {f"strangers {place}": problem for place, problem in enumerate(heard)}
        if self._name_problem:
            own["name"] = self._name_problem
        if self._home.register.problem:
            own["register"] = self._home.register.problem
        if self._loop_problem:
            own["loop"] = (
                f"a step of the Agent's loop failed and is tried again every second: {self._loop_problem}; if it goes on, restart it"
            )
        return self._problems.look(self._reactor.seconds(), own)

    def problems(self) -> list[str]:
        """The same sentences, in order."""
        return list(self.look().values())

    def _room(self) -> Room:
        memory = os.statvfs(self._shm)
        return Room(memory.f_bavail * memory.f_frsize, memory.f_blocks * memory.f_frsize)


def makeService(options: Options) -> AgentService:
    """The Agent that these options describe; only wires."""
    from twisted.internet import reactor

    make_monotonic(reactor)
    try:
        front, credentials = front_of(options, cast(Any, reactor).seconds), credentials_of(options)
    except ConfigurationError as failure:
        raise SystemExit(f"{options.program}: {failure}") from None
    on_hangup(reactor, lambda: [*front.guard.reload(), *credentials.reload()])
    return AgentService(
        reactor,
        options["agent"],
        list(dict.fromkeys(options["server"])),
        front,
        options["spool"],
        options["spool-bytes"],
        options["outbox-bytes"],
        is_daemon=not (getattr(options, "parent", None) or {}).get("nodaemon", True),
        credentials=credentials,
        ring_group=options["ring-group"],
    )


def _words(error: Exception) -> str:
    """What happened, for people: the operating system's words and the file; of anything else its kind, too."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"[:200]
    return f"{error}"[:200] if isinstance(error, TabaError) else f"{type(error).__name__}: {error}"[:200]
