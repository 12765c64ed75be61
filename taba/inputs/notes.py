"""What DogStatsD's events and service checks say, as notes: bytes in, a text and its time out.

    _e{TITLE'S LENGTH,TEXT'S LENGTH}:TITLE|TEXT[|d:SECONDS][|h:HOST][|t:KIND][|#TAG,…]
    _sc|NAME|STATUS[|d:SECONDS][|h:HOST][|#TAG,…][|m:MESSAGE]

Other fields are passed over. A service check says the same over and over: what is worth a note is that it says another thing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from taba.bounds import MAX_NOTE, MAX_TIME

STATUSES = {"0": "ok", "1": "warning", "2": "critical", "3": "unknown"}
KINDS = ("error", "warning", "success")  # of events; of another the text says enough
_EVENT = re.compile(r"_e\{([0-9]{1,5}),([0-9]{1,5})\}:")


class Said(NamedTuple):
    """What a line says: `check` is what a service check is of, with its status; None of an event."""

    text: str
    time: float | None
    check: tuple[tuple[str, ...], str] | None = None


def said(line: bytes) -> Said | str:
    """What the line of an event or a service check says; where nothing, the reason."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return "not_utf8"
    return _event(text) if text.startswith("_e{") else _check(text)


def _event(line: str) -> Said | str:
    match = _EVENT.match(line)
    if match is None:
        return "bad_line"
    lengths, rest = (int(match[1]), int(match[2])), line[match.end() :]
    parted = _parted(rest.encode(), *lengths) or _parted(rest, *lengths)  # some clients count characters
    if parted is None:
        return "bad_line"
    title, text, others = parted
    fields = _fields(others.split("|"))
    if fields is None:
        return "bad_time"
    return _noted(f"{title}: {text}" if clean(text) else title, [one for one in (fields.kind,) if one in KINDS], fields)


def _parted(rest: str | bytes, title: int, text: int) -> tuple[str, str, str] | None:
    """Title, text, and the fields behind them; None where they are not so long."""
    end = title + 1 + text
    parts = rest[:title], rest[title : title + 1], rest[title + 1 : end], rest[end : end + 1], rest[end + 1 :]
    if not title or len(rest) < end:
        return None
    try:
        first, bar, second, behind, others = (part.decode() if isinstance(part, bytes) else part for part in parts)
    except UnicodeDecodeError:  # in the middle of a character
        return None
    return (first, second, others) if bar == "|" and behind in ("", "|") else None


def _check(line: str) -> Said | str:
    before, _, message = line.partition("|m:")
    _, _, rest = before.partition("|")
    name, *others = rest.split("|")
    status = STATUSES.get(others[0]) if others else None
    if not name or status is None:
        return "bad_line"
    fields = _fields(others[1:])
    if fields is None:
        return "bad_time"
    found = _noted(f"{name} is {status}" + (f": {message}" if clean(message) else ""), [], fields)
    return found if isinstance(found, str) else found._replace(check=((name, fields.host, *sorted(fields.tags)), status))


class _Fields(NamedTuple):
    """Of an event or a service check, what is said of where and when."""

    time: float | None
    host: str
    kind: str
    tags: list[str]


def _fields(others: list[str]) -> _Fields | None:
    """What these fields say; None where a time is none."""
    found = _Fields(None, "", "", [])
    for field in others:
        if field.startswith("d:"):
            seconds = field[2:]
            if not (seconds.isascii() and seconds.isdigit() and len(seconds) <= 15 and int(seconds) <= MAX_TIME):
                return None
            found = found._replace(time=float(seconds))
        elif field.startswith("h:"):
            found = found._replace(host=field[2:])
        elif field.startswith("t:"):
            found = found._replace(kind=field[2:])
        elif field.startswith("#"):
            found = found._replace(tags=[tag for tag in field[1:].split(",") if tag])
    return found


def _noted(text: str, more: list[str], fields: _Fields) -> Said | str:
    more = [*more, *([f"host:{fields.host}"] if fields.host else []), *fields.tags]
    cleaned = clean(f"{text} ({', '.join(more)})" if more and clean(text) else text)
    return Said(cleaned, fields.time) if cleaned else "bad_line"


def clean(text: str) -> str:
    """One line of what can be printed, as long as a note may be: a stranger's text ends up on screens of all kinds."""
    shown = "".join(character if character.isprintable() else " " for character in text.replace("\\n", " "))
    line = " ".join(shown.split())
    return line if len(line) <= MAX_NOTE else line[: MAX_NOTE - 1] + "…"


class Checks:
    """What service checks said last, of so many; with one more all are learned again."""

    MOST = 1000

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], str] = {}

    def is_new(self, check: tuple[str, ...], status: str) -> bool:
        """Whether it says another thing than it did, or is heard for the first time."""
        if self._known.get(check) == status:
            return False
        if check not in self._known and len(self._known) >= self.MOST:
            self._known.clear()
        self._known[check] = status
        return True


class Allowance:
    """How many notes may go on: some at once, and then one in a while, so that who notes without end pushes nobody else's out."""

    AT_ONCE = 60
    EVERY = 60.0  # seconds: a Server keeps a thousand notes of a day, those of people and their scripts among them

    def __init__(self, now: float):
        self._left, self._since = float(self.AT_ONCE), now

    def take(self, now: float) -> bool:
        """Whether one more may."""
        self._left = min(float(self.AT_ONCE), self._left + max(0.0, now - self._since) / self.EVERY)
        self._since = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
