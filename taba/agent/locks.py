"""One Agent of a name: what it holds so that a second one keeps away, whatever a cleaner removes.

Three locks: a flock on the outbox (`taba.agent.segment`), one on `<spool>/<name>.lock`, and on each ring that it reads an OFD lock
on its first byte. (The flock of a ring is its producer's.) Each goes with the process, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress

from taba import ring
from taba.errors import TabaError

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
MAX_PROCESSES = 65_536  # looked through for the holder of a lock


class AgentRunning(TabaError):
    """Another Agent of this name runs on this host."""


def running(name: str, pid: int, path: str) -> AgentRunning:
    """What to say of an Agent of this name that holds `path`; its pid is 0 where it is not known."""
    holder = f"process {pid}" if pid else "another process"
    return AgentRunning(f"an Agent named {name!r} runs already: {holder} holds {path}; give this one another name (--agent)")


class Stranger(OSError):
    """A file where the Agent's own should be is somebody else's, or open to others: it is neither used nor removed."""

    def __init__(self, path: str, reason: str, cure: str = "remove it, or give this Agent another name (--agent)"):
        super().__init__(errno.EPERM, f"{reason}; {cure}", path)


def check_own(fd: int, path: str) -> None:
    """Raise Stranger unless the open file is this user's regular file, and nobody else may open it."""
    status = os.fstat(fd)
    check_owner(status, path)
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise Stranger(path, f"may be opened by others (mode {stat.S_IMODE(status.st_mode):04o})")


def check_owner(status: os.stat_result, path: str) -> None:
    """Raise Stranger unless this is this user's."""
    if status.st_uid != os.geteuid():
        raise Stranger(path, f"belongs to user {status.st_uid}, and this Agent runs as user {os.geteuid()}")


def check_kept(path: str, strangers: int = 0o077) -> None:
    """Raise Stranger where the file `path` is there and is no regular one of this user's, or others have a right of `strangers` to it."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    check_owner(status, path)
    if not stat.S_ISREG(status.st_mode):
        raise Stranger(path, "is no file of its own")
    if status.st_mode & strangers:
        may, mode = "opened" if strangers & 0o044 else "written", stat.S_IMODE(status.st_mode)
        raise Stranger(path, f"may be {may} by others (mode {mode:04o})", "if nobody else wrote there, chmod 600 it")


def private(path: str, flags: int) -> int:
    """An `opener` of files that are this user's alone, whatever the umask, and lie where they seem to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def open_own(path: str) -> int:
    """A descriptor of this user's own file, made where there is none. Raises Stranger for anybody else's."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO) and os.path.lexists(path):
            status = os.lstat(path)
            check_owner(status, path)
            raise Stranger(path, "is no file of its own") from None
        raise
    try:
        check_own(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


class NameLock:
    """The file `path`, locked for as long as this is open. Raises AgentRunning when another process holds it."""

    def __init__(self, path: str, name: str):
        self.path = path
        self.is_new = not os.path.exists(path)
        self._fd = open_own(path)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(self._fd, 20, 0).strip()
            os.close(self._fd)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise running(name, int(pid) if pid.isdigit() else 0, path) from None
        os.ftruncate(self._fd, 0)
        with suppress(OSError):  # on a full disk it is locked all the same, and "another process" holds it
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        os.close(self._fd)


def claim_ring(fd: int) -> bool:
    """Be the one who reads the ring behind this descriptor, which is open for writing, until it is closed; False if another is."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def claim_slots(fd: int) -> bool:
    """Hold all places of a segment that only counts, so that nobody takes one any more; False while a process has one."""
    length = ring.SLOTS * ring.SLOT_BYTES
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, ring.SLOTS_OFFSET, length, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def holder_of(path: str) -> int:
    """The process that holds an OFD lock on the file `path`; 0 where that cannot be seen. Looks through /proc: not for every tick."""
    try:
        wanted = os.stat(path)
        processes = [name for name in os.listdir("/proc") if name.isdigit()][:MAX_PROCESSES]
    except OSError:
        return 0
    for process in processes:
        try:
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                found = os.stat(f"/proc/{process}/fd/{descriptor}")
                if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino):
                    continue
                with open(f"/proc/{process}/fdinfo/{descriptor}") as file:
                    if "OFDLCK" in file.read():
                        return int(process)
        except OSError:
            continue  # another user's, or gone
    return 0
