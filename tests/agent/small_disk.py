"""An Agent that starts on a full disk, to be run where `/mnt` is a tmpfs of its own: `python -m tests.agent.small_disk SCENARIO`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from taba.agent.home import CannotOpen, Home
from taba.agent.outbox import DEFAULT_OUTBOX_BYTES, Outbox
from taba.agent.spool import DEFAULT_SPOOL_BYTES
from taba.batch import KeyPart
from tests.agent.outboxes import Memory
from tests.agent.world import AGENT, World

DISK = "/mnt"
FILLER = f"{DISK}/filler"
KEPT = ("spool", "spool-wal", "spool.list", "history", "sums")
KEY = KeyPart(b"k" * 16, b"d" * 16, 1)


def fill() -> None:
    """Not a byte is free."""
    with open(FILLER, "ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def home(shm: str) -> Home:
    return Home(AGENT, Path(DISK, "home"), DEFAULT_SPOOL_BYTES, DEFAULT_OUTBOX_BYTES, shm, lambda: os.urandom(16))


def host(shm: str) -> World:
    memory = Memory(512 * 1024)
    Outbox.format(memory, b"i" * 16)
    return World(DISK, segment=(Outbox(memory), shm))


def deliver(world: World) -> None:
    """Everything is folded, once, and nothing was dropped."""
    for _ in range(200):
        world.tick()
        world.send()
    assert (world.store.folded, world.keeper.books.recorded) == (world.recorded, world.recorded), (world.store.folded, world.recorded)
    assert not +world.keeper.books.totals(), world.keeper.books.totals()


def fresh(shm: str) -> None:
    """Nothing was there: rings are drained and sent, and the spool is made once there is room."""
    os.mkdir(f"{DISK}/home")
    fill()
    at_home, world = home(shm), host(shm)
    assert at_home.spool.unready and at_home.keys.write_problem
    at_home.keys.add([KEY], 10.0)
    assert at_home.keys.digest(KEY.key) == KEY.digest
    world.record(100)
    deliver(world)
    assert "full" in f"{world.keeper.books.spool_problem}", world.keeper.books.spool_problem
    os.truncate(FILLER, 0)
    at_home.keys.tick(20.0)
    assert at_home.keys.write_problem is None
    at_home.close()
    assert home(shm).keys.digest(KEY.key) == KEY.digest
    world.tick()
    assert world.keeper.books.spool_problem is None, world.keeper.books.spool_problem
    world.record(100)
    world.tick()
    world.move()
    assert world.spool.batches
    deliver(world)
    world.end_producers()


def left(shm: str) -> None:
    """What a killed Agent left on the disk, in the log beside its file too, goes out before what followed in the outbox."""
    at_home, world = home(shm), host(shm)
    at_home.keys.add([KEY], 10.0)
    for _ in range(3):
        world.record(200)
        world.tick()
        world.move()
    world.record(200)
    world.tick()
    assert world.spool.batches and world.keeper.holds_any
    kept = {name: Path(DISK, name).read_bytes() for name in KEPT}
    world.die()
    at_home.close()
    for name, content in kept.items():
        Path(DISK, name).write_bytes(content)
    assert len(kept["spool-wal"]) > 4096
    fill()
    at_home = home(shm)
    assert at_home.keys.digest(KEY.key) == KEY.digest
    fill()  # what the register had set aside is free
    world.born()
    fill()
    assert world.spool.unready and world.spool.batches, (world.spool.unready, world.spool.batches)
    world.record(200)
    deliver(world)
    assert "full" in f"{world.keeper.books.spool_problem}", world.keeper.books.spool_problem
    world.die()  # as it could not be forgotten: it is there again, and the store knows it
    fill()
    world.born()
    fill()
    deliver(world)
    os.truncate(FILLER, 0)
    deliver(world)
    assert world.keeper.books.spool_problem is None and not world.spool.batches, (world.keeper.books.spool_problem, world.spool.batches)
    world.end_producers()


def torn(shm: str) -> None:
    """What is damaged can be mended only where there is room, and nothing is sent by who does not know what it holds: it ends."""
    home(shm).close()
    path = Path(DISK, "home", f"{AGENT}.spool")
    path.write_bytes(b"\xff" * 8192)
    fill()
    try:
        home(shm)
    except CannotOpen as error:
        assert "its disk has no room" in f"{error}" and "make room there" in f"{error}", error
    else:
        raise AssertionError("it knows what was in a damaged spool")
    assert path.read_bytes() == b"\xff" * 8192


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        {"fresh": fresh, "left": left, "torn": torn}[sys.argv[1]](memory)
