"""The real Server, store and Agent that benchmarks use, and how much trouble a run takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from benchmarks import machine
from demo.processes import remove_free_slot
from tests.services import SHM, Services

SLOTS = "taba-slot.*"  # the numbers of equal processes; one that was killed leaves its file, empty

T = TypeVar("T")


class Effort(NamedTuple):
    """How much trouble a run takes."""

    is_quick: bool

    def pick(self, quick: T, normal: T) -> T:
        return quick if self.is_quick else normal


@contextmanager
def running(server: bool = True, agent: bool = False, **environ: str) -> Iterator[Services]:
    """A Server on an embedded store that syncs each write, and an Agent, as processes of their own; gone in the end, whatever happens."""
    before = set(SHM.glob(SLOTS))
    services = Services()
    services.environ.update(environ)
    try:
        if server:
            services.start_server()
        if agent:
            services.start_agent()
        yield services
    finally:
        services.stop()
        for slot in set(SHM.glob(SLOTS)) - before:
            remove_free_slot(slot)  # others on this host may hold theirs


def remove_segments(agent: str) -> None:
    """The rings and the outbox of an Agent's name that was a benchmark's own."""
    for segment in (*SHM.glob(f"taba.{agent}.*"), *SHM.glob(f"taba-agent.{agent}*")):
        segment.unlink(missing_ok=True)


def pid_of(services: Services, name: str) -> int:
    """The process id of a started `server`, `agent`, or of the Server's `store`."""
    if name == "store":
        [found] = machine.children(pid_of(services, "server"))
        return found
    return next(child.process.pid for child in services.children if child.name == name)
