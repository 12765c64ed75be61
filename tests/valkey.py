"""A real Valkey for a test: in a directory of its own, gone with the test, gone with the test runner whatever ends it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hiredis import Reader, pack_command

from taba.server import keys
from taba.server.aging import BUCKET
from taba.shard.servers.binary import find_store_binary
from taba.shard.servers.embedded import SOCKET_NAME
from tests.patience import PATIENCE_SECONDS
from tests.processes import die_with_parent, free_port

__all__ = ["EphemeralValkey", "free_port"]


class EphemeralValkey:
    """One real store. `url` is for `parse_store` and `--store`; `settings` are Valkey's own, such as appendfsync="always".

    tcp=False: a unix socket, `unix:PATH`; tcp=True: `redis://127.0.0.1:PORT`. Starts in the constructor; hand `remove`
    to addCleanup. `kill` is kill -9; `start` starts it again on what is on disk (by default an append-only file, synced
    always, so that nothing acknowledged is lost). `environ` is added to its environment; `binary` is another server's.
    """

    def __init__(
        self,
        tcp: bool = False,
        directory: str | None = None,
        environ: Mapping[str, str] | None = None,
        binary: str | None = None,
        **settings: str,
    ):
        self.environ = dict(environ or {})
        self.binary = binary or find_store_binary()
        self.directory = Path(directory or tempfile.mkdtemp(prefix="taba-valkey-"))
        self.port = free_port() if tcp else 0
        self.settings = {"appendonly": "yes", "appendfsync": "always", "save": "", **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self.is_spoiled = False  # it was ended or stopped: not the one that was started any more
        self.start()

    @property
    def path(self) -> str:
        return str(self.directory / "valkey.sock")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.port else f"unix:{self.path}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Started, and not killed since."""
        return self._process is not None

    def arguments(self) -> list[str]:
        found = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        found += ["--unixsocket", self.path, "--unixsocketperm", "700", "--logfile", str(self.directory / "log")]
        for name, value in self.settings.items():
            found += [f"--{name.replace('_', '-')}", value]
        return found

    def start_again(self) -> None:
        """Start it unless it runs."""
        if not self.is_running:
            self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        arguments = self.arguments()
        environ = {**os.environ, **self.environ}
        self._process = subprocess.Popen(
            arguments, preexec_fn=die_with_parent, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if self.ask("PING").startswith((b"+PONG", b"-NOAUTH")):
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Valkey did not start: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.01)

    def ask(self, *arguments: Any) -> bytes:
        """The raw first bytes of the answer to one command, over a connection of its own, without Twisted."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(self.path)
            parts = [argument if isinstance(argument, bytes) else str(argument).encode() for argument in arguments]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
            return connection.recv(1 << 20)

    def call(self, *arguments: Any) -> Any:
        """The whole reply to one command, as hiredis reads it; an error reply is a value."""
        return self._call([arguments])

    def as_user(self, user: str, password: str, *arguments: Any) -> Any:
        """`call`, as this user."""
        return self._call([("AUTH", user, password), arguments])

    def _call(self, commands: Sequence[tuple[Any, ...]]) -> Any:
        return converse(self.path, commands)

    def pause(self) -> None:
        """SIGSTOP: it lives and answers nothing."""
        assert self._process is not None
        self.is_spoiled = True
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.is_spoiled = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """End it and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def converse(path: str, commands: Sequence[tuple[Any, ...]]) -> Any:
    """The whole reply to the last of `commands`, sent one after the other over a connection to the unix socket `path`."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.connect(path)
        reader = Reader()
        for command in commands:
            connection.sendall(pack_command(command))
            while (reply := reader.gets()) is False:
                received = connection.recv(1 << 20)
                if not received:
                    raise ConnectionError("the store ended")
                reader.feed(received)
        return reply


def make_older(directory: Path, minutes: int) -> int:
    """Let so many minutes pass for the embedded store in `directory`; its age then. Its Servers see it within seconds."""
    descriptor = os.open(directory, os.O_PATH)
    try:
        path = f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"  # however long the directory's name is
        age, wall, doubts = converse(path, [("GET", keys.age(BUCKET))]).split()
        older = int(age) + minutes
        converse(path, [("SET", keys.age(BUCKET), b"%d %b %b" % (older, wall, doubts))])
    finally:
        os.close(descriptor)
    return older
