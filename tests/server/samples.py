"""Handlers, batches and a store in memory for tests of the Server's pure parts."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice
from typing import Any

import numpy
from twisted.internet.task import Clock

from taba.batch import NONCE_BYTES, Batch, Column, Header
from taba.handlers import ArrayHandler, Handler
from taba.handlers.lookup import Found, Lookup
from taba.names import bucket_of
from taba.server import keys
from taba.server.fold.bounds import Bounds
from taba.server.fold.cycle import Cycle, Outcome, Reads, WaitingBatch
from taba.server.fold.deciding import fold_cycle
from taba.server.fold.in_all import ENDLESS, Room
from taba.server.fold.marks import Mark, encode_mark
from taba.server.fold.together import Together, advance_many
from taba.server.work.bench import Bench
from taba.server.work.pace import Pause
from taba.shard import MoreOfMany
from taba.shard.memory.server import MemoryServer
from tests.sites import result_of

BUCKETS = 4
NONCE = b"n" * NONCE_BYTES
AGE = 100  # minutes
SPILL_COUNT = 4  # the main part of a Spilling State holds so many values


class Sum(ArrayHandler):
    """Count and total; refuses 13, all of the array at once."""

    type = "Sum"
    version = 2

    def load_array(self, dumps: Sequence[bytes]) -> Any:
        return numpy.array([struct.unpack("<qd", dump or bytes(16)) for dump in dumps]).reshape(-1, 2)

    def fold_array(self, states: Any, rows: Any, times: Any, values: Any, now: float) -> Any:
        if (values == 13).any():
            raise ValueError("13")
        numpy.add.at(states[:, 0], rows, 1)
        numpy.add.at(states[:, 1], rows, values)
        return states

    def dump_array(self, states: Any) -> list[bytes]:
        return [struct.pack("<qd", int(count), total) for count, total in states]

    def upgrade_parts(self, parts: Sequence[bytes], version: int) -> list[bytes]:
        (count,) = struct.unpack("<q", parts[0])
        return [struct.pack("<qd", count, 0.0)]

    def project_array(self, states: Any, parts: Any, now: float) -> list[Any]:
        return [{"count": int(count), "total": total} for count, total in states]

    def aggregate(self, projections: Any) -> Any:
        return {key: sum(projection[key] for projection in projections) for key in ("count", "total")}


class Spilling(ArrayHandler):
    """All values: the last few in the main part, older ones in two further parts (even and odd)."""

    type = "Spilling"
    further_parts = 2

    def load_array(self, dumps: Sequence[bytes]) -> Any:
        return [list(struct.unpack(f"<{len(dump) // 8}d", dump)) for dump in dumps]

    def fold_array(self, states: Any, rows: Any, times: Any, values: Any, now: float) -> Any:
        if (values == 13).any():
            raise ValueError("13")
        for row, value in zip(rows, values, strict=True):
            states[row].append(float(value))
        return states

    def spilling(self, states: Any) -> Any:
        return numpy.array([row for row, values in enumerate(states) if len(values) > SPILL_COUNT], dtype=numpy.int64)

    def spill(self, states: Any, rows: Any, parts: Any) -> Any:
        answer = []
        for row, (even, odd) in zip(rows, parts, strict=True):
            old, states[row] = states[row], []
            if 14.0 in old:
                raise ValueError("14")
            even += b"".join(struct.pack("<d", value) for value in old if value % 2 == 0)
            odd += b"".join(struct.pack("<d", value) for value in old if value % 2)
            answer.append([even, odd])
        return answer

    def dump_array(self, states: Any) -> list[bytes]:
        return [struct.pack(f"<{len(values)}d", *values) for values in states]

    def project_array(self, states: Any, parts: Any, now: float) -> list[Any]:
        return [
            {"values": sorted([*values, *(value for part in further for (value,) in struct.iter_unpack("<d", part))])}
            for values, further in zip(states, parts, strict=True)
        ]

    def aggregate(self, projections: Any) -> Any:
        return {"values": sorted(value for projection in projections for value in projection["values"])}


class Words(Handler):
    """All values that came, in order; raises at "bad"."""

    type = "Words"

    def new_state(self) -> Any:
        return []

    def fold(self, state: Any, events: Any, now: float) -> Any:
        if "bad" in list(events.values):
            raise ValueError("bad")
        return [*state, *(float(value) if not isinstance(value, (str, list)) else value for value in events.values)]

    def project(self, state: Any, now: float) -> Any:
        return {"words": state}

    def aggregate(self, projections: Any) -> Any:
        return {"words": [word for projection in projections for word in projection["words"]]}


def lookup_of(*handlers: Handler, own: bool = True) -> Lookup:
    return Lookup({handler.type: Found(handler, "taba" if own else "plugin test", own) for handler in handlers})


class Elsewhere:
    """Where Handlers run that are not Taba's own, for tests that fold there and do nothing else; with no `fold` not even that."""

    def __init__(self, fold: Any = None) -> None:
        self.fold = fold


def bench_of(lookup: Lookup, fold_elsewhere: Any = None) -> Bench:
    sandbox: Any = Elsewhere(fold_elsewhere)
    return Bench(lookup, sandbox)


def tab_in(bucket: int, number: int = 0, buckets: int = BUCKETS) -> str:
    """The `number`-th name of a Tab in this bucket."""
    names = (name for name in (f"tab{index}" for index in count()) if bucket_of(name, buckets) == bucket)
    return next(islice(names, number, None))


def column(tab: str, type: str, values: Sequence[Any], client: str = "web/1", times: Sequence[float] | None = None) -> Column:
    packed: Any = list(values)
    if all(isinstance(value, float) for value in values):
        packed = struct.pack(f"<{len(values)}d", *values)
    return Column(client, tab, type, struct.pack(f"<{len(values)}d", *(times or [1000.0] * len(values))), packed)


def batch(stream: int, number: int, columns: Sequence[Any], bucket: int = 0, follows: int | None = None) -> WaitingBatch:
    content = Batch(bytes([stream]) * 16, bucket, number, list(columns))
    return WaitingBatch(number - 1 if follows is None else follows, content, 100, NONCE)


def header(do: str, stream: int, nonce: bytes = NONCE, bucket: int = 0, drawn: bytes = NONCE, anew: bool = False) -> WaitingBatch:
    id = bytes([stream]) * 16
    return WaitingBatch(0, Batch(id, bucket, 0, []), 64, drawn, header=Header(do, id, bucket, nonce, anew), agent="web")


class MemoryStore:
    """A server in memory, and what a cycle does to it. Streams without a mark are `open` under NONCE, or are not."""

    pauses = 0
    """How often cycles over several buckets let others have their turn."""

    def __init__(self, open: bool = True, server: MemoryServer | None = None) -> None:
        self.server = server or MemoryServer(Clock())
        self.open = encode_mark(Mark(NONCE, 0, 0)) if open else None

    def run(self, command: Sequence[bytes]) -> Any:
        """The server's reply; what it refuses, raises."""
        reply: Any = self.server.run(tuple(command))
        if isinstance(reply, Exception):
            raise reply
        if command[0] == b"HMGET" and command[1].endswith(b":marks"):
            return [self.open if mark is None else mark for mark in reply]
        return reply

    def put(self, key: bytes, fields: Mapping[bytes, bytes]) -> None:
        """Have a hash hold these, too."""
        self.run((b"HSET", key, *(part for pair in fields.items() for part in pair)))

    @property
    def keys(self) -> dict[bytes, Any]:
        """Each key, and what it holds: a hash as a dictionary, a set as one, a list as one."""
        _, names = self.run((b"SCAN", b"0", b"COUNT", b"1000000"))
        return {name: KINDS[self.run((b"TYPE", name))](self, name) for name in names}

    def _hash(self, key: bytes) -> dict[bytes, bytes]:
        pairs = self.run((b"HGETALL", key))
        return dict(zip(pairs[::2], pairs[1::2], strict=True))

    def counts(self, bucket: int = 0) -> Mapping[str, int]:
        counts = self._hash(keys.counts(bucket)).items()
        return {name.decode(): int(count) for name, count in counts if name != keys.TAB_CHANGES}

    def cycle(
        self, lookup: Lookup, waiting: Sequence[WaitingBatch], bucket: int = 0, now: float = 1001.0, age: int | None = AGE, **bounds: int
    ) -> Outcome:
        """Run one fold cycle as a Server would, with nobody in between."""
        cycle = Cycle(bucket, waiting, BUCKETS)
        steps = fold_cycle(cycle, [self.run(command) for command in cycle.reads], bench_of(lookup), now, age, Bounds(**bounds))
        sent: Any = None
        while True:
            try:
                need = steps.send(sent)
            except StopIteration as stop:
                outcome: Outcome = stop.value
                break
            assert isinstance(need, Reads | Pause)
            sent = [self.run(command) for command in need.commands] if isinstance(need, Reads) else None
        for command in outcome.commands:
            self.run(command)
        return outcome

    def together(
        self, lookup: Lookup, waiting: Mapping[int, Sequence[WaitingBatch]], in_all: Room = ENDLESS, **bounds: int
    ) -> dict[int, Outcome]:
        """Run the cycles of several buckets as one."""
        cycles = Together(waiting, BUCKETS, bench_of(lookup))
        steps = cycles.fold(self._found(cycles.reads), 1001.0, AGE, Bounds(**bounds), in_all)

        async def breathe() -> None:
            self.pauses += 1

        step = advance_many(steps, None, breathe)
        while not isinstance(step, dict):
            step = step.update(self._found(step.reads)) if isinstance(step, MoreOfMany) else result_of(step)
        for writes in step.values():
            for command in writes.commands:
                self.run(command)
        return {bucket: writes.result for bucket, writes in step.items()}

    def _found(self, reads: Mapping[int, Sequence[Sequence[bytes]]]) -> dict[int, list[Any]]:
        return {bucket: [self.run(command) for command in commands] for bucket, commands in reads.items()}


async def go_on() -> None:
    """Nobody else wants a turn."""


KINDS: dict[bytes, Callable[[MemoryStore, bytes], Any]] = {
    b"hash": MemoryStore._hash,
    b"set": lambda store, key: set(store.run((b"SMEMBERS", key))),
    b"list": lambda store, key: store.run((b"LRANGE", key, b"0", b"-1")),
}
