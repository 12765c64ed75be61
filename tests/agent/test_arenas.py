"""Memory that is used again and again: had as far as it is reached, and given back."""

from __future__ import annotations

import ctypes
import mmap
import platform
import subprocess
import sys

import numpy as np
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.agent.arenas import BLOCK_BYTES, KEPT_BYTES, REST_USES, Arena, zeros
from taba.agent.native import NATIVE
from tests.client.cases import ROOT
from tests.patience import PATIENCE_SECONDS

PAGE = mmap.PAGESIZE
FREED = """
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from resource import RUSAGE_SELF, getrusage

spec = PathFinder.find_spec("_drain", ["taba/agent"])  # without its package, which would import numpy
part = module_from_spec(spec)
spec.loader.exec_module(part)
most, block = map(int, sys.argv[1:])
assert not most or part.keep_heap(most, block)
had = []
for _ in range(2):
    before = getrusage(RUSAGE_SELF).ru_minflt
    blocks = [bytearray(150_000) for _ in range(12)]
    del blocks
    had.append(getrusage(RUSAGE_SELF).ru_minflt - before)
print(had[-1])
"""


def pages_had(room: Arena) -> int:
    """How many pages of a room the system gave."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = len(room.view)
    found = (ctypes.c_ubyte * (size // PAGE))()
    begin = np.frombuffer(room.view, np.uint8).ctypes.data
    if libc.mincore(ctypes.c_void_p(begin), ctypes.c_size_t(size), found):
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in found)


class Rooms(SynchronousTestCase):
    def use(self, room: Arena, pages: int) -> None:
        room.begin()
        room.view[: pages * PAGE] = b"x" * (pages * PAGE)
        room.reach(pages * PAGE)

    def test_what_a_burst_reached_is_given_back_when_it_is_over_and_what_is_used_stays(self) -> None:
        room = Arena(64 * PAGE)
        self.assertEqual(pages_had(room), 0)
        self.use(room, 60)
        self.assertEqual(pages_had(room), 60)
        for _ in range(REST_USES - 1):
            self.use(room, 3)
        self.assertEqual(pages_had(room), 60)  # the burst was one of these
        for _ in range(REST_USES):
            self.use(room, 3)
        self.assertEqual((pages_had(room), bytes(room.view[: 3 * PAGE])), (3, b"x" * 3 * PAGE))
        self.use(room, 64)
        self.assertEqual(bytes(room.view), b"x" * 64 * PAGE)

    def test_zeros_are_zeros_of_any_shape(self) -> None:
        for shape in ((3, 0), (3, 1000)):
            made = zeros(*shape)
            self.assertEqual((made.shape, made.sum()), (shape, 0.0))
            made[:] = 1.0
            self.assertEqual(made.sum(), shape[1] * 3)


class HeapTests(SynchronousTestCase):
    def faults(self, most: int, block: int) -> int:
        """How many pages a process has to be given that frees and has 1.8 MB again and again."""
        command = [sys.executable, "-c", FREED, str(most), str(block)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
        return int(run.stdout)

    def test_what_was_freed_is_kept_for_the_next_drain(self) -> None:
        if NATIVE is None or platform.libc_ver()[0] != "glibc":
            raise SkipTest("needs the Agent's C part and a C library that can be told")
        self.assertGreater(self.faults(0, 0), 300)
        self.assertLess(self.faults(KEPT_BYTES, BLOCK_BYTES), 30)

    def test_bounds_are_looked_at(self) -> None:
        if NATIVE is None:
            raise SkipTest("needs the Agent's C part")
        for wrong in ((-1, 1), (1, -1), (2**31, 1), (1, 2**31)):
            self.assertRaises(ValueError, NATIVE.keep_heap, *wrong)
        self.assertRaises(TypeError, NATIVE.keep_heap, 1)
        self.assertRaises(TypeError, NATIVE.keep_heap, "1", 1)
