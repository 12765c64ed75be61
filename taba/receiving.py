"""Where an input receives: `udp:PORT[:interface=ADDRESS]`, `tcp:PORT[:interface=ADDRESS]`, `unix:PATH[:mode=0660]`.

A port is on loopback, a socket's file its owner's alone, unless it says otherwise.

Standard library only.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import NamedTuple

LOOPBACK = "127.0.0.1"
MAX_UNIX_PATH = 99  # bytes: the kernel takes 107, and a socket is made beside its place first, with a dot and a pid of 7 digits
_NETWORK = re.compile(r"(udp|tcp):([0-9]{1,5})(?::interface=(.+))?")
_UNIX = re.compile(r"unix:(/[^:\0]*[^/:\0])(?::mode=0?([0-7]{3}))?")


class InputAddress(NamedTuple):
    """Where an input receives; `mode` is a unix socket's, whose path is the `place`."""

    kind: str  # udp, tcp or unix: datagrams, connections, datagrams
    place: str
    port: int
    mode: int

    @property
    def text(self) -> str:
        """The whole of it, the same for the same place."""
        if self.kind == "unix":
            return f"unix:{self.place}:mode={self.mode:04o}"
        return f"{self.kind}:{self.port}:interface={self.place}"

    @property
    def is_local(self) -> bool:
        """Whether nobody off this host gets there."""
        return self.kind == "unix" or ip_address(self.place).is_loopback


def receiving(text: str) -> InputAddress:
    """The address that `text` says. Raises ValueError with what it takes."""
    takes = "takes udp:PORT[:interface=ADDRESS], tcp:PORT[:interface=ADDRESS] or unix:PATH[:mode=0660]; for example udp:8125"
    if match := _UNIX.fullmatch(text):
        if len(match[1].encode()) > MAX_UNIX_PATH:
            raise ValueError(f"takes a path of at most {MAX_UNIX_PATH} bytes")
        return InputAddress("unix", match[1], 0, int(match[2] or "600", 8))
    match = _NETWORK.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65_536:
        raise ValueError(takes)
    interface = (match[3] or LOOPBACK).replace("\\:", ":")
    try:
        place = LOOPBACK if interface == "localhost" else str(ip_address(interface))
    except ValueError:
        raise ValueError(takes) from None
    return InputAddress(match[1], place, int(match[2]), 0)
