"""What others that aggregate take for a line of StatsD, beside Taba: by their processor time, user and system, with nothing lost.

Each of them that is installed (Netdata, collectd, carbon-c-relay: Debian has them; etsy's statsd: `npm install statsd`, found through
TABA_STATSD_JS=…/node_modules/statsd/stats.js or the global folder) gets the same thousand different lines in packets of 1,432 bytes
over loopback, so slowly that the kernel drops none; what it drops is read from /proc/net/udp, and a run with one such packet fails.
OpenTelemetry aggregates in the process that records: what that costs stands under `record`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import attrs

from benchmarks import machine
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import START_SECONDS, Effort, pid_of, running
from benchmarks.statsd import lines, packed
from demo.processes import Child, free_port

PAUSE_EVERY, PAUSE_SECONDS = 8, 0.004  # packets at once, and what whoever receives then has to take them
VISIBLE_SECONDS = 4.0  # until what was sent is folded, whatever waits for whom
INPUT, WHOLE = "Taba's input: parsed, sampled, in rings", "Taba, all of it: input, Agent, Server, store that syncs"
NOTES = {
    INPUT: "of a core, by processor time; a part of the way: rings outlive a process that is killed, not the machine",
    WHOLE: "each write synced before a batch is acknowledged; percentiles up to a day; senders told apart by Client",
}
IDLE_SECONDS = 2.0  # over which is seen what a process uses with nothing to do


class Peer(NamedTuple):
    """An aggregator: `command` makes its configuration in a directory and says how it is started with a port."""

    name: str
    lacks: str
    command: Callable[[Path, int], list[str] | None]
    over_tcp: bool = False


def _netdata(directory: Path, port: int) -> list[str] | None:
    if (program := shutil.which("netdata")) is None:
        return None
    for name in ("cache", "lib", "log", "run"):
        (directory / name).mkdir()
    configuration = directory / "netdata.conf"
    configuration.write_text(
        f"""[directories]
cache = {directory}/cache
lib = {directory}/lib
log = {directory}/log
config = {directory}
[db]
mode = ram
[ml]
enabled = no
[health]
enabled = no
[cloud]
enabled = no
[global]
run as user = {_user()}
[web]
mode = none
[plugins]
proc = no
diskspace = no
cgroups = no
tc = no
idlejitter = no
timex = no
checks = no
enable running new plugins = no
apps = no
python.d = no
go.d = no
charts.d = no
perf = no
slabinfo = no
ebpf = no
statsd = yes
[statsd]
enabled = yes
default port = {port}
bind to = udp:127.0.0.1
update every (flushInterval) = 1
create private charts for metrics matching = !*
"""
    )
    return [program, "-D", "-c", str(configuration), "-P", str(directory / "pid")]


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _collectd(directory: Path, port: int) -> list[str] | None:
    if (program := shutil.which("collectd")) is None:
        return None
    configuration = directory / "collectd.conf"
    configuration.write_text(
        f'BaseDir "{directory}"\nPIDFile "{directory}/pid"\nInterval 10\nLoadPlugin statsd\n<Plugin statsd>\n'
        f'  Host "127.0.0.1"\n  Port "{port}"\n  TimerPercentile 99.0\n</Plugin>\n'
    )
    return [program, "-f", "-C", str(configuration)]


def _statsd_js(directory: Path, port: int) -> list[str] | None:
    node, script = shutil.which("node"), os.environ.get("TABA_STATSD_JS") or _global_statsd()
    if node is None or not script or not Path(script).exists():
        return None
    configuration = directory / "statsd.js"
    configuration.write_text(
        f'{{ address: "127.0.0.1", port: {port}, mgmt_address: "127.0.0.1", mgmt_port: {free_port()}, '
        "backends: [], flushInterval: 10000 }\n"
    )
    return [node, script, str(configuration)]


def _global_statsd() -> str:
    if (npm := shutil.which("npm")) is None:
        return ""
    root = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, timeout=30).stdout.strip()
    return f"{root}/statsd/stats.js"


def _relay(directory: Path, port: int) -> list[str] | None:
    if (program := shutil.which("carbon-c-relay")) is None:
        return None
    configuration = directory / "relay.conf"
    configuration.write_text(
        f"listen type linemode 127.0.0.1:{port} proto tcp;\ncluster kept file {directory}/kept.txt;\n"
        "aggregate ^app\\.(.+)$ every 10 seconds expire after 20 seconds timestamp at end of bucket "
        "compute count write to \\1.count compute sum write to \\1.sum compute percentile99 write to \\1.p99 send to kept stop;\n"
    )
    return [program, "-f", str(configuration), "-w", "1"]


PEERS = (
    Peer(
        "Netdata's StatsD (C)", "in memory: a restart begins anew; packets that drop are not told; percentiles of a second only", _netdata
    ),
    Peer("collectd's StatsD (C)", "in memory, one figure an interval; no sender told apart", _collectd),
    Peer("statsd (etsy's, JavaScript)", "in memory, flushed and forgotten each interval; percentiles of an interval only", _statsd_js),
    Peer(
        "carbon-c-relay's aggregator (C)",
        "graphite lines over TCP, which say their time and no Type; forgotten after each interval",
        _relay,
        True,
    ),
)


def run(effort: Effort) -> list[Row]:
    full = list(packed(lines()))
    times = effort.pick(5, 100)
    cases: dict[str, Callable[[], float]] = {}
    absent: list[Peer] = []
    with running() as services, ExitStack() as stack:
        port = free_port()
        services.start_agent("--statsd", f"udp:{port}")
        [receiving] = machine.children(pid_of(services, "agent"))
        parts = [receiving, *(pid_of(services, name) for name in ("agent", "server", "store"))]
        to_taba = stack.enter_context(_udp(port))
        cases[INPUT] = _case([receiving], to_taba, full, times)
        cases[WHOLE] = _case(parts, to_taba, full, times, VISIBLE_SECONDS)
        for number, peer in enumerate(PEERS):
            directory = services.directory / f"peer-{number}"
            directory.mkdir()
            port = free_port()
            command = peer.command(directory, port)
            if command is None:
                absent.append(peer)
                continue
            child = Child(peer.name.split()[0].lower(), command, directory, services.environ)
            stack.callback(child.stop)
            if peer.over_tcp:
                cases[peer.name] = _case([child.process.pid], stack.enter_context(_tcp(child, port)), _graphite(), times)
            else:
                _wait_for_udp(child, port)
                cases[peer.name] = _case([child.process.pid], stack.enter_context(_udp(port)), full, times)
        found = interleave(cases, effort.pick(2, 5))
    lacks = {peer.name: peer.lacks for peer in PEERS}
    ours = [Row(name, Figure.of(found.pop(name)), "lines/s", note=note) for name, note in NOTES.items()]
    beside = Beside(WHOLE, ours[1].figure)
    if absent:
        ours[0] = attrs.evolve(ours[0], note=f"{ours[0].note}; not installed here: {', '.join(peer.name for peer in absent)}")
    return ours + [Row(f"peer: {name}", Figure.of(its), "lines/s", peer=beside, note=lacks[name]) for name, its in found.items()]


Send = Callable[[list[bytes], int], None]


def _case(pids: list[int], send: Send, content: list[bytes], times: int, settle: float = 0.5) -> Callable[[], float]:
    """Lines a second of the processor time that these processes take for them, beside what they take with nothing to do."""
    whole = sum(packet.count(b"\n") + (not packet.endswith(b"\n")) for packet in content)
    send(content, 1)  # what is learned of names is learned once

    def rate() -> float:
        before = machine.cpu_seconds(pids)
        time.sleep(IDLE_SECONDS)
        idle = (machine.cpu_seconds(pids) - before) / IDLE_SECONDS
        before, began = machine.cpu_seconds(pids), time.monotonic()
        send(content, times)
        time.sleep(settle)  # what waits in the socket, or on the way
        used = machine.cpu_seconds(pids) - before - idle * (time.monotonic() - began)
        return times * whole / max(used, 0.01)  # a tick of the clock that counts it

    return rate


@contextmanager
def _udp(port: int) -> Iterator[Send]:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        sender.connect(("127.0.0.1", port))

        def send(packets: list[bytes], times: int) -> None:
            before = _dropped(port)
            for number, packet in enumerate(packets * times):
                sender.send(packet)
                if number % PAUSE_EVERY == PAUSE_EVERY - 1:
                    time.sleep(PAUSE_SECONDS)
            if (lost := _dropped(port) - before) > 0:
                raise RuntimeError(f"the kernel dropped {lost} packets to port {port}: these figures mean nothing")

        yield send


@contextmanager
def _tcp(child: Child, port: int) -> Iterator[Send]:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), 5.0)
            break
        except OSError:
            child.check()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    with closing(connection):

        def send(packets: list[bytes], times: int) -> None:
            now = b"%d" % time.time()
            whole = [packet.replace(b"TIME", now) for packet in packets]
            for _ in range(times):
                for packet in whole:
                    connection.sendall(packet)
                time.sleep(PAUSE_SECONDS)

        yield send


def _graphite() -> list[bytes]:
    """As many lines, of as many names, as graphite has them."""
    return [b"".join(b"app.requests.%d 1 TIME\n" % (number % 40) for number in range(first, first + 50)) for first in range(0, 1000, 50)]


def _dropped(port: int) -> int:
    """Packets to this port that the kernel dropped since it is open."""
    lost = 0
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port:
            lost += int(words[-1])
    return lost


def _wait_for_udp(child: Child, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while f":{port:04X} " not in Path("/proc/net/udp").read_text():
        child.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"{child.name} does not listen at udp:{port} after {START_SECONDS:.0f} s; its log: {child.log}")
        time.sleep(0.05)
