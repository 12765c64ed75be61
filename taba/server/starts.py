"""How often each worker was started, in a file without a name that the parent and its workers share. Standard library only.

Each worker counts its own starts, before anything of it can fail, and all read all: so one that dies again and again is a problem that
the others, and its parent's log, can tell of.
"""

from __future__ import annotations

import os
import struct

_COUNT = struct.Struct("<Q")


class Starts:
    """The counts, by the worker's number. Where they cannot be had, nothing is known, and `problem` says why."""

    def __init__(self, descriptor: int | None, workers: int, problem: str | None = None):
        self._descriptor, self._workers, self.problem = descriptor, workers, problem

    @property
    def path(self) -> str:
        """What leads workers to them for as long as this process lives. Asked for when they are started: a daemon forks before."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @classmethod
    def make(cls, workers: int) -> Starts:
        """For a parent."""
        descriptor = os.memfd_create("taba-workers", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, workers * _COUNT.size)
        return cls(descriptor, workers)

    @classmethod
    def join(cls, path: str, number: int) -> Starts:
        """For the worker of this number, which has started. Whatever keeps it from counting costs the count alone."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            starts = cls(descriptor, os.fstat(descriptor).st_size // _COUNT.size)
            os.pwrite(descriptor, _COUNT.pack(starts._count(number) + 1), number * _COUNT.size)
        except (OSError, struct.error) as error:
            reason = getattr(error, "strerror", None) or f"{error}"
            # a process that changed its user, as with twistd --uid, is root's in /proc: its own workers may not look there
            why = f"workers cannot count how often they are started ({path}: {reason}), so none is told of that dies again and again"
            return cls(None, 0, f"{why}: start the Server as the user it is to run as (User= in systemd), not with --uid")
        return starts

    def again(self) -> list[int]:
        """How often each worker was started again, since the one before it died."""
        return [max(0, self._count(number) - 1) for number in range(self._workers)]

    def close(self) -> None:
        """The parent ends."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _count(self, number: int) -> int:
        assert self._descriptor is not None
        (count,) = _COUNT.unpack(os.pread(self._descriptor, _COUNT.size, number * _COUNT.size))
        return int(count)
