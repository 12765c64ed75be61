"""What keeping States takes of their Handlers: dumps of the newest version, what is prunable, several States as one. Pure.

Nothing here raises: where a Handler fails, a sentence stands in place of its answer, and the State stays as it is. The same code runs
in the Server and in the child process for Handlers that are not Taba's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from taba.server.keys import Framed
from taba.server.work.applying import MAX_STATE_BYTES
from taba.server.work.faults import sentence

State = Sequence[Framed]  # the main part, then the further parts


def upgrade_type(handler: Any, is_array: bool, states: Sequence[State]) -> Iterator[list[bytes] | str]:
    """For each State its parts as this version of its Handler dumps them, the main part first, or a sentence."""
    for state in states:
        answer: list[bytes] | str
        try:
            answer = check_parts(_dumps(handler, is_array, state), _count(handler, is_array))
        except BaseException as error:
            answer = sentence(error)
        yield answer


def prunable_type(handler: Any, is_array: bool, states: Sequence[State], now: float) -> Iterator[bool | str]:
    """For each State whether it has nothing more to say, or a sentence."""
    for state in states:
        answer: bool | str
        try:
            answer = bool(handler.prunable(_loaded(handler, is_array, state), now))
        except BaseException as error:
            answer = sentence(error)
        yield answer


def merge_states(handler: Any, is_array: bool, states: Sequence[State]) -> list[bytes] | str:
    """The parts of the State that is all of `states` together, the main part first, or a sentence."""
    try:
        merged = handler.merge([_loaded(handler, is_array, state) for state in states])
        return check_parts(list(merged) if is_array else [handler.dump(merged)], _count(handler, is_array))
    except BaseException as error:
        return sentence(error)


def check_parts(parts: Any, count: int) -> list[bytes]:
    """`parts`, if they can be the `count` parts of one State; else ValueError."""
    if not isinstance(parts, list) or len(parts) != count or not all(isinstance(part, bytes) for part in parts):
        raise ValueError(f"a State takes {count} parts of bytes")
    if max(map(len, parts)) > MAX_STATE_BYTES:
        raise ValueError(f"a part of the State takes more than {MAX_STATE_BYTES} bytes")
    return parts


def _count(handler: Any, is_array: bool) -> int:
    return 1 + int(handler.further_parts) if is_array else 1


def _dumps(handler: Any, is_array: bool, state: State) -> list[bytes]:
    main = state[0]
    if main.version > handler.version:
        raise ValueError(f"the State has version {main.version}, the Handler {handler.version}")
    if any(part.version not in (0, main.version) for part in state[1:]):
        raise ValueError("a further part has another version than its State")
    dumps = [part.dump for part in state]
    if main.version == handler.version:
        return dumps
    if is_array:
        return list(handler.upgrade_parts(dumps, main.version))
    return [handler.dump(handler.upgrade(main.dump, main.version))]


def _loaded(handler: Any, is_array: bool, state: State) -> Any:
    """The State as plain methods take it; for an array Handler the list of its parts."""
    if is_array or state[0].version > handler.version:
        return _dumps(handler, is_array, state)
    if state[0].version < handler.version:
        return handler.upgrade(state[0].dump, state[0].version)
    return handler.load(state[0].dump)
