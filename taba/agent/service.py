"""The Agent as a Twisted service: gives its loop this machine's clocks, chance and connections, and HTTP, and tells the log."""

from __future__ import annotations

import os
import random
import socket
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from twisted.application import service
from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure

from taba.agent.arenas import keep_heap
from taba.agent.credentials import Credentials, credentials_of
from taba.agent.edge import Edge
from taba.agent.forward import client_over, connection_pool
from taba.agent.home import CannotOpen, Home
from taba.agent.http import Routes
from taba.agent.inputs import STATSD, Input, Inputs
from taba.agent.loop import LAST_DRAIN_FAILS, Loop, Surroundings, words
from taba.agent.noting import Noting
from taba.agent.options import Options
from taba.agent.problems import Space
from taba.agent.status import describe
from taba.agent.telling import Life
from taba.clocks import boot_id, boot_seconds, make_monotonic
from taba.connections import make_site
from taba.descriptors import Descriptors
from taba.errors import ConfigurationError, TabaError
from taba.handlers.lookup import find_edges
from taba.listening import QUIET_SECONDS, Front, freeze_when_running, front_of, listen_at, on_hangup, raise_descriptor_limit
from taba.receiving import InputAddress
from taba.ring import SHM_DIRECTORY as SHM

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
        statsd: Sequence[InputAddress] = (),
    ):
        self._statsd = statsd
        self._inputs = Inputs([])
        self._ring_group = ring_group
        self._credentials = credentials or Credentials()
        self._reactor = reactor
        self._is_daemon = is_daemon
        self.agent = agent
        self._urls, self._front, self._directory = servers, front, spool
        self._spool_bytes, self._outbox_bytes, self._shm = spool_bytes, outbox_bytes, shm
        self._random = random.SystemRandom()
        self._port: Any = None
        self._site: Any = None
        self._descriptors = Descriptors("Agent", reactor.seconds)

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
            self._inputs.abandon()
            self._home.abandon()
            raise

    def _start(self, home: Home) -> None:
        raise_descriptor_limit()
        boot = boot_id()
        # where nobody says which boot this is, no other is the same
        number = zlib.crc32(boot.encode()) if boot else self._random.getrandbits(32)
        self._pool = connection_pool(self._reactor)
        client = client_over(self._reactor, self._pool, self._credentials.tls)
        around = Surroundings(
            reactor=self._reactor,
            wall=self.unix_now,
            since_boot=boot_seconds,
            boot=number,
            random=self._random,
            new_id=lambda: os.urandom(16),
            client=client,
            kept=self._pool,
            shown=lambda: self._credentials.headers,
            host=socket.gethostname()[:255],
            shm=self._shm,
            space=self._space,
        )
        try:
            pin = self._directory / f"{self.agent}.store"
            self.loop = loop = Loop(home, self._urls, pin, around, self, self._ring_group, Edge(find_edges()))
        except LAST_DRAIN_FAILS as error:  # nothing is lost by it: the next start finds it as it was
            raise self._exit(f"--spool: {str(self._directory)!r}: what an earlier Agent left cannot be read: {words(error)}") from None
        self._life = Life(log, loop.keeper, loop.dispatch)
        self._routes = routes = Routes(loop.pump, home.keys, loop.grants, self.status, loop.clock, self.unix_now, loop.forwarder.pump)
        environ = {**os.environ, "TABA_AGENT": self.agent}
        self._inputs = Inputs(
            [Input(self._reactor, STATSD, one, self.agent, self._shm, environ, self._random) for one in self._statsd],
            lambda inputs: Noting(inputs, loop.forwarder.note, self._reactor.seconds, loop.dispatch.backoff),
        )
        self._inputs.open()  # before the port is open: who finds the Agent finds them
        outcome: list[Any] = []
        self._site = make_site(routes.api(self._front.guard))
        defer.ensureDeferred(listen_at(self._front, self._site, self._reactor, self._descriptors)).addBoth(outcome.append)
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
        if loop.keeper.unacknowledged or home.spool.batches:
            log.info(
                "an earlier Agent left {outbox} batches in the outbox and {spool} in the spool: they are sent",
                outbox=loop.keeper.unacknowledged,
                spool=home.spool.batches,
            )
        loop.start()
        self._inputs.start()

    async def _stop(self) -> None:
        # readiness goes first, and each answer says that its connection ends
        self._routes.stop()
        self._site.is_closing = True
        await self._inputs.stop()  # what they record is drained below
        self.loop.stop()
        if self._port is not None:
            await self._port.stopListening()
        await self._pool.closeCachedConnections()
        try:
            self.loop.last_drain()
        except LAST_DRAIN_FAILS:
            log.failure("the last drain failed")
        finally:
            keeper = self.loop.keeper
            log.info(
                "Agent {agent} ends: {outbox} batches are left in the outbox, {spool} in the spool",
                agent=self.agent,
                outbox=keeper.unacknowledged,
                spool=keeper.spool.batches,
            )
            self.loop.close()

    def stopService(self) -> defer.Deferred[None]:
        super().stopService()
        return defer.ensureDeferred(self._stop())

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

    # --- what the loop tells ---

    def renewed(self) -> None:
        """The outbox had been removed."""
        log.warn("the outbox {path} had been removed: it is made anew, with all that it held", path=self._home.segment.path)

    def failed(self, error: Exception, is_first: bool) -> None:
        """A step of the loop failed."""
        if is_first:
            log.failure("a step of the Agent's loop failed")

    def looks(self, now: float) -> None:
        """Once a second: tell the log what is new."""
        self._inputs.tick()
        self._life.tell(self.look(), now)

    def ended(self, problem: str) -> None:
        """Another has the name."""
        log.critical("taba-agent: {problem}; all that it held is in the spool: it ends", problem=problem)
        self._end()

    def _end(self) -> None:
        self._reactor.stop()

    # --- what routes ask for ---

    def status(self) -> dict[str, Any]:
        """What `GET /v1/status` answers."""
        loop = self.loop
        servers = list(loop.dispatch.servers.values())
        now, keys = self._reactor.seconds(), loop.home.keys.count
        inputs, unix_now, grants = self._inputs.describe(), self.unix_now(), len(loop.grants)
        held = (loop.slots, keys, inputs, grants, loop.forwarder.second_tries)
        return describe(self.agent, loop.keeper, loop.pump, servers, self.problems(), now, unix_now, *held)

    def ended_connections(self) -> int:
        """Connections that are gone, since this process began."""
        return 0 if self._site is None else int(self._site.ended)

    def look(self) -> dict[str, str]:
        """What needs a person now: sentences, by a key each."""
        servers = list(self.loop.dispatch.servers)
        heard = [*self._descriptors.problems, *self._site.problems(self.unix_now()), *self._credentials.problems(servers)]
        strangers = {f"strangers {place}": problem for place, problem in enumerate(heard)}
        return self.loop.problems({**strangers, **self._inputs.look(self._reactor.seconds())})

    def problems(self) -> list[str]:
        """The same sentences, in order."""
        return list(self.look().values())

    def _space(self) -> Space:
        memory = os.statvfs(self._shm)
        return Space(memory.f_bavail * memory.f_frsize, memory.f_blocks * memory.f_frsize)


def makeService(options: Options) -> AgentService:
    """The Agent that these options describe; only wires."""
    from twisted.internet import reactor

    make_monotonic(reactor)
    try:
        front, credentials = front_of(options, cast(Any, reactor).seconds), credentials_of(options)
    except ConfigurationError as failure:
        raise SystemExit(f"{options.program}: {failure}") from None
    on_hangup(reactor, lambda: [*front.guard.reload(), *credentials.reload()])
    agent = AgentService(
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
        statsd=list({address.text: address for address in options["statsd"]}.values()),
    )
    keep_heap()
    freeze_when_running(reactor, lambda: QUIET_SECONDS, agent.ended_connections)  # of long works it has none: each turn is as good
    return agent
