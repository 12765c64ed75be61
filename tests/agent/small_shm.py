"""What a small or full /dev/shm does, to be run where that is a tmpfs of its own: `python -m tests.agent.small_shm SCENARIO`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from taba.agent.home import Home
from taba.agent.outbox import DEFAULT_OUTBOX_BYTES, TABLE_BYTES, OutboxFull
from taba.agent.search import MAX_COVERED
from taba.agent.spool import DEFAULT_SPOOL_BYTES
from tests.agent.producers import Producer
from tests.agent.world import AGENT, World
from tests.patience import PATIENCE_SECONDS

SHM = "/dev/shm"
RECORD = """
import sys
from taba import client
client.start(sys.argv[1])
bids, words = client.counter("bids_won"), client.tab("words", type="Buffer")
for number in range(int(sys.argv[2])):
    bids.inc()
    words.record("x" * 100)
stats = client.stats()
assert stats["dropped"] == 0, stats
print(stats["recorded"])
"""


def home(directory: Path) -> Home:
    return Home(AGENT, directory, DEFAULT_SPOOL_BYTES, DEFAULT_OUTBOX_BYTES, SHM, lambda: os.urandom(16))


class Host(World):
    """A World whose outbox is the real one, as an Agent makes it by default."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp())
        self.home = home(self.path)
        super().__init__(str(self.path), segment=(self.home.outbox, SHM))

    def client(self, name: str, events: int) -> None:
        """A process that records twice so many events, with all defaults, and drops none."""
        environ = {**os.environ, "TABA_AGENT": AGENT}
        done = subprocess.run(
            [sys.executable, "-c", RECORD, name, str(events)], env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stderr
        self.recorded += int(done.stdout)

    def free(self) -> int:
        memory = os.statvfs(SHM)
        return memory.f_bavail * memory.f_frsize

    def begin_anew(self) -> None:
        """The Agent dies, and another one goes on with what it left."""
        self.die()
        self.home.close()
        self.home = home(self.path)
        self.outbox = self.home.outbox
        self.born()
        self.tick()

    def deliver(self) -> None:
        """Everything is drained, sent and folded, once, and nothing was dropped."""
        for _ in range(2000):
            self.tick()
            self.send()
            if self.store.folded >= self.recorded and not [name for name in os.listdir(SHM) if name.startswith("taba.")]:
                break
        assert (self.store.folded, self.keeper.books.recorded) == (self.recorded, self.recorded), (self.store.folded, self.recorded)
        assert not +self.keeper.books.totals(), self.keeper.books.totals()


def defaults() -> None:
    """64 MiB, all defaults, the Agent first and no Server: whatever it holds, clients can still record."""
    host = Host()
    before = host.free()
    for number in range(110):
        host.client(f"web/{number}", 1200)
        for _ in range(3):
            host.tick()
        assert host.free() > 0.7 * before, (host.free(), before)
    assert host.keeper.moves > 0
    host.deliver()


def tiny() -> None:
    """2 MiB: rings are small, the outbox has half a MiB, and everything arrives."""
    host = Host()
    for number in range(40):
        host.client(f"web/{number}", 80)
        host.tick()
    assert host.keeper.moves > 0
    host.deliver()


def full() -> None:
    """Full while it runs: what is in rings goes through the spool, and the outbox is used again when there is room."""
    host = Host()
    host.client("web/1", 80)
    host.tick()
    producer = host.producers[0]
    filler = os.open(f"{SHM}/filler", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(filler, 0, host.free())
    assert host.free() == 0
    for value in range(3000):
        producer.record(producer.tab("bids_won"), float(value))
        host.recorded += 1
        if value % 500 == 0:
            host.tick()
    host.tick()
    assert host.keeper._spooled_stream is not None
    host.begin_anew()
    os.ftruncate(filler, 0)
    producer.record(producer.tab("bids_won"), 0.0)
    host.recorded += 1
    host.tick()
    assert host.keeper.holds_any
    for other in host.producers:
        other.die()
    host.deliver()


def table() -> None:
    """Full while a table of what was read past holes takes more than an outbox has from its beginning: it goes through the spool, too."""
    host = Host()
    holed = [Producer(AGENT, f"holed/{number}", 65_536, SHM) for number in range(30)]
    host.producers += holed
    for producer in holed:
        for hole in range(MAX_COVERED - 4):
            producer.reserve()
            producer.record(producer.tab("bids_won"), float(hole))
            host.recorded += 1
    filler = os.open(f"{SHM}/filler", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(filler, 0, host.free())
    assert host.free() == 0
    host.tick()
    covered = host.keeper.books.covered
    kept = host.spool.journal(None)
    assert kept is not None and len(kept) > TABLE_BYTES, kept and len(kept)
    assert (len(covered), host.keeper.books.recorded) == (30 * (MAX_COVERED - 4), host.recorded), (len(covered), host.keeper.books.recorded)
    host.producers[0].die()
    for _ in range(3):  # a table alone, that a ring is no more
        host.tick()
    assert host.spool.journal(None) != kept and not os.path.exists(host.producers[0].path)
    for _ in range(2):  # whoever comes next reads none of it again
        host.begin_anew()
        assert set(host.keeper.books.covered) == set(covered)
        assert (host.keeper.books.recorded, +host.keeper.books.totals()) == (host.recorded, {}), host.keeper.books.totals()
    os.ftruncate(filler, 0)
    holed[0].record(holed[0].tab("bids_won"), 0.0)
    host.recorded += 1
    host.tick()
    assert host.keeper.holds_any
    for producer in host.producers:
        producer.die()
    host.deliver()


def none() -> None:
    """Full before the start: what is in rings goes through the spool, nothing is left behind, and the outbox is made once there is room."""
    host = Host()
    host.die()
    host.home.close()
    os.unlink(host.home.segment.path)
    for number in range(100):
        producer = host.producers[number % 2]
        producer.record(producer.tab("bids_won"), float(number))
        host.recorded += 1
    filler = os.open(f"{SHM}/filler", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(filler, 0, host.free() - 8192)
    there = sorted(os.listdir(SHM))
    host.home = home(host.path)
    host.outbox = host.home.outbox
    for _ in range(2):
        try:
            host.home.keep_name()
        except OutboxFull:
            assert sorted(os.listdir(SHM)) == there, os.listdir(SHM)
        else:
            raise AssertionError("an outbox without memory")
    host.born()
    host.keeper.is_homeless = True  # as the Agent's loop has it then
    host.tick()
    host.tick()
    assert host.keeper.spool.batches and not host.keeper.holds_any
    os.ftruncate(filler, 0)
    assert host.home.keep_name() and os.path.exists(host.home.segment.path)
    host.keeper.is_homeless = False
    host.record(10)
    host.begin_anew()
    for producer in host.producers:
        producer.die()
    host.deliver()


SCENARIOS: dict[str, Callable[[], None]] = {"defaults": defaults, "tiny": tiny, "full": full, "table": table, "none": none}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
