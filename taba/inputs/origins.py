"""Under which Client what comes goes: one for each origin, with a ring of its own, for the first MAX_ORIGINS; the rest under one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from taba.inputs.statsd import Reader, Readers, RecordEvent

MAX_ORIGINS = 64  # a ring each, and to whoever looks at a Gauge a Client
OTHERS = "others"  # the origin of what comes from further ones
SILENT_SECONDS = 600.0  # for which one that is silent keeps its place when another wants it
_FOREIGN = re.compile(r"[^A-Za-z0-9_.:]")


class Origin:
    """What is known of one origin."""

    __slots__ = ("heard", "name", "place", "reader")

    def __init__(self, name: str, reader: Reader, heard: float):
        self.name, self.reader, self.heard = name, reader, heard
        self.place = Destination(self, name.encode(), name != OTHERS)


class Destination(NamedTuple):
    """Where what comes from somewhere goes, and its name; `is_own`: under a Client of its own."""

    origin: Origin
    name: bytes
    is_own: bool


class Origins:
    """Those that are known. `producer` makes one that records under the Client of an origin; `readers` are theirs.

    `note` is given what is to be noted.
    """

    def __init__(self, producer: Callable[[str], Any], note: RecordEvent):
        self.readers = Readers(self._tab, note)
        self._make = producer
        self._producers: dict[str, Any] = {}
        self._known: dict[str, Origin] = {}
        self._over: list[Any] = []  # readers and producers that ended, and know something yet

    def place(self, name: str, now: float) -> Destination:
        """Where what comes from the origin `name` goes."""
        origin = self._known.get(name)
        if origin is None:
            if name != OTHERS and len(self._known) - (OTHERS in self._known) >= MAX_ORIGINS and not self._give_up_one(now):
                return self.place(OTHERS, now)
            origin = self._known[name] = Origin(name, self.readers.reader(name), now)
        origin.heard = now
        return origin.place

    def renew(self) -> None:
        """All rings are left, and all Tabs forgotten: once what was read is recorded, where they are full."""
        self._known.clear()
        self._over += self.readers.drop_all()
        for origin in list(self._producers):
            self._end(origin)

    def let_go(self, most: int) -> None:
        """Free so much of what those knew that ended: 100,000 Tabs at once would take long."""
        if self._over and self._over[-1].forget(most):
            self._over.pop()

    def _end(self, origin: str) -> None:
        producer = self._producers.pop(origin, None)
        if producer is not None:
            producer.stop()
            self._over.append(producer)

    def _tab(self, origin: str, name: str, type: str, unit: str) -> RecordEvent:
        producer = self._producers.get(origin)
        if producer is None:
            producer = self._producers[origin] = self._make(origin)
        record: RecordEvent = producer.tab(name, type, unit, may_conflict=True).record  # what a stranger names ends nothing
        return record

    def _give_up_one(self, now: float) -> bool:
        """Make room: the origin that is silent for longest goes, if that is long."""
        silent = min((one for one in self._known.values() if one.name != OTHERS), key=lambda one: one.heard)
        if now - silent.heard < SILENT_SECONDS:
            return False
        del self._known[silent.name]
        if (reader := self.readers.drop(silent.name)) is not None:
            self._over.append(reader)
        self._end(silent.name)
        return True


def client_of(host: str, kind: str, origin: str) -> str:
    """The client id under which an input of this kind records what comes from an origin."""
    return f"{host}:{kind}/{_FOREIGN.sub('_', origin)}"[:200]
