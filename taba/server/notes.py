"""Notes: what people or their scripts say about a moment, such as "deploy 1.4", for who looks at charts.

They are kept for a day of the store's age.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from taba.bounds import DAY, MAX_NOTE, MAX_TIME
from taba.errors import StoreUnavailable
from taba.server import keys
from taba.server.aging import passed
from taba.server.router import IsRouter
from taba.shard import Writes

BUCKET = 0  # where they lie
KEEP_MINUTES = int(DAY / 60)
MAX_NOTES = 1000  # 600 KiB at the most; of more, those that were noted first go

NOTE_SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "minLength": 1, "maxLength": MAX_NOTE, "pattern": r"^[^\x00]*[^\s\x00][^\x00]*$"},
        "time": {"type": "number", "minimum": 0, "maximum": MAX_TIME},
    },
    "required": ["text"],
    "additionalProperties": False,
}


class Note(NamedTuple):
    """What was said about a moment. `age`: the store's when it was said."""

    id: str
    time: float
    text: str
    age: int

    def shown(self) -> dict[str, Any]:
        """As answers have it."""
        return {"time": self.time, "text": self.text}


def read_note(content: Any, now: float) -> tuple[float, str]:
    """(time, text) of a posted note. Raises ValueError with a sentence."""
    if not isinstance(content, dict) or not set(content) <= {"text", "time"} or not isinstance(content.get("text"), str):
        raise ValueError('takes {"text": …, "time": Unix seconds or nothing}')
    text, time = content["text"], content.get("time")
    if not 0 < len(text) <= MAX_NOTE or not text.strip() or "\0" in text:
        raise ValueError(f"text: takes 1 to {MAX_NOTE} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text: is no text") from None
    if time is None:
        return now, text
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not 0 <= time <= MAX_TIME:
        raise ValueError("time: takes Unix seconds, such as 1763850000.5")
    return float(time), text


class Notes:
    """The notes of all Servers. `draw` gives so many random bytes."""

    def __init__(self, router: IsRouter, age: Callable[[], int | None], draw: Callable[[int], bytes]):
        self._router, self._age, self._draw = router, age, draw

    async def add(self, time: float, text: str) -> Note:
        """Keep one. Those that are over go, and where there would be too many the first. Raises StoreUnavailable."""
        age = self._age()
        if age is None:
            raise StoreUnavailable("how old the store is, is not known yet; try again in a moment")
        note = Note(self._draw(6).hex(), time, text, age)

        def update(replies: Sequence[Any]) -> Writes:
            [contents] = replies
            kept = [content for content in contents if not self._is_over(content)]
            if any((known := _read(content)) is not None and known.id == note.id for content in kept):
                return Writes([], note)  # it was written before, and the answer was lost
            key = keys.notes(BUCKET)
            kept = [json.dumps(note, ensure_ascii=False).encode(), *kept][:MAX_NOTES]
            return Writes([(b"DEL", key), (b"RPUSH", key, *kept)] if len(kept) <= len(contents) else [(b"LPUSH", key, kept[0])], note)

        added: Note = await self._router.transact(BUCKET, [(b"LRANGE", keys.notes(BUCKET), b"0", b"-1")], update)
        return added

    async def list(self) -> list[Note]:
        """Those of the last day, the latest first."""
        [contents] = await self._router.read(BUCKET, [(b"LRANGE", keys.notes(BUCKET), b"0", b"-1")])
        found = [note for content in contents if not self._is_over(content) and (note := _read(content)) is not None]
        return sorted(found, key=lambda note: -note.time)

    def _is_over(self, content: bytes) -> bool:
        note = _read(content)
        return note is None or passed(note.age, self._age()) >= KEEP_MINUTES


def _read(content: bytes) -> Note | None:
    try:
        note = Note(*json.loads(content))
    except (ValueError, TypeError):
        return None
    is_note = isinstance(note.text, str) and isinstance(note.time, (int, float)) and isinstance(note.age, int)
    return note if is_note else None
