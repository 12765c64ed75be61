"""Finding rings: segments in /dev/shm whose names are this Agent's, and whether somebody still maps them.

A ring's maker holds a flock on the file description that it maps, for life. Whoever gets a shared lock on a description of his
own therefore knows that no process maps the ring any more. Rings of this user are read, and those of the group that it was told
to read, where nobody else may open them; who made it is looked at after it was opened. What cannot be read is looked at once, kept in
`problems`, and left alone until it is another file; where only descriptors, memory or places are short, it is tried again.

Whoever may write into /dev/shm may put any number of files there. So its names are read where they changed, less often the more there
are, and no more than MAX_LISTED in one look; of those that are no rings few are tried at a time, and few are looked at again. What one is
remembered by is seen before it is tried: what changes meanwhile, as when its maker just gives it to the group, is another file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from taba import ring as layouts
from taba.agent.admission import Admission
from taba.agent.locks import claim_ring, claim_slots, holder_of
from taba.agent.outbox import Covered
from taba.agent.reader import Ring
from taba.client.identity import MAX_SLOTS
from taba.descriptors import NO_DESCRIPTORS, cure_of
from taba.ring import SHM_DIRECTORY as SHM
from taba.ring import MalformedRing

MAX_RINGS = 4096  # descriptors, and the outbox's table
OTHERS_RINGS = MAX_RINGS // 4  # of these, that are kept for its own user and users who have fewer: no member of the group takes all
_SLOT = re.compile(r"taba-slot\.[0-9a-f]{16}\.[0-9]{1,5}")
UNMADE_SECONDS = 5.0  # a segment without magic is being made, for so long
MAX_LEFT_ALONE = 65_536  # segments that are known to be none to read, some 200 bytes each; further ones are tried again and again
MAX_TRIED = 256  # in one look, of those that turn out to be none to read: 3 ms
MAX_OPENED = 256  # rings that are opened in one look, 40 to 100 µs each; of more the others come with the next
MAX_LOOKED_AT = 256  # in one look, of those that were none before: somebody may have given them to this user
ENTRY_SECONDS = 1e-4  # between two readings of the names, for each that there was: a hundred times what that took
SETTLED_SECONDS = 0.1  # the clock of changes ticks more often: of what has an older time of change all is seen
MAX_SWEPT = 1024  # slots that are looked at in one go
MAX_LISTED = 4096  # names that are read in one go, some 10 ms
MAX_PROGRAMS = 10_000  # of each user's, whose slots are told apart; more are a stranger's doing, and count as one
MAX_OWNERS_TOLD = 3  # of a program's slots
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
    """The slot files (`taba.client.identity`) of processes, of which those that ended without removing theirs are removed.

    `count` is how many there were at the last time that all were looked at, those removed left out, and `most` how many of one program.
    """

    def __init__(self, directory: str = SHM):
        self._directory = directory
        self.count = self.most = 0
        self.path = ""  # of one of the program that has the most
        self.owners: dict[int, int] = {}  # of that program's slots: by user, how many
        self._names: Iterator[str] | None = None  # what is left of this sweep
        self._programs: Counter[tuple[str, int]] = Counter()  # by program and user

    @property
    def problem(self) -> str | None:
        """What needs a person."""
        if self.most < MAX_SLOTS:
            return None
        whose = sorted(self.owners.items(), key=lambda item: -item[1])
        told = ", ".join(f"{count} user {user}'s" for user, count in whose[:MAX_OWNERS_TOLD])
        told += f", {len(whose) - MAX_OWNERS_TOLD} further users'" if len(whose) > MAX_OWNERS_TOLD else ""
        return (
            f"all {MAX_SLOTS} slots of one program are taken ({self.path}; {told}): further processes of it find no client id, and"
            " record nothing; end what nobody needs, remove what is a stranger's, or set TABA_CLIENT_ID without {slot}"
        )

    @property
    def is_sweeping(self) -> bool:
        """Whether there are more to look at in this sweep."""
        return self._names is not None

    def sweep(self) -> int:
        """Remove those that no process holds, as their owners do when they stop; returns how many. One sweep may take many calls.

        A file is removed while its lock is held here: who waits for the lock finds the name gone or changed, and tries again. One
        that is still empty has a maker who is just about to lock it.
        """
        if self._names is None:
            self._names, self._programs = _names_in(self._directory), Counter()
        removed = looked_at = 0
        for _ in range(MAX_LISTED):
            try:
                name = next(self._names, None)
            except OSError:  # who looks for rings says so; the next sweep begins anew
                self._names = None
                break
            if name is None:
                self._end()
                break
            if name.startswith("taba-slot.") and _SLOT.fullmatch(name):
                path = os.path.join(self._directory, name)
                is_removed = _remove_free(path)
                removed += is_removed
                if not is_removed:
                    self._count(name, path)
                looked_at += 1
                if looked_at == MAX_SWEPT:
                    break
        return removed

    def _count(self, name: str, path: str) -> None:
        try:
            key = name.rpartition(".")[0], os.lstat(path).st_uid
        except FileNotFoundError:
            return  # its owner let go of it just now
        self._programs[key if key in self._programs or len(self._programs) < MAX_PROGRAMS else ("", 0)] += 1

    def _end(self) -> None:
        self._names = None
        self.count = sum(self._programs.values())
        self._programs.pop(("", 0), None)
        programs: Counter[str] = Counter()
        for (program, _), count in self._programs.items():
            programs[program] += count
        program, self.most = max(programs.items(), key=lambda item: item[1], default=("", 0))
        self.owners = {user: count for (of, user), count in self._programs.items() if of == program}
        self.path = os.path.join(self._directory, f"{program}.*")


def _names_in(directory: str) -> Iterator[str]:
    """The names there, one after the other, as they are asked for. Raises OSError with the first."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name


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
    **{number: cure_of(number, "the Agent") for number in NO_DESCRIPTORS},
    errno.ENOMEM: "give the host more memory, or have less run there",
    errno.EACCES: "run the Agent as the user who records, or set TABA_RING_GROUP, for both, to a group of both",
    errno.EPERM: "run the Agent as the user who records, or set TABA_RING_GROUP, for both, to a group of both",
}


def with_cure(error: OSError) -> str:
    """What the operating system says, and what helps where that is known."""
    cure = _CURES.get(error.errno or 0)
    return f"{error.strerror}; {cure}" if cure else f"{error.strerror}"


class _Reading:
    """One reading of the names in the directory, which takes as many looks as it needs."""

    def __init__(self, names: Iterator[str], changed: int, now: float, begin: int):
        self.names = names
        self.changed, self.began = changed, now  # the directory's time of change, and the clock, before it was begun
        self.begin = begin  # of those that are not known, which one is the first to wait
        self.count = self.unknown = self.queued = 0  # all names; segments that were not known, and those of them that wait now
        self.known: set[str] = set()  # segments that were, or are by now


class Rings:
    """The rings of one Agent's name. `open` maps segment names to Rings; `problems` maps others to what is wrong with them."""

    def __init__(self, agent: str, directory: str = SHM, group: int | None = None):
        self._group = group
        self.admission = Admission()
        self._prefix = layouts.segment_prefix(agent)
        self._agent = agent
        self.directory = directory
        self.open: dict[str, Ring] = {}
        self._users: dict[str, int] = {}  # whose each of these is …
        self._of_user: Counter[int] = Counter()  # … and how many each has
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
        self._reading: _Reading | None = None  # of the names, that is under way
        self._unknown = 0  # names that the last one found and did not know
        self.beyond = 0
        """Segments of this name that are neither read nor remembered, as far as the last reading of the names came."""

    def scan(self, covered: Sequence[Covered], now: float, at_once: bool = False) -> list[Ring]:
        """Look for rings; returns those that are new. `covered` comes from the outbox's table at start, `now` is monotonic seconds.

        With `at_once` the names are read where they may have changed, however many there are and however short a time ago that was done.
        Of more than MAX_LISTED names that is a part, and `is_reading`.
        """
        try:
            self._read_names(now, at_once)
        except OSError as error:
            self.problems[self.directory] = (
                f"{self.directory} cannot be looked through for new rings, whose events wait: {with_cure(error)}"
            )
            return []
        self.problems.pop(self.directory, None)
        try:
            # what hinders the Agent itself, as too few descriptors, hinders any number of them
            again, self._again = self._again, {}
            again.update(dict.fromkeys(self._changed_ones()))
            fresh = self._try(again, covered, now, MAX_OPENED)
            self._again = {**again, **self._again}  # those that are left come first
            return fresh + self._try(self._new, covered, now, MAX_OPENED - len(fresh))
        except BaseException:
            self._read_anew()  # some are in none of these any more
            raise

    def _try(self, waiting: dict[str, None], covered: Sequence[Covered], now: float, most: int) -> list[Ring]:
        """Take names out and open them, until MAX_TRIED turned out to be none to read, or `most` to be rings; returns these."""
        fresh: list[Ring] = []
        left = MAX_TRIED
        while waiting and left and len(fresh) < most:
            for name in list(islice(waiting, min(left, most - len(fresh)))):
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
        if self._new or self._unmade or self._reading is not None:
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
        waiting = self._new or self._again.keys() - self.taken
        return bool(self.problems or self._left_alone or waiting or self.beyond or self._reading is not None)

    @property
    def is_reading(self) -> bool:
        """Whether there are names that the reading that is under way has not come to."""
        return self._reading is not None

    @property
    def has_more(self) -> bool:
        """Whether there are names that were not read, or not tried, since a look does no more than a part."""
        return self._reading is not None or bool(self._new)

    @property
    def unshown(self) -> int:
        """Segments of this name that are not read, beside those in `problems`."""
        return max(0, len(self._left_alone) + self.beyond - len(self.problems))

    def _read_names(self, now: float, at_once: bool) -> None:
        """Read some of the names, unless they are those that they were, or it is too soon; what is not known waits to be tried.

        Raises OSError.
        """
        reading, self._reading = self._reading, None  # should it fail, it is begun anew
        if reading is None:
            if now < self._next_reading and not at_once:
                return
            changed = os.stat(self.directory).st_mtime_ns
            if changed == self._changed and self._is_settled:
                return
            # where more are unknown than may wait, others are taken each time
            begin = self._turn % self._unknown if self._unknown > MAX_LEFT_ALONE - len(self._new) else 0
            reading = _Reading(_names_in(self.directory), changed, now, begin)
        before = reading.count
        for name in islice(reading.names, MAX_LISTED):
            reading.count += 1
            if name.startswith(self._prefix) and layouts.segment_agent(name) == self._agent:
                self._meet(name, reading)
        if reading.count - before < MAX_LISTED:
            self._end_reading(reading, now)
        else:
            self._reading = reading

    def _meet(self, name: str, reading: _Reading) -> None:
        """A segment of this Agent's name is there."""
        if name in self.problems:
            reading.known.add(name)
        if any(name in some for some in (self.open, self._left_alone, self._new, self._again)):
            reading.known.add(name)
            return
        reading.unknown += 1
        if reading.unknown > reading.begin and len(self._new) < MAX_LEFT_ALONE:
            self._new[name] = None
            reading.known.add(name)
            reading.queued += 1
            self._turn += 1

    def _end_reading(self, reading: _Reading, now: float) -> None:
        """All names were read: what is gone is no problem any more."""
        found = reading.known
        self.taken &= found
        for known in (self._unmade, self._left_alone, self._new, self._again, self.problems):
            for name in [name for name in known if name not in found]:
                del known[name]
        self._unknown = reading.unknown
        self.beyond = reading.unknown - reading.queued
        self._is_settled = reading.changed == self._changed and reading.began - self._read_at >= SETTLED_SECONDS
        self._changed, self._read_at, self._next_reading = reading.changed, reading.began, now + reading.count * ENTRY_SECONDS

    def _read_anew(self) -> None:
        """Something is known by now that the last reading of the names, or the one under way, has not seen."""
        self._changed, self._reading = -1, None

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

    def is_there(self, name: str) -> bool:
        """Whether there is anything of this name."""
        return os.path.lexists(self.path(name))

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def isolate(self, ring: Ring, reason: str) -> None:
        """Read this ring no more; its bytes stay where they are."""
        self._let_go(ring)
        status = os.fstat(ring.fd)  # its name may lead to another one
        ring.close()
        self._note(ring.name, f"{reason}{_whose(status)}", _identity(status))

    def release(self, ring: Ring) -> None:
        """Let go of a ring: whoever comes next may read it."""
        self._let_go(ring)
        ring.close()

    def close(self) -> None:
        """Let go of all rings."""
        for ring in list(self.open.values()):
            self.release(ring)

    def remove(self, ring: Ring) -> bool:
        """Unlink a ring that is retired, and let go of it; whether it is gone."""
        self._let_go(ring)
        try:
            if self.vanished(ring):
                self._read_anew()  # what has its name by now was not looked at
            else:
                os.unlink(self.path(ring.name))
        except OSError as error:
            reason = f"read to its end, but not to be removed: {error.strerror}; remove it"
            self._note(ring.name, reason, _identity(os.fstat(ring.fd)))
            return False
        finally:
            ring.close()
        return True

    def _let_go(self, ring: Ring) -> None:
        if self.open.pop(ring.name, None) is not None:
            self._of_user[self._users.pop(ring.name)] -= 1

    def _has_no_place(self, user: int) -> str | None:
        """Why one more ring of this user is not to be read now."""
        if len(self.open) >= MAX_RINGS:
            return f"not read: an Agent reads {MAX_RINGS} at the most; start another of another name"
        if user != os.geteuid() and len(self.open) >= MAX_RINGS - OTHERS_RINGS and self._of_user[user] >= OTHERS_RINGS:
            return (
                f"not read: user {user} has {self._of_user[user]} rings, and the last {OTHERS_RINGS} of {MAX_RINGS} places are for user"
                f" {os.geteuid()} and users who have fewer; end what nobody needs, or start another Agent of another name"
            )
        return None

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
                self.problems.pop(name, None)  # what kept it from being opened has passed
                return None
            if (why := self._has_no_place(status.st_uid)) is not None:
                self._note(name, why, seen, passes=True)
                return None
            if not claim_ring(fd):
                if not self.taken:
                    self.taken_by = holder_of(self.path(name))
                self.taken.add(name)
                self._again[name] = None
                self.problems.pop(name, None)
                return None
            self.taken.discard(name)
            ring = Ring(fd, name, covered, self.admission)
            if ring.header.retired and not is_abandoned(fd):
                self._again[name] = None
                self.problems.pop(name, None)
                return None  # its producer has seen, or will see, that nobody reads it
            kept = True
            self.problems.pop(name, None)
            self.open[name] = ring
            self._users[name] = status.st_uid
            self._of_user[status.st_uid] += 1
            return ring
        except MalformedRing as error:
            self._note(name, f"no ring that this version reads: {error}; remove it once its process has ended{_whose(status)}", seen)
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


def _whose(status: os.stat_result) -> str:
    """What is to be added to a reason where a ring is not this user's."""
    return "" if status.st_uid == os.geteuid() else f" (user {status.st_uid}'s; whoever is in its group may have done so)"
