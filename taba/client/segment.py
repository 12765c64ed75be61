"""Shared memory for one ring: made, locked for life, mapped, let go.

1. The flock is taken on the very file description that is mapped, before the segment has any size, and is never released by hand: the
   mapping holds it, also when somebody closes every descriptor, and its end is the process's (or that of the last mapping).
2. No descriptor is kept. Where Python's mmap keeps a duplicate (before 3.13), its number is remembered, and the mapping is never
   closed once that number belongs to somebody else's file.
3. Python's resource tracker never hears of a segment: it would unlink it while an Agent still has to read it.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

from taba import ring
from taba.bounds import MAX_RING_BYTES, MIN_RING_BYTES

PART = 8  # of what is left a ring takes one such part at most, so that there is something for the next
MAX_COUNTING_BYTES = 1 << 20  # and of shared memory no more than this: room for the counts of 256 processes
COUNTING_PART = 16  # of all rings' space, for segments that only count: what is dropped must be told when nothing else fits
NAME_TRIES = 10  # names that are taken, or whose lock an Agent is just probing

_being_made: set[int] = set()  # descriptors that a child forked at this moment must close, or it would hold the lock
_UNKNOWN = -1  # a duplicate that could not be found
_given_up: list[Any] = []  # mappings that cannot be unmapped without closing somebody else's descriptor


class Mapping(Protocol):
    """Something with the buffer protocol that can be unmapped."""

    def close(self) -> object: ...


class Memory:
    """A shared mapping of a file, which holds the file's lock, and no descriptor of its own to speak of."""

    def __init__(self, descriptor: int, size: int, make: Callable[[int, int], Mapping] | None = None, writable: bool = True):
        self._kept: int | None = None
        self._file = _identity(os.fstat(descriptor))
        if make is not None:
            self.mapping: Mapping = make(descriptor, size)
            return
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        if sys.version_info >= (3, 13):
            self.mapping = mmap.mmap(descriptor, size, prot=access, trackfd=False)
        else:
            self.mapping = mmap.mmap(descriptor, size, prot=access)
            self._kept = self._duplicate_of(descriptor)

    def let_go(self) -> None:
        """Forget the mapping; it is unmapped, and its lock free, when the last view of it is gone."""
        if not self._may_close():
            _given_up.append(self.mapping)
        del self.mapping

    def unmap_in_child(self) -> None:
        """Unmap at once what was inherited by fork; the caller released all views, and is the only thread."""
        if self._may_close():
            self.mapping.close()
        elif self._kept == _UNKNOWN:
            _given_up.append(self.mapping)
        else:
            # somebody else's descriptor has the number that close() closes: put it aside meanwhile (nobody else runs here)
            assert self._kept is not None
            inheritable = os.get_inheritable(self._kept)
            aside = os.dup(self._kept)
            self.mapping.close()
            os.dup2(aside, self._kept, inheritable)
            os.close(aside)
        del self.mapping

    def _duplicate_of(self, descriptor: int) -> int:
        if os.path.isdir("/proc/self/fd"):
            for name in os.listdir("/proc/self/fd"):
                if int(name) != descriptor and _file_of(int(name)) == self._file:
                    return int(name)
        return _UNKNOWN

    def _may_close(self) -> bool:
        """Whether closing the mapping closes nothing of somebody else's: its number is still this file's, or nobody's."""
        return self._kept is None or (self._kept != _UNKNOWN and _file_of(self._kept) in (None, self._file))


class Segment:
    """One ring's shared memory, header written. `words` is the whole of it as 8-byte words."""

    def __init__(self, name: str, path: str, where: ring.Layout, ring_id: bytes, memory: Memory, identity: tuple[int, int]):
        self.name = name
        self.where = where
        self.ring_id = ring_id
        self.memory = memory
        self.content = memoryview(memory.mapping)  # type: ignore[arg-type]
        self.words = self.content.cast("Q")
        self._path = path
        self._identity = identity
        self._pid = os.getpid()

    def is_named(self) -> bool:
        """Whether the name still leads to this segment (a cleaner may have removed it). One system call."""
        try:
            return _identity(os.stat(self._path)) == self._identity
        except OSError:
            return False

    def let_go(self) -> None:
        """Leave the segment to its Agent: the lock is free when the last view of the memory is gone."""
        self.memory.let_go()
        del self.words, self.content

    def discard(self) -> None:
        """Nothing was recorded here, nor will be. A child that was forked meanwhile leaves the segment to its parent."""
        if os.getpid() == self._pid:
            os.unlink(self._path)
        self.let_go()

    def unmap_in_child(self) -> None:
        """In a forked child: drop the parent's ring at once, and never touch its lock."""
        self.words.release()
        self.content.release()
        self.memory.unmap_in_child()


def make_segment(
    agent: str,
    client: str,
    *,
    flags: int,
    ring_bytes: int,
    shm_bytes: int,
    group: int | None,
    now: float,
    make: Callable[[int, int], Mapping] | None,
) -> Segment:
    """A new ring of at most `ring_bytes`, and at most a part of what is left of shared memory and of `shm_bytes` for all of `agent`.

    Where not even the smallest fits, a segment that only counts. Raises OSError where that does not fit either, or there is no
    shared memory.
    """
    size = min(ring.fitting_size(ring_bytes), ring.fitting_size(_left(agent, shm_bytes) // PART))
    while True:
        try:
            return _make(agent, client, size, flags, shm_bytes, group, now, make)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG) or size == ring.COUNTING_BYTES:
                raise
        size = size // 2 if size > MIN_RING_BYTES else ring.COUNTING_BYTES


def _left(agent: str, shm_bytes: int) -> int:
    """What is left for rings: of their bound, and of shared memory."""
    bound = shm_bytes - shm_bytes // COUNTING_PART - _bytes_of_rings(agent)
    return max(0, min(bound, _free()))


def _free() -> int:
    """What is free in shared memory but for the part of segments that only count; a tmpfs without a bound has no blocks."""
    status = os.statvfs(ring.SHM_DIRECTORY)
    kept = min(status.f_blocks * status.f_frsize // COUNTING_PART, MAX_COUNTING_BYTES)
    return status.f_bavail * status.f_frsize - kept if status.f_blocks else MAX_RING_BYTES * PART


def _make(
    agent: str,
    client: str,
    size: int,
    flags: int,
    shm_bytes: int,
    group: int | None,
    now: float,
    make: Callable[[int, int], Mapping] | None,
) -> Segment:
    pid = os.getpid()  # a signal handler may fork: then the child goes on here too, and the segment is the parent's
    name, path, descriptor = _locked_file(agent)
    try:
        if group is not None:
            os.fchown(descriptor, -1, group)
        os.fchmod(descriptor, 0o600 if group is None else 0o660)  # whatever the umask
        os.posix_fallocate(descriptor, 0, size)  # a full file system raises here, and does not kill at the first write
        # looked at after this one counts: of two processes that ask at once, none gets past the bound
        counts = size == ring.COUNTING_BYTES
        if not counts and _free() < 0:
            raise OSError(errno.ENOSPC, f"{ring.SHM_DIRECTORY} is full")
        if _bytes_of_rings(agent) > (shm_bytes if counts else shm_bytes - shm_bytes // COUNTING_PART):
            raise OSError(errno.ENOSPC, f"the rings of Agent {agent!r} would take more than TABA_SHM_BYTES ({shm_bytes})")
        identity = _identity(os.fstat(descriptor))
        ring_id = os.urandom(16)
        header = ring.encode_header(size, flags, os.getpid(), ring_id, now, client)
        segment = Segment(name, path, ring.layout(size), ring_id, Memory(descriptor, size, make), identity)
        segment.content[: len(header)] = header
        segment.words[ring.MAGIC_OFFSET // 8] = ring.MAGIC  # last: until here it is no ring
        return segment
    except BaseException:
        if os.getpid() == pid:
            os.unlink(path)
        raise
    finally:
        _close(descriptor)


def _close(descriptor: int) -> None:
    if descriptor in _being_made:  # else close_what_was_being_made() has closed it
        _being_made.discard(descriptor)
        os.close(descriptor)


def _locked_file(agent: str) -> tuple[str, str, int]:
    for _ in range(NAME_TRIES):
        name = ring.segment_name(agent, os.urandom(8))
        path = os.path.join(ring.SHM_DIRECTORY, name)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            continue
        _being_made.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return name, path, descriptor
        except BaseException as error:
            os.unlink(path)
            _close(descriptor)
            if not isinstance(error, BlockingIOError):  # an Agent is just probing the lock: another name
                raise
    raise OSError(errno.EAGAIN, "no free name for a ring")


def _bytes_of_rings(agent: str) -> int:
    prefix = ring.segment_prefix(agent)
    total = 0
    with os.scandir(ring.SHM_DIRECTORY) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                try:
                    total += entry.stat(follow_symlinks=False).st_size
                except FileNotFoundError:
                    continue  # its Agent removed it just now
    return total


def close_what_was_being_made() -> None:
    """In a forked child: close the descriptors of a segment that another thread of the parent was making."""
    while _being_made:
        os.close(_being_made.pop())


def _file_of(descriptor: int) -> tuple[int, int] | None:
    """The file that a descriptor leads to; None where there is no such descriptor."""
    try:
        return _identity(os.fstat(descriptor))
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
