"""The memory of an outbox: the file `taba-agent.<name>` of POSIX shared memory, locked for life.

Its size is fixed and most of it is holes. All goes through `pread` and `pwrite`: what is mapped and touched counts as the Agent's memory,
and of what somebody cut a store kills. A word in the header is eight bytes of one page, which the kernel copies in one go: it looks for a
signal before that, not within, and who reads them is the next Agent. What is mapped is never touched: it gives pages back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable

from taba.agent.locks import check_owner, open_own, running
from taba.agent.outbox import DEFAULT_OUTBOX_BYTES, MIN_OUTBOX_BYTES, PAGE, PUBLISHED, OtherVersion, Outbox, OutboxCorrupt, OutboxFull
from taba.ring import SHM_DIRECTORY as SHM

FREE_SHARE = 4  # of what would be free without it, an outbox takes this part at the most: rings need the rest
MAX_PARTS = 1024  # that the system writes at once
MAX_ASIDE = 100  # unreadable outboxes that are kept under a name each; the last name is used again


class Segment:
    """The memory in the file `path`, which is locked for as long as this is open.

    Raises AgentRunning when another process holds it, Stranger when another user has the name. An existing one keeps its size.
    `is_fresh` says that nothing was ever kept here: it needs `Outbox.format`.
    """

    def __init__(self, name: str, outbox_bytes: int = DEFAULT_OUTBOX_BYTES, directory: str = SHM):
        self.name, self.directory = name, directory
        self.path = os.path.join(directory, f"taba-agent.{name}")
        self._fd = self._lock()
        try:
            self._open(outbox_bytes)
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self, outbox_bytes: int) -> None:
        status = os.fstat(self._fd)
        self.size, self._inode = status.st_size, status.st_ino
        # a kill while it was made leaves no magic, and nothing is published; where something is, somebody cut what was there
        self.is_fresh = not any(self.read(0, 8) + self.read(PUBLISHED, 8))
        if self.is_fresh:
            os.ftruncate(self._fd, 0)
            self.size = max(MIN_OUTBOX_BYTES, outbox_bytes // PAGE * PAGE)
            os.ftruncate(self._fd, self.size)
        elif self.size < PAGE:
            os.ftruncate(self._fd, PAGE)  # the mapping must have a first page; it is corrupt anyway
            self.size = PAGE
        self._map = mmap.mmap(self._fd, self.size)
        self._has_head = True  # as far as is known: what tells that there is an outbox
        if not self.is_fresh:
            os.pwrite(self._fd, struct.pack("<I", os.getpid()), 12)

    @property
    def is_there(self) -> bool:
        """Whether its name still leads to it: a cleaner, or logind's RemoveIPC, may have removed it."""
        try:
            return os.stat(self.path, follow_symlinks=False).st_ino == self._inode
        except FileNotFoundError:
            return False

    @property
    def is_cut(self) -> bool:
        """Whether somebody cut it: what lay behind that is gone, and so may its head be, without which the next Agent finds no outbox."""
        return not self._has_head or os.fstat(self._fd).st_size < self.size

    def mend(self, outbox: Outbox) -> None:
        """Have it whole again, with zeros in place of what is gone, and `outbox`, which is in it, found by the next Agent.

        Raises OutboxFull where there is no room for its head: it counts as cut until then.
        """
        self._has_head = False
        os.ftruncate(self._fd, self.size)
        outbox.write_head(os.getpid())
        self._has_head = True

    def _lock(self) -> int:
        while True:
            fd = open_own(self.path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(self.path, follow_symlinks=False).st_ino == os.fstat(fd).st_ino:
                    return fd
            except OSError as error:
                os.close(fd)
                if error.errno == errno.EWOULDBLOCK:
                    raise running(self.name, _holder(self.path), self.path) from None
                if error.errno != errno.ENOENT:
                    raise
                continue
            os.close(fd)  # somebody removed the name between open and lock: take the new file

    def renew(self, outbox: Outbox) -> Segment:
        """The name leads here no more: have `outbox` go on in a new segment of this name, and return that; this one is closed.

        Raises AgentRunning when another one has the name by now, OutboxFull or OSError when there is no room; then all is as before.
        """
        fresh = Segment(f"{self.name}.new", self.size, self.directory)  # a name that no Agent can have
        try:
            outbox.copy_to(fresh)
        except BaseException:
            fresh.remove()
            fresh.close()
            raise
        made = fresh.path
        fresh.name, fresh.path = self.name, self.path
        try:
            os.link(made, self.path)  # unlike rename, it never takes another one's place
        except FileExistsError:
            outbox.go_on_in(self)
            fresh.close()
            with contextlib.suppress(FileNotFoundError):
                check_owner(os.lstat(self.path), self.path)  # a stranger's is no Agent's
            raise running(self.name, _holder(self.path), self.path) from None
        finally:
            os.unlink(made)
        self.close()
        return fresh

    def set_aside(self) -> str:
        """Rename what is here out of the way, its bytes kept, so that a new outbox can be made; returns the new path."""
        aside = next((path for number in range(1, MAX_ASIDE) if not os.path.lexists(path := f"{self.path}.corrupt-{number}")), None)
        aside = aside or f"{self.path}.corrupt-{MAX_ASIDE}"
        os.rename(self.path, aside)
        return aside

    def remove(self) -> None:
        """Leave nothing behind: nothing was kept here."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    # --- Memory ---

    def read(self, offset: int, length: int) -> bytes:
        content = os.pread(self._fd, length, offset)
        # of a segment that somebody cut the rest is zeros, as whatever is written there makes it: no checksum takes it for what was there
        return content if len(content) == length else content.ljust(length, b"\0")

    def write(self, offset: int, *parts: bytes | memoryview) -> None:
        for start in range(0, len(parts), MAX_PARTS):
            some = parts[start : start + MAX_PARTS]
            length, written = sum(map(len, some)), os.pwritev(self._fd, some, offset)
            while written < length:
                written += os.pwrite(self._fd, memoryview(b"".join(some))[written:], offset + written)
            offset += length

    def load(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 8), "little")

    def store(self, offset: int, word: int) -> None:
        try:
            os.pwrite(self._fd, word.to_bytes(8, "little"), offset)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # somebody cut it, and took the room
            raise OutboxFull(f"no room for its head in {os.path.dirname(self.path)}") from None

    def room(self) -> int:
        """As much as leaves free three quarters of what would be free without this outbox."""
        memory, held = os.fstatvfs(self._fd), os.fstat(self._fd).st_blocks * 512
        if not memory.f_blocks:
            return self.size  # a tmpfs without a bound
        return max(0, (memory.f_bavail * memory.f_frsize + held) // FREE_SHARE - held)

    def reserve(self, offset: int, length: int) -> None:
        try:
            os.posix_fallocate(self._fd, offset, length)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OutboxFull(f"no room for {length} bytes in {os.path.dirname(self.path)}") from None

    def punch(self, offset: int, length: int) -> None:
        self._map.madvise(mmap.MADV_REMOVE, offset, length)

    def close(self) -> None:
        """Let go of memory and lock. What is published stays for the next Agent."""
        self._map.close()
        os.close(self._fd)


class Unnamed(Segment):
    """Memory that no name leads to, where the directory has no room for any: it goes with this process, unless `renew` finds room."""

    def _lock(self) -> int:
        return os.memfd_create(f"taba-agent.{self.name}")

    def remove(self) -> None:
        """What has the name is another's."""


def _holder(path: str) -> int:
    """The process that wrote itself down in the outbox `path`; 0 where there is none."""
    try:
        with open(path, "rb") as file:
            return int.from_bytes(file.read(16)[12:], "little")
    except OSError:
        return 0


def open_outbox(
    name: str, new_id: Callable[[], bytes], outbox_bytes: int = DEFAULT_OUTBOX_BYTES, directory: str = SHM
) -> tuple[Outbox, Segment, str | None]:
    """The outbox of the Agent `name`, its segment, and what was found wrong there (then set aside, and a new one made).

    `new_id` gives the id of an outbox that is made. Where the directory has no room for one it is made in memory without a name, which
    `is_there` says. Raises AgentRunning, OtherVersion, and OSError or OutboxFull when there is no memory at all; nothing is left then.
    """
    problem = None
    segment = Segment(name, outbox_bytes, directory)
    try:
        if not segment.is_fresh:
            try:
                outbox = Outbox(segment)
                for _ in outbox.groups():
                    pass
                return outbox, segment, None
            except OutboxCorrupt as error:
                problem = f"the outbox was unreadable ({error}); it is kept as {segment.set_aside()}, and what it held is not sent"
                segment.close()
                segment = Segment(name, outbox_bytes, directory)
        try:
            Outbox.format(segment, new_id(), os.getpid())
        except OutboxFull:
            segment.remove()
            unnamed = Unnamed(name, outbox_bytes, directory)
            segment.close()
            segment = unnamed
            Outbox.format(segment, new_id(), os.getpid())
        except BaseException:
            segment.remove()
            raise
        return Outbox(segment), segment, problem
    except OtherVersion as error:
        segment.close()
        raise OtherVersion(f"{segment.path} {error}: let that version's Agent send what it holds, or remove it") from None
    except BaseException:
        segment.close()
        raise
