"""As much of a Producer as an input needs: what is recorded is written down."""

from __future__ import annotations

from typing import Any


class NotedProducer:
    """Records under an origin: (origin, name, value) in `events`."""

    def __init__(self, origin: str, events: list[tuple[str, str, Any]]):
        self.origin, self.events = origin, events
        self.is_stopped = False
        self.tabs: list[NotedTab] = []

    def tab(self, name: str, type: str, unit: str, may_conflict: bool) -> NotedTab:
        assert may_conflict
        self.tabs.append(NotedTab(self, name))
        return self.tabs[-1]

    def stop(self) -> None:
        self.is_stopped = True

    def forget(self, most: int) -> bool:
        assert self.is_stopped
        del self.tabs[:most]
        return not self.tabs


class NotedTab:
    """A Tab of a NotedProducer."""

    def __init__(self, producer: NotedProducer, name: str):
        self._producer, self._name = producer, name

    def record(self, value: Any, time: float | None) -> None:
        self._producer.events.append((self._producer.origin, self._name, value))
