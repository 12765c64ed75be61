"""How full the rings of an Agent are: a look at all of them, many times a second.

Nearly always in nearly all of them is nothing new, or a few records: the C part sees that, ring by ring, in one go. What is not so
plain each ring looks at itself. What follows from it is decided for all at once, in arrays; where nothing is new in any ring it stands
as it was decided before, so that an Agent that is idle does next to nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taba.agent.native import NATIVE
from taba.agent.reader import Ring
from taba.agent.scratch import LOOKS, Scratch
from taba.ring import MalformedRing

HOLDS = 0.75  # of its room a ring may fill before the next look; one value may need a quarter of the byte ring
NEAR_PART = 2  # of whose room this part is full is near, as is what may overflow before the next look
# and of whose Client this part waits, or less, of what waits of the one that has most: where all fill alike none goes before
NEAR_SHARE = 4
_RECORDS, _RECORD_ROOM, _BYTES, _BYTE_ROOM, _HEAD, _BYTE_HEAD, _IS_CUT, _FILL = range(8)  # of a Fill, and how many these are
_POSITION, _BYTE_TAIL = 3, 5  # of a `place_to_look`
_ODD, _MUCH = -1, -2  # what the C part says of a ring that is to look itself, and of one that is filling, whose end is to be looked for
_SEEN = 3  # how much it says of each: how many records are new, where their values end, and whether there may be more than a look looks at


class Looks:
    """What the last look saw. `native` is the C part, or None."""

    def __init__(self, scratch: Scratch, native: Any = NATIVE):
        self._scratch, self._native = scratch, native
        self._rings: list[Ring] = []
        self._moves: list[int] = []  # of each ring, as `_asked` has it
        self._is_still = False  # the last look saw nothing that the one before it had not seen …
        self._has_records: bool | None = None  # as of the last look, once that was asked for
        self._decided: dict[int, bool] = {}  # … and while it is so, by part, whether any of them is filling
        self._asked = np.zeros((0, len(Ring.NO_PLACE)), np.int64)
        self._seen = np.zeros((0, _SEEN), np.int64)  # what the C part said of each
        self._fills = np.zeros((0, _FILL), np.int64)
        self._heads = np.zeros((0, 2), np.int64)  # of records and of bytes, before the last look
        self._near: NDArray[np.bool_] | None = None  # which of them are nearly full, until that was asked for

    @property
    def has_records(self) -> bool:
        """Whether the last look found something in any ring, or looked at none."""
        if self._has_records is None:
            self._has_records = not self._rings or bool(self._fills[:, _RECORDS].any())
        return self._has_records

    @property
    def waiting(self) -> list[int]:
        """How many records there may be to read in each ring."""
        fills = self._fills
        found: list[int] = np.where(fills[:, _IS_CUT], fills[:, _RECORD_ROOM], fills[:, _RECORDS]).tolist()
        return found

    def look(self, rings: Sequence[Ring], part: int = 0) -> list[tuple[Ring, str]]:
        """Look at these. Returns those that turned out to be none.

        Of a ring of which one of `part` parts is full, if any is said, records need not be looked through: how far they go is found by
        halves, and what its values take beside them may be more than is said.
        """
        moves, is_known = [ring.moves for ring in rings], rings == self._rings
        is_same = is_known and moves == self._moves
        asked = self._asked if is_same else self._places(rings, moves if is_known else None)
        if len(self._seen) != len(rings):
            self._seen = np.full((len(rings), _SEEN), _ODD, np.int64)
        seen = self._seen
        new = len(rings) if self._native is None else self._native.glance(asked, seen, part)
        if is_same and not new and (self._is_still or not self._fills[:, _IS_CUT].any()):
            if not self._is_still:
                self._heads = self._fills[:, _HEAD : _BYTE_HEAD + 1].copy()  # nothing has grown
                self._is_still, self._decided = True, {}
            return []
        self._is_still, self._has_records = False, None
        if rings != self._rings:
            self._take(list(rings))
        self._heads = self._fills[:, _HEAD : _BYTE_HEAD + 1].copy()
        before, asked = self._asked, asked.copy()
        broken, fills, places = [], [], []
        self._scratch.looks = LOOKS
        has_moved = self._fills[:, _IS_CUT] != 0
        if not is_same:
            has_moved |= (asked != before).any(axis=1)
        has_moved |= (seen[:, 0] >= 0) & (seen[:, 2] > 0)  # … or is to be gone on with
        self._grow(np.flatnonzero((seen[:, 0] > 0) & ~has_moved), asked, seen)
        others = np.flatnonzero(has_moved | (seen[:, 0] < 0))
        rows = others.tolist()
        for row, (fresh, byte_end, is_cut) in zip(rows, seen[others].tolist(), strict=True):
            ring = rings[row]
            try:
                if fresh == _MUCH:
                    fill = ring.sees_much(self._scratch, part)
                else:
                    fill = ring.look(self._scratch) if fresh == _ODD else ring.sees(fresh, byte_end, bool(is_cut))
            except (MalformedRing, OSError) as error:
                broken.append((ring, str(error)))
                fill, place, moves[row] = Ring.NO_FILL, Ring.NO_PLACE, -1
            else:
                place, moves[row] = ring.place_to_look, ring.moves
            fills.append(fill)
            places.append(place)
        if rows:
            self._fills[others], asked[others] = fills, places
            unknown = others[before[others, -1] < 0]  # of a ring that was not there before, nothing is known of how fast it fills
            self._heads[unknown] = self._fills[unknown, _HEAD:_IS_CUT]
        self._asked, self._moves = asked, moves
        return broken

    def _places(self, rings: Sequence[Ring], moves: list[int] | None) -> Any:
        """Where to look in these: in those of the last look only where they moved since, so often as `moves` says, it is another place."""
        if moves is None:
            return np.array([ring.place_to_look for ring in rings], np.int64).reshape(len(rings), self._asked.shape[1])
        asked = self._asked.copy()
        rows = [row for row, (now, before) in enumerate(zip(moves, self._moves, strict=True)) if now != before]
        asked[rows] = [rings[row].place_to_look for row in rows]
        return asked

    def _grow(self, rows: Any, asked: Any, seen: Any) -> None:
        """In the rings of these rows, which have not moved, is more than before, and nothing else: all of them at once."""
        if not len(rows):
            return
        looked, known = asked[rows, _POSITION] + seen[rows, 0], self._fills[rows, _HEAD:_IS_CUT]
        heads = np.maximum(known, np.stack((looked, asked[rows, _BYTE_TAIL] + seen[rows, 1]), axis=1))
        grown = heads - known
        self._fills[rows, _RECORDS] += grown[:, 0]
        self._fills[rows, _BYTES] += grown[:, 1]
        self._fills[rows, _HEAD:_IS_CUT], asked[rows, _POSITION] = heads, looked
        for row, end, (head, byte_head) in zip(rows.tolist(), looked.tolist(), heads.tolist(), strict=True):
            self._rings[row].saw(end, head, byte_head)

    def is_filling(self, part: int, share: float) -> bool:
        """Whether of any ring one of `part` parts is full, of records or of bytes, or it might overflow before the next look: it goes on
        as it did since the look before the last, for `share` times as long."""
        known = self._decided.get(part) if self._is_still else None
        if known is not None and self._near is not None:
            return known
        records, room, value_bytes, byte_room = self._fills[:, :_HEAD].T
        grown = (self._fills[:, _HEAD:_IS_CUT] - self._heads) * share
        overflows = (records > 0) & ((records + grown[:, 0] > HOLDS * room) | (value_bytes + grown[:, 1] > HOLDS * byte_room))
        self._near = overflows
        is_filling = self._decided[part] = bool((self._have_part(part) | overflows | (self._fills[:, _IS_CUT] != 0)).any())
        return is_filling

    def _have_part(self, part: int) -> NDArray[np.bool_]:
        records, room, value_bytes, byte_room = self._fills[:, :_HEAD].T
        full: NDArray[np.bool_] = ((records * part >= room) & (room > 0)) | ((value_bytes * part >= byte_room) & (byte_room > 0))
        return full

    def near(self, most: int) -> frozenset[Ring]:
        """The rings that `is_filling` found nearly full, of those Clients that have least waiting in all of theirs, and much less than
        others: with so many records at the most, and once a look."""
        near, self._near = self._near, None
        if near is None or not (near := near | self._have_part(NEAR_PART)).any():
            return frozenset()
        here = self.waiting
        waiting: Counter[str] = Counter()
        for ring, records in zip(self._rings, here, strict=True):
            waiting[ring.client] += records
        found, least = [], max(waiting.values()) // NEAR_SHARE
        for row in sorted(np.flatnonzero(near).tolist(), key=lambda row: (waiting[self._rings[row].client], row)):
            most -= here[row]
            if most < 0 or waiting[self._rings[row].client] > least:
                break
            found.append(self._rings[row])
        return frozenset(found)

    def _take(self, rings: list[Ring]) -> None:
        """From now on these: what was seen of those that stay is kept."""
        rows = {ring: row for row, ring in enumerate(self._rings)}
        before = np.array([rows.get(ring, -1) for ring in rings], np.intp)
        asked, fills = np.full((len(rings), self._asked.shape[1]), -1, np.int64), np.zeros((len(rings), _FILL), np.int64)
        stay = np.flatnonzero(before >= 0)
        asked[stay], fills[stay] = self._asked[before[stay]], self._fills[before[stay]]
        self._rings, self._asked, self._fills = rings, asked, fills
