"""Real topologies for tests, of the same Valkey: a Cluster, and masters with replicas under sentinels. Loopback only.

Who is the master is theirs to decide, also anew: where a server stands still for two seconds, as one of a busy machine may, they promote
another, and soon after perhaps the first again. So nobody here waits until a server is the master, or is not: the number of the reign (the
epoch of a configuration), which only rises, says that there was a failover.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hiredis import Reader, pack_command

from taba.shard.servers.cluster import SLOTS, slot_of
from tests.patience import until
from tests.valkey import EphemeralValkey, free_port

SETTLE_SECONDS = 120.0  # however busy the machine is
# of sentinels, in milliseconds: what they hear of each other, and tell a master that was replaced, comes in a second instead of ten; and
# none of them does nothing for half a minute because the machine was busy for two seconds
PACE = {"publish-period": 200, "info-period": 500, "ask-period": 200, "tilt-trigger": 30_000, "tilt-period": 1000}

HAND_OVER_SECONDS = 6.0  # a server gives up a failover on demand after five
DOWN_AFTER_MILLISECONDS = 2000  # a master whose disk is slow for so long is one that died, to sentinels


SHOWN_LINES = 25  # of a log, where something did not come about


class Reign(NamedTuple):
    """That the server at `port` is the master since the failover of number `epoch`, as somebody says: the higher number stands."""

    epoch: int
    port: int


def wait_until(what: Callable[[], Any], seen: str | Callable[[], str], seconds: float = SETTLE_SECONDS) -> Any:
    """The first answer of `what` that is true; whoever cuts a connection, or does not answer, is asked again. Not for the thread of a
    running reactor.

    Raises AssertionError with what was `seen`, in words.
    """

    def answered() -> Any:
        try:
            return what()
        except OSError:  # it ends, starts, or is made a replica just now
            return None

    return until(answered, seen, seconds)


def state_of(server: EphemeralValkey) -> str:
    """What a server says of itself and of those who follow it, in a line."""
    if not server.is_running:
        return f"server {server.port} was killed"
    told = _told(server)
    words = " ".join(line for line in told.split() if line.split(":")[0].rstrip("0123456789") in SHOWN_FIELDS)
    return f"server {server.port}: {words or told}"


SHOWN_FIELDS = {"role", "slave", "master_port", "master_link_status", "min_slaves_good_slaves", "master_repl_offset", "slave_repl_offset"}


def _told(server: EphemeralValkey, *arguments: str) -> str:
    """What it answers, or why there is no answer."""
    try:
        reply = server.call(*(arguments or ("INFO", "replication")))
    except OSError as error:
        return f"no answer: {error!r}"
    return reply.decode() if isinstance(reply, bytes) else str(reply)


def _end_of(log: Path) -> str:
    lines = log.read_text().splitlines()[-SHOWN_LINES:] if log.exists() else []
    return "".join(f"\n    {line}" for line in lines)


def wait_replicated(primary: EphemeralValkey, others: Sequence[EphemeralValkey]) -> None:
    """Return once those of `others` that are replicas of `primary`, at least one, have all that it has by now.

    Who kills a primary sooner takes with it what was just written: of a store that was just made, the store. That a replica is
    "online" says only that it was sent what there was when it came. Not for the thread of a running reactor.
    """
    wanted = _offset(primary.call("INFO", "replication"), b"master_repl_offset")

    def have_it() -> bool:
        told = [one.call("INFO", "replication") for one in others if one is not primary and one.is_running]
        replicas = [one for one in told if b"master_port:%d\r\n" % primary.port in one]
        return bool(replicas) and all(
            b"master_link_status:up\r\n" in one and _offset(one, b"slave_repl_offset") >= wanted for one in replicas
        )

    wait_until(have_it, lambda: f"no replica has {wanted} of {primary.port}: " + "; ".join(map(state_of, {primary, *others})))


def _offset(told: bytes, name: bytes) -> int:
    return next((int(line.partition(b":")[2]) for line in told.splitlines() if line.startswith(name + b":")), -1)


class Cluster:
    """Three primaries and, with `replicas`, a replica for each; every slot assigned. `remove` ends them all."""

    def __init__(self, replicas: bool = True, primaries: int = 3, **settings: Any):
        options: dict[str, Any] = {
            "cluster_enabled": "yes",
            "cluster_node_timeout": "2000",
            "cluster_replica_validity_factor": "0",
            **settings,
        }
        options = {"repl_diskless_sync_delay": "0", "repl_ping_replica_period": "1", **options}
        count = primaries * 2 if replicas else primaries
        self.nodes = [EphemeralValkey(tcp=True, cluster_port=str(free_port()), **options) for _ in range(count)]
        self.primaries = self.nodes[:primaries]
        edges = [SLOTS * number // primaries for number in range(primaries + 1)]
        for number, node in enumerate(self.primaries):
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.call("CLUSTER", "ADDSLOTSRANGE", edges[number], edges[number + 1] - 1)
        first = self.nodes[0]
        for node in self.nodes[1:]:
            node.call("CLUSTER", "MEET", "127.0.0.1", first.port, node.settings["cluster_port"])
        for node in self.nodes[1:]:
            first.call("CLUSTER", "MEET", "127.0.0.1", node.port, node.settings["cluster_port"])
        wait_until(lambda: all(len(node.call("CLUSTER", "NODES").splitlines()) == count for node in self.nodes), self.seen)
        for primary, replica in zip(self.primaries, self.nodes[primaries:], strict=False):
            self._follow(replica, self.identity(primary))
        wait_until(lambda: all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in self.nodes), self.seen)
        for node in self.primaries if replicas else ():
            wait_replicated(node, self.nodes)

    def _follow(self, replica: EphemeralValkey, identity: str) -> None:
        wait_until(lambda: replica.call("CLUSTER", "REPLICATE", identity) == b"OK", self.seen)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.primaries)

    def identity(self, node: EphemeralValkey) -> str:
        return str(node.call("CLUSTER", "MYID").decode())

    def flush(self) -> None:
        for node in self.nodes:
            if b"role:master" in node.call("INFO", "replication"):
                node.call("FLUSHALL")

    def seen(self) -> str:
        """Every node, what it says of itself, and whom it takes for the primaries, of which epoch and which slots."""
        return "\n".join(f"{state_of(node)}; {self._view(node)}" for node in self.nodes)

    def _view(self, node: EphemeralValkey) -> str:
        if not node.is_running:
            return "it sees nothing"
        rows = [line.split() for line in _told(node, "CLUSTER", "NODES").splitlines()]
        seen = [f"{row[1].split('@')[0]} {row[2]} epoch {row[6]} slots {' '.join(row[8:]) or 'none'}" for row in rows if len(row) > 7]
        return "it sees " + (", ".join(seen) or str(rows))

    def replica_of(self, primary: EphemeralValkey) -> EphemeralValkey:
        """One that has all of what `primary` has, as that says, once one has."""

        def found() -> EphemeralValkey | None:
            told: bytes = primary.call("INFO", "replication")
            return next((node for node in self.nodes if b"port=%d,state=online" % node.port in told), None)

        replica: EphemeralValkey = wait_until(found, lambda: f"{primary.port} has no replica\n{self.seen()}")
        return replica

    def holder(self, key: bytes) -> EphemeralValkey:
        """The primary that has the slot of `key`."""
        return self.at(max(reign for reign in self._reigns(key) if reign is not None).port)

    def at(self, port: int) -> EphemeralValkey:
        return next(node for node in self.nodes if node.port == port)

    def wait_held(self, key: bytes, node: EphemeralValkey) -> None:
        """Return once `node`, which has no replica, has the slot of `key`."""
        wait_until(lambda: self.holder(key) is node, lambda: f"{node.port} has not the slot {slot_of(key)}\n{self.seen()}")

    def epoch(self, key: bytes) -> int:
        """The highest under which any node knows the slot of `key`."""
        return max(reign.epoch for reign in self._reigns(key) if reign is not None)

    def elections(self) -> int:
        """How many replicas stood for election so far, as planned or because a primary did not answer."""
        told = [node.call("CLUSTER", "INFO") for node in self.nodes if node.is_running]
        return max(_offset(one, b"cluster_current_epoch") for one in told)

    def wait_failed_over(self, key: bytes, since: int) -> None:
        """Return once all that live agree who has the slot of `key` by a failover after the epoch `since`, and that one is primary."""

        def is_over() -> bool:
            [*reigns] = set(self._reigns(key))
            if len(reigns) != 1 or reigns[0] is None or reigns[0].epoch <= since:
                return False
            return bool(self.at(reigns[0].port).call("ROLE")[0] == b"master")

        wait_until(is_over, lambda: f"slot {slot_of(key)} has not failed over since epoch {since}\n{self.seen()}")

    def _reigns(self, key: bytes) -> list[Reign | None]:
        """Who has the slot of `key`, by what each node that lives says; None: nobody."""
        return [_reign(node, slot_of(key)) for node in self.nodes if node.is_running]

    def assign(self, node: EphemeralValkey, slot: int, *words: Any) -> Any:
        """What `node` answers to CLUSTER SETSLOT once its replicas have heard of it: those of a busy machine may need a second try."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while "NOREPLICAS" in str(reply := node.call("CLUSTER", "SETSLOT", slot, *words)):
            assert time.monotonic() < deadline, reply
        return reply

    def begin_migration(self, slot: int, source: EphemeralValkey, target: EphemeralValkey) -> None:
        reply = self.assign(target, slot, "IMPORTING", self.identity(source))
        assert reply == b"OK", reply
        reply = self.assign(source, slot, "MIGRATING", self.identity(target))
        assert reply == b"OK", reply

    def move_some(self, slot: int, source: EphemeralValkey, target: EphemeralValkey, most: int = 2) -> int:
        """Move up to `most` keys of a slot whose migration has begun; how many there were."""
        keys = source.call("CLUSTER", "GETKEYSINSLOT", slot, most)
        if keys:
            moved = source.call("MIGRATE", "127.0.0.1", target.port, "", "0", 5000, "KEYS", *keys)
            assert moved in (b"OK", b"NOKEY"), moved
        return len(keys)

    def end_migration(self, slot: int, source: EphemeralValkey, target: EphemeralValkey) -> bool:
        """Give the slot to the target; False when a writer made a new key meanwhile."""
        identity = self.identity(target)
        reply = self.assign(target, slot, "NODE", identity)
        assert reply == b"OK", reply
        return bool(self.assign(source, slot, "NODE", identity) == b"OK")

    def hand_over(self, key: bytes) -> None:
        """Have a replica take the place of who has the slot of `key`, with all that it has; again where a busy machine made that too long.

        Not for the thread of a running reactor.
        """
        since = self.epoch(key)
        asked = -HAND_OVER_SECONDS

        def is_over() -> bool:
            nonlocal asked
            if self.epoch(key) > since:
                return True
            if time.monotonic() - asked > HAND_OVER_SECONDS:  # until then it may be under way
                self.replica_of(self.holder(key)).call("CLUSTER", "FAILOVER")
                asked = time.monotonic()
            return False

        wait_until(is_over, lambda: f"nobody takes over slot {slot_of(key)} since epoch {since}\n{self.seen()}")
        self.wait_failed_over(key, since)

    def move(self, key: bytes) -> None:
        """Move the slot of `key` to another primary, in the classic way; not for the thread of a running reactor."""
        slot, source = slot_of(key), self.holder(key)
        target = next(node for node in self.primaries if node is not source)
        self.begin_migration(slot, source, target)
        while True:
            while self.move_some(slot, source, target):
                pass
            if self.end_migration(slot, source, target):
                return
            self.assign(source, slot, "MIGRATING", self.identity(target))

    def settle(self) -> None:
        """Wait until all nodes agree who has which slot: a primary that dies before its replica knows takes the slot with it.

        Where there are replicas, until each primary has one, too, which has what the primary had when this was called.
        """
        wait_until(lambda: all(_owners(node) == _owners(self.nodes[0]) for node in self.nodes), self.seen)
        wait_until(lambda: all(b"cluster_state:ok" in node.call("CLUSTER", "INFO") for node in self.nodes), self.seen)
        if len(self.nodes) > len(self.primaries):
            ports = {port for _, _, port in _owners(self.nodes[0])}
            for holder in [node for node in self.nodes if node.port in ports]:
                wait_replicated(holder, self.nodes)

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


def _owners(node: EphemeralValkey) -> list[tuple[int, int, int]]:
    """(first slot, last slot, port of the primary), as a node of a Cluster sees it."""
    return sorted((first, last, port) for first, last, (_, port, *_), *_ in node.call("CLUSTER", "SLOTS"))


def _reign(node: EphemeralValkey, slot: int) -> Reign | None:
    """Who has `slot`, as a node of a Cluster sees it."""
    for line in node.call("CLUSTER", "NODES").decode().splitlines():
        _, address, _, _, _, _, epoch, _, *slots = line.split()
        for words in slots:
            if words.startswith("["):  # one that is on its way
                continue
            first, _, last = words.partition("-")
            if int(first) <= slot <= int(last or first):
                return Reign(int(epoch), int(address.split("@")[0].rpartition(":")[2]))
    return None


class _Sentinel(EphemeralValkey):
    """One sentinel, of its own configuration file."""

    def __init__(self, configuration: list[str], **settings: Any):
        self._configuration = configuration
        super().__init__(tcp=True, **settings)

    def arguments(self) -> list[str]:
        path = self.directory / "sentinel.conf"
        if not path.exists():
            lines = [f"port {self.port}", "bind 127.0.0.1", f'unixsocket "{self.path}"', f"dir {self.directory}"]
            path.write_text("\n".join([*lines, f'logfile "{self.directory / "log"}"', *self._configuration]) + "\n")
        return [self.binary, str(path), "--sentinel"]


class SentinelTrio:
    """Masters m1, m2 …, each with `replicas`, watched by three sentinels. `settings` are the servers'; `remove` ends all.

    With `password`, the servers want it of the user `taba`; with `sentinel_password`, the sentinels want that one.
    """

    def __init__(self, masters: int = 2, replicas: int = 1, password: str = "", sentinel_password: str = "", **settings: Any):
        options = {"repl_diskless_sync_delay": "0", "repl_ping_replica_period": "1", "repl_backlog_size": "64mb", **settings}
        self.servers: dict[str, list[EphemeralValkey]] = {}
        self.sentinels: list[_Sentinel] = []
        configuration = [f"requirepass {sentinel_password}", f"sentinel sentinel-pass {sentinel_password}"] if sentinel_password else []
        for number in range(1, masters + 1):
            name = f"m{number}"
            master = EphemeralValkey(tcp=True, **options)
            group = [master]
            for _ in range(replicas):
                group.append(EphemeralValkey(tcp=True, replicaof=f"127.0.0.1 {master.port}", **options))
            self.servers[name] = group
            if password:
                for server in group:
                    server.call("ACL", "SETUSER", "taba", "on", ">" + password, "~*", "&*", "+@all")
            configuration += [
                f"sentinel monitor {name} 127.0.0.1 {master.port} 2",
                f"sentinel down-after-milliseconds {name} {DOWN_AFTER_MILLISECONDS}",
                f"sentinel failover-timeout {name} 3000",
            ]
        for _ in range(3):
            # of the same make as what they watch: which mixtures understand each other is nobody's promise
            self.sentinels.append(_Sentinel(configuration, **({"binary": settings["binary"]} if "binary" in settings else {})))
        self._password = sentinel_password
        self._account = f"taba:{password}@" if password else ""
        for sentinel in self.sentinels:
            told = self.ask_sentinel(sentinel, "SENTINEL", "DEBUG", *(str(word) for pair in PACE.items() for word in pair))
            assert told == b"OK", told
        wait_until(self._is_complete, self.seen)
        self.settle()

    def settle(self) -> None:
        """Wait until the replicas have what their masters had when this was called. Not for the thread of a running reactor."""
        for name, group in self.servers.items():
            if len(group) > 1:
                wait_replicated(self.primary(name), group)

    def _is_complete(self) -> bool:
        for name, group in self.servers.items():
            if group[0].call("INFO", "replication").count(b"state=online") != len(group) - 1:
                return False
            for sentinel in self.sentinels:
                fields = self._described(sentinel, name)
                if (fields[b"num-slaves"], fields[b"num-other-sentinels"]) != (b"%d" % (len(group) - 1), b"2"):
                    return False
        return True

    def _described(self, sentinel: EphemeralValkey, name: str) -> dict[bytes, Any]:
        reply = self.ask_sentinel(sentinel, "SENTINEL", "MASTER", name)
        return dict(zip(reply[::2], reply[1::2], strict=True))

    def ask_sentinel(self, sentinel: EphemeralValkey, *arguments: Any) -> Any:
        with socket.create_connection(("127.0.0.1", sentinel.port), 5) as connection:
            reader = Reader()
            commands = [("AUTH", self._password)] if self._password else []
            for command in [*commands, arguments]:
                connection.sendall(pack_command(tuple(command)))
                while (reply := reader.gets()) is False:
                    reader.feed(connection.recv(1 << 20))
            return reply

    @property
    def url(self) -> str:
        servers = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        own = f"&sentinels=:{self._password}" if self._password else ""
        return f"redis+sentinel://{self._account}{servers}/?shards={','.join(self.servers)}{own}"

    def primary(self, name: str) -> EphemeralValkey:
        """The one that the sentinels name now."""
        return self.primary_by(0, name)

    def primary_by(self, sentinel: int, name: str) -> EphemeralValkey:
        port = int(self.ask_sentinel(self.sentinels[sentinel], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)[1])
        return next(server for server in self.servers[name] if server.port == port)

    def pair(self, name: str) -> tuple[EphemeralValkey, EphemeralValkey]:
        """The master now, and one of its replicas."""
        master = self.primary(name)
        return master, next(server for server in self.servers[name] if server is not master)

    def reign(self, sentinel: int, name: str) -> Reign | None:
        """Who is the master, by what this sentinel says; None while it replaces one: it has the new number then, and names the former."""
        told = self._described(self.sentinels[sentinel], name)
        is_at_it = b"failover_in_progress" in told[b"flags"].split(b",")
        return None if is_at_it else Reign(int(told[b"config-epoch"]), int(told[b"port"]))

    def epoch(self, name: str) -> int:
        """The highest number of a failover that any sentinel knows."""
        return max(int(self._described(sentinel, name)[b"config-epoch"]) for sentinel in self.sentinels)

    def hand_over(self, name: str) -> None:
        """Have the sentinels promote a replica, as an operator does, and see that they do: a failover that a busy machine made too long
        is given up, and asked for anew. Not for the thread of a running reactor.
        """
        since = self.epoch(name)

        def is_over() -> bool:
            reign = self.reign(0, name)
            if reign is not None and reign.epoch == since:
                self.ask_sentinel(self.sentinels[0], "SENTINEL", "FAILOVER", name)
            return reign is not None and reign.epoch > since

        wait_until(is_over, lambda: f"{name} is not handed over since epoch {since}\n{self.seen()}")

    def has_failed_over(self, name: str, since: int) -> bool:
        """Whether all sentinels agree on a master by a failover after the epoch `since`, that is one, and all others that live take no
        writes any more.

        It may be the one that it was before: sentinels promote it again where the other stands still.
        """
        reigns = {self.reign(sentinel, name) for sentinel in range(len(self.sentinels))}
        [reign, *others] = reigns
        if others or reign is None or reign.epoch <= since:
            return False
        roles = {server.port: server.call("ROLE")[0] for server in self.servers[name] if server.is_running}
        return roles.get(reign.port) == b"master" and list(roles.values()).count(b"master") == 1

    def wait_failed_over(self, name: str, since: int) -> None:
        """Return once that is so: what a former master still acknowledges until then is lost. Not for the thread of a running reactor."""
        wait_until(lambda: self.has_failed_over(name, since), lambda: f"{name} has not failed over since epoch {since}\n{self.seen()}")

    def seen(self) -> str:
        """What each sentinel names, with epoch and flags, what each server says of itself, and what the sentinels wrote last."""
        lines = [self._said(sentinel, name) for name in self.servers for sentinel in self.sentinels]
        lines += [state_of(server) for group in self.servers.values() for server in group]
        return "\n".join(
            [*lines, *(f"sentinel {sentinel.port} wrote:{_end_of(sentinel.directory / 'log')}" for sentinel in self.sentinels)]
        )

    def _said(self, sentinel: EphemeralValkey, name: str) -> str:
        try:
            told = self._described(sentinel, name)
        except OSError as error:
            return f"sentinel {sentinel.port}: no answer: {error!r}"
        shown = ((word, told[word.encode()].decode()) for word in ("port", "config-epoch", "flags", "num-slaves", "num-other-sentinels"))
        return f"sentinel {sentinel.port} of {name}: " + " ".join(f"{word} {value}" for word, value in shown)

    def flush(self) -> None:
        for name in self.servers:
            self.primary(name).call("FLUSHALL")

    def remove(self) -> None:
        for server in [*self.sentinels, *(one for group in self.servers.values() for one in group)]:
            server.remove()
