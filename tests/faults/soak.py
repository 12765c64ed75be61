"""`./run soak`: kill -9 to clients, Agent, Server and store at random while events flow; then the books, the memory, the verdict.

Each client counts, in a file that outlives it, the record calls that it completed: one killed between the call and its count may have
recorded one event more. So what is folded, dead-lettered and dropped must be what was counted, and at most one more for each killed client.
"""

from __future__ import annotations

import argparse
import mmap
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from taba.bounds import MiB
from taba.query import Query, QueryError
from tests.services import ROOT, Services

CLIENTS = 4
PAUSE_SECONDS = (0.5, 4.0)  # between two kills
LOOK_SECONDS = 5.0  # between two looks at memory
REST_SECONDS = 180.0  # for the last event to arrive
GROWTH = 1.5  # of a part's memory from the first third to the last, beyond which it is not flat …
SLACK_BYTES = 64 * MiB  # … and so much more
PARTS = ("client", "agent", "server", "store")


def record(name: str, path: str, rate: float) -> None:
    """Be a client: record for ever, `rate` events a second, and count them in the file at `path`."""
    from taba import client

    client.start(name)
    hits = client.tab("soak", type="TotalsCounter")
    with open(path, "r+b") as file:
        counted = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    burst = max(1, int(rate / 100))
    due = time.monotonic()
    while not ended:
        for _ in range(burst):
            hits.record(1)
            counted[0] += 1
        due = max(due + burst / rate, time.monotonic() - 1.0)
        time.sleep(max(0.0, due - time.monotonic()))


class Books(NamedTuple):
    """What was recorded, and what became of it."""

    counted: int
    folded: int
    dead_letters: int
    dropped: dict[str, int]

    @property
    def found(self) -> int:
        return self.folded + self.dead_letters + sum(self.dropped.values())


class Soak:
    """One run."""

    def __init__(self, seconds: float, rate: float, seed: int):
        self.services, self.random = Services(), random.Random(seed)
        self._seconds, self._rate = seconds, rate
        self.kills: Counter[str] = Counter()
        self.memory: dict[str, list[int]] = defaultdict(list)
        self._clients: list[subprocess.Popen[bytes]] = []
        self._counts: list[Path] = []

    def run(self) -> bool:
        try:
            self.services.environ["TABA_RING_BYTES"] = str(8 * MiB)
            self.services.start_server()
            self.services.start_agent()
            for number in range(CLIENTS):
                path = self.services.directory / f"counted-{number}"
                path.write_bytes(bytes(8))
                self._counts.append(path)
                self._clients.append(self._client(number))
            self._disturb()
            for client in self._clients:
                client.terminate()
                client.wait()
            return self._verdict(self._rest())
        finally:
            for client in self._clients:
                client.kill()
                client.wait()
            self.services.stop()

    def _client(self, number: int) -> subprocess.Popen[bytes]:
        arguments = ["record", f"soak/{number}", str(self._counts[number]), str(self._rate / CLIENTS)]
        return subprocess.Popen([sys.executable, "-m", "tests.faults.soak", *arguments], cwd=ROOT, env=self.services.environ)

    def _disturb(self) -> None:
        end, looked = time.monotonic() + self._seconds, 0.0
        while (now := time.monotonic()) < end:
            if now - looked > LOOK_SECONDS:
                looked = now
                self._look()
            time.sleep(min(self.random.uniform(*PAUSE_SECONDS), max(0.0, end - now)))
            self._kill(self.random.choice(PARTS))

    def _kill(self, part: str) -> None:
        self.kills[part] += 1
        if part == "client":
            number = self.random.randrange(CLIENTS)
            self._clients[number].kill()
            self._clients[number].wait()
            self._clients[number] = self._client(number)
        elif part == "agent":
            self.services.kill_agent()
            self.services.start_agent()
        elif part == "server":
            self.services.kill_server()
            self.services.start_server()
        elif psutil.Process(self.services.pid("server")).children():  # its store may be on its way up
            self.services.kill_store()

    def _look(self) -> None:
        server = psutil.Process(self.services.pid("server"))
        processes = {"agent": psutil.Process(self.services.pid("agent")), "server": server}
        processes |= {f"client {number}": psutil.Process(client.pid) for number, client in enumerate(self._clients)}
        for child in server.children()[:1]:
            processes["store"] = child
        for name, process in processes.items():
            try:
                memory: Any = process.memory_info()
            except psutil.Error:  # it was killed just now
                continue
            self.memory[name.split()[0]].append(memory.rss - memory.shared)

    def _books(self) -> Books:
        counted = sum(int.from_bytes(path.read_bytes(), sys.byteorder) for path in self._counts)
        agent, server = self.services.agent_query.status(), self.services.query.status()
        shown = self.services.query.projections(name="soak").get("soak", {})
        folded = sum(int(projection["count"]) for projection in shown.values())
        return Books(counted, folded, server["dead_letters"] or 0, agent["dropped_by_reason"])

    def _rest(self) -> Books:
        """The books once they add up, or no more time is given."""
        deadline = time.monotonic() + REST_SECONDS
        books = Books(0, 0, 0, {})
        while time.monotonic() < deadline:
            try:
                books = self._books()
                if books.counted and 0 <= books.found - books.counted <= self.kills["client"]:
                    # and stay so: nothing comes twice
                    time.sleep(2.0)
                    return self._books()
            except QueryError:
                pass  # the store is on its way up
            time.sleep(0.5)
        return books

    def _verdict(self, books: Books) -> bool:
        more = books.found - books.counted
        is_exact = bool(books.counted) and 0 <= more <= self.kills["client"]
        print(f"kills: {sum(self.kills.values())} ({', '.join(f'{part} {self.kills[part]}' for part in PARTS)})")
        dropped = sum(books.dropped.values())
        print(f"events: {books.counted:,} counted, {books.folded:,} folded, {books.dead_letters:,} dead letters, {dropped:,} dropped")
        for reason, count in sorted(books.dropped.items()):
            print(f"  dropped, {reason}: {count:,}")
        print(f"more than counted, by clients that were killed: {more} (of {self.kills['client']} at the most)")
        is_flat = True
        for name, samples in self.memory.items():
            third = max(1, len(samples) // 3)
            first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
            flat = last <= first * GROWTH + SLACK_BYTES
            is_flat = is_flat and flat
            print(f"memory, {name}: {first / MiB:.1f} MiB in the first third, {last / MiB:.1f} in the last{'' if flat else ': it grows'}")
        for part, url in (("Agent", self.services.agent_url), ("Server", self.services.server_url)):
            for problem in Query(url, role=part).status()["problems"]:
                print(f"problem of the {part}: {problem}")
        print("verdict: " + ("every event once, memory flat" if is_exact and is_flat else "NOT EXACT" if not is_exact else "MEMORY GROWS"))
        return is_exact and is_flat


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["record"]:
        record(arguments[1], arguments[2], float(arguments[3]))
        return 0
    parser = argparse.ArgumentParser(prog="./run soak", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to kill (default 10)")
    parser.add_argument("--rate", type=float, default=100_000.0, help="events a second, of all clients together (default 100000)")
    parser.add_argument("--seed", type=int, default=None, help="of the kills; each run tells its own")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed: {seed}", flush=True)
    return 0 if Soak(options.minutes * 60, options.rate, seed).run() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
