"""The embedded store: a private Valkey that the Server runs for itself.

1. Every write is synced to its append-only file before it is acknowledged.
2. Never two processes on one directory; none that outlives its Server, whatever kills that. The process itself holds
   the directory's lock, and the kernel ends it with its parent (see `launch`).
3. One that dies is started again, with back-off, for as long as the Service runs.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from taba.bounds import MiB
from taba.directories import make_directory, strangers_in
from taba.errors import ConfigurationError, StoreUnavailable
from taba.shard.servers import launch
from taba.shard.servers.binary import find_store_binary
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import Address

SOCKET_NAME = "store.sock"
LOCK_SECONDS = 10.0  # how long a new Server waits for the store of an old one to be gone; writing back its file takes less
RUNNING_SECONDS = 120.0  # how long the store may take to read its file before it answers
STOP_SECONDS = 20.0  # from SIGTERM to SIGKILL; what was acknowledged is on disk either way
FIRST_RESTART_SECONDS = 0.1
LAST_RESTART_SECONDS = 5.0
STEADY_SECONDS = 10.0  # a process that lived so long is restarted without growing delay
OUTPUT_BYTES = 4096  # of its last words, kept for messages
REWRITTEN_BYTES = 256 * MiB  # of its file, before it is written anew, or twice what it had after the last time, where that is more

SETTINGS = (
    *("--port", "0", "--unixsocket", SOCKET_NAME, "--unixsocketperm", "700"),
    *("--dir", ".", "--appendonly", "yes", "--appendfsync", "always", "--save", ""),
    # its own 64 MB are over every five seconds at ten million events a minute, and whoever writes meanwhile waits half as long again. Read
    # at a start, as much takes two seconds
    *("--auto-aof-rewrite-min-size", f"{REWRITTEN_BYTES}"),
    *("--maxmemory-policy", "noeviction", "--daemonize", "no", "--loglevel", "warning", "--logfile", ""),
)

_log = Logger()


class _Process(ProcessProtocol):
    """The store's process as the Service sees it: its last words and its end."""

    def __init__(self, store: EmbeddedStore):
        self.ended: Deferred[None] = Deferred()
        self.has_ended = False
        self.last_words = b""
        self._store = store

    def outReceived(self, data: bytes) -> None:
        self.last_words = (self.last_words + data)[-OUTPUT_BYTES:]
        for line in data.decode(errors="replace").splitlines():
            _log.info("store: {line}", line=line)

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self.has_ended = True
        self._store._ended(self, reason.value)
        self.ended.callback(None)


class EmbeddedStore(Service):
    """Runs the store in `directory` (made where missing, for its owner only) while the Service runs.

    `url` is what other processes of the same user connect to: workers too. `is_new`: nothing was kept in the directory before; what
    is lost while it runs does not make it new. Raises ConfigurationError at once where there is no Valkey or the directory cannot be had.
    Start it in the process's main thread: the kernel ends the store with the thread that started it.
    """

    def __init__(self, directory: str | os.PathLike[str], reactor: Any = None, option: str = "--store"):
        if reactor is None:
            from twisted.internet import reactor
        self.directory = Path(directory).absolute()
        self.restarts = 0
        self._last_problem = ""
        self._option = option
        self._shown = f"embedded:{self.directory}"
        self._reactor = reactor
        self._policy = backoffPolicy(FIRST_RESTART_SECONDS, LAST_RESTART_SECONDS, 2.0)
        self._failures = 0
        self._started = 0.0
        self._process: _Process | None = None
        self._transport: Any = None
        self._restart: Any = None
        self._fatal: ConfigurationError | None = None
        try:
            self._binary = find_store_binary()
        except FileNotFoundError as error:
            raise ConfigurationError(option, self._shown, f"takes a Valkey to run: {error}") from None
        try:
            make_directory(self.directory)
            if not os.access(self.directory, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            raise ConfigurationError(option, self._shown, f"takes a directory to write to: {error.strerror}") from None
        self.is_new = not (self.directory / "appendonlydir").exists()
        strangers = strangers_in(self.directory.stat(), os.geteuid())
        if strangers is not None:  # whoever has it, or writes to it, has the store: its files and its socket
            raise ConfigurationError(option, self._shown, f"takes a directory of this user's own; this one {strangers}")

    @property
    def url(self) -> str:
        """The store's address for `parse_store`."""
        return Address(path=str(self.directory / SOCKET_NAME)).text

    @property
    def pid(self) -> int | None:
        """The store's process, while there is one."""
        return self._transport.pid if self._process is not None else None

    @property
    def problems(self) -> list[str]:
        """What is wrong with it now, or was until just before, in sentences."""
        is_steady = self._process is not None and self._reactor.seconds() - self._started > STEADY_SECONDS
        return [self._last_problem] if self._last_problem and not is_steady else []

    def startService(self) -> None:
        super().startService()
        self._spawn()

    def stopService(self) -> Deferred[None]:
        """SIGTERM, and wait until the process is gone."""
        super().stopService()
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
        process = self._process
        if process is None:
            return succeed(None)
        self._transport.signalProcess("TERM")
        kill = self._reactor.callLater(STOP_SECONDS, self._kill, process)

        def stopped(_: object) -> None:
            if kill.active():
                kill.cancel()

        return process.ended.addCallback(stopped)

    async def wait_running(self) -> None:
        """Return once the store answers.

        Raises ConfigurationError when another Server's store is in the directory and does not end within
        LOCK_SECONDS, StoreUnavailable when it does not answer within RUNNING_SECONDS.
        """
        pool = Pool(self._reactor, Address(path=str(self.directory / SOCKET_NAME)), size=1, is_awaited=True)
        pool.start()
        deadline = self._reactor.seconds() + RUNNING_SECONDS
        try:
            while True:
                if self._fatal is not None:
                    raise self._fatal
                why = self._last_problem or "it waits for the directory"
                # a store that answers may be another Server's, which ours still waits for: not before ours has the lock
                if self._process is not None and self._holds_lock():
                    try:
                        await pool.execute([(b"PING",)], 1.0, 0.2)
                        return
                    except StoreUnavailable as error:
                        why = str(error)
                if self._reactor.seconds() > deadline:
                    raise StoreUnavailable(f"{self._shown}: not running within {RUNNING_SECONDS:g} s: {why}")
                await deferLater(self._reactor, 0.01)
        finally:
            await pool.close()

    def _holds_lock(self) -> bool:
        # the launcher turns into the store once it has the lock
        try:
            return not os.path.samefile(f"/proc/{self._transport.pid}/exe", sys.executable)
        except OSError:
            return False

    def _spawn(self) -> None:
        self._started = self._reactor.seconds()
        self._process = _Process(self)
        script = str(Path(launch.__file__).absolute())
        arguments = [sys.executable, "-I", "-S", script, str(self.directory), str(os.getpid()), str(LOCK_SECONDS), self._binary, *SETTINGS]
        streams = {0: "w", 1: "r", 2: "r"}
        try:
            self._transport = self._reactor.spawnProcess(self._process, sys.executable, arguments, env=None, childFDs=streams)
        except OSError as error:  # no room for one more process, or for its pipes
            self._process = None
            self._again(f"the embedded store cannot be started: {error.strerror or error}", self._failures + 1)
            return
        self._transport.closeStdin()

    def _ended(self, process: _Process, reason: Any) -> None:
        self._process = None
        code: int | None = getattr(reason, "exitCode", None)
        number = getattr(reason, "signal", None)
        ended = f"signal {number}" if number else f"exit code {code}"
        if not self.running:
            return
        if code == launch.DIRECTORY_TAKEN:
            self._fatal = ConfigurationError(
                self._option, self._shown, f"takes a directory of its own; another Server's store is in it (waited {LOCK_SECONDS:g} s)"
            )
            self._last_problem = str(self._fatal)
        else:
            words = process.last_words.decode(errors="replace").strip().splitlines()
            # who is killed like that says nothing: what it said last is of its start
            why = "somebody killed it, or the kernel for want of memory (dmesg)" if number == signal.SIGKILL else words[-1] if words else ""
            self._last_problem = f"the embedded store ended ({ended}){': ' + why if why else ''}"
        self.restarts += 1
        self._again(self._last_problem, 0 if self._reactor.seconds() - self._started > STEADY_SECONDS else self._failures + 1)

    def _again(self, why: str, failures: int) -> None:
        """Start it once more, after a pause."""
        self._last_problem, self._failures = why, failures
        _log.warn("{problem}; starting it again", problem=why)
        self._restart = self._reactor.callLater(self._policy(failures), self._spawn)

    def _kill(self, process: _Process) -> None:
        if not process.has_ended:
            os.kill(self._transport.pid, signal.SIGKILL)
