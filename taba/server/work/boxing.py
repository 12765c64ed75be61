"""The box in which a child process works: what the kernel takes from it for good. Linux; standard library only.

1. Memory, files, and processor time from one request to the next have limits; what goes beyond is an error of the code that does, or
   its end.
2. The network is taken away by a namespace, and other processes by a filter of system calls: threads it may start, processes not. Where
   the kernel allows either not, the child works on, and says so; what it has started then ends with it by its session, unless it left that.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from contextlib import suppress
from typing import NamedTuple

from taba.bounds import MiB

MAX_MEMORY_BYTES = 2048 * MiB  # a Handler that takes more gets MemoryError
MAX_FILE_BYTES = 16 * MiB  # of any file that it writes: no Handler fills a disk, nor does a core file
MAX_FILES = 256  # that it has open; its modules, its pipes and some of its own
MAX_PROCESSOR_SECONDS = 60  # between two requests: the Server ends it far sooner, unless the Server itself is stopped

CLONE_NEWUSER, CLONE_NEWNET = 0x1000_0000, 0x4000_0000  # from linux/sched.h
CLONE_THREAD = 0x1_0000
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2  # from linux/prctl.h and seccomp.h

# by machine: the number by which a filter knows it (linux/audit.h), the calls that make processes or threads by flags, those that make
# processes alone, and clone3, whose flags a filter cannot see
_CALLS = {
    "x86_64": (0xC000_003E, 56, (57, 58), 435),
    "aarch64": (0xC000_00B7, 220, (), 435),
}
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of BPF: a word, jumps, an end
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # where seccomp_data has them
_ALLOW, _FAIL = 0x7FFF_0000, 0x0005_0000


class Box(NamedTuple):
    """What the kernel left to a child: whether it reaches a network, and whether it can start processes."""

    has_network: bool
    has_processes: bool


def enter() -> Box:
    """Put this process, which has one thread, into its box, before it imports anything of others."""
    with suppress(PermissionError):  # it leads a session already
        os.setsid()  # so that what it leaves behind can be found, and ended with it
    _confine()
    has_network = not _leave_network()
    return Box(has_network, not _refuse_processes())


def bound_processor() -> None:
    """Bound the processor time that this process takes from now on: what runs beyond that, in whatever thread, is its end."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(used.ru_utime + used.ru_stime) + MAX_PROCESSOR_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _confine() -> None:
    """Limits that stand for as long as it lives."""
    for what, most in (
        (resource.RLIMIT_DATA, MAX_MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _leave_network() -> bool:
    """Have this process, which has one thread, reach no network; whether the kernel lets it: some let root alone, some none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) == 0:
        return True
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return False
    # without these it would be nobody to itself
    for name, content in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
        with suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(content)
    return True


def _refuse_processes() -> bool:
    """Have the kernel refuse this process, and all of its threads, to make processes; whether it does."""
    calls = _CALLS.get(platform.machine())
    if calls is None or struct.calcsize("P") != 8:
        return False
    program = _filter(*calls)
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions, and where they are
    where = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, where, 0, 0) == 0)


def _filter(machine: int, clone: int, forks: tuple[int, ...], clone3: int) -> bytes:
    """The filter's program: struct sock_filter each (operation, how far to jump where it holds and where not, operand)."""
    denied, unknown = _FAIL | errno.EPERM, _FAIL | errno.ENOSYS
    lines: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, denied),  # calls as another machine makes them have other numbers
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x4000_0000),  # those of x32 as well
        (_RETURN, 0, 0, denied),
        (_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, unknown),  # so that libc starts its threads by clone
    ]
    for fork in forks:
        lines += [(_EQUAL, 0, 1, fork), (_RETURN, 0, 0, denied)]
    lines += [
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_HAS_BITS, 1, 0, CLONE_THREAD),
        (_RETURN, 0, 0, denied),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)
