"""The inputs of an Agent: a process each, started by command, and started again when it ends.

1. The Agent binds the socket and holds it, and never reads it: while an input is killed and started again, what is sent waits in the
   kernel.
2. What an input counts lies on its desk; the Agent reads it there, and waits for no input, but for a moment at its own end.
3. What cannot be bound or started, or dies, is tried again with growing pauses, and is a problem meanwhile.
4. A desk is one Agent's and its input's: its lock is held until both have ended, in whatever way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from twisted.internet import defer
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger

from taba.agent.lanes import Backoff
from taba.agent.noting import Noting
from taba.agent.problems import LOSS_SHOWN_SECONDS
from taba.desk import COUNTS, DATAGRAM_BYTES, NOT_UNDERSTOOD, PLACE, Desk, desk_path, open_desk
from taba.directories import own_alone, python_of
from taba.receiving import InputAddress

STATSD = "statsd"
NAMES = {STATSD: "StatsD"}  # what people call a kind of input
RECEIVE_BYTES = 4 * 1024 * 1024  # asked of the kernel for what waits; it gives as much as net.core.rmem_max says
CONNECTIONS_WAITING = 128
FIRST_RESTART_SECONDS, LAST_RESTART_SECONDS = 0.25, 30.0
STEADY_SECONDS = 10.0  # one that lived for so long begins with the first pause again
DIES_AGAIN = 3  # times in a row, which make it a problem
STOP_SECONDS = 5.0  # for one to record what the kernel has, at the Agent's end; then it is killed
HANGS_SECONDS = 10.0  # without a sign: an input gives one each second, whatever comes
SAID_BYTES = 2000  # of what an input said last
EXAMPLE_CHARACTERS = 100

LOSSES = {
    "kernel": "packets found the kernel's buffer full: send less at once, or raise net.core.rmem_max, then restart this Agent",
    "given_up": "packets were given up, because each process that read them was killed: see its log",
    "unsure": "events were under way when a process was killed: nobody can say whether they are recorded",
    "cut": "packets were longer than 64 KiB: their ends are lost; send shorter ones",
    "beyond_origins": (
        "packets came from more than 64 origins: what the last ones say is recorded under one Client; run an Agent on more of these hosts"
    ),
    "notes_too_many": "events and service checks came faster than one a minute, and became no notes: send fewer",
    "notes_no_room": "events and service checks became no notes, because too many wait for a Server: see whether one answers",
    "connections_refused": "connections were one too many, or had none to be: the one that was silent for longest was closed",
}

log = Logger()


class CannotReceive(OSError):
    """This address cannot be received at now."""


class Input(ProcessProtocol):
    """One of them: what it has of the machine, its process, and how it does."""

    def __init__(self, reactor: Any, kind: str, address: InputAddress, agent: str, shm: str, environ: Mapping[str, str], chance: Random):
        self.kind, self.address = kind, address
        self._reactor, self._environ = reactor, environ
        self._path = desk_path(agent, address.text, shm)
        self._backoff = Backoff(chance, FIRST_RESTART_SECONDS, LAST_RESTART_SECONDS)
        self._socket: socket.socket | None = None
        self._file: tuple[int, int] | None = None  # of a unix socket
        self._descriptor = -1
        self._desk: Desk | None = None
        self._process: Any = None
        self._kernel = self._packets = 0
        self._failures = self.restarts = 0
        self._began = 0.0
        self._call: Any = None
        self._trouble = ""  # why it cannot be received at
        self._said = b""
        self._last = ""  # how its process ended, and what it had said
        self._stopping: defer.Deferred[None] | None = None
        self._signs = (0, 0.0)  # how often it had done something when that was looked at, and since when no more than that
        self._seen: dict[str, int] = {}
        self._grew: dict[str, float] = {}

    # --- life ---

    def open(self) -> bool:
        """Bind, so that what is sent from now on waits; whether that can be had."""
        try:
            self._open()
            self._trouble = ""
        except OSError as error:
            self._trouble = error.strerror or f"{error}"
        return not self._trouble

    def abandon(self) -> None:
        """Let go of what was bound: no process was started, and none will be."""
        self._close(is_done=self._desk is not None and not self._desk.packets)

    def start(self) -> None:
        """Receive, or try to, from now on."""
        self._call = None
        if not self.open():
            self._failures += 1
            self._call = self._reactor.callLater(self._backoff.delay(self._failures), self.start)
            return
        assert self._socket is not None and self._desk is not None
        self._desk.mend()  # what an earlier process wrote there, and this one would read as nothing
        self._packets = self._desk.packets
        self._began = self._reactor.seconds()
        arguments = python_of("taba.inputs.process", self.kind, self.address.text, str(self._kernel))
        descriptors = {0: "w", 1: "r", 2: "r", 3: self._socket.fileno(), 4: self._descriptor}
        try:
            self._process = self._reactor.spawnProcess(self, sys.executable, arguments, env=self._environ, childFDs=descriptors)
        except OSError as error:  # no room for one more process, or for its pipes
            self._again(f"it cannot be started: {error.strerror or error}")

    def stop(self) -> defer.Deferred[None]:
        """Let nothing more in; fires when what the kernel had is recorded, and all is let go of."""
        stopping = self._stopping = defer.Deferred()
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._process is None:
            self._close(is_done=False)
        else:
            self._process.closeStdin()  # which is what it ends by, whatever ends this Agent
            self._call = self._reactor.callLater(STOP_SECONDS, self._kill)
        return stopping

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self._process.signalProcess("KILL")

    def outReceived(self, data: bytes) -> None:
        self._said = (self._said + data)[-SAID_BYTES:]

    errReceived = outReceived

    def processEnded(self, reason: Any) -> None:
        self._process = None
        said = self._said.decode(errors="replace").strip().rpartition("\n")[2]
        self._said = b""
        if self._stopping is not None:
            if self._call is not None and self._call.active():
                self._call.cancel()
            self._close(is_done=bool(reason.check(ProcessDone)))
            return
        if self._reactor.seconds() - self._began >= STEADY_SECONDS:
            self._failures = 0
        self.restarts += 1
        how = "ended" if reason.check(ProcessDone) else f"{reason.getErrorMessage()}".rstrip(".")
        self._again(f"{how}{f': {said}' if said else ''}")

    def _again(self, why: str) -> None:
        """Start it once more, after a pause."""
        self._failures += 1
        self._last = why[:300]
        log.warn(
            "the process that receives {kind} at {address} is started again: {why}",
            kind=self.name,
            address=self.address.text,
            why=self._last,
        )
        self._call = self._reactor.callLater(self._backoff.delay(self._failures), self.start)

    def _open(self) -> None:
        """The desk and the socket, where they are not there. Raises OSError."""
        if self._desk is None:
            try:
                descriptor = open_desk(self._path)
            except OSError as error:
                raise CannotReceive(error.errno, f"{self._path}: {error.strerror}") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._desk = Desk(descriptor)
                self._desk.mend()
                self._seen = dict(zip(COUNTS, self._desk.seen(len(COUNTS)), strict=True))
            except OSError as error:
                os.close(descriptor)
                taken = isinstance(error, BlockingIOError)
                why = "what an earlier Agent received there is still being recorded" if taken else f"{self._path}: {error.strerror}"
                raise CannotReceive(error.errno, why) from None
            self._descriptor = descriptor
        if self._socket is None:
            self._socket, self._file = bound(self.address)
            self._kernel = self._desk.counts(len(COUNTS))[PLACE["kernel"]]  # a new socket has dropped nothing

    def _close(self, is_done: bool) -> None:
        """Let go of all; a desk on which something may lie is left to the next Agent."""
        if self._socket is not None:
            if self._file is not None:
                with contextlib.suppress(OSError):  # somebody removed it, and it is gone all the same
                    status = os.stat(self.address.place)
                    if (status.st_dev, status.st_ino) == self._file:
                        os.unlink(self.address.place)
            self._socket.close()
            self._socket = None
        if self._desk is not None:
            has_notes = self._desk.notes_waiting > 0
            self._desk.close()
            self._desk = None
            os.close(self._descriptor)
            if is_done and not has_notes:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
        if self._stopping is not None and not self._stopping.called:
            self._stopping.callback(None)

    # --- what it says ---

    @property
    def name(self) -> str:
        """What people call it."""
        return NAMES[self.kind]

    @property
    def state(self) -> str:
        """`receiving`; `starting`, while no process works at the desk yet; `hanging`, while one does nothing; or `unbound`."""
        if self._trouble:
            return "unbound"
        if self._is_hanging(self._reactor.seconds()):
            return "hanging"
        return "receiving" if self._process is not None and self._desk is not None and self._desk.packets > self._packets else "starting"

    def _is_hanging(self, now: float) -> bool:
        if self._process is None or self._desk is None or self._desk.packets <= self._packets:
            return False  # it did not begin to work: a busy machine takes its time
        packets, since = self._signs
        if self._desk.packets != packets or since < self._began:
            self._signs = self._desk.packets, now
            return False
        return now - since >= HANGS_SECONDS

    def counts(self) -> dict[str, int]:
        """What it counted since this Agent began, or an earlier one that was killed."""
        if self._desk is None:
            return dict.fromkeys(COUNTS, 0)
        return dict(zip(COUNTS, self._desk.counts(len(COUNTS)), strict=True))

    # --- what it was told to note ---

    def next_note(self) -> tuple[str, float] | None:
        """The text and the time of the note that waits for longest."""
        return self._desk.next_note() if self._desk is not None else None

    def settle_note(self, is_refused: bool) -> None:
        """A Server has it, or wants none such."""
        if self._desk is not None:
            self._desk.settle_note(is_refused)

    def notes(self) -> dict[str, int]:
        """How many wait for a Server, how many one has, and how many were refused."""
        if self._desk is None:
            return {"waiting": 0, "posted": 0, "refused": 0}
        posted, refused = self._desk.notes_settled
        return {"waiting": self._desk.notes_waiting, "posted": posted, "refused": refused}

    def describe(self) -> dict[str, Any]:
        """What a status shows of it."""
        pid = self._process.pid if self._process is not None else None
        return {
            "kind": self.kind,
            "address": self.address.text,
            "state": self.state,
            "pid": pid,
            "restarts": self.restarts,
            "counts": self.counts(),
            "notes": self.notes(),
            "example": self.example(),
        }

    def example(self) -> str:
        """One that was not understood."""
        return self._desk.example.decode(errors="replace")[:EXAMPLE_CHARACTERS] if self._desk is not None else ""

    def look(self, now: float) -> dict[str, str]:
        """What needs a person: sentences, by a key each."""
        found, where = {}, f"{self.name} at {self.address.text}"
        if self._trouble:
            found["bind"] = (
                f"{where} cannot be received: {self._trouble}; make room for it, or give --{self.kind} another address: it is tried again"
            )
        if self._failures >= DIES_AGAIN and not self._trouble and (self._process is None or now - self._began < STEADY_SECONDS):
            found["dies"] = f"the process that receives {where} failed {self._failures} times in a row and is started again: {self._last}"
        if self._is_hanging(now):
            pid = self._process.pid
            found["hangs"] = (
                f"the process {pid} that receives {where} gave no sign for {HANGS_SECONDS:.0f} s: what is sent waits in the kernel, as far "
                f"as that has room; if it is stopped, let it go on, else kill -9 {pid}: it is started again, and nothing is lost by that"
            )
        if not self.address.is_local:
            found["insecure"] = (
                f"{where} is reached from other hosts, and takes what anybody sends (--insecure): have a firewall let in your own alone,"
                " or run an Agent on each host"
            )
        counts = self.counts()
        for reason in (*LOSSES, *NOT_UNDERSTOOD):
            if counts[reason] > self._seen.get(reason, 0):
                self._grew[reason] = now
        if counts != self._seen and self._desk is not None:
            self._desk.see(list(counts.values()))
        self._seen = counts
        fresh = {reason for reason, grew in self._grew.items() if now - grew <= LOSS_SHOWN_SECONDS}
        for reason, meaning in LOSSES.items():
            if reason in fresh:
                found[reason] = f"{where}: {counts[reason]} {meaning}"
        unclear = [f"{counts[reason]} as {reason}" for reason in NOT_UNDERSTOOD if reason in fresh]
        if unclear:
            found["lines"] = (
                f"{where}: not everything is understood ({', '.join(unclear)}), such as {self.example()!r}: mend whoever sends it"
            )
        return {f"{self.kind} {self.address.text} {key}": sentence for key, sentence in found.items()}


class Inputs:
    """All of an Agent's."""

    def __init__(self, inputs: list[Input], noting: Callable[[list[Input]], Noting] | None = None):
        """`noting` makes what posts their notes."""
        self._inputs = inputs
        self._noting = noting(inputs) if noting is not None else None

    def tick(self) -> None:
        """Once a second: post what is to be noted."""
        if self._noting is not None:
            self._noting.tick()

    def open(self) -> None:
        """Bind them all, as far as that can be."""
        for one in self._inputs:
            one.open()

    def abandon(self) -> None:
        """Let go of what was bound: the Agent cannot start."""
        for one in self._inputs:
            one.abandon()

    def start(self) -> None:
        """Receive."""
        for one in self._inputs:
            one.start()

    async def stop(self) -> None:
        """Let nothing more in; returns when what the kernel had is recorded, or after STOP_SECONDS."""
        if self._noting is not None:
            self._noting.stop()
        await defer.DeferredList([one.stop() for one in self._inputs])

    def describe(self) -> list[dict[str, Any]]:
        """What a status shows."""
        return [one.describe() for one in self._inputs]

    def look(self, now: float) -> dict[str, str]:
        """What needs a person."""
        found = {key: sentence for one in self._inputs for key, sentence in one.look(now).items()}
        if self._noting is not None:
            found |= self._noting.look(sum(one.notes()["waiting"] for one in self._inputs))
        return found


def bound(address: InputAddress) -> tuple[socket.socket, tuple[int, int] | None]:
    """A socket there, and of a unix socket which file it is. Raises OSError."""
    if address.kind == "unix":
        return _bound_path(address)
    family = socket.AF_INET6 if ":" in address.place else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM if address.kind == "udp" else socket.SOCK_STREAM)
    try:
        if address.kind == "tcp":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        made.bind((address.place, address.port))
        if address.kind == "tcp":
            made.listen(CONNECTIONS_WAITING)
        return made, None
    except BaseException:
        made.close()
        raise


def _bound_path(address: InputAddress) -> tuple[socket.socket, tuple[int, int]]:
    path = address.place
    if os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise CannotReceive(errno.EEXIST, "there is a file that is no socket")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
            asking.connect(path)
        raise CannotReceive(errno.EADDRINUSE, "another process receives there")
    except (FileNotFoundError, ConnectionRefusedError):
        pass  # nobody is there, or a file that a killed one left
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    beside = f"{path}.{os.getpid()}"
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BYTES * 4)
        with own_alone():  # before it has its mode
            made.bind(beside)
        os.chmod(beside, address.mode)
        status = os.stat(beside)
        os.rename(beside, path)  # at once what it is to be, and in the place of a file that is nobody's
        return made, (status.st_dev, status.st_ino)
    except BaseException:
        made.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
