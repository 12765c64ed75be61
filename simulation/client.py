"""An application of a world: the real client in pure Python, which is killed, and starts again under its id."""

from __future__ import annotations

from typing import Any

from simulation.ground import Ground, Part
from simulation.names import ENVIRONMENT
from taba.client import pure
from taba.client.producer import Producer

UNFIT_SHARE = 0.01  # of what is recorded
NESTED_SHARE = 0.03  # comes as a list in a list of values, which stays packed until it is folded


class Client(Part):
    """An application: it records numbered events into the real ring."""

    def __init__(self, world: Ground, name: str, tabs: list[tuple[str, str]], rate: float):
        super().__init__(world, name)
        self.tabs, self.rate = tabs, rate
        self.next: dict[tuple[str, str], int] = dict.fromkeys(tabs, 1)
        self.recorded: dict[tuple[str, str], set[int]] = {tab: set() for tab in tabs}  # record returned, and dropped nothing
        self.doubtful: dict[tuple[str, str], set[int]] = {tab: set() for tab in tabs}  # a kill came within record
        self.dropped = self.vanished = 0  # events; of what went up or down, too, where there was no ring to hold it
        self.attempts = self.interrupted = 0
        self._under_way: tuple[tuple[str, str], int] | None = None  # an event whose record has not returned
        self.net = 0.0  # of this life, in its UpDown
        self.producer: Any = None
        self._made: dict[tuple[str, str], Any] = {}  # the Tabs of this life, as an application keeps them
        self._dropped_before = 0  # by the producer of this life, …
        self._totals: list[int] = []  # … which counts it here, by reason

    @property
    def told(self) -> int:
        """Events that it dropped, and that a ring tells of."""
        return self.dropped - self.unknown

    @property
    def unknown(self) -> int:
        """Events that were dropped by processes that had no ring: they told nobody."""
        return self.vanished + (sum(self.producer._port._pending) if self.producer is not None else 0)

    def live(self) -> None:
        self.net, self._dropped_before = 0.0, 0
        self._made.clear()
        self.producer = Producer(ports=pure)
        self._totals = self.producer._port._totals
        self.producer.start(None, {**ENVIRONMENT, "TABA_CLIENT_ID": self.name})
        self._record_later()

    def _record_later(self) -> None:
        assert self.process is not None
        if not self.world.is_quiet:
            self.process.reactor.callLater(self.process.random.expovariate(self.rate), self._record)

    def _record(self) -> None:
        assert self.process is not None
        chance, tabs = self.process.random.random, self.tabs
        for _ in range((1, 1, 2, 5, 20)[int(5 * chance())]):
            place = len(tabs) * chance()
            self.record(tabs[int(place)], place % 1.0)
        self._record_later()

    def record(self, key: tuple[str, str], chance: float) -> None:
        """Record one event; `chance` (0 … 1) says of what kind it is."""
        type = key[1]
        number = self.next[key]
        self.next[key] = number + 1
        self.attempts += 1
        self._under_way = key, number
        value: Any
        if type == "UpDown":
            value = 1.0 if chance < 0.5 else -1.0
        elif chance < UNFIT_SHARE and type == "Census":
            value = {number}  # no set can be sent: a drop that the client counts
        elif chance > 1.0 - NESTED_SHARE and type == "Census":
            value = [float(number)]
        else:
            value = float(number)
        tab = self._made.get(key)
        if tab is None:
            tab = self._made[key] = self.producer.tab(*key)
        tab.record(value)
        # from here on it counts: the call has returned
        self._under_way = None
        dropped = sum(self._totals)
        is_dropped = dropped > self._dropped_before
        if is_dropped:
            self._dropped_before = dropped
            self.dropped += 1
        if type == "UpDown":
            self.net += value
        elif is_dropped:
            return
        self.recorded[key].add(number)

    def died(self) -> None:
        self.net = 0.0
        if self._under_way is not None:
            key, number = self._under_way
            self.doubtful[key].add(number)
            self.interrupted += 1
            self._under_way = None
        producer, self.producer = self.producer, None
        if producer is not None:
            self.vanished += sum(producer._port._pending)  # it had no ring: what it dropped nobody can know
            unmap(producer)
        super().died()


def unmap(producer: Any) -> None:
    """What the kernel does when a process ends: its mappings go, and with them the lock."""
    held, segment = producer._port._ring, producer._segment
    if held is not None and hasattr(held, "words"):
        held.release()
    if segment is not None:
        segment.words.release()
        segment.content.release()
        segment.memory.mapping.close()
    producer._port._ring = producer._segment = None
