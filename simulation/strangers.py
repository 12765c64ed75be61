"""Rings of nobody in a world: nothing is recorded there, and somebody cuts them off while an Agent reads them.

Events that were in such a ring would be nowhere, so in these there are none: what must not be is that others pay for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from random import Random

from simulation.ground import Ground
from simulation.names import AGENT, RING_BYTES
from taba import ring

APART_SECONDS = 2.0  # about, from one to the next
LIFE_SECONDS = 0.8  # at the most until it is cut off, and from then until it is removed


class Strangers:
    """They come to `world` until it is quiet."""

    def __init__(self, world: Ground, random: Random):
        self._world, self._random = world, random
        self._made = 0

    def begin(self) -> None:
        """From now on."""
        self._world.later(self._random.uniform(0.5, APART_SECONDS), None, self._come)

    def _come(self) -> None:
        world, machine = self._world, self._world.machine
        if world.is_quiet:
            return
        self._made += 1
        name = ring.segment_name(AGENT, self._made.to_bytes(8, "big"))
        path = os.path.join(machine.shm, name)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # its process lives
        os.posix_fallocate(descriptor, 0, RING_BYTES)
        header = ring.encode_header(RING_BYTES, 0, 1, self._random.randbytes(16), world.unix, f"stranger-{self._made}")
        os.pwrite(descriptor, header, 0)
        os.pwrite(descriptor, ring.MAGIC.to_bytes(8, "little"), ring.MAGIC_OFFSET)
        machine.notes_change()
        world.fired["a stranger's ring was there"] += 1
        world.later(self._random.uniform(0.2, LIFE_SECONDS), None, self._cut, path, descriptor)
        self.begin()

    def _cut(self, path: str, descriptor: int) -> None:
        self._world.say(f"{os.path.basename(path)} is cut off")
        os.ftruncate(descriptor, self._random.choice((0, 100, RING_BYTES // 2)))
        self._world.later(self._random.uniform(0.2, LIFE_SECONDS), None, self._go, path, descriptor)

    def _go(self, path: str, descriptor: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # the host has booted
            os.unlink(path)
        os.close(descriptor)
        self._world.machine.notes_change()
