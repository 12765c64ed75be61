"""What keeping States takes of their Handlers: dumps of the newest version, what is prunable, several States as one. Pure.

Nothing here raises: where a Handler fails, a sentence stands in place of its answer, and the State stays as it is. The same code runs
in the Server and in the child process for Handlers that are not Taba's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from taba.server.keys import Framed
from taba.server.work.faults import sentence
from taba.server.work.renewing import check_parts, parts_of, renewed

State = Sequence[Framed]  # the main part, then the further parts


def upgrade_type(handler: Any, is_array: bool, states: Sequence[State], now: float) -> Iterator[list[bytes] | str]:
    """For each State its parts as this version of its Handler dumps them, the main part first, or a sentence."""
    for state in states:
        answer: list[bytes] | str
        try:
            answer = check_parts(_dumps(handler, is_array, state, now), parts_of(handler, is_array))
        except BaseException as error:
            answer = sentence(error)
        yield answer


def prunable_type(handler: Any, is_array: bool, states: Sequence[State], now: float) -> Iterator[bool | str]:
    """For each State whether it has nothing more to say, or a sentence."""
    for state in states:
        answer: bool | str
        try:
            answer = bool(handler.prunable(_loaded(handler, is_array, state, now), now))
        except BaseException as error:
            answer = sentence(error)
        yield answer


def merge_states(handler: Any, is_array: bool, states: Sequence[State], now: float) -> list[bytes] | str:
    """The parts of the State that is all of `states` together, the main part first, or a sentence."""
    try:
        merged = handler.merge([_loaded(handler, is_array, state, now) for state in states])
        return check_parts(list(merged) if is_array else [handler.dump(merged)], parts_of(handler, is_array))
    except BaseException as error:
        return sentence(error)


def _dumps(handler: Any, is_array: bool, state: State, now: float) -> list[bytes]:
    main = state[0]
    if main.version > handler.version:
        raise ValueError(f"the State has version {main.version}, the Handler {handler.version}")
    if main.version < handler.version:
        return renewed(handler, is_array, state, now)
    if any(part.version not in (0, main.version) for part in state[1:]):
        raise ValueError("a further part has another version than its State")
    return [part.dump for part in state]


def _loaded(handler: Any, is_array: bool, state: State, now: float) -> Any:
    """The State as plain methods take it; for an array Handler the list of its parts."""
    dumps = _dumps(handler, is_array, state, now)
    return dumps if is_array else handler.load(*dumps)
