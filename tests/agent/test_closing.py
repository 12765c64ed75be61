"""Files that are closed: beside the loop where that takes long, of which there are so many at a time."""

from __future__ import annotations

import os
import threading
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.agent import closing
from taba.bounds import MAX_RING_BYTES, MIN_RING_BYTES, MiB


class ClosingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.closed: list[tuple[int, bool]] = []  # which, and whether it was in this thread
        self.may_end = threading.Event()
        self.addCleanup(self._end)
        real = os.close

        def close(fd: int) -> None:
            is_here = threading.current_thread() is threading.main_thread()
            if not is_here:
                self.may_end.wait(60)
            self.closed.append((fd, is_here))
            real(fd)

        self.patch(os, "close", close)

    def _end(self) -> None:
        self.may_end.set()
        for thread in closing._closing:
            thread.join(60)

    def file(self) -> int:
        return os.open("/dev/null", os.O_RDONLY)

    def test_a_small_file_is_closed_at_once(self) -> None:
        fd = self.file()
        closing.close(fd, MIN_RING_BYTES)
        self.assertEqual(self.closed, [(fd, True)])

    def test_large_ones_are_closed_beside_so_many_at_once_and_beyond_at_once(self) -> None:
        files = [self.file() for _ in range(closing.MOST_CLOSING + 2)]
        for fd in files:
            closing.close(fd, MAX_RING_BYTES)
        self.assertEqual(self.closed, [(fd, True) for fd in files[-2:]])
        self._end()
        self.assertEqual(sorted(self.closed[2:]), [(fd, False) for fd in sorted(files[:-2])])
        closing.close(self.file(), 64 * MiB)  # there is room again
        self._end()
        self.assertEqual(self.closed[-1][1], False)

    def test_without_room_for_a_thread_it_is_closed_here(self) -> None:
        def start(thread: Any) -> None:
            raise RuntimeError("can't start new thread")

        self.patch(threading.Thread, "start", start)
        fd = self.file()
        closing.close(fd, MAX_RING_BYTES)
        self.assertEqual(self.closed, [(fd, True)])
