"""A plain connection to the store, for its own counts."""

from __future__ import annotations

import socket
from typing import Any

import hiredis

ASK_SECONDS = 30.0


class StoreClient:
    """Blocking; one command at a time."""

    def __init__(self, path: str):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ASK_SECONDS)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def ask(self, *command: bytes | str | int) -> Any:
        """The reply to one command. Raises hiredis.ReplyError."""
        self._socket.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]  # its annotation means a tuple of one
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(1 << 20))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def counts(self) -> dict[str, int]:
        """The store's own counts: `total_net_input_bytes`, `total_net_output_bytes`, `total_commands_processed`, `used_memory` …"""
        lines = (self.ask(b"INFO", b"stats") + self.ask(b"INFO", b"memory")).decode().splitlines()
        pairs = (line.partition(":")[::2] for line in lines)
        return {name: int(figure) for name, figure in pairs if figure.isdigit()}

    def close(self) -> None:
        self._socket.close()
