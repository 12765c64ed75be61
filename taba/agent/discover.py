"""Finding rings: segments in /dev/shm whose names are this Agent's, and whether somebody still maps them.

A ring's maker holds a flock on the file description that it maps, for life. Whoever gets a shared lock on a description of his
own therefore knows that no process maps the ring any more. Rings of this user are read, and those of the group that it was told
to read, where nobody else may open them; who made it is looked at after it was opened. What cannot be read is looked at once, kept in
`problems`, and left alone until it is another file; where only descriptors, memory or places are short, it is tried again.

Whoever may write into /dev/shm may put any number of files there. So its names are read where they changed, and less often the more there
are; of those that are no rings few are tried at a time, and few are looked at again. What one is remembered by is seen before it is tried:
what changes meanwhile, as when its maker just gives it to the group, is another file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Sequence
from itertools import islice

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
MAX_LEFT_ALONE = 65_536  # segments that are known to be none to read, some 200 bytes each; further ones are tried again and again
MAX_TRIED = 256  # in one look, of those that turn out to be none to read: 3 ms
MAX_LOOKED_AT = 256  # in one look, of those that were none before: somebody may have given them to this user
ENTRY_SECONDS = 1e-4  # between two readings of the names, for each that there was: a hundred times what that took
SETTLED_SECONDS = 0.1  # the clock of changes ticks more often: of what has an older time of change all is seen
MAX_SWEPT = 1024  # slots that are looked at in one go
_PASSING = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.EINTR])  # the Agent's or the host's trouble


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


class Slots:
    """The slot files (`taba.client.identity`) of processes that ended without removing theirs."""

    def __init__(self, directory: str = SHM):
        self._directory = directory
        self._last = ""  # the name at which the last sweep ended

    def sweep(self) -> int:
        """Remove those that no process holds, as their owners do when they stop; returns how many. Of more than MAX_SWEPT, some each time.

        A file is removed while its lock is held here: who waits for the lock finds the name gone or changed, and tries again. One
        that is still empty has a maker who is just about to lock it.
        """
        with os.scandir(self._directory) as entries:
            names = sorted(entry.name for entry in entries if _SLOT.fullmatch(entry.name))
        ahead = [name for name in names if name > self._last]
        chosen = ahead[:MAX_SWEPT]
        self._last = chosen[-1] if len(ahead) > MAX_SWEPT else ""
        return sum(_remove_free(os.path.join(self._directory, name)) for name in chosen)


def _remove_free(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False  # another user's, or gone
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status, named = os.fstat(fd), os.stat(path, follow_symlinks=False)
        is_same = (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)
        if not (stat.S_ISREG(status.st_mode) and status.st_size == 1 and is_same):
            return False
        os.unlink(path)
        return True
    except OSError:
        return False  # held, gone meanwhile, or another user's: it stays, an empty file
    finally:
        os.close(fd)


_CURES = {
    errno.EMFILE: "raise the Agent's limit of descriptors (LimitNOFILE, ulimit -n)",
    errno.ENFILE: "raise the host's limit of descriptors (fs.file-max)",
    errno.ENOMEM: "give the host more memory, or have less run there",
    errno.EACCES: "run the Agent as the user who records, or set TABA_RING_GROUP, for both, to a group of both",
    errno.EPERM: "run the Agent as the user who records, or set TABA_RING_GROUP, for both, to a group of both",
}


def with_cure(error: OSError) -> str:
    """What the operating system says, and what helps where that is known."""
    cure = _CURES.get(error.errno or 0)
    return f"{error.strerror}; {cure}" if cure else f"{error.strerror}"


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
        self._left_alone: dict[str, int] = {}  # what is none to read: what it is, so that it is not tried again and again
        self._new: dict[str, None] = {}  # names that wait to be tried, in the order of their coming
        self._again: dict[str, None] = {}  # names to be tried at the next look: what hindered it passes
        self._changed = -1  # the directory's time of change when its names were last read …
        self._is_settled = False  # … and whether it had been so for long enough that nothing was missed
        self._read_at = self._next_reading = 0.0
        self._turn = 0  # where to begin, of more names than may wait
        self.beyond = 0
        """Segments of this name that are neither read nor remembered, as far as the last reading of the names came."""

    def scan(self, covered: Sequence[Covered], now: float, at_once: bool = False) -> list[Ring]:
        """Look for rings; returns those that are new. `covered` comes from the outbox's table at start, `now` is monotonic seconds.

        With `at_once` the names are read where they may have changed, however many there are and however short a time ago that was done.
        """
        try:
            names = self._read_names(now, at_once)
        except OSError as error:
            self.problems[self.directory] = (
                f"{self.directory} cannot be looked through for new rings, whose events wait: {with_cure(error)}"
            )
            return []
        self.problems.pop(self.directory, None)
        if names is not None:
            self._forget(set(names))
            self._queue(names)
        try:
            # what hinders the Agent itself, as too few descriptors, hinders any number of them
            again, self._again = self._again, {}
            again.update(dict.fromkeys(self._changed_ones()))
            fresh = self._try(again, covered, now)
            self._again = {**again, **self._again}  # those that are left come first
            return fresh + self._try(self._new, covered, now)
        except BaseException:
            self._changed = -1  # some are in none of these any more: the names are read anew
            raise

    def _try(self, waiting: dict[str, None], covered: Sequence[Covered], now: float) -> list[Ring]:
        """Take names out and open them, until MAX_TRIED turned out to be none to read; returns the rings."""
        fresh, left = [], MAX_TRIED
        while waiting and left:
            for name in list(islice(waiting, left)):
                del waiting[name]
                ring = self._open(name, covered, now)
                if ring is None:
                    left -= 1
                else:
                    fresh.append(ring)
        return fresh

    def has_changed(self, now: float) -> bool:
        """Whether something was made or removed since the names were read, or was not yet finished then: a cheap look.

        The clock of such changes ticks a few hundred times a second, so what is missed here a regular scan finds.
        """
        if self._new or self._unmade:
            return True
        if now < self._next_reading:
            return False
        try:
            return os.stat(self.directory).st_mtime_ns != self._changed
        except OSError:
            return False

    @property
    def has_unread(self) -> bool:
        """Whether there is any segment that might be a ring that was read before."""
        return bool(self.problems or self._left_alone or self._new or self.beyond or self._again.keys() - self.taken)

    @property
    def unshown(self) -> int:
        """Segments of this name that are not read, beside those in `problems`."""
        return max(0, len(self._left_alone) + self.beyond - len(self.problems))

    def _read_names(self, now: float, at_once: bool) -> list[str] | None:
        """The segments of this Agent's name; None where they are those that they were, or it is too soon. Raises OSError."""
        if now < self._next_reading and not at_once:
            return None
        changed = os.stat(self.directory).st_mtime_ns
        is_same = changed == self._changed
        if is_same and self._is_settled:
            return None
        names, count = [], 0
        with os.scandir(self.directory) as entries:
            for entry in entries:
                count += 1
                if entry.name.startswith(self._prefix) and layouts.segment_agent(entry.name) == self._agent:
                    names.append(entry.name)
        self._is_settled = is_same and now - self._read_at >= SETTLED_SECONDS
        self._changed, self._read_at, self._next_reading = changed, now, now + count * ENTRY_SECONDS
        return names

    def _forget(self, found: set[str]) -> None:
        """What is gone is no problem any more."""
        self.taken &= found
        for known in (self._unmade, self._left_alone, self._new, self._again, self.problems):
            for name in [name for name in known if name not in found]:
                del known[name]

    def _queue(self, names: list[str]) -> None:
        """Have those that are not known tried, as many as may wait; of more, others the next time."""
        known = (self.open, self._left_alone, self._new, self._again)
        unknown = [name for name in names if not any(name in some for some in known)]
        room = MAX_LEFT_ALONE - len(self._new)
        self.beyond = max(0, len(unknown) - room)
        if self.beyond:
            begin = self._turn % len(unknown)
            self._turn += room
            unknown = [*unknown[begin:], *unknown[:begin]][:room]
        self._new.update(dict.fromkeys(unknown))

    def _changed_ones(self) -> list[str]:
        """Of what is left alone, those that are other files now. A part of them is looked at, in turn."""
        changed = []
        for name in list(islice(self._left_alone, MAX_LOOKED_AT)):
            before, now = self._left_alone.pop(name), self._identity(name)
            if before == now:
                self._left_alone[name] = before  # at the end
            else:
                self.problems.pop(name, None)
                changed.append(name)
        return changed

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
        seen = _identity(os.fstat(ring.fd))  # its name may lead to another one
        ring.close()
        self._note(ring.name, reason, seen)

    def release(self, ring: Ring) -> None:
        """Let go of a ring: whoever comes next may read it."""
        self.open.pop(ring.name, None)
        ring.close()

    def close(self) -> None:
        """Let go of all rings."""
        for ring in list(self.open.values()):
            self.release(ring)

    def remove(self, ring: Ring) -> bool:
        """Unlink a ring that is retired, and let go of it; whether it is gone."""
        self.open.pop(ring.name, None)
        try:
            if self.vanished(ring):
                self._changed = -1  # what has its name by now was not looked at: the names are read anew
            else:
                os.unlink(self.path(ring.name))
        except OSError as error:
            reason = f"read to its end, but not to be removed: {error.strerror}; remove it"
            self._note(ring.name, reason, _identity(os.fstat(ring.fd)))
            return False
        finally:
            ring.close()
        return True

    def _open(self, name: str, covered: Sequence[Covered], now: float) -> Ring | None:
        unmade = self._unmade.pop(name, None)
        seen = self._identity(name)
        try:
            fd = os.open(self.path(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(
                name,
                f"cannot be opened: {with_cure(error)}; its events wait in it",
                seen,
                error.errno in _PASSING,
            )
            return None
        kept = False
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise MalformedRing("no regular file")
            if (strange := self._is_strange(status)) is not None:
                self._note(name, strange, seen)
                return None
            if layouts.is_unmade(os.pread(fd, 8, 0)):
                since = unmade[1] if unmade is not None and unmade[0] == status.st_ino else now
                if now - since > UNMADE_SECONDS and is_abandoned(fd):
                    os.unlink(self.path(name))  # its maker died before the first record: nothing was ever in it
                else:
                    self._unmade[name] = (status.st_ino, since)
                    self._again[name] = None
                return None
            if len(self.open) >= MAX_RINGS:
                self._note(name, f"not read: an Agent reads {MAX_RINGS} at the most; start another of another name", seen, passes=True)
                return None
            if not claim_ring(fd):
                if not self.taken:
                    self.taken_by = holder_of(self.path(name))
                self.taken.add(name)
                self._again[name] = None
                return None
            self.taken.discard(name)
            ring = Ring(fd, name, covered, self.admission)
            if ring.header.retired and not is_abandoned(fd):
                self._again[name] = None
                return None  # its producer has seen, or will see, that nobody reads it
            kept = True
            self.problems.pop(name, None)
            self.open[name] = ring
            return ring
        except MalformedRing as error:
            self._note(name, f"no ring that this version reads: {error}; remove it once its process has ended", seen)
        except OSError as error:
            self._note(name, f"cannot be read: {error.strerror}", seen, error.errno in _PASSING)
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

    def _identity(self, name: str) -> int:
        """What `name` leads to; 0 where that is nothing."""
        try:
            return _identity(os.stat(self.path(name), follow_symlinks=False))
        except OSError:
            return 0

    def _note(self, name: str, reason: str, seen: int, passes: bool = False) -> None:
        """Show a problem; unless it `passes` by itself, the ring is left alone until it is another file than was `seen`."""
        if name in self.problems or len(self.problems) < MAX_RINGS:
            self.problems[name] = reason
        if passes:
            self._again[name] = None
        elif len(self._left_alone) < MAX_LEFT_ALONE:
            self._left_alone[name] = seen
        else:
            self.beyond += 1


def _identity(status: os.stat_result) -> int:
    """Changes with the file, its owner, its mode, and what was written to it otherwise than by mapping it."""
    return hash((status.st_ino, status.st_ctime_ns, status.st_mode, status.st_uid, status.st_gid))
