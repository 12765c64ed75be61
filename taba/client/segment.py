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
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any, Protocol

from taba import ring
from taba.bounds import MAX_RING_BYTES, MIN_RING_BYTES
from taba.client.harmless import is_foreign

PART = 8  # of what is left a ring takes one such part at most, so that there is something for the next
MAX_COUNTING_BYTES = 1 << 20  # and of shared memory no more than this: room for the counts of 5,888 processes
COUNTING_PART = 16  # of all rings' space, for segments that only count: what is dropped must be told when nothing else fits
LEAST_COUNTING_BYTES = 1 << 16  # of these there may be so much whatever bounds the rings: room for the counts of 368 processes
NAME_TRIES = 10  # names that are taken, or whose lock an Agent is just probing

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
_being_made: set[int] = set()  # descriptors that a child forked at this moment must close, or it would hold the lock, …
_unowned: set[Memory] = set()  # … and what it must unmap, likewise: whoever makes it has it still
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
        self.views: list[memoryview] = []  # that are released where a child unmaps it
        _unowned.add(self)
        try:
            self._map(descriptor, size, make, writable)
        except BaseException:
            _unowned.discard(self)
            raise

    def _map(self, descriptor: int, size: int, make: Callable[[int, int], Mapping] | None, writable: bool) -> None:
        if make is not None:
            self.mapping: Mapping = make(descriptor, size)
            return
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        if sys.version_info >= (3, 13):
            self.mapping = mmap.mmap(descriptor, size, prot=access, trackfd=False)
        else:
            self.mapping = mmap.mmap(descriptor, size, prot=access)
            self._kept = self._duplicate_of(descriptor)

    def own(self) -> None:
        """Somebody has it who unmaps it where a child is forked."""
        _unowned.discard(self)

    def let_go(self) -> None:
        """Forget the mapping; it is unmapped, and its lock free, when the last view of it is gone."""
        _unowned.discard(self)
        self.views.clear()
        if not hasattr(self, "mapping"):  # a child, which was forked within a signal handler
            return
        if not self._may_close():
            _given_up.append(self.mapping)
        del self.mapping

    def unmap_in_child(self) -> None:
        """Unmap at once what was inherited by fork; the caller released all other views, and is the only thread."""
        _unowned.discard(self)
        for view in self.views:
            view.release()
        if not hasattr(self, "mapping"):  # it was just to be mapped
            return
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
    """One ring's shared memory, header written. `words` is the whole of it as 8-byte words, `counts` where its drops are counted.

    A segment that only counts may be others' as well: then `is_shared`.
    """

    def __init__(
        self,
        name: str,
        path: str,
        where: ring.Layout,
        ring_id: bytes,
        memory: Memory,
        identity: tuple[int, int],
        counts: int = ring.DROPS_OFFSET,
        is_shared: bool = False,
    ):
        self.name = name
        self.counts = counts
        self._is_shared = is_shared
        self.where = where
        self.ring_id = ring_id
        self.memory = memory
        self.content = memoryview(memory.mapping)  # type: ignore[arg-type]
        memory.views.append(self.content)
        self.words = self.content.cast("Q")
        memory.views.insert(0, self.words)
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
        if os.getpid() == self._pid and not self._is_shared:
            os.unlink(self._path)
        self.let_go()

    def unmap_in_child(self) -> None:
        """In a forked child: drop the parent's ring at once, and never touch its lock."""
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
    may_count: bool = True,
) -> Segment:
    """A new ring of at most `ring_bytes`, and at most a part of what is left of shared memory and of `shm_bytes` for all of `agent`.

    Where not even the smallest fits and `may_count`, a place in a segment that only counts: one that there is, or a new one. Raises
    OSError where that does not fit either, or there is no shared memory.
    """
    size = min(ring.fitting_size(ring_bytes), ring.fitting_size(_left(agent, shm_bytes, group) // PART))
    while True:
        try:
            return _make(agent, client, size, flags, shm_bytes, group, now, make)
        except OSError as error:
            if not _is_full(error) or (size == MIN_RING_BYTES and not may_count):
                raise
        if size == MIN_RING_BYTES:
            break
        size //= 2
    joined = _join(agent, make)
    if joined is not None:
        return joined
    try:
        return _make(agent, client, ring.COUNTING_BYTES, flags, shm_bytes, group, now, make)
    except OSError as error:
        if _is_full(error):
            _say_full(agent)
        raise


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG)


def _join(agent: str, make: Callable[[int, int], Mapping] | None) -> Segment | None:
    """A place in a segment of this user's that counts already; None where none is free."""
    for name, path in _counting(agent):
        descriptor = _open_own(path)
        if descriptor is None:
            continue
        try:
            header = ring.parse_header(os.pread(descriptor, ring.HEADER_BYTES, 0), os.fstat(descriptor).st_size)
            slot = _take_slot(descriptor, os.getpid())
            # looked at with the lock: who removes the segment has locked all places before it says so
            if slot is None or int.from_bytes(os.pread(descriptor, 8, ring.RETIRED_OFFSET), "little"):
                continue
            identity, memory = _identity(os.fstat(descriptor)), Memory(descriptor, ring.COUNTING_BYTES, make)
            return Segment(name, path, ring.layout(ring.COUNTING_BYTES), header.ring_id, memory, identity, slot, is_shared=True)
        except ring.MalformedRing:
            continue  # it is being made, or it is none
        except OSError as error:  # not this one, for whatever reason; what a signal handler raises is the application's
            if is_foreign(error):
                raise
        finally:
            end_making(descriptor)
    return None


def _take_slot(descriptor: int, first: int) -> int | None:
    """Where in a segment a place to count in lies, from now on this file description's; None where all are taken."""
    for turn in range(ring.SLOTS):
        slot = ring.SLOTS_OFFSET + ring.SLOT_BYTES * ((first + turn) % ring.SLOTS)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0))
            return slot
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
    return None


def _say_full(agent: str) -> None:
    """Tell the Agent, in a segment that it reads, that there was no place even to count in."""
    for _, path in _counting(agent):
        descriptor = _open_own(path)
        if descriptor is not None:
            try:
                os.pwrite(descriptor, (1).to_bytes(8, "little"), ring.NO_PLACE_OFFSET)
                return
            finally:
                end_making(descriptor)


def _counting(agent: str) -> list[tuple[str, str]]:
    """Name and path of each segment of an Agent's that only counts, as its size has it."""
    prefix = ring.segment_prefix(agent)
    found = []
    with os.scandir(ring.SHM_DIRECTORY) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                try:
                    if entry.stat(follow_symlinks=False).st_size == ring.COUNTING_BYTES:
                        found.append((entry.name, entry.path))
                except FileNotFoundError:
                    continue  # its Agent removed it just now
    return found


def _open_own(path: str) -> int | None:
    """A descriptor of this user's own segment; None where it is gone, or somebody else's. Closed by `end_making`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return None
    begin_making(descriptor)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size == ring.COUNTING_BYTES:
        return descriptor
    end_making(descriptor)
    return None


def _left(agent: str, shm_bytes: int, group: int | None) -> int:
    """What is left for rings: of their bound, and of shared memory."""
    bound = shm_bytes - shm_bytes // COUNTING_PART - _bytes_of_rings(agent, group)[0]
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
        total, counting = _bytes_of_rings(agent, group)
        is_beyond = total > (shm_bytes if counts else shm_bytes - shm_bytes // COUNTING_PART)
        if is_beyond and not (counts and counting <= LEAST_COUNTING_BYTES):
            raise OSError(errno.ENOSPC, f"the rings of Agent {agent!r} would take more than TABA_SHM_BYTES ({shm_bytes})")
        identity = _identity(os.fstat(descriptor))
        ring_id = os.urandom(16)
        header = ring.encode_header(size, flags, os.getpid(), ring_id, now, client)
        slot = (_take_slot(descriptor, 0) if counts else None) or ring.DROPS_OFFSET  # of a new segment the first is free
        segment = Segment(name, path, ring.layout(size), ring_id, Memory(descriptor, size, make), identity, slot)
        segment.content[: len(header)] = header
        segment.words[ring.MAGIC_OFFSET // 8] = ring.MAGIC  # last: until here it is no ring
        return segment
    except BaseException:
        if os.getpid() == pid:
            os.unlink(path)
        raise
    finally:
        end_making(descriptor)


def begin_making(descriptor: int) -> None:
    """Until `end_making` closes it, a child that is forked closes this descriptor."""
    _being_made.add(descriptor)


def end_making(descriptor: int) -> None:
    """Close it, unless this is such a child."""
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
        begin_making(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return name, path, descriptor
        except BaseException as error:
            os.unlink(path)
            end_making(descriptor)
            if not isinstance(error, BlockingIOError):  # an Agent is just probing the lock: another name
                raise
    raise OSError(errno.EAGAIN, "no free name for a ring")


def _bytes_of_rings(agent: str, group: int | None) -> tuple[int, int]:
    """What all segments of an Agent's take, and of it those that only count; not those of strangers, which it does not read."""
    prefix = ring.segment_prefix(agent)
    total = counting = 0
    with os.scandir(ring.SHM_DIRECTORY) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # its Agent removed it just now
                if status.st_uid != os.geteuid() and (group is None or status.st_gid != group):
                    continue
                size = status.st_size
                total += size
                counting += size if size == ring.COUNTING_BYTES else 0
    return total, counting


def close_what_was_being_made() -> None:
    """In a forked child: leave to the parent the segments and slots that a thread was making: close their descriptors, and unmap them."""
    while _being_made:
        os.close(_being_made.pop())
    while _unowned:
        _unowned.pop().unmap_in_child()


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
