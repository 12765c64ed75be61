"""Memory that is used again and again: had as far as it is reached, and given back."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.arenas import REST_USES, Arena, zeros

PAGE = mmap.PAGESIZE


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
