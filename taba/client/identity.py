"""Who this process is: the client id, its placeholders, and the slot that four equal workers are told apart by."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping

from taba import ring
from taba.client.segment import Memory, begin_making, end_making
from taba.names import check_client

DEFAULT_CLIENT = "{host}:{program}/{slot}"
MAX_SLOTS = 10_000  # processes of one program on one host; more are a mistake, and each takes a file
_MAX_HOST = 64  # characters of the host and of the program, so that the default id is never too long
_MAX_PROGRAM = 100
_RESERVED = "taba."  # at the start of an id; a host of that name is another

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FOREIGN = re.compile(r"[^A-Za-z0-9_.@+-]")


def host() -> str:
    """This host's name, as far as a client id may hold it; one that an id may begin with, whatever the host is called."""
    return _clean(os.uname().nodename, _MAX_HOST) or "host"


def program() -> str:
    """The name of the program that runs: of its script, or with `-m` of its module; one that an id may begin with."""
    arguments = getattr(sys, "argv", None)
    path = arguments[0] if isinstance(arguments, (list, tuple)) and arguments else ""
    if not isinstance(path, str):  # who embeds Python may put anything there
        return "python"
    folder, name = os.path.split(path)
    if name == "__main__.py":
        name = os.path.basename(folder)
    elif name.endswith(".py"):
        name = name[:-3]
    return "python" if name in ("-c", "-m", "-") else _clean(name, _MAX_PROGRAM) or "python"


def _clean(text: str, most: int) -> str:
    cleaned = _FOREIGN.sub("_", text).lstrip("_")[:most]
    return cleaned.replace(".", "_", 1) if cleaned.startswith(_RESERVED) else cleaned


def expand(template: str, environment: Mapping[str, str], slot: Callable[[], int]) -> str:
    """The client id that `template` stands for; `slot` is asked only where it says {slot}. Raises ValueError."""
    if not isinstance(template, str):
        raise ValueError(f"client id {template!r}: takes a text")

    parts, end = [], 0
    for match in _PLACEHOLDER.finditer(template):
        parts += [template[end : match.start()], _filled(template, match[1], environment, slot)]
        end = match.end()
    return check_client("".join([*parts, template[end:]]))


def pattern(template: str, environment: Mapping[str, str]) -> str:
    """A regular expression of the client ids that this template stands for in this program on this host, whatever their slots."""
    parts, end = [], 0
    for match in _PLACEHOLDER.finditer(template):
        filled = "[0-9]+" if match[1] == "slot" else re.escape(_filled(template, match[1], environment, int))
        parts += [re.escape(template[end : match.start()]), filled]
        end = match.end()
    return "".join([*parts, re.escape(template[end:])])


def _filled(template: str, name: str, environment: Mapping[str, str], slot: Callable[[], int]) -> str:
    if name == "host":
        return host()
    if name == "program":
        return program()
    if name == "slot":
        return str(slot())
    if not name.startswith("env:"):
        raise ValueError(f"client id {template!r}: {{{name}}} is none of {{host}} {{program}} {{slot}} {{env:NAME}}")
    if not name[4:]:
        raise ValueError(f"client id {template!r}: {{env:}} names no variable of the environment; takes {{env:NAME}}")
    if name[4:] not in environment:
        raise ValueError(f"client id {template!r}: the environment has no {name[4:]}")
    return environment[name[4:]]


class Slot:
    """The lowest number that no other process of this program and this user holds on this host, held until it ends or lets go.

    Held like a ring: by a flock on a mapped file, so that it survives the closing of all descriptors, and is free when the
    process dies. The files are their owner's alone; a name that a stranger has taken is passed over, and told where none is left.
    """

    def __init__(self) -> None:
        # a host's and a program's names hold no NUL, and numbers of users no more than digits
        digest = hashlib.blake2b(f"{host()}\0{program()}\0{os.geteuid()}".encode(), digest_size=8).hexdigest()
        self._prefix = f"taba-slot.{digest}."
        for number in range(MAX_SLOTS):
            memory = _lock(self._path(number))
            if memory is not None:
                self.number = number
                self._memory = memory
                return
        raise OSError(errno.EAGAIN, f"all {MAX_SLOTS} numbers of {program()!r} are taken: {self._holders()}")

    def _holders(self) -> str:
        try:
            status = os.lstat(self._path(0))
        except OSError as error:
            return f"{self._path(0)}: {error.strerror}"
        if status.st_uid != os.geteuid():
            return f"{self._path(0)} belongs to user {status.st_uid}; remove what is not yours, or set TABA_CLIENT_ID without {{slot}}"
        return "by processes of its own; set TABA_CLIENT_ID without {slot}"

    def _path(self, number: int) -> str:
        return os.path.join(ring.SHM_DIRECTORY, f"{self._prefix}{number}")

    def own(self) -> None:
        """Somebody has it who leaves it to the parent where a child is forked."""
        self._memory.own()

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
    """The locked file at `path`, made where needed; None where another process holds it, or it is not this user's alone."""
    while True:
        try:
            flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_RDWR
            descriptor = os.open(path, flags | (os.O_CREAT if make else 0), 0o600)
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link or a socket: a stranger's
                return None
            raise
        begin_making(descriptor)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                return None
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
                if not make:
                    return None  # its maker was just about to lock it
                os.fchmod(descriptor, 0o600)  # whatever the umask: the next process of this user opens it, too
                os.truncate(descriptor, 1)  # something to map
            return Memory(descriptor, 1, writable=False)
        finally:
            end_making(descriptor)
