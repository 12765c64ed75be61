"""`./run soak`: kill -9 to clients, Agent, Server and store at random while events flow; then the books, the memory, the verdict.

Each client counts, in a file that outlives it, the record calls that it completed: one killed between the call and its count may have
recorded one event more. So what is folded, dead-lettered and dropped must be what was counted, and at most one more for each killed client;
and what is folded must be what the States have, but for what goes up and down, which has a value and no count. So it must be of each
Client, too: what of it is neither in its States nor dead was dropped, or went up or down; whose the drops are an Agent tells as far as it
knows since it began, so of each there are as many where no Agent was killed, and at least so many where one was.
With --load it is found out first how many events a second this machine folds, and so many times that are recorded: what has no place is
dropped, and counted, and no part grows. Texts are recorded then, of which no sum can be made before they are folded: a client records them
many times faster than anything folds them, so that a busy machine has clients that offer too much, too.
"""

from __future__ import annotations

import argparse
import math
import mmap
import random
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from taba.bounds import MiB
from taba.plural import many
from taba.query import QueryError
from tests.patience import PATIENCE_SECONDS, until
from tests.services import ROOT, USUAL_BUCKETS, Services

from .job import REMEMBERED

CLIENTS = 4
PAUSE_SECONDS = (0.5, 4.0)  # between two kills
LINES = 20  # of a run, at the most: what was seen until then …
LOOK_SECONDS = 5.0  # … and no more often than this, in which the parts are looked at, too, …
LOOKS = 48  # … or so often, where a run is short
MIN_LOOKS = 12  # at a part's memory, of which it can be said that it is flat: four in each third
PROBE_SECONDS = 6.0  # in which it is found out what is folded
FIRST_RATE = 50_000.0  # events a second, that are recorded in the first; each has twice as many as the one before …
PROBES = 9  # … until they are as many as --load says, of what is folded …
LITTLE = 1.2  # … and that is not so many times as much as before
MARGIN = 1.25  # so many times more than that are recorded: a machine that others leave alone later on folds more
TEXT = "x" * 100  # what is recorded with --load
SPOOL_BYTES = 64 * MiB  # where more is recorded than is folded: it is full soon, and so is everything else
STAY_SECONDS = 2.0  # that books which add up must stay so
SHOWN_TIMES = 12  # of a part's memory
SHOWN_LETTERS = 100  # of why nobody answers
GROWTH = 1.5  # of a part's memory from the first third to the last, beyond which it is not flat …
SLACK_BYTES = 64 * MiB  # … and so much more
COUNTS_BYTES = 16
NUMBERS, TEXTS = "TotalsCounter", "TopK"
PARTS = ("client", "agent", "server", "store")


def record(name: str, path: str, rate: float, type: str) -> None:
    """Be a client: record for ever, `rate` events a second, and count them in the file at `path`. What goes up is taken back at once."""
    from taba import client

    client.start(name)
    hits, busy = client.tab("soak", type=type), client.updown("soak_busy")
    value = TEXT if type == TEXTS else 1
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
            hits.record(value)
            counted[0] += 1
        busy.dec()
        counted[1] += 1
        due = max(due + burst / rate, time.monotonic() - 1.0)
        time.sleep(max(0.0, due - time.monotonic()))


class OfClient(NamedTuple):
    """What one Client recorded, and what became of it, as far as that is told of each."""

    counted: int
    ups: int  # of these, what went up or down
    hits: int  # that its State has
    dead_letters: int
    dropped: dict[str, int]  # as the Agent knows since it began

    @property
    def missing(self) -> int:
        """What is neither in its State nor dead: it was dropped, or went up or down."""
        return self.counted - self.hits - self.dead_letters


class Books(NamedTuple):
    """What was recorded, and what became of it: of what goes up and down, too, whose value `busy` is 0 once every client has ended."""

    clients: tuple[OfClient, ...]
    folded: int
    dead_letters: int
    dropped: dict[str, int]
    busy: float

    @property
    def counted(self) -> int:
        return sum(client.counted for client in self.clients)

    @property
    def ups(self) -> int:
        return sum(client.ups for client in self.clients)

    @property
    def hits(self) -> int:
        return sum(client.hits for client in self.clients)

    @property
    def found(self) -> int:
        return self.folded + self.dead_letters + sum(self.dropped.values())

    @property
    def said(self) -> str:
        waiting = max(0, self.counted - self.found)
        dropped = sum(self.dropped.values())
        return f"{self.counted:,} counted, {self.folded:,} folded, {self.dead_letters:,} dead, {dropped:,} dropped, {waiting:,} under way"


def judged(part: str, samples: list[int]) -> tuple[str, list[str]]:
    """The memory of a part over time, in a line, and what is wrong with it: that it grows, or that too little was seen to say so."""
    if len(samples) < MIN_LOOKS:
        shown = " ".join(f"{seen / MiB:.0f}" for seen in samples) or "never seen"
        return (
            f"memory of the {part}, MiB: {shown}: too little to say whether it grows",
            [f"MEMORY NOT JUDGED: the {part} was seen {many(len(samples), 'time')}, and {MIN_LOOKS} are needed"],
        )
    size = max(1, -(-len(samples) // SHOWN_TIMES))
    over_time = " ".join(f"{statistics.median(samples[at : at + size]) / MiB:.0f}" for at in range(0, len(samples), size))
    third = len(samples) // 3
    first, last = statistics.median(samples[:third]), statistics.median(samples[-third:])
    is_flat = last <= first * GROWTH + SLACK_BYTES
    most = f"at the most {max(samples) / MiB:.0f}, of {many(len(samples), 'look')}"
    line = f"memory of the {part} over time, MiB: {over_time}; {most}{'' if is_flat else ': IT GROWS'}"
    return line, [] if is_flat else [f"MEMORY GROWS: {part}"]


def name_of(client: int) -> str:
    return f"soak/{client}"


class Soak:
    """One run. `load`: of what this machine folds, recorded instead of `rate`; 0: that."""

    def __init__(self, seconds: float, rate: float, seed: int, load: float = 0.0):
        self.services, self.random = Services(USUAL_BUCKETS), random.Random(seed)
        self._seconds, self._rate, self._load = seconds, rate, load
        self._type = TEXTS if load else NUMBERS
        self.kills: Counter[str] = Counter()
        self._killed = [0] * CLIENTS  # how often each was
        self._pace = self._folded_pace = 0.0  # events a second
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
                self._rate = MARGIN * self._load * self._measured()
                print(f"{MARGIN * self._load:g} times as much is recorded: {self._rate:,.0f} events a second", flush=True)
            before = until(self._books)
            self._begin()
            self._disturb()
            after, lasted = until(self._books, "nobody answers"), time.monotonic() - self._began
            self._end(signal.SIGTERM)
            self._pace, self._folded_pace = (after.counted - before.counted) / lasted, (after.folded - before.folded) / lasted
            asked = f"recorded: {self._pace:,.0f} events a second, of {self._rate:,.0f} that were asked for"
            print(f"{asked}; folded meanwhile: {self._folded_pace:,.0f}", flush=True)
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
        arguments = ["record", name_of(number), str(self._counts[number]), str(self._rate / CLIENTS), self._type]
        return subprocess.Popen([sys.executable, "-m", "tests.faults.soak", *arguments], cwd=ROOT, env=self.services.environ)

    def _measured(self) -> float:
        """How many events a second are folded where `load` times as many are recorded."""
        self._rate, best = FIRST_RATE, 0.0
        for _ in range(PROBES):
            self._begin()
            already = until(self._books).folded
            until(lambda already=already: self._books().folded > already, "nothing is folded")  # type: ignore[misc]
            before, began = until(self._books), time.monotonic()
            time.sleep(PROBE_SECONDS)
            after, lasted = until(self._books), time.monotonic() - began
            self._end(signal.SIGTERM)
            recorded_pace, folded_pace = (after.counted - before.counted) / lasted, (after.folded - before.folded) / lasted
            print(f"of {recorded_pace:,.0f} events a second {folded_pace:,.0f} are folded", flush=True)
            is_all = folded_pace < best * LITTLE
            best = max(best, folded_pace)
            if is_all and recorded_pace >= self._load * best:
                break
            self._rate *= 2
        return best

    # --- what is done to them ---

    def _start_agent(self) -> None:
        self.services.start_agent(*(("--spool-bytes", str(SPOOL_BYTES)) if self._load else ()))

    def _disturb(self) -> None:
        self._began = time.monotonic()
        is_over = threading.Event()
        looking = threading.Thread(target=self._look_until, args=(is_over,))
        looking.start()  # beside what is done here: a part that was killed is waited for, and the others are there meanwhile
        try:
            self._disturb_until(self._began + self._seconds)
        finally:
            is_over.set()
            looking.join()

    def _disturb_until(self, end: float) -> None:
        told = self._began
        while (now := time.monotonic()) < end:
            if now - told >= max(LOOK_SECONDS, self._seconds / LINES):
                told = now
                self._tell(now)
            time.sleep(min(self.random.uniform(*PAUSE_SECONDS), max(0.0, end - now)))
            self._kill(self.random.choice(PARTS))

    def _kill(self, part: str) -> None:
        if part == "client":
            number = self.random.randrange(CLIENTS)
            self._killed[number] += 1
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

    def _look_until(self, is_over: threading.Event) -> None:
        pause = min(LOOK_SECONDS, self._seconds / LOOKS)
        while not is_over.is_set():
            for part, pid in self._pids():
                try:
                    process = psutil.Process(pid)
                    self._see(part, process)
                    if part == "server":
                        for child in process.children()[:1]:
                            self._see("store", child)
                except psutil.Error:  # it was killed just now
                    continue
            is_over.wait(pause)

    def _pids(self) -> Iterator[tuple[str, int]]:
        """Of each part that is there, but of the store."""
        for number, client in enumerate(tuple(self._clients)):
            yield f"client {number}", client.pid
        for child in tuple(self.services.children):
            yield child.name, child.process.pid

    def _see(self, part: str, process: psutil.Process) -> None:
        memory: Any = process.memory_info()
        if memory.rss:  # one that was killed, and not waited for, has none
            self.memory[part].append(memory.rss - memory.shared)

    def _tell(self, now: float) -> None:
        memory = ", ".join(f"{part} {self.memory[part][-1] / MiB:.0f}" for part in self._seen() if self.memory[part])
        try:
            said = self._books().said
        except QueryError as error:
            said = f"no answer ({error})"[:SHOWN_LETTERS]
        print(f"{now - self._began:5.0f} s: {sum(self.kills.values())} kills; {said}; MiB: {memory}", flush=True)

    def _figures(self) -> list[tuple[int, ...]]:
        """What each client counted, of hits and of what goes up and down."""
        return [struct.unpack("2Q", path.read_bytes()) for path in self._counts]

    def _books(self) -> Books:
        counted = self._figures()
        agent, server = self.services.agent_query.status(), self.services.query.status()
        if REMEMBERED in str(server["problems"]):
            raise QueryError("the store does not say what it has")
        shown = self.services.query.projections(match="soak.*")
        busy = sum(float(projection["value"]) for projection in shown.get("soak_busy", {}).values())
        folded, letters = server["folded"], server["dead_letters"]
        dead = Counter(letter["client"] for letter in self.services.query.dead_letters()) if letters else Counter[str]()
        clients = []
        for number, (hits, ups) in enumerate(counted):
            name = name_of(number)
            of_client = shown.get("soak", {}).get(name)
            found = 0 if of_client is None else self._count(of_client)
            clients.append(OfClient(hits + ups, ups, found, dead[name], agent["dropped_by_client"].get(name, {})))
        return Books(tuple(clients), folded, letters, agent["dropped_by_reason"], busy)

    def _count(self, projection: dict[str, Any]) -> int:
        """How many events its State has."""
        if self._type == TEXTS:
            return sum(int(count) for _, count, _ in projection["top"])
        return int(projection["count"])

    # --- what became of it ---

    def _is_whole(self, books: Books) -> bool:
        killed = self.kills["client"]
        in_states = 0 <= books.folded - books.hits <= books.ups + killed
        return (
            bool(books.counted)
            and 0 <= books.found - books.counted <= killed
            and in_states
            and books.busy == 0
            and not self._unbalanced(books)
        )

    def _unbalanced(self, books: Books) -> list[str]:
        """The Clients whose own books do not add up, in words."""
        return [f"{name_of(number)}: {why}" for number, client in enumerate(books.clients) if (why := self._amiss(number, client, books))]

    def _amiss(self, number: int, client: OfClient, books: Books) -> str:
        """What is wrong with the books of one Client; "" where they add up.

        Whose drops are is told by an Agent since it began: of each Client all of them where none was killed, or where nothing is dropped.
        """
        told = sum(client.dropped.values())
        if client.missing < told - self._killed[number]:
            return f"{told - client.missing:,} more than it recorded"
        knows_all = not self.kills["agent"] or not books.dropped
        if knows_all and client.missing > told + client.ups:
            return f"{client.missing - told - client.ups:,} of which nobody tells"
        return ""

    def _rest(self) -> Books:
        """The books once they add up, or once no more comes."""
        books = Books((), 0, 0, {}, 0.0)
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
        for number, client in enumerate(books.clients):
            self._print_client(number, client)
        if not self._is_whole(books):
            wrong += ["NOT EXACT", *self._unbalanced(books)]
        if self._load > 1 and not books.dropped:
            wrong.append("NOTHING DROPPED: the load was not too high")
        if self._load and self._pace < self._load * self._folded_pace:
            wrong.append(f"NOT {self._load:g} TIMES AS MUCH as was folded could be recorded")
        for part in self._seen():
            line, grows = judged(part, self.memory[part])
            print(line)
            wrong += grows
        for part, query in (("Agent", self.services.agent_query), ("Server", self.services.query)):
            for problem in query.status()["problems"]:
                print(f"problem of the {part}: {problem}")
        once = "every event once, or dropped and counted" if books.dropped else "every event once"
        print("verdict: " + ("; ".join(wrong) or f"{once}; memory flat"))
        return not wrong

    def _print_client(self, number: int, client: OfClient) -> None:
        told = ", ".join(f"{reason} {count:,}" for reason, count in sorted(client.dropped.items())) or "none"
        found = f"{client.counted:,} counted: {client.hits:,} in its State, {client.dead_letters:,} dead"
        rest = f"{client.missing:,} dropped, or among the {client.ups:,} that went up and down"
        knows = f"drops that the Agent, since it began, knows of: {told}"
        print(f"{name_of(number)}, killed {self._killed[number]} times: {found}, {rest} ({knows})")

    def _seen(self) -> list[str]:
        """The processes whose memory is looked at."""
        return [*(f"client {number}" for number in range(CLIENTS)), "agent", "server", "store"]


def amount(text: str) -> float:
    """A finite number of 0 or more; argparse's own sentence says that others are none."""
    number = float(text)
    if not 0 <= number < math.inf:  # so no NaN, of which a run would not end
        raise ValueError(text)
    return number


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["record"]:
        record(arguments[1], arguments[2], float(arguments[3]), arguments[4])
        return 0
    parser = argparse.ArgumentParser(prog="./run soak", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=amount, default=10.0, help="how long to kill (default 10)")
    parser.add_argument("--rate", type=amount, default=100_000.0, help="events a second, of all clients together (default 100000)")
    parser.add_argument("--load", type=amount, default=0.0, metavar="N", help="N times what this machine folds, instead of --rate")
    parser.add_argument("--seed", type=int, default=None, help="of the kills; each run tells its own")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed: {seed}", flush=True)
    return 0 if Soak(options.minutes * 60, options.rate, seed, options.load).run() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
