"""What StatsD costs: lines a second of one core, by the processor time of the process that receives them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from random import Random

from benchmarks import budgets, machine
from benchmarks.rows import Figure, Row, interleave
from benchmarks.services import Effort, Services, pid_of, running
from demo.processes import free_port
from taba.query import Query

PACKET_BYTES = 1432  # what clients put into a packet at the most, so that it crosses any network whole
AHEAD = 100  # packets that are sent before the input's count is asked for
PATIENCE = 60.0


def lines() -> list[bytes]:
    """A thousand different lines, as applications mix them: counters by one, sampled ones with a tag, times that hardly repeat, gauges."""
    chance = Random(1)
    made: dict[bytes, None] = {}
    for number in range(250):
        made[b"app.requests.%d:1|c" % number] = None
        made[b"app.hits.%d:%d|c|@0.5|#route:r%d" % (number % 7, 1 + number % 3, number)] = None
        made[b"app.latency.%d:%.3f|ms" % (number, chance.lognormvariate(3, 1))] = None
        made[b"app.depth:%d|g|#env:prod,shard:%d" % (chance.randrange(10_000), number)] = None
    return list(made)


def packed(found: list[bytes]) -> Iterator[bytes]:
    """These lines in as few packets as they take."""
    packet = b""
    for line in found:
        if packet and len(packet) + 1 + len(line) > PACKET_BYTES:
            yield packet
            packet = b""
        packet += b"\n" * bool(packet) + line
    yield packet


def run(effort: Effort) -> list[Row]:
    port = free_port()
    services: Services
    with running() as services, closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
        services.start_agent("--statsd", f"udp:{port}")
        sender.connect(("127.0.0.1", port))
        query = Query(services.agent_url, role="Agent")
        [receiving] = machine.children(pid_of(services, "agent"))

        def taken() -> int:
            [one] = query.status()["inputs"]
            counts = one["counts"]
            if counts["kernel"]:
                raise RuntimeError("the kernel dropped packets: these figures mean nothing")
            return int(counts["packets"])

        sent = taken()

        def rate(packets: list[bytes], rounds: int, whole: int) -> float:
            nonlocal sent
            before = machine.cpu_seconds([receiving])
            for number, packet in enumerate(packets * rounds):
                sender.send(packet)
                sent += 1
                if number % AHEAD == AHEAD - 1:
                    wait(sent)
            wait(sent)
            return rounds * whole / (machine.cpu_seconds([receiving]) - before)

        def wait(count: int) -> None:
            deadline = time.monotonic() + PATIENCE
            while taken() < count:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{taken()} of {count} packets were taken")
                time.sleep(0.002)

        single = lines()
        full = list(packed(single))
        rate(full, 3, len(single))  # what is learned of names is learned once
        times = effort.pick(20, 400)
        found = interleave(
            {
                "packed": lambda: rate(full, times, len(single)),
                "single": lambda: rate(single, effort.pick(5, 20), len(single)),
            },
            effort.pick(2, 5),
        )
    note = "lines/s of the process's own processor time"
    return [
        Row(f"packets of {PACKET_BYTES} bytes", Figure.of(found["packed"]), "lines/s", budgets.STATSD_PACKED, note=note),
        Row("one line a packet", Figure.of(found["single"]), "lines/s", budgets.STATSD_SINGLE, note=note),
    ]
