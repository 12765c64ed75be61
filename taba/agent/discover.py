"""Finding rings: segments in /dev/shm whose names are this Agent's, and whether somebody still maps them.

A ring's maker holds a flock on the file description that it maps, for life. Whoever gets a shared lock on a description of his
own therefore knows that no process maps the ring any more. Rings of this user are read, and those of the group that it was told
to read, where nobody else may open them; who made it is looked at after it was opened. What cannot be read is looked at once, kept in
`problems`, and left alone until it is another file; where only descriptors, memory or places are short, it is tried again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Sequence

from taba import ring as layouts
from taba.agent.admission import Admission
from taba.agent.locks import claim_ring, claim_slots, holder_of
from taba.agent.outbox import Covered
from taba.agent.reader import Ring
from taba.ring import SHM_DIRECTORY as SHM
from taba.ring import MalformedRing

MAX_RINGS = 4096  # descriptors, and the outbox's table
_SLOT = re.compile(r"taba-slot\.[0-9a-f]{16}\.[0-9]{1,5}")
UNMADE_SECONDS = 5.0  # a segment without magic is being made, for so long
_PASSING = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR])  # the Agent's or the host's trouble, not the ring's


def is_abandoned(fd: int) -> bool:
    """Whether no process maps the ring behind this descriptor, which is the caller's own."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def is_dead(ring: Ring) -> bool:
    """Whether nobody writes into this ring any more, nor will. One that only counts is held from then on."""
    return is_abandoned(ring.fd) and (ring.where.records > 0 or claim_slots(ring.fd))


def sweep_slots(directory: str = SHM) -> int:
    """Remove the slot files (`taba.client.identity`) that no process holds, as their owners do when they stop; returns how many.

    A file is removed while its lock is held here: who waits for the lock finds the name gone or changed, and tries again. One
    that is still empty has a maker who is just about to lock it.
    """
    removed = 0
    for entry in os.scandir(directory):
        if not _SLOT.fullmatch(entry.name):
            continue
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # another user's, or gone
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status, named = os.fstat(fd), os.stat(entry.path, follow_symlinks=False)
            is_same = (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)
            if stat.S_ISREG(status.st_mode) and status.st_size == 1 and is_same:
                os.unlink(entry.path)
                removed += 1
        except OSError:
            continue  # held, gone meanwhile, or another user's: it stays, an empty file
        finally:
            os.close(fd)
    return removed


_CURES = {
    errno.EMFILE: "raise the Agent's limit of descriptors (LimitNOFILE, ulimit -n): its events wait in it",
    errno.ENFILE: "raise the host's limit of descriptors (fs.file-max): its events wait in it",
    errno.ENOMEM: "the host is short of memory: its events wait in it",
    errno.EACCES: "run the Agent as the user who records, or set TABA_RING_GROUP, for both, to a group of both",
    errno.EPERM: "run the Agent as the user who records, or set TABA_RING_GROUP, for both, to a group of both",
}


class Rings:
    """The rings of one Agent's name. `open` maps segment names to Rings; `problems` maps others to what is wrong with them."""

    def __init__(self, agent: str, directory: str = SHM, group: int | None = None):
        self._group = group
        self.admission = Admission()
        self._prefix = layouts.segment_prefix(agent)
        self._agent = agent
        self.directory = directory
        self.open: dict[str, Ring] = {}
        self.problems: dict[str, str] = {}
        self.taken: set[str] = set()  # rings that another Agent of this name reads
        self.taken_by = 0  # its process; 0 where that cannot be seen
        self._unmade: dict[str, tuple[int, float]] = {}  # segments without magic: inode, and when it was first seen
        self._changed = -1  # the directory's time of change when it was last scanned
        self._seen: dict[str, tuple[int, int]] = {}  # of what is in problems: inode and owner, so that it is not tried again and again

    def scan(self, covered: Sequence[Covered], now: float) -> list[Ring]:
        """Look for rings; returns those that are new. `covered` comes from the outbox's table at start, `now` is monotonic seconds."""
        found, fresh = set(), []
        try:
            self._changed = os.stat(self.directory).st_mtime_ns
            names = [entry.name for entry in os.scandir(self.directory) if entry.name.startswith(self._prefix)]
        except OSError as error:
            self.problems[self.directory] = f"{self.directory}: {error.strerror}"
            return []
        for name in names:
            if layouts.segment_agent(name) != self._agent:
                continue
            found.add(name)
            if name in self.open or (name in self.problems and self._seen.get(name) == self._identity(name)):
                continue
            ring = self._open(name, covered, now)
            if ring is not None:
                self.open[name] = ring
                fresh.append(ring)
        self.taken &= found
        self._unmade = {name: seen for name, seen in self._unmade.items() if name in found and name not in self.open}
        for name in [name for name in self.problems if name not in found and name not in self.open]:
            self.problems.pop(name)
            self._seen.pop(name, None)
        return fresh

    def has_changed(self) -> bool:
        """Whether something was made or removed since the last scan, or was not yet finished then: a cheap look.

        The clock of such changes ticks a few hundred times a second, so what is missed here a regular scan finds.
        """
        try:
            return os.stat(self.directory).st_mtime_ns != self._changed
        except OSError:
            return False

    def vanished(self, ring: Ring) -> bool:
        """Whether the ring's name leads to it no more: somebody else removed it."""
        try:
            return os.stat(self.path(ring.name), follow_symlinks=False).st_ino != os.fstat(ring.fd).st_ino
        except FileNotFoundError:
            return True

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def isolate(self, ring: Ring, reason: str) -> None:
        """Read this ring no more; its bytes stay where they are."""
        self.open.pop(ring.name, None)
        ring.close()
        self._note(ring.name, reason)

    def release(self, ring: Ring) -> None:
        """Let go of a ring: whoever comes next may read it."""
        self.open.pop(ring.name, None)
        ring.close()

    def close(self) -> None:
        """Let go of all rings."""
        for ring in list(self.open.values()):
            self.release(ring)

    def remove(self, ring: Ring) -> None:
        """Unlink a ring that is retired, and let go of it."""
        self.open.pop(ring.name, None)
        try:
            if not self.vanished(ring):
                os.unlink(self.path(ring.name))
        except OSError as error:
            self._note(ring.name, f"read to its end, but not to be removed: {error.strerror}; remove it")
        finally:
            ring.close()

    def _open(self, name: str, covered: Sequence[Covered], now: float) -> Ring | None:
        if len(self.open) >= MAX_RINGS:
            self._note(name, f"not read: an Agent reads {MAX_RINGS} at the most; start another of another name", passes=True)
            return None
        try:
            fd = os.open(self.path(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(
                name,
                f"cannot be opened: {error.strerror}; {_CURES.get(error.errno or 0, 'its events wait in it')}",
                error.errno in _PASSING,
            )
            return None
        kept = False
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise MalformedRing("no regular file")
            if (strange := self._is_strange(status)) is not None:
                self._note(name, strange)
                return None
            if layouts.is_unmade(os.pread(fd, 8, 0)):
                self._changed = -1
                inode, since = self._unmade.get(name, (0, now))
                if inode != status.st_ino:
                    self._unmade[name] = (status.st_ino, now)
                elif now - since > UNMADE_SECONDS and is_abandoned(fd):
                    os.unlink(self.path(name))  # its maker died before the first record: nothing was ever in it
                return None
            if not claim_ring(fd):
                if not self.taken:
                    self.taken_by = holder_of(self.path(name))
                self.taken.add(name)
                return None
            self.taken.discard(name)
            ring = Ring(fd, name, covered, self.admission)
            if ring.header.retired and not is_abandoned(fd):
                return None  # its producer has seen, or will see, that nobody reads it
            kept = True
            self.problems.pop(name, None)
            return ring
        except MalformedRing as error:
            self._note(name, f"no ring that this version reads: {error}; remove it once its process has ended")
        except OSError as error:
            self._note(name, f"cannot be read: {error.strerror}")
        finally:
            if not kept:
                os.close(fd)
        return None

    def _is_strange(self, status: os.stat_result) -> str | None:
        """Why a ring is not to be read: it is not one of this user's, or of the group, alone."""
        if status.st_mode & 0o007:
            return f"may be opened by every user (mode {stat.S_IMODE(status.st_mode):04o}): it is not read"
        if status.st_uid == os.geteuid() or (status.st_gid == self._group and status.st_mode & 0o060 == 0o060):
            return None
        return (
            f"belongs to user {status.st_uid}, and this Agent runs as user {os.geteuid()}: it is not read; run the Agent as that user,"
            " or set TABA_RING_GROUP, for both, to a group of both"
        )

    def _identity(self, name: str) -> tuple[int, int]:
        try:
            status = os.stat(self.path(name), follow_symlinks=False)
        except OSError:
            return (0, 0)
        return (status.st_ino, status.st_mode ^ status.st_uid << 16 ^ status.st_gid << 40)

    def _note(self, name: str, reason: str, passes: bool = False) -> None:
        """Show a problem; unless it `passes` by itself, the ring is left alone until it is another file."""
        if name in self.problems or len(self.problems) < MAX_RINGS:
            self.problems[name] = reason
            if passes:
                self._seen.pop(name, None)
            else:
                self._seen[name] = self._identity(name)
