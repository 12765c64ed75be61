"""What is really full, to be run where the temporary directory is a small file system of its own: `python -m tests.faults.full_disk WHAT`.

Spool and embedded store lie on it. WHAT is `disk`; `memory`: /dev/shm is full, too, which is to be a file system of its own then; or
`table`: so is the Agent's table of descriptors. Prints, as JSON, what was said, and what became of the events; ends with an error where a
count is wrong, or nothing was said.
"""

from __future__ import annotations

import http.client
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_SECONDS, until
from tests.services import SHM, Services

from .job import REMEMBERED

RECORD = """
import sys
from taba import client
client.start(sys.argv[1])
texts, bids = client.tab("texts", type="Noop"), client.counter("bids_won")
for number in range(int(sys.argv[2])):
    bids.inc()
    texts.record("x" * 1000)
stats = client.stats()
assert stats["dropped"] == 0, stats
"""
# has its ring, and records twice so many events as each line says
HOLD = """
import json, sys
from taba import client
client.start("held/1")
texts, bids = client.tab("texts", type="Noop"), client.counter("bids_won")
for line in sys.stdin:
    for number in range(int(line)):
        bids.inc()
        texts.record("x" * 1000)
    stats = client.stats()
    print(json.dumps([stats["recorded"] + stats["dropped"], stats["dropped_by_reason"]]), flush=True)
"""
# finds no room for a ring: what it says of that
LATE = """
import json
from taba import client
client.start("late/1")
client.counter("bids_won").inc()
client.counter("bids_won")  # foreign code may run where a Tab is made: there it warns
stats = client.stats()
print(json.dumps([stats["recorded"], stats["dropped_by_reason"], stats["problem"]]))
"""
TURN = 400  # times 2 events: half a MB
MOST_TURNS = 100
MUCH = 1500  # times 2 events, of which one has 1,000 bytes; of eight times so many an outbox of 4 MiB holds a third


def fill(directory: Path) -> Path:
    """Take all that is left there; what takes it."""
    with open(directory / "filler", "ab", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError:
                continue
    return directory / "filler"


class Full:
    """A host on which something is full."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.services = Services()
        self.agent = self.services.agent_query
        self.recorded = 0
        self.said: dict[str, str] = {}
        self.held: subprocess.Popen[str] | None = None
        self.connection: http.client.HTTPConnection | None = None

    def record(self, client: str, events: int) -> None:
        done = self.services.run("-c", RECORD, client, str(events), TABA_RING_BYTES=str(32 << 20))
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        self.recorded += 2 * events

    def hold(self) -> None:
        environ = {**self.services.environ, "TABA_RING_BYTES": str(16 << 20)}
        command = [sys.executable, "-c", HOLD]
        self.held = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.record_held(1)

    def record_held(self, events: int) -> dict[str, int]:
        """What it dropped itself, of all that it recorded so far."""
        assert self.held is not None and self.held.stdin is not None and self.held.stdout is not None
        self.held.stdin.write(f"{events}\n")
        self.held.stdin.flush()
        counted, drops = json.loads(self.held.stdout.readline())
        self.recorded += 2 * events
        assert counted <= self.recorded, (counted, self.recorded)
        return dict(drops)

    def end_held(self) -> None:
        if self.held is not None:
            self.held.kill()
            self.held.communicate()

    def status(self) -> Any:
        """The Agent's, over a connection that stays where there is one."""
        if self.connection is None:
            return self.agent.status()
        self.connection.request("GET", "/v1/status")
        return json.loads(self.connection.getresponse().read())

    def tell(self, key: str, words: str) -> None:
        """Wait until the Agent says so."""
        found = until(lambda: [said for said in self.status()["problems"] if words in said], f"the Agent does not say {words!r}")
        self.said[key] = found[0]

    def overflow(self) -> None:
        """Record as much at a time as a ring holds, each time until it was read, until the Agent has no room for it."""
        for _ in range(MOST_TURNS):
            self.record_held(TURN)
            status = until(lambda: (now := self.status())["recorded"] == self.recorded and now, lambda: f"not all is read: {self.status()}")
            if "no_disk" in status["dropped_by_reason"]:
                return
        raise AssertionError(f"there is room without end: {self.status()}")

    def books(self) -> dict[str, Any] | None:
        """What became of all events, once that is known of all; no Agent and no Server counts more than there were."""
        ours, theirs = self.agent.status(), self.services.query.status()
        if REMEMBERED in str(theirs["problems"]):  # its store is on its way up
            return None
        assert ours["recorded"] <= self.recorded, (ours, self.recorded)
        if ours["recorded"] < self.recorded:  # the last of it was not drained yet
            return None
        drops = ours["dropped_by_reason"]
        folded, dropped = theirs["folded"] + theirs["dead_letters"], sum(drops.values())
        assert folded + dropped <= self.recorded, (ours, theirs)
        return {"recorded": self.recorded, "folded": folded, "dropped": drops} if folded + dropped == self.recorded else None

    def run(self) -> None:
        services = self.services
        services.start_server()
        services.start_agent("--outbox-bytes", str(4 << 20))
        self.hold()
        self.record("web/1", 500)
        until(lambda: services.query.status()["folded"] == self.recorded, "what was recorded at first is not folded")
        until(lambda: services.agent_query.status()["rings_open"] == 1, "the ring of who has ended is still there")
        fillers = [fill(services.directory)]
        getattr(self, self.what)(fillers)
        for filler in fillers:
            os.unlink(filler)
        self.end_held()
        until(lambda: not list(SHM.glob(f"taba.{services.agent}.*")), "rings are left")
        print(json.dumps(self.said))
        said = f"the books do not add up: {self.recorded}"
        print(json.dumps(until(self.books, lambda: f"{said}, {self.agent.status()}, {services.query.status()}")))
        self.record("web/1", 500)
        until(self.books, "what comes afterwards is not folded")
        for words in ("cannot be read or written", "is full: ", "has all the"):
            until(lambda words=words: words not in str(self.agent.status()["problems"]), "what is mended is still said")  # type: ignore[misc]

    def disk(self, fillers: list[Path]) -> None:
        for number in range(8):  # 12 MB: more than the outbox holds
            self.record(f"web/{2 + number}", MUCH)
        self.tell("spool", "cannot be read or written")
        self.said["server"] = until(lambda: self.services.query.status()["problems"], "the Server says nothing")[0]

    def memory(self, fillers: list[Path]) -> None:
        fillers.append(fill(SHM))
        self.overflow()
        self.tell("spool", "cannot be read or written")
        self.tell("memory", "/dev/shm is full")
        self.tell("dropped", "dropped as no_disk")
        done = self.services.run("-c", LATE)
        counted, drops, problem = json.loads(done.stdout)
        assert (counted, drops) == (0, {"no_ring": 1}) and problem in done.stderr, done
        self.said["late"] = problem
        if "No space left" not in problem:  # it found a page to count in
            self.recorded += 1

    def table(self, fillers: list[Path]) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", self.services.agent_port, timeout=PATIENCE_SECONDS)
        self.status()  # who is in stays in
        agent = self.services.pid("agent")
        before = resource.prlimit(agent, resource.RLIMIT_NOFILE)
        resource.prlimit(agent, resource.RLIMIT_NOFILE, (0, before[1]))
        self.services.kill_server()  # and with it the connections that were open
        self.overflow()
        self.record("late/1", TURN)  # its ring waits until the Agent can open it
        self.tell("spool", "cannot be read or written")
        self.tell("table", "has all the")
        self.tell("dropped", "dropped as no_disk")
        self.connection.close()
        self.connection = None
        os.unlink(fillers.pop())  # its store has to start
        self.services.start_server()
        resource.prlimit(agent, resource.RLIMIT_NOFILE, before)


def main(what: str) -> None:
    """Try it."""
    full = Full(what)
    try:
        full.run()
    finally:
        full.end_held()
        full.services.stop()


if __name__ == "__main__":
    main(sys.argv[1])
