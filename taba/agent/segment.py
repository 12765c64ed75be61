"""The memory of an outbox: the file `taba-agent.<name>` of POSIX shared memory, locked for life.

Group bytes go through `pread` and `pwrite`: what is mapped counts as the Agent's memory, and of a mapping only the words in the
header need to be one store.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct

from taba.agent.outbox import DEFAULT_OUTBOX_BYTES, MIN_OUTBOX_BYTES, PAGE, Outbox, OutboxCorrupt
from taba.errors import TabaError

SHM = "/dev/shm"


class AgentRunning(TabaError):
    """Another Agent of this name runs on this host."""


class Segment:
    """The real memory of an outbox: `taba-agent.<name>` in POSIX shared memory, held by a lock for as long as it is open.

    Raises AgentRunning when another process holds it. Made with `outbox_bytes`, halved down to 4 MiB while there is not
    so much room; an existing one keeps its size. `problem` says what was found wrong and set aside.
    """

    def __init__(self, name: str, outbox_bytes: int = DEFAULT_OUTBOX_BYTES, directory: str = SHM):
        self.path = os.path.join(directory, f"taba-agent.{name}")
        self.problem: str | None = None
        self._fd = self._lock(name)
        try:
            self.size = self._prepare(outbox_bytes)
            self._map = mmap.mmap(self._fd, PAGE)
        except BaseException:
            os.close(self._fd)
            raise
        self._words = memoryview(self._map).cast("Q")
        os.pwrite(self._fd, struct.pack("<I", os.getpid()), 12)

    @property
    def is_there(self) -> bool:
        """Whether its name still leads to it: a cleaner, or logind's RemoveIPC, may have removed it."""
        try:
            return os.stat(self.path, follow_symlinks=False).st_ino == os.fstat(self._fd).st_ino
        except FileNotFoundError:
            return False

    def _lock(self, name: str) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(self.path, follow_symlinks=False).st_ino == os.fstat(fd).st_ino:
                    return fd
            except OSError as error:
                pid = os.pread(fd, 16, 0)[12:]
                os.close(fd)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    holder = f"process {int.from_bytes(pid, 'little')}" if len(pid) == 4 and any(pid) else "another process"
                    raise AgentRunning(f"an Agent named {name!r} runs already: {holder} holds {self.path}") from None
                if error.errno != errno.ENOENT:
                    raise
                continue
            os.close(fd)  # somebody removed the name between open and lock: take the new file

    def _prepare(self, outbox_bytes: int) -> int:
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 8, 0) != bytes(8):  # a kill during `format` leaves no magic
            return size
        os.ftruncate(self._fd, 0)
        size = max(MIN_OUTBOX_BYTES, outbox_bytes // PAGE * PAGE)
        while True:
            try:
                os.posix_fallocate(self._fd, 0, size)  # a full tmpfs must fail here, not at a later write
                return size
            except OSError as error:
                if error.errno != errno.ENOSPC or size <= MIN_OUTBOX_BYTES:
                    raise
                os.ftruncate(self._fd, 0)
                size = max(MIN_OUTBOX_BYTES, size // 2 // PAGE * PAGE)

    def is_fresh(self) -> bool:
        """Whether nothing was ever kept here: it needs `Outbox.format`."""
        return os.pread(self._fd, 8, 0) == bytes(8)

    def set_aside(self) -> str:
        """Rename what is here out of the way, its bytes kept, so that a new outbox can be made; returns the new path."""
        aside = f"{self.path}.corrupt"
        os.rename(self.path, aside)
        return aside

    def read(self, offset: int, length: int) -> bytes:
        content = os.pread(self._fd, length, offset)
        if len(content) != length:
            raise OutboxCorrupt(f"{self.path} was truncated")
        return content

    def write(self, offset: int, content: bytes) -> None:
        view = memoryview(content)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def load(self, offset: int) -> int:
        return self._words[offset // 8]

    def store(self, offset: int, word: int) -> None:
        self._words[offset // 8] = word  # one aligned 8-byte store

    def close(self) -> None:
        """Let go of memory and lock. What is published stays for the next Agent."""
        self._words.release()
        self._map.close()
        os.close(self._fd)


def open_outbox(name: str, outbox_bytes: int = DEFAULT_OUTBOX_BYTES, directory: str = SHM) -> tuple[Outbox, Segment, str | None]:
    """The outbox of the Agent `name`, its segment, and what was found wrong there (then set aside, and a new one made).

    Raises AgentRunning, and OSError when there is no shared memory to be had.
    """
    problem = None
    segment = Segment(name, outbox_bytes, directory)
    if not segment.is_fresh():
        try:
            outbox = Outbox(segment)
            for _ in outbox.groups():
                pass
            return outbox, segment, None
        except OutboxCorrupt as error:
            aside = segment.set_aside()
            problem = f"the outbox was unreadable ({error}); it is kept as {aside}"
            segment.close()
            segment = Segment(name, outbox_bytes, directory)
    Outbox.format(segment, os.getpid())
    return Outbox(segment), segment, problem
