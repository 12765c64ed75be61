"""The machine as Taba's modules see it: files, locks, time and chance, each by the names that these modules have for them.

1. Files are real ones, in a folder of the world's own, with the kernel's own locks. What is put in between: a write may be the last thing
   that a process does, disk or memory may be full, and whoever dies lets go of descriptors and locks.
2. The modules get it all where they name it: `os`, `sqlite3`, `mmap`, `time` of a module is exchanged for as long as a world lives.
   There is no other hook in Taba for this.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from simulation.clockwork import Clockwork, Killed, Process
from simulation.names import part_of
from simulation.power import Left, Synced
from taba import ring
from taba.agent.database import Connection
from taba.batch import BATCH_VERSION, reading_batch
from taba.errors import UnknownVersion

PAGE = 4096
KERNEL_TICK_SECONDS = 0.004  # of its coarse clock
_NOTHING = object()  # a name that a module takes from the builtins
_UNLOCK = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)

# whose `os` is exchanged
WITH_OS = (
    "taba.agent.closing",
    "taba.agent.database",
    "taba.agent.directory",
    "taba.agent.discover",
    "taba.agent.history",
    "taba.agent.home",
    "taba.agent.keys",
    "taba.agent.locks",
    "taba.agent.manifest",
    "taba.agent.pin",
    "taba.agent.opened",
    "taba.agent.register",
    "taba.agent.salvage",
    "taba.agent.search",
    "taba.agent.segment",
    "taba.agent.spool",
    "taba.agent.sums",
    "taba.client.producer",
    "taba.client.segment",
    "taba.damage",
    "taba.server.keep.jobs",
    "taba.shard.atlas",
    "taba.shard.lock",
    "taba.shard.moving.mover",
    "taba.shard.router",
)


# What the kernel refuses is raised in the module that asked; the client looks at that, and takes others' exceptions for the application's
_IN_TABA: dict[str, Any] = {"__name__": "taba.client", "os": os}
exec("def refuse(number):\n    raise OSError(number, os.strerror(number))", _IN_TABA)
refuse: Callable[[int], None] = _IN_TABA["refuse"]


# what writes, too: a module that takes it up would write where nobody can be killed
UNSEEN = frozenset(
    ("writev", "sendfile", "copy_file_range", "splice", "sync", "symlink", "mkfifo", "mknod", "makedirs", "removedirs", "renames", "chown")
)
# modules that open files to write in them, by the builtin: their `open` is exchanged
WITH_OPEN = ("taba.agent.pin", "taba.agent.register", "taba.agent.salvage")


class FileSystem:
    """What `os` is to a module. What is not here is the real one's."""

    def __init__(self, machine: Machine):
        self._machine, self._world = machine, machine.world

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        assert name not in UNSEEN, f"os.{name} writes, and is no step of a world: let it be one here"
        setattr(self, name, found)  # looked for once
        return found

    def urandom(self, count: int) -> bytes:
        return self._world.running.random.randbytes(count)

    def getpid(self) -> int:
        return 4242  # nobody here asks it to tell two processes apart

    def register_at_fork(self, **_: Any) -> None:
        """Nobody forks here."""

    def stat(self, path: Any, **options: Any) -> Any:
        if path == self._machine.shm:
            return _Changed(self._machine.changed)  # the kernel's clock is not the world's
        return os.stat(path, **options)

    def scandir(self, path: Any) -> Any:
        return _Entries(sorted(os.scandir(path), key=lambda entry: entry.name))

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        process = self._world.running
        if flags & os.O_CREAT:
            process.write(f"the making of {os.path.basename(path)}")
            self._machine.notes_change()
        elif not process.is_alive:
            raise Killed
        descriptor = os.open(path, flags, mode)
        process.descriptors[descriptor] = None
        if not process.is_alive:
            raise Killed
        return descriptor

    def close(self, descriptor: int) -> None:
        process = self._world.running
        if not process.is_alive:
            raise Killed
        process.descriptors.pop(descriptor, None)
        os.close(descriptor)

    def pwrite(self, descriptor: int, content: Any, offset: int) -> int:
        process = self._world.running
        when = process.write("a write to a file")
        if when == "within":
            # the kernel looks for a kill between two pages, and nowhere else
            cut = PAGE - offset % PAGE
            if len(content) > cut:
                os.pwrite(descriptor, content[: cut + PAGE * process.random.randrange(max(1, (len(content) - cut) // PAGE))], offset)
            raise Killed
        written = os.pwrite(descriptor, content, offset)
        if when:
            raise Killed
        return written

    def pwritev(self, descriptor: int, parts: Any, offset: int) -> int:
        return self.pwrite(descriptor, b"".join(parts), offset)

    def write(self, descriptor: int, content: bytes) -> int:
        process = self._world.running
        when = process.write("an append to a file")
        if when == "within":
            os.write(descriptor, content[: process.random.randrange(len(content))])
            raise Killed
        if not _has_room(descriptor, len(content)):
            content = content[: self._machine.takes(len(content))]
        written = os.write(descriptor, content)
        if when:
            raise Killed
        return written

    def posix_fallocate(self, descriptor: int, offset: int, length: int) -> None:
        process = self._world.running
        is_on_disk = os.readlink(f"/proc/self/fd/{descriptor}").startswith(self._machine.disk)
        if (self._machine.is_disk_full or self._machine.disk_left == 0) if is_on_disk else self._machine.is_memory_full:
            self._machine.world.fired["disk full" if is_on_disk else "shared memory full"] += 1
            refuse(errno.ENOSPC)
        if process.write("the having of pages"):
            os.posix_fallocate(descriptor, offset, length)
            raise Killed
        os.posix_fallocate(descriptor, offset, length)

    def fstatvfs(self, descriptor: int) -> Any:
        return self.statvfs(descriptor)

    def statvfs(self, path: Any) -> Any:
        if self._machine.is_memory_full:
            self._world.fired["shared memory full"] += 1
        return _FileSystemSize(self._machine)

    def _whole(name: str) -> Any:  # type: ignore[misc]
        def run(self: FileSystem, *arguments: Any, **keywords: Any) -> Any:
            when = self._world.running.write(name)
            if when == "within":
                raise Killed  # it is one step of the kernel's: done, or not
            result = getattr(os, name)(*arguments, **keywords)
            self._machine.notes_change()
            if when:
                raise Killed
            return result

        return run

    unlink, remove, rename, replace, link = map(_whole, ("unlink", "remove", "rename", "replace", "link"))
    mkdir, rmdir, chmod, fchmod, fchown = map(_whole, ("mkdir", "rmdir", "chmod", "fchmod", "fchown"))
    truncate, ftruncate = map(_whole, ("truncate", "ftruncate"))

    def fsync(self, descriptor: int) -> None:
        when = self._world.running.write("fsync")
        if when in ("", "after") and self._machine.synced is not None:
            self._machine.synced.sync(descriptor)
        if when:
            raise Killed

    fdatasync = fsync

    def dup(self, descriptor: int) -> int:
        """A process's own, and no step: nobody else can tell."""
        return self._has(os.dup(descriptor))

    def dup2(self, descriptor: int, other: int, inheritable: bool = True) -> int:
        """The same."""
        return self._has(os.dup2(descriptor, other, inheritable))

    def _has(self, descriptor: int) -> int:
        self._world.running.descriptors[descriptor] = None  # what goes with the process
        return descriptor


def _has_room(descriptor: int, length: int) -> bool:
    """Whether what is written next goes where the file has pages already."""
    is_appended = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
    return not is_appended and os.lseek(descriptor, 0, os.SEEK_CUR) + length <= os.fstat(descriptor).st_size


class File:
    """A file that is written, as `open` gives one: each write is a step. Whoever dies leaves no object that closes it later."""

    def __init__(self, files: FileSystem, path: str, opener: Callable[[str, int], int], is_text: bool):
        self._files, self._is_text = files, is_text
        self._descriptor = opener(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)

    def write(self, content: Any) -> None:
        """All of it."""
        left = content.encode() if self._is_text else content
        while left:
            left = left[self._files.write(self._descriptor, left) :]

    def flush(self) -> None:
        """Nothing is held back."""

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        self._files.close(self._descriptor)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ChangedFile(File):
    """A file that is there, and changed in place, as `open` gives one for "r+b"."""

    def __init__(self, files: FileSystem, path: str):
        self._files, self._is_text = files, False
        self._descriptor = files.open(path, os.O_RDWR | os.O_CLOEXEC)

    def read(self, size: int) -> bytes:
        """As much as that, unless the file ends before."""
        return os.read(self._descriptor, size)

    def seek(self, offset: int) -> int:
        """Go there."""
        return os.lseek(self._descriptor, offset, os.SEEK_SET)

    def truncate(self, size: int) -> None:
        """Have it end there."""
        self._files.ftruncate(self._descriptor, size)


class _Entries(list[Any]):
    """What scandir gives: sorted, so that no file system's order counts."""

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""


class _Changed(NamedTuple):
    """When something was last made or removed in a folder."""

    st_mtime_ns: int


class _FileSystemSize:
    """How much room there is: plenty, or none."""

    def __init__(self, machine: Machine):
        self.f_frsize = PAGE
        self.f_blocks = 1 << 16
        self.f_bavail = 0 if machine.is_memory_full else 1 << 15


class Databases:
    """What `sqlite3` is to a module."""

    def __init__(self, machine: Machine):
        self._machine, self._world = machine, machine.world

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)

    def connect(self, path: str, **options: Any) -> Any:
        if path == ":memory:":
            return sqlite3.connect(path, **options)
        process = self._world.running
        if not process.is_alive:
            raise Killed
        database = sqlite3.connect(path, **{**options, "factory": _Database})
        database.machine, database.process = self._machine, process
        self._machine.databases.setdefault(process, []).append(database)
        return database


class _Database(Connection):
    """One connection; a process that is killed within a transaction has not made it. SQLite itself is trusted with its own files."""

    machine: Machine
    process: Process

    def execute(self, sql: str, *arguments: Any) -> Any:
        self._look(sql)
        return super().execute(sql, *arguments)

    def executemany(self, sql: str, *arguments: Any) -> Any:
        self._look(sql)
        return super().executemany(sql, *arguments)

    def _look(self, sql: str) -> None:
        if not self.process.is_alive:
            raise Killed
        word = sql.lstrip()[:6].upper()
        if word in ("INSERT", "DELETE", "COMMIT"):
            if word != "DELETE" and (self.machine.is_disk_full or self.machine.disk_left == 0):
                self.machine.world.fired["disk full"] += 1
                raise sqlite3.OperationalError("database or disk is full")
            if self.process.write(f"{word} in the spool"):
                if word == "COMMIT" and not self.process.is_alive:
                    super().execute(sql)  # it was killed just after
                raise Killed


class Words:
    """Shared memory as a process stores words there: each store is a step, and may be its last."""

    __slots__ = ("_process", "_view")

    def __init__(self, view: Any, process: Process):
        self._view, self._process = view, process

    def __getitem__(self, index: Any) -> Any:
        return self._view[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        process = self._process
        if process.fuse is None and process.is_alive:  # nearly all steps of a world are this one
            process.world.steps += 1
            self._view[index] = value
            return
        when = process.write("a store to shared memory")
        if when == "within":
            raise Killed  # a word is stored, or not
        self._view[index] = value
        if when:
            raise Killed

    def __len__(self) -> int:
        return len(self._view)

    def release(self) -> None:
        self._view.release()


class Machine:
    """The files of one world, in a folder that goes with it, and the exchanged names."""

    def __init__(self, world: Clockwork, directory: str | None = None):
        self.world = world
        world.running = Process(world, "nobody")
        self.root = tempfile.mkdtemp(prefix="taba-simulation.", dir=directory or memory_directory())
        self.shm = os.path.join(self.root, "shm")
        self.disk = os.path.join(self.root, "disk")
        os.mkdir(self.shm)  # the folder on the disk is the first Agent's to make
        self.is_memory_full = self.is_disk_full = False
        self.synced: Synced | None = None  # what is there when its power fails, where that may be
        self.disk_left: int | None = None  # bytes that the disk takes yet, where that is few: the write that needs more is torn
        self.changed = 0  # ticks of the kernel's clock until the last change of a folder
        self.reads_other_version: Callable[[Process], bool] = lambda process: False
        self.databases: dict[Process, list[_Database]] = {}
        self._undo: list[tuple[Any, str, Any]] = []

    @contextlib.contextmanager
    def exchanged(self) -> Iterator[None]:
        """Have Taba's modules see this machine."""
        try:
            self._exchange()
            yield
        finally:
            for where, name, before in reversed(self._undo):
                if before is _NOTHING:
                    delattr(where, name)
                else:
                    setattr(where, name, before)
            self._undo.clear()
            for databases in self.databases.values():
                for database in databases:
                    database.close()
            shutil.rmtree(self.root, ignore_errors=True)

    def _exchange(self) -> None:
        world, files, databases = self.world, FileSystem(self), Databases(self)
        for name in WITH_OS:
            module = importlib.import_module(name)
            if hasattr(module, "os"):
                self.put(module, "os", files)
        from taba.agent import database, keys, segment, spool
        from taba.client import port, producer, pure
        from taba.client.own_ring import OwnRing
        from taba.server.fold import envelopes
        from taba.shard.moving import mover

        def open_file(path: str, mode: str, encoding: str | None = None, opener: Any = None) -> Any:
            if "+" in mode:
                return ChangedFile(files, path)
            return File(files, path, opener, "b" not in mode) if "w" in mode else open(path, mode, encoding=encoding)

        for name in WITH_OPEN:
            self.put(importlib.import_module(name), "open", open_file)
        self.put(spool, "sqlite3", databases)
        self.put(keys, "sqlite3", databases)
        self.put(database, "sqlite3", databases)
        self.put(ring, "SHM_DIRECTORY", self.shm)
        for module in (pure, producer):
            self.put(module, "now", lambda: world.began_unix + world.now + world.running.skew)
        for module in (port, producer):
            self.put(module, "monotonic", lambda: world.running.seconds())
        make_ring = OwnRing.__init__

        def with_steps(self_: Any, *arguments: Any) -> None:
            make_ring(self_, *arguments)
            if arguments:
                # the words before the commit word count as one step with it: nothing reads them before
                self_.commits = Words(self_.commits, world.running)
                self_.marks = Words(self_.marks, world.running)

        self.put(OwnRing, "__init__", with_steps)
        read = reading_batch

        def of_version(content: bytes) -> Any:
            if self.reads_other_version(world.running):
                self.world.fired["a batch of another version"] += 1
                raise UnknownVersion("batch", 2**16, [BATCH_VERSION])
            return read(content)

        self.put(envelopes, "reading_batch", of_version)
        store = segment.Segment.store

        def with_step(self_: Any, offset: int, word: int) -> None:
            when = world.running.write("a store to the outbox")
            if when == "within":
                raise Killed
            store(self_, offset, word)
            if when:
                raise Killed

        self.put(segment.Segment, "store", with_step)
        watched = mover.Mover.watched

        async def with_sleep(self_: Any, bucket: int, request: Any) -> None:
            await watched(self_, bucket, request)
            process = world.running
            if process.sleep is not None and getattr(request, "name", None) == process.sleep[0]:
                (step, seconds), process.sleep = process.sleep, None
                process.wakes = world.now + seconds
                world.say(f"{process.name} sleeps before it has bucket {bucket} {step}")
                world.fired[f"slept before a step of a move: {part_of(process.name)}"] += 1
                await deferLater(cast(IReactorTime, process.reactor), 0.0)

        self.put(mover.Mover, "watched", with_sleep)

    def takes(self, length: int) -> int:
        """How much of a write of so many bytes the disk takes; refuses where that is nothing."""
        if self.disk_left is not None:
            taken, self.disk_left = min(length, self.disk_left), max(0, self.disk_left - length)
            if 0 < taken < length:
                self.world.fired["a write took a part"] += 1
            length = taken
        if self.is_disk_full or not length:
            self.world.fired["disk full"] += 1
            refuse(errno.ENOSPC)
        return length

    def folder(self, path: str) -> Path:
        """The path of a folder, as pathlib has it: to make one, or to remove it, is a step."""
        files = FileSystem(self)

        class Folder(type(Path())):  # type: ignore[misc]
            def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
                assert not parents, "a folder above it would be made unseen"
                if not (exist_ok and os.path.isdir(self)):
                    files.mkdir(self, mode)

            def rmdir(self) -> None:
                files.rmdir(self)

        return cast(Path, Folder(path))

    def notes_change(self) -> None:
        """A file was made, or removed."""
        self.changed = int(self.world.now / KERNEL_TICK_SECONDS) + 1
        if self.synced is not None:
            self.synced.change()

    def put(self, where: Any, name: str, instead: Any) -> None:
        """Exchange a name until the world ends."""
        self._undo.append((where, name, getattr(where, name, _NOTHING)))
        setattr(where, name, instead)

    def may_lose_power(self) -> None:
        """From now on it is noted what is synced."""
        self.synced = Synced(self.disk)

    def lose_power(self) -> Left:
        """What its disk will have when the power is back; before processes end, for who closes a database tidies up."""
        assert self.synced is not None
        return self.synced.fail(self.world.random, [one for databases in self.databases.values() for one in databases])

    def bury(self, process: Process) -> None:
        """A process is dead: its transactions are undone, its locks free, its descriptors closed."""
        for database in self.databases.pop(process, []):
            with contextlib.suppress(sqlite3.Error):
                sqlite3.Connection.close(database)
        for descriptor in process.descriptors:
            with contextlib.suppress(OSError):
                # a mapping of it may live on until its memory is collected: the lock must not
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _UNLOCK)
            with contextlib.suppress(OSError):
                os.close(descriptor)
        process.descriptors.clear()


def memory_directory() -> str | None:
    """A folder in memory, where there is one: the simulated files are many and small."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
