"""The box in which a child process works: what the kernel takes from it for good. Linux; standard library only.

1. Memory, files, and processor time from one request to the next have limits; what goes beyond is an error of the code that does, or
   its end. Each file is bounded, and how many are open, not how many it leaves on a disk.
2. The network is taken away by a namespace; by a filter of system calls sockets are, those of files as well, memory that no limit
   counts, other programs and other processes: it starts none, and signals, traces, limits and slows none; nor are there keys and queues
   that outlive it. Threads it may start.
3. The memory of the Server is behind /proc, where no call need be made for it: a domain of Landlock keeps a process from that of every
   process outside, root's too; where there is none, a Server that is not root's closes it to all of its user (`close_memory`).
4. Of what root alone may do it keeps what files take: it mounts nothing, sets no clock, and looks into no process.
5. Where the kernel allows one of these not, the child works on, and says so; what it has started then ends with it by its session, unless
   it left that.
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
PR_SET_DUMPABLE = 4
CAPABILITY_VERSION = 0x2008_0522  # from linux/capability.h
KEPT_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID: what a root's files take
F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP = 8, 15, 0x8901, 0x8902  # who is signalled, by whatever number, when a pipe can be read
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # the same number on every kind of machine
LANDLOCK_ACCESS_FS_MAKE_BLOCK, LANDLOCK_ACCESS_NET_BIND_TCP = 1 << 11, 1 << 0  # from linux/landlock.h
LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_WITH_NET = 1, 4  # what asks for the version of Landlock, and the first with rules for nets


class _Calls(NamedTuple):
    """The numbers of system calls on a kind of machine."""

    machine: int  # by which a filter knows it (linux/audit.h)
    clone: int  # makes processes or threads, by its first argument
    clone3: int  # the same, where a filter cannot see which
    mmap: int
    sendto: int
    fcntl: int
    ioctl: int
    refused: tuple[int, ...]
    own: tuple[int, ...]  # whose first argument is a process: this one, or 0


_CALLS = {
    "x86_64": _Calls(
        0xC000_003E,
        56,
        435,
        9,
        44,
        72,
        16,
        (
            # fork, vfork, execve, execveat; socket, io_uring_setup (it opens sockets, too); ptrace, process_vm_readv and _writev,
            # pidfd_send_signal, pidfd_open, pidfd_getfd, process_madvise, kcmp; memfd_create, memfd_secret
            *(57, 58, 59, 322, 41, 425, 101, 310, 311, 424, 434, 438, 440, 312, 319, 447),
            # connect, bind, sendmsg, sendmmsg: one of a pair of sockets reaches others of files; add_key,
            # request_key, keyctl; userfaultfd, bpf, perf_event_open, fanotify_init; setpriority, ioprio_set, migrate_pages, move_pages;
            # unshare, setns, mount, umount2, chroot, open_by_handle_at
            *(42, 49, 46, 307, 248, 249, 250, 323, 321, 298, 300, 141, 251, 256, 279, 272, 308, 165, 166, 161, 304),
            # what others of this user have is used by its number, too: shmget, shmat, shmctl; semget, semop, semctl, semtimedop; msgget,
            # msgsnd, msgrcv, msgctl; mq_open, mq_unlink
            *(29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71, 240, 241),
        ),
        # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, prlimit64; sched_setaffinity, _setscheduler, _setparam and _setattr
        (62, 200, 234, 129, 297, 302, 203, 144, 142, 314),
    ),
    "aarch64": _Calls(
        0xC000_00B7,
        220,
        435,
        222,
        206,
        25,
        29,
        (
            *(221, 281, 198, 425, 117, 270, 271, 424, 434, 438, 440, 272, 279, 447),  # fork and vfork there are not
            *(203, 200, 211, 269, 217, 218, 219, 282, 280, 241, 262, 140, 30, 238, 239, 97, 268, 40, 39, 51, 265),
            *(194, 196, 195, 190, 193, 191, 192, 186, 189, 188, 187, 180, 181),
        ),
        (129, 130, 131, 138, 240, 261, 122, 119, 118, 274),
    ),
}
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of BPF: a word, jumps, an end
_NUMBER, _MACHINE, _ARGUMENTS, _ARGUMENT_BYTES = 0, 4, 16, 8  # where seccomp_data has them
_ALLOW, _FAIL = 0x7FFF_0000, 0x0005_0000
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20  # from linux/mman.h


class Box(NamedTuple):
    """What the kernel left to a child: whether it reaches a network, whether it can start processes, and whether it reaches the memory of
    the process that started it."""

    has_network: bool
    has_processes: bool
    has_memory: bool


def enter() -> Box:
    """Put this process, which has one thread, into its box, before it imports anything of others."""
    with suppress(PermissionError):  # it leads a session already
        os.setsid()  # so that what it leaves behind can be found, and ended with it
    _confine()
    has_left = _leave_network()
    _drop_capabilities()
    _leave_others()
    is_filtered = _filter_calls()
    return Box(not (has_left or is_filtered), not is_filtered, _reaches_memory(os.getppid()))


def close_memory() -> bool:
    """Have no other process of this one's user reach this one's memory, but root's; whether the kernel does so.

    It leaves no core file then, and debuggers and profilers of that user are refused, too.
    """
    return os.geteuid() != 0 and bool(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)


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


def _drop_capabilities() -> None:
    """Have what root may do beyond others no more, but for files; no program is run that would give it back."""
    libc = ctypes.CDLL(None, use_errno=True)
    who = ctypes.create_string_buffer(struct.pack("Ii", CAPABILITY_VERSION, 0), 8)
    held = ctypes.create_string_buffer(24)
    if libc.capget(who, held) == 0:
        effective, permitted = struct.unpack_from("II", held)
        libc.capset(who, struct.pack("6I", effective & KEPT_CAPABILITIES, permitted & KEPT_CAPABILITIES, 0, 0, 0, 0))


def _leave_others() -> None:
    """Enter a domain, from which no process outside is traced, nor its memory opened; where there is Landlock."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return
    # a domain restricts something, here what no Handler does: listening, or, with kernels that know no rules for that, making block
    # devices (and, with these, moving a file to another directory by its name)
    knows_net = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION) >= LANDLOCK_WITH_NET
    content = struct.pack("<QQ", 0, LANDLOCK_ACCESS_NET_BIND_TCP) if knows_net else struct.pack("<Q", LANDLOCK_ACCESS_FS_MAKE_BLOCK)
    rules = ctypes.create_string_buffer(content, len(content))
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(len(content)), 0)
    if ruleset >= 0:
        libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)  # what came of it, `_reaches_memory` tells
        os.close(ruleset)


def _reaches_memory(process: int) -> bool:
    """Whether this process may read that one's memory."""
    try:
        os.close(os.open(f"/proc/{process}/mem", os.O_RDONLY))
    except OSError:
        return False
    return True


def _filter_calls() -> bool:
    """Have the kernel refuse what this process, and any of its threads, has no business with; whether it does."""
    calls = _CALLS.get(platform.machine())
    if calls is None or struct.calcsize("P") != 8:
        return False
    program = _filter(calls, os.getpid())
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: how many instructions, and where they are
    where = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, where, 0, 0) == 0)


def _filter(calls: _Calls, process: int) -> bytes:
    """The filter's program: struct sock_filter each (operation, how far to jump where it holds and where not, operand)."""
    denied, unknown = _FAIL | errno.EPERM, _FAIL | errno.ENOSYS
    lines: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, calls.machine),
        (_RETURN, 0, 0, denied),  # calls as another machine makes them have other numbers
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x4000_0000),  # those of x32 as well
        (_RETURN, 0, 0, denied),
        (_EQUAL, 0, 1, calls.clone3),
        (_RETURN, 0, 0, unknown),  # so that libc starts its threads by clone
    ]
    for call in calls.refused:
        lines += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, denied)]
    for call in calls.own:
        lines += [
            (_EQUAL, 0, 5, call),
            (_LOAD, 0, 0, _ARGUMENTS),
            (_EQUAL, 2, 0, process),
            (_EQUAL, 1, 0, 0),  # itself, or its group and session, in which it is alone
            (_RETURN, 0, 0, denied),
            (_RETURN, 0, 0, _ALLOW),
        ]
    for call, one, other in ((calls.fcntl, F_SETOWN, F_SETOWN_EX), (calls.ioctl, FIOSETOWN, SIOCSPGRP)):
        lines += [
            (_EQUAL, 0, 5, call),
            (_LOAD, 0, 0, _ARGUMENTS + _ARGUMENT_BYTES),
            (_EQUAL, 1, 0, one),
            (_EQUAL, 0, 1, other),
            (_RETURN, 0, 0, denied),
            (_RETURN, 0, 0, _ALLOW),
        ]
    to = _ARGUMENTS + 4 * _ARGUMENT_BYTES  # an address; nowhere but to the other of a pair
    lines += [
        (_EQUAL, 0, 6, calls.sendto),
        (_LOAD, 0, 0, to),
        (_EQUAL, 0, 2, 0),
        (_LOAD, 0, 0, to + _ARGUMENT_BYTES // 2),
        (_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, denied),
        (_RETURN, 0, 0, _ALLOW),
    ]
    lines += [
        (_EQUAL, 0, 5, calls.mmap),
        (_LOAD, 0, 0, _ARGUMENTS + 3 * _ARGUMENT_BYTES),  # flags
        (_HAS_BITS, 0, 2, _MAP_SHARED),
        (_HAS_BITS, 0, 1, _MAP_ANONYMOUS),
        (_RETURN, 0, 0, denied),  # it is no part of the data that has a limit
        (_RETURN, 0, 0, _ALLOW),
        (_EQUAL, 0, 3, calls.clone),
        (_LOAD, 0, 0, _ARGUMENTS),
        (_HAS_BITS, 1, 0, CLONE_THREAD),
        (_RETURN, 0, 0, denied),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)
