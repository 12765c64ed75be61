"""A disk whose power fails: what was synced is there, and of the rest a part, or nothing.

1. Of a file there is what it was when it was last synced, and of what was written since as much as came in order until some byte; what it
   grew by may be there as zeros.
2. The folder is as it was when it was last synced, or after any of the changes since.
3. SQLite's files lie in the real folder and are synced by SQLite itself: a transaction of `synchronous=FULL` is there, and of one that says
   less what it wrote to its log since that was last taken over may be gone.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import struct
from collections.abc import Iterable
from random import Random
from typing import NamedTuple

SYNCED_EACH = 2  # what `PRAGMA synchronous` says where each transaction is synced
_BESIDE = ("-wal", "-shm", "-journal")
# of SQLite's log, and of the index beside it, which is in memory: frames that count, and those that are in the database already
_HEAD_BYTES, _FRAME_HEAD_BYTES = 32, 24
_FRAMES, _TAKEN_OVER = 16, 96
_WORD = struct.Struct("=I")
_OWN = 0o600


class Left(NamedTuple):
    """What is in the folder when the power is back: content and mode of each file."""

    files: dict[str, tuple[bytes, int]]


class Synced:
    """What of the files in `folder` is on the disk, where its power may fail. `folder` need not be there yet."""

    def __init__(self, folder: str):
        self._folder = folder
        self._contents: dict[int, bytes] = {}  # inode → what it was when it was synced
        self._names: list[dict[str, int]] = [{}]  # name → inode: at the last sync of the folder, and after each change since

    def sync(self, descriptor: int) -> None:
        """A file, or the folder, is synced."""
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names = [self._look()]
        elif os.readlink(f"/proc/self/fd/{descriptor}").startswith(self._folder):
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # which may be open for writing alone
                self._contents[status.st_ino] = file.read()

    def change(self) -> None:
        """A file of the folder was made, renamed or removed."""
        found = self._look()
        if found != self._names[-1]:
            self._names.append(found)

    def fail(self, random: Random, databases: Iterable[sqlite3.Connection]) -> Left:
        """What will be left. `databases`: those that processes have open."""
        self.change()
        there = {name: os.path.join(self._folder, name) for name in self._names[-1]}
        contents, modes, inodes = {}, {}, {}
        for name, path in there.items():
            with open(path, "rb") as file:
                contents[name] = file.read()
            status = os.stat(path)
            modes[name], inodes[status.st_ino] = stat.S_IMODE(status.st_mode), name
        left: dict[str, tuple[bytes, int]] = {}
        for name, inode in random.choice(self._names).items():
            if not _is_database(name):
                synced = self._contents.get(inode, b"")
                written = contents[inodes[inode]] if inode in inodes else synced
                left[name] = _part(synced, written, random), modes.get(name, _OWN)
        for name in filter(_is_database, there):
            if not name.endswith("-shm"):
                left[name] = contents[name], modes[name]
        for database in databases:
            try:
                path, is_each = _said(database)
            except sqlite3.ProgrammingError:
                continue  # its process has closed it
            log = os.path.basename(path) + "-wal"
            if not is_each and log in left:
                index = contents.get(os.path.basename(path) + "-shm", b"")
                left[log] = _cut(contents[log], index, _page_bytes(contents[os.path.basename(path)]), random), modes[log]
        return Left(left)

    def come_back(self, left: Left) -> None:
        """Have the folder be so."""
        for name in os.listdir(self._folder):
            os.unlink(os.path.join(self._folder, name))  # not written over: whoever has it open still is not alive
        for name, (content, mode) in left.files.items():
            descriptor = os.open(os.path.join(self._folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWN)
            os.write(descriptor, content)
            os.fchmod(descriptor, mode)
            os.close(descriptor)
        self._names = [self._look()]
        self._contents = {inode: left.files[name][0] for name, inode in self._names[0].items()}

    def _look(self) -> dict[str, int]:
        with contextlib.suppress(FileNotFoundError):
            return {entry.name: entry.inode() for entry in os.scandir(self._folder)}
        return {}


def _is_database(name: str) -> bool:
    """Whether SQLite writes it."""
    for end in _BESIDE:
        name = name.removesuffix(end)
    return name.endswith((".spool", ".spool.new", ".keys"))


def _part(synced: bytes, written: bytes, random: Random) -> bytes:
    """What was synced, with the first bytes of what was written since."""
    size = max(len(synced), len(written))
    before, after = synced.ljust(size, b"\0"), written.ljust(size, b"\0")
    others = [place for place in range(size) if before[place] != after[place]]
    if not others:
        return random.choice((synced, written))
    cut = random.choice((0, size, random.randint(others[0], others[-1] + 1)))
    return (after[:cut] + before[cut:])[: random.choice((max(cut, len(synced)), len(written)) if len(written) > cut else (len(written),))]


def _said(database: sqlite3.Connection) -> tuple[str, bool]:
    """Where it is, and whether each of its transactions is synced."""
    ask = lambda sql: sqlite3.Connection.execute(database, sql).fetchone()  # noqa: E731
    return ask("PRAGMA database_list")[2], ask("PRAGMA synchronous")[0] >= SYNCED_EACH


def _page_bytes(database: bytes) -> int:
    return int.from_bytes(database[16:18], "big") or 4096


def _cut(log: bytes, index: bytes, page_bytes: int, random: Random) -> bytes:
    """A log without the last of its frames: those that nobody synced."""
    if len(index) < _TAKEN_OVER + _WORD.size:
        return log
    frames, taken_over = _WORD.unpack_from(index, _FRAMES)[0], _WORD.unpack_from(index, _TAKEN_OVER)[0]
    return log[: _HEAD_BYTES + random.randint(min(taken_over, frames), frames) * (_FRAME_HEAD_BYTES + page_bytes)]
