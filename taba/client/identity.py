"""Who this process is: the client id, its placeholders, and the slot that four equal workers are told apart by."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping

from taba import ring
from taba.client.segment import Memory
from taba.names import check_client

DEFAULT_CLIENT = "{host}:{program}/{slot}"
MAX_SLOTS = 10_000  # processes of one program on one host; more are a mistake, and each takes a file
_MAX_HOST = 64  # characters of the host and of the program, so that the default id is never too long
_MAX_PROGRAM = 100

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FOREIGN = re.compile(r"[^A-Za-z0-9_.@+-]")


def host() -> str:
    """This host's name, as far as a client id may hold it."""
    return _clean(os.uname().nodename)[:_MAX_HOST] or "host"


def program() -> str:
    """The name of the program that runs: of its script, or with `-m` of its module."""
    path = sys.argv[0] if getattr(sys, "argv", None) else ""
    folder, name = os.path.split(path)
    if name == "__main__.py":
        name = os.path.basename(folder)
    elif name.endswith(".py"):
        name = name[:-3]
    return _clean(name)[:_MAX_PROGRAM] if name not in ("", "-c", "-m", "-") else "python"


def _clean(text: str) -> str:
    return _FOREIGN.sub("_", text).lstrip("_")


def expand(template: str, environment: Mapping[str, str], slot: Callable[[], int]) -> str:
    """The client id that `template` stands for; `slot` is asked only where it says {slot}. Raises ValueError."""
    if not isinstance(template, str):
        raise ValueError(f"client id {template!r}: takes a text")

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name == "host":
            return host()
        if name == "program":
            return program()
        if name == "slot":
            return str(slot())
        if name.startswith("env:"):
            if not name[4:]:
                raise ValueError(f"client id {template!r}: {{env:}} names no variable of the environment; takes {{env:NAME}}")
            if name[4:] not in environment:
                raise ValueError(f"client id {template!r}: the environment has no {name[4:]}")
            return environment[name[4:]]
        raise ValueError(f"client id {template!r}: {{{name}}} is none of {{host}} {{program}} {{slot}} {{env:NAME}}")

    return check_client(_PLACEHOLDER.sub(fill, template))


class Slot:
    """The lowest number that no other process of this program holds on this host, held until this process ends or lets go.

    Held like a ring: by a flock on a mapped file, so that it survives the closing of all descriptors, and is free when the
    process dies. Every user's processes of the program share the numbers: the files can be read, and so locked, by all.
    """

    def __init__(self) -> None:
        digest = hashlib.blake2b(f"{host()}\0{program()}".encode(), digest_size=8).hexdigest()
        self._prefix = f"taba-slot.{digest}."
        for number in range(MAX_SLOTS):
            memory = _lock(self._path(number))
            if memory is not None:
                self.number = number
                self._memory = memory
                return
        raise OSError(f"more than {MAX_SLOTS} processes of {program()!r}")

    def _path(self, number: int) -> str:
        return os.path.join(ring.SHM_DIRECTORY, f"{self._prefix}{number}")

    def let_go(self) -> None:
        """Free the number; and remove the files of all numbers of this program that nobody holds."""
        _remove(self._path(self.number))  # while it is locked: who finds the name gone or changed after locking tries again
        self._memory.let_go()
        for name in os.listdir(ring.SHM_DIRECTORY):
            if name.startswith(self._prefix):
                path = os.path.join(ring.SHM_DIRECTORY, name)
                memory = _lock(path, make=False)
                if memory is not None:
                    _remove(path)
                    memory.let_go()

    def unmap_in_child(self) -> None:
        """In a forked child: leave the number to the parent."""
        self._memory.unmap_in_child()


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except (FileNotFoundError, PermissionError):
        return  # another user's, or removed by a cleaner: an empty file is left, or nothing


def _lock(path: str, make: bool = True) -> Memory | None:
    """The locked file at `path`, made where needed; None where another process holds it or it cannot be had."""
    while True:
        try:
            descriptor = _open(path, make)
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            return None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            status = os.fstat(descriptor)
            try:
                named = os.stat(path)
            except FileNotFoundError:
                named = None
            if named is None or (named.st_dev, named.st_ino) != (status.st_dev, status.st_ino):
                if not make:
                    return None
                continue  # removed between open and flock by the process that held it
            if status.st_size == 0:
                if not make or status.st_uid != os.geteuid():
                    return None  # its maker was just about to lock it
                os.fchmod(descriptor, 0o644)  # whatever the umask: others take part in the numbering
                os.truncate(descriptor, 1)  # something to map
            return Memory(descriptor, 1, writable=False)
        finally:
            os.close(descriptor)


def _open(path: str, make: bool) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    if make:
        try:
            return os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o644)
        except PermissionError:
            pass  # another user's file; /dev/shm is a place where such are opened to be read, or not at all
    return os.open(path, flags | os.O_RDONLY)
