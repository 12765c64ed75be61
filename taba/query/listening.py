"""Listening to what changes, without I/O: server-sent events out of bytes, and how long a listener waits before it asks anew.

1. An event has all of what was asked for, so that whoever heard nothing for a while knows all with the next one: nothing is caught up on,
   and no Last-Event-ID is sent.
2. What a Server sends is bounded here too: an event that never ends is no event.
3. A Server that has nothing to say says so (a comment), at the latest after its longest time between two looks.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from taba.bounds import MiB
from taba.query import questions
from taba.query.questions import LIVE, Question

MAX_EVENT_BYTES = 32 * MiB  # a Server's bound is 2 Mi characters, of four bytes each, beside what stands for Tabs that found no room
SILENCE_SECONDS = 60.0  # after which nobody is there: two looks of a Server are 30 s apart at the most
PATIENCE_SECONDS = 60.0  # for a Server that was there and is not heard any more
LEAST_PAUSE = 1.0  # before a further attempt, whose first event may come at once: one a second is what a listener is promised
FIRST_PAUSE, MOST_PAUSE = 2.0, 10.0  # seconds between two attempts to be heard again, before they are jittered
STEADY_SECONDS = 10.0  # that a connection lasts after its first event, before the pauses begin anew


class Sse:
    """The events of one connection: bytes in, what they say out. Comments, ids, and events with a name of their own are passed over."""

    def __init__(self, question: Question[Any], base: str, role: str):
        self._question, self._base, self._role = question, base, role
        self._waiting = bytearray()
        self._searched = 0

    @staticmethod
    def is_heard(status: int, content_type: str) -> bool:
        """Whether what begins so are events."""
        return status == 200 and content_type.startswith(LIVE)

    def feed(self, content: bytes) -> list[dict[str, Any]]:
        """What the events say that end in it. Raises NotTaba for what no Server says."""
        self._waiting += content
        found = []
        try:
            while (end := self._waiting.find(b"\n\n", self._searched)) >= 0:
                event = _read(self._waiting[:end].decode())
                del self._waiting[: end + 2]
                self._searched = 0
                if event is not None:
                    found.append(event)
            self._searched = max(0, len(self._waiting) - 1)
            if len(self._waiting) > MAX_EVENT_BYTES:
                raise ValueError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        except (ValueError, RecursionError):
            raise questions.no_answer(self._question, self._base, self._role) from None
        return found


def _read(text: str) -> dict[str, Any] | None:
    """What an event says; None for one that says nothing, or only that a Server stops, which its silence tells too."""
    name, lines = "", []
    for line in text.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            lines.append(value)
    if name or not lines:
        return None
    content = json.loads("\n".join(lines))
    if not isinstance(content, dict) or not isinstance(content.get("aggregates"), dict):
        raise ValueError("an event without Aggregates")
    return content


class Again:
    """Whether to ask anew, and when: after pauses that double, jittered, up to MOST_PAUSE, for `patience` seconds of silence.

    No pause is shorter than LEAST_PAUSE, and whoever says something and is gone again is asked as seldom as whoever says nothing.
    Who was never heard is not asked again.
    """

    def __init__(self, random: Random, patience: float):
        self._random, self._patience = random, patience
        self._pause = FIRST_PAUSE
        self._since: float | None = None  # since when nobody is heard; None: somebody is
        self._first: float | None = None  # when this attempt was first heard
        self._was_heard = False

    def heard(self, now: float) -> None:
        """Somebody was."""
        self._was_heard, self._since = True, None
        self._first = now if self._first is None else self._first

    def pause(self, now: float) -> float | None:
        """Seconds until the next attempt, `now` being when the last one ended; None where there is to be none."""
        if self._since is None:
            self._since = now
        if self._first is not None and now - self._first >= STEADY_SECONDS:
            self._pause = FIRST_PAUSE
        self._first = None
        left = self._since + self._patience - now
        if not self._was_heard or left <= 0:
            return None
        pause, self._pause = self._pause, min(MOST_PAUSE, 2 * self._pause)
        return max(LEAST_PAUSE, min(left, pause * self._random.uniform(0.5, 1.0)))
