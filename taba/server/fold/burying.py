"""The Events of a cycle that cannot be folded, and why: dead letters, written in its transaction. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import Any

from taba.batch import BadColumn, Column
from taba.server import keys
from taba.server.fold.cycle import Reads
from taba.server.fold.deadletters import (
    MAX_DEAD_LETTERS,
    DeadLetter,
    count_dead_letters,
    dead_letters_of,
    decode_dead_letter,
    encode_dead_letter,
)
from taba.server.router import Command
from taba.server.work.pace import PAUSE, Pace, Pause, amount_of

MAX_MISSING_TYPES = 100  # a bucket's list of Types without a Handler; senders choose them

# why an Event is a dead letter; work/rows.py has those that a Handler causes
UNKNOWN_TYPE = "unknown_type"
TYPE_CONFLICT = "type_conflict"
WRONG_BUCKET = "wrong_bucket"
BAD_VALUE = "bad_value"
BAD_TIME = "bad_time"
BAD_STATE = "bad_state"
UNKNOWN_EDGE = "unknown_edge"
TOO_MANY_TABS = "too_many_tabs"
TOO_MANY_CLIENTS = "too_many_clients"


class Burial:
    """What is buried of a cycle of `bucket` at `now`."""

    def __init__(self, bucket: int, now: float):
        self._bucket, self._now = bucket, now
        self.letters: list[DeadLetter] = []
        self._missing: dict[str, None] = {}

    def bury(self, column: Column, reason: str, detail: str) -> None:
        """These Events, for this reason."""
        self.letters += dead_letters_of(self._now, reason, detail, column)

    def bury_bad(self, bad: BadColumn) -> None:
        """What is no column, as its decoder says why."""
        self.letters.append(DeadLetter(self._now, bad.reason, bad.error[:200], "", "", "", bad.events, b"", [], bad.content))

    def miss(self, column: Column, type: str) -> None:
        """Events of a Type without a Handler, which the bucket lists."""
        self._missing[type] = None
        self.bury(column, UNKNOWN_TYPE, f"no Handler of Type {type}")

    @property
    def by_reason(self) -> dict[str, int]:
        """How many Events are buried."""
        counts: dict[str, int] = {}
        for letter in self.letters:
            counts[letter.reason] = counts.get(letter.reason, 0) + letter.events
        return counts

    def commands(self) -> Generator[Reads | Pause, Any, list[Command]]:
        """What writes the letters, and counts them."""
        commands: list[Command] = []
        bucket = self._bucket
        if self._missing:
            missing, types = keys.missing(bucket), [type.encode() for type in list(self._missing)[:MAX_MISSING_TYPES]]
            # each stands there once: one whose Events come all the time would push out all that come seldom
            commands += [(b"LREM", missing, b"0", type) for type in types]
            commands.append((b"LPUSH", missing, *types))
            commands.append((b"LTRIM", missing, b"0", b"%d" % (MAX_MISSING_TYPES - 1)))
        if self.letters:
            key = keys.dead_letters(bucket)
            kept = self.letters[-MAX_DEAD_LETTERS:]
            # what will be pushed out is read first: it is a dead letter no more, but dropped
            [pushed_out] = yield Reads([(b"LRANGE", key, b"%d" % (MAX_DEAD_LETTERS - len(kept)), b"-1")])
            gone = [letter for content in pushed_out if (letter := decode_dead_letter(content)) is not None]
            encoded, pace = [], Pace()
            for letter in kept:
                encoded.append(encode_dead_letter(letter))
                if pace.is_due(amount_of(1, len(letter.times) >> 3)):
                    yield PAUSE
            commands.append((b"LPUSH", key, *encoded))
            commands.append((b"LTRIM", key, b"0", b"%d" % (MAX_DEAD_LETTERS - 1)))
            counts: Counter[str] = Counter()
            for letter in kept:
                counts[letter.reason] += letter.events
            for letter in gone:
                counts[letter.reason] -= letter.events
            dropped = sum(letter.events for letter in (*gone, *self.letters[: len(self.letters) - len(kept)]))
            commands += count_dead_letters(bucket, counts, dropped)
        return commands
