"""`./run soak`: kill -9 to clients, Agent, Server and store at random while events flow; then the books, the memory, the verdict.

Each client counts, in a file that outlives it, the record calls that it completed: one killed between the call and its count may have
recorded one event more. So what is folded, dead-lettered and dropped must be what was counted, and at most one more for each killed client;
and what is folded must be what the States have, but for what goes up and down, which has a value and no count.
With --load it is found out first how many events a second this machine folds, and so many times that are recorded: what has no place is
dropped, and counted, and no part grows.
"""

from __future__ import annotations

import argparse
import mmap
import random
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from taba.bounds import MiB
from taba.query import QueryError
from tests.patience import PATIENCE_SECONDS, until
from tests.services import ROOT, USUAL_BUCKETS, Services

CLIENTS = 4
PAUSE_SECONDS = (0.5, 4.0)  # between two kills
LINES = 20  # of a run, at the most: what was seen until then …
LOOK_SECONDS = 5.0  # … and no more often than the parts are looked at
PROBE_SECONDS = 10.0  # in which it is found out what is folded
RUSH = 4_000_000.0  # events a second, more than any machine folds
SPOOL_BYTES = 64 * MiB  # where more is recorded than is folded: it is full soon, and so is everything else
STAY_SECONDS = 2.0  # that books which add up must stay so
SHOWN_TIMES = 12  # of a part's memory
SHOWN_LETTERS = 100  # of why nobody answers
GROWTH = 1.5  # of a part's memory from the first third to the last, beyond which it is not flat …
SLACK_BYTES = 64 * MiB  # … and so much more
COUNTS_BYTES = 16
PARTS = ("client", "agent", "server", "store")


def record(name: str, path: str, rate: float) -> None:
    """Be a client: record for ever, `rate` events a second, and count them in the file at `path`. What goes up is taken back at once."""
    from taba import client

    client.start(name)
    hits, busy = client.tab("soak", type="TotalsCounter"), client.updown("soak_busy")
    with open(path, "r+b") as file:
        counted = memoryview(mmap.mmap(file.fileno(), COUNTS_BYTES)).cast("Q")  # of hits, and of what goes up and down
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    burst = max(1, int(rate / 100))
    due = time.monotonic()
    while not ended:
        busy.inc()
        counted[1] += 1
        for _ in range(burst):
            hits.record(1)
            counted[0] += 1
        busy.dec()
        counted[1] += 1
        due = max(due + burst / rate, time.monotonic() - 1.0)
        time.sleep(max(0.0, due - time.monotonic()))


class Books(NamedTuple):
    """What was recorded, and what became of it: of what goes up and down, too, whose value `busy` is 0 once every client has ended."""

    counted: int
    ups: int  # of these, what went up or down
    folded: int
    hits: int  # that the States have
    dead_letters: int
    dropped: dict[str, int]
    busy: float

    @property
    def found(self) -> int:
        return self.folded + self.dead_letters + sum(self.dropped.values())

    @property
    def said(self) -> str:
        waiting = max(0, self.counted - self.found)
        dropped = sum(self.dropped.values())
        return f"{self.counted:,} counted, {self.folded:,} folded, {self.dead_letters:,} dead, {dropped:,} dropped, {waiting:,} under way"


class Soak:
    """One run. `load`: of what this machine folds, recorded instead of `rate`; 0: that."""

    def __init__(self, seconds: float, rate: float, seed: int, load: float = 0.0):
        self.services, self.random = Services(USUAL_BUCKETS), random.Random(seed)
        self._seconds, self._rate, self._load = seconds, rate, load
        self.kills: Counter[str] = Counter()
        self.memory: dict[str, list[int]] = defaultdict(list)
        self._clients: list[subprocess.Popen[bytes]] = []
        self._counts: list[Path] = []
        self._began = 0.0

    def run(self) -> bool:
        try:
            self.services.environ["TABA_RING_BYTES"] = str(8 * MiB)
            self.services.start_server()
            self._start_agent()
            for number in range(CLIENTS):
                path = self.services.directory / f"counted-{number}"
                path.write_bytes(bytes(COUNTS_BYTES))
                self._counts.append(path)
            if self._load:
                self._rate = self._load * self._measured()
                print(f"{self._load:g} times as much is recorded: {self._rate:,.0f} events a second", flush=True)
            before = self._counted()
            self._begin()
            self._disturb()
            lasted = time.monotonic() - self._began
            self._end(signal.SIGTERM)
            pace = (self._counted() - before) / lasted
            print(f"recorded: {pace:,.0f} events a second, of {self._rate:,.0f} that were asked for", flush=True)
            return self._verdict(self._rest())
        finally:
            self._end(signal.SIGKILL)
            self.services.stop()

    # --- clients ---

    def _begin(self) -> None:
        self._clients = [self._client(number) for number in range(CLIENTS)]

    def _end(self, number: int) -> None:
        for client in self._clients:
            client.send_signal(number)
        for client in self._clients:
            client.wait()
        self._clients = []

    def _client(self, number: int) -> subprocess.Popen[bytes]:
        arguments = ["record", f"soak/{number}", str(self._counts[number]), str(self._rate / CLIENTS)]
        return subprocess.Popen([sys.executable, "-m", "tests.faults.soak", *arguments], cwd=ROOT, env=self.services.environ)

    def _measured(self) -> float:
        """How many events a second are folded while clients record all that they can."""
        self._rate = RUSH
        self._begin()
        began, before = until(lambda: (books := self._books()).folded and (time.monotonic(), books.folded), "nothing is folded")
        time.sleep(PROBE_SECONDS)
        folded, ended = self._books().folded, time.monotonic()
        self._end(signal.SIGTERM)
        found = (folded - before) / (ended - began)
        print(f"it holds {found:,.0f} events a second, while clients record all that they can", flush=True)
        return float(found)

    # --- what is done to them ---

    def _start_agent(self) -> None:
        self.services.start_agent(*(("--spool-bytes", str(SPOOL_BYTES)) if self._load else ()))

    def _disturb(self) -> None:
        self._began = time.monotonic()
        end, looked, told = self._began + self._seconds, 0.0, self._began
        while (now := time.monotonic()) < end:
            if now - looked >= LOOK_SECONDS:
                looked = now
                self._look()
            if now - told >= max(LOOK_SECONDS, self._seconds / LINES):
                told = now
                self._tell(now)
            time.sleep(min(self.random.uniform(*PAUSE_SECONDS), max(0.0, end - now)))
            self._kill(self.random.choice(PARTS))

    def _kill(self, part: str) -> None:
        if part == "client":
            number = self.random.randrange(CLIENTS)
            self._clients[number].kill()
            self._clients[number].wait()
            self._clients[number] = self._client(number)
        elif part == "agent":
            self.services.kill_agent()
            self._start_agent()
        elif part == "server":
            self.services.kill_server()
            self.services.start_server()
        elif psutil.Process(self.services.pid("server")).children():
            self.services.kill_store()
        else:
            return  # its store is on its way up
        self.kills[part] += 1

    # --- what is seen of them ---

    def _look(self) -> None:
        server = psutil.Process(self.services.pid("server"))
        processes = [("agent", psutil.Process(self.services.pid("agent"))), ("server", server)]
        processes += [("client", psutil.Process(client.pid)) for client in self._clients]
        processes += [("store", child) for child in server.children()[:1]]
        for part, process in processes:
            try:
                memory: Any = process.memory_info()
            except psutil.Error:  # it was killed just now
                continue
            self.memory[part].append(memory.rss - memory.shared)

    def _tell(self, now: float) -> None:
        memory = ", ".join(f"{part} {self.memory[part][-1] / MiB:.0f}" for part in PARTS if self.memory[part])
        try:
            said = self._books().said
        except QueryError as error:
            said = f"no answer ({error})"[:SHOWN_LETTERS]
        print(f"{now - self._began:5.0f} s: {sum(self.kills.values())} kills; {said}; MiB: {memory}", flush=True)

    def _figures(self) -> list[tuple[int, ...]]:
        """What each client counted, of hits and of what goes up and down."""
        return [struct.unpack("2Q", path.read_bytes()) for path in self._counts]

    def _counted(self) -> int:
        return sum(map(sum, self._figures()))

    def _books(self) -> Books:
        counted = self._figures()
        ups = sum(of_client[1] for of_client in counted)
        agent, server = self.services.agent_query.status(), self.services.query.status()
        shown = self.services.query.projections(match="soak.*")
        hits = sum(int(projection["count"]) for projection in shown.get("soak", {}).values())
        busy = sum(float(projection["value"]) for projection in shown.get("soak_busy", {}).values())
        folded, letters, dropped = server["folded"] or 0, server["dead_letters"] or 0, agent["dropped_by_reason"]
        return Books(sum(map(sum, counted)), ups, folded, hits, letters, dropped, busy)

    # --- what became of it ---

    def _is_whole(self, books: Books) -> bool:
        killed = self.kills["client"]
        in_states = 0 <= books.folded - books.hits <= books.ups + killed
        return bool(books.counted) and 0 <= books.found - books.counted <= killed and in_states and books.busy == 0

    def _rest(self) -> Books:
        """The books once they add up, or once no more comes."""
        books = Books(0, 0, 0, 0, 0, {}, 0.0)
        patient_until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < patient_until:
            try:
                found = self._books()
                if self._is_whole(found):
                    time.sleep(STAY_SECONDS)  # and stay so: nothing comes twice
                    return self._books()
            except QueryError:
                pass  # the store is on its way up
            else:
                if found != books:
                    patient_until = time.monotonic() + PATIENCE_SECONDS
                books = found
            time.sleep(0.5)
        return books

    def _verdict(self, books: Books) -> bool:
        wrong = []
        more = books.found - books.counted
        print(f"kills: {sum(self.kills.values())} ({', '.join(f'{part} {self.kills[part]}' for part in PARTS)})")
        print(f"events: {books.said}")
        for reason, count in sorted(books.dropped.items()):
            print(f"  dropped, {reason}: {count:,}")
        print(f"more than counted, by clients that were killed: {more:,} (of {self.kills['client']} at the most)")
        print(f"in States: {books.hits:,}, and of what goes up and down {books.folded - books.hits:,} of {books.ups:,}")
        print(f"what goes up and down, once all have ended: {books.busy:g}")
        if not self._is_whole(books):
            wrong.append("NOT EXACT")
        if self._load > 1 and not books.dropped:
            wrong.append("NOTHING DROPPED: the load was not too high")
        for part in PARTS:
            wrong += self._grows(part)
        for part, query in (("Agent", self.services.agent_query), ("Server", self.services.query)):
            for problem in query.status()["problems"]:
                print(f"problem of the {part}: {problem}")
        once = "every event once, or dropped and counted" if books.dropped else "every event once"
        print("verdict: " + ("; ".join(wrong) or f"{once}; memory flat"))
        return not wrong

    def _grows(self, part: str) -> list[str]:
        """Whether its memory does, as a verdict; prints it over time."""
        samples = self.memory[part]
        if not samples:
            return [f"NOTHING SEEN of the {part}"]
        size = max(1, -(-len(samples) // SHOWN_TIMES))
        over_time = " ".join(f"{statistics.median(samples[at : at + size]) / MiB:.0f}" for at in range(0, len(samples), size))
        third = max(1, len(samples) // 3)
        first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
        is_flat = last <= first * GROWTH + SLACK_BYTES
        print(f"memory of the {part} over time, MiB: {over_time}; at the most {max(samples) / MiB:.0f}{'' if is_flat else ': IT GROWS'}")
        return [] if is_flat else [f"MEMORY GROWS: {part}"]


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["record"]:
        record(arguments[1], arguments[2], float(arguments[3]))
        return 0
    parser = argparse.ArgumentParser(prog="./run soak", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to kill (default 10)")
    parser.add_argument("--rate", type=float, default=100_000.0, help="events a second, of all clients together (default 100000)")
    parser.add_argument("--load", type=float, default=0.0, metavar="N", help="N times what this machine folds, instead of --rate")
    parser.add_argument("--seed", type=int, default=None, help="of the kills; each run tells its own")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed: {seed}", flush=True)
    return 0 if Soak(options.minutes * 60, options.rate, seed, options.load).run() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
