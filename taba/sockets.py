"""What Twisted does not tell of the sockets beneath its transports, and what it does not ask of them."""

from __future__ import annotations

import socket
import struct
from typing import Any

from taba.bounds import KiB

MAX_UNSENT_BYTES = 128 * KiB  # of an answer, that the kernel takes before its peer does; it would take some MiB, and all be made for that
_TCP_NOTSENT_LOWAT = 25  # of Linux; in Python's socket from 3.12 on
_CREDENTIALS = struct.Struct("3i")  # of the peer of a socket of a file system: process, user, group


def bound_unsent(transport: Any) -> None:
    """Have the kernel take no more than MAX_UNSENT_BYTES that its peer has not taken."""
    handle = getattr(transport, "socket", None)  # the same beneath TLS; none in tests in memory
    if isinstance(handle, socket.socket) and handle.family in (socket.AF_INET, socket.AF_INET6):
        handle.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)


def has_unsent(transport: Any) -> bool:
    """Whether anything waits to be sent, or nothing may be: what comes after that waits, too."""
    is_open = transport.connected and not transport.disconnecting and not transport._writeDisconnected
    return not is_open or transport._tempDataLen > 0 or transport.offset < len(transport.dataBuffer)


def user_of(transport: Any) -> int | None:
    """The user at the other end of a socket of a file system; None of another."""
    handle = getattr(transport, "socket", None)
    if handle is None or handle.family != socket.AF_UNIX:
        return None
    _, user, _ = _CREDENTIALS.unpack(handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(user)
