"""The real stores that benchmarks use: one Valkey, masters behind sentinels, a Cluster; all on loopback, each in a directory of its own."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.store import StoreClient
from demo.processes import Child, free_port
from taba.shard.servers.binary import find_store_binary
from taba.shard.servers.cluster import SLOTS

START_SECONDS = 30.0
SYNCED = {"appendonly": "yes", "appendfsync": "always", "save": ""}


class Valkey:
    """One store, which syncs each write unless `settings`, Valkey's own, say otherwise. Runs when the constructor returns."""

    def __init__(self, **settings: str):
        self.directory = Path(tempfile.mkdtemp(prefix="taba-bench-valkey-"))
        self.port = free_port()
        self.socket = str(self.directory / "valkey.sock")
        self._child = Child("valkey", self._command(settings), self.directory, {})
        try:
            _wait_until(self._answers)
        except BaseException:
            self.remove()
            raise

    def _command(self, settings: dict[str, str]) -> list[str]:
        common = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.directory), "unixsocket": self.socket}
        options = {**common, **SYNCED, **settings}
        return [find_store_binary(), *(part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value))]

    def _answers(self) -> bool:
        self._child.check()
        try:
            return bool(self.call("PING") == b"PONG")
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def call(self, *command: bytes | str | int) -> Any:
        """The reply to one command, over a connection of its own. Raises hiredis.ReplyError."""
        client = StoreClient(self.socket)
        try:
            return client.ask(*command)
        finally:
            client.close()

    def remove(self) -> None:
        """End it and remove its directory."""
        self._child.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class _Sentinel(Valkey):
    """One sentinel, with its configuration in a file."""

    def __init__(self, configuration: list[str]):
        self._configuration = configuration
        super().__init__()

    def _command(self, settings: dict[str, str]) -> list[str]:
        path = self.directory / "sentinel.conf"
        lines = [f"port {self.port}", "bind 127.0.0.1", f'unixsocket "{self.socket}"', f"dir {self.directory}", *self._configuration]
        path.write_text("\n".join(lines) + "\n")
        return [find_store_binary(), str(path), "--sentinel"]


class Group:
    """Several of them, ended together."""

    def __init__(self) -> None:
        self.members: list[Valkey] = []

    def add(self, valkey: Valkey) -> Valkey:
        self.members.append(valkey)
        return valkey

    def remove(self) -> None:
        for valkey in reversed(self.members):
            valkey.remove()


class Sentinels(Group):
    """Masters m1, m2 …, each with a replica, watched by three sentinels."""

    def __init__(self, masters: int):
        super().__init__()
        names = {}
        for number in range(1, masters + 1):
            master = self.add(Valkey(repl_diskless_sync_delay="0"))
            self.add(Valkey(repl_diskless_sync_delay="0", replicaof=f"127.0.0.1 {master.port}"))
            names[f"m{number}"] = master
        configuration = [f"sentinel monitor {name} 127.0.0.1 {master.port} 2" for name, master in names.items()]
        sentinels = [self.add(_Sentinel(configuration)) for _ in range(3)]
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{one.port}' for one in sentinels)}/?shards={','.join(names)}"
        _wait_until(lambda: all(master.call("INFO", "replication").count(b"state=online") == 1 for master in names.values()))
        _wait_until(lambda: all(_knows_all(sentinel, name) for sentinel in sentinels for name in names))


class Cluster(Group):
    """Three primaries without replicas; every slot assigned."""

    def __init__(self) -> None:
        super().__init__()
        nodes = [self.add(Valkey(cluster_enabled="yes", cluster_port=str(free_port()))) for _ in range(3)]
        edges = [SLOTS * number // len(nodes) for number in range(len(nodes) + 1)]
        for number, node in enumerate(nodes):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.call("CLUSTER", "ADDSLOTSRANGE", edges[number], edges[number + 1] - 1)
            if number:
                node.call("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0].call("CONFIG", "GET", "cluster-port")[1].decode())
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        _wait_until(lambda: all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in nodes))


def _knows_all(sentinel: Valkey, name: str) -> bool:
    """Whether a sentinel has seen the replica and both other sentinels of a master."""
    reply = sentinel.call("SENTINEL", "MASTER", name)
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    return (fields[b"num-slaves"], fields[b"num-other-sentinels"]) == (b"1", b"2")


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"a store was not ready within {START_SECONDS:g} s")
        time.sleep(0.05)
