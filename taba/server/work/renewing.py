"""States of earlier versions as their Handler makes them anew, held against what a State must do before one is written in its place. Pure.

What an `upgrade` gives is whatever its author wrote, and the State that it was made of is gone once it is written: so it is dumped, read
again and shown first. Whatever is wrong with it raises, and the State stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taba.bounds import MiB
from taba.server.keys import Framed
from taba.server.work.projecting import project_one

MAX_STATE_BYTES = 1 * MiB  # of one part; a Handler that lets its State grow without limit would fill store and cycles


def renewed(handler: Any, is_array: bool, state: Sequence[Framed], now: float) -> list[bytes]:
    """The parts of this State of an earlier version as its Handler's version has them, the main part first.

    Raises whatever the Handler raises, and ValueError where what it gives is no State.
    """
    main = state[0]
    if any(part.version not in (0, main.version) for part in state[1:]):
        raise ValueError("a further part has another version than its State")
    if is_array:
        given = handler.upgrade_parts([part.dump for part in state], main.version)
    else:
        given = [handler.dump(handler.upgrade(main.dump, main.version))]
    made = check_parts(list(given), parts_of(handler, is_array))
    shown = project_one(handler, is_array, [Framed(handler.version, main.age, dump) for dump in made], now)
    if isinstance(shown, str):
        raise ValueError(f"what upgrade made of version {main.version} cannot be shown: {shown}")
    return made


def check_parts(parts: Any, count: int) -> list[bytes]:
    """`parts`, if they can be the `count` parts of one State; else ValueError."""
    if not isinstance(parts, list) or len(parts) != count or not all(isinstance(part, bytes) for part in parts):
        raise ValueError(f"a State takes {count} parts of bytes")
    if max(map(len, parts)) > MAX_STATE_BYTES:
        raise ValueError(f"a part of the State takes more than {MAX_STATE_BYTES} bytes")
    return parts


def parts_of(handler: Any, is_array: bool) -> int:
    """How many parts a State of this Handler has."""
    return 1 + int(handler.further_parts) if is_array else 1
