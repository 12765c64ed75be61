"""States into Projections, Projections into Aggregates and text, one Type at a time. Pure.

Nothing here raises: where a Handler fails, a sentence stands in place of its answer. The same code runs in the Server and in the
child process for Handlers that are not Taba's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from taba.bounds import MAX_VALUE_DEPTH, KiB
from taba.nesting import is_deeper
from taba.server.keys import Framed
from taba.server.work.faults import sentence

MAX_PROJECTION_DEPTH = 2 * MAX_VALUE_DEPTH  # of Projections and Aggregates: a value at its bound, and what a Handler puts around it
AT_ONCE_BYTES = 256 * KiB  # of States that an array Handler projects in one call: what it makes of them fits in the processor's cache


def checked(what: str, answer: Any) -> Any:
    """A Projection or Aggregate that came from elsewhere; a sentence where it is none, or none that can be shown."""
    if not isinstance(answer, dict):
        return f"the {what} is {type(answer).__name__}, not a dictionary"
    if is_deeper(answer, MAX_PROJECTION_DEPTH):
        return f"the {what} is nested more than {MAX_PROJECTION_DEPTH} deep"
    return answer


def project_type(handler: Any, is_array: bool, states: Sequence[Sequence[Framed]], now: float, detail: bool = False) -> list[Any]:
    """A Projection for each State (its main part first), or a sentence where there can be none. Raises nothing.

    With `detail`, Handlers that have such a method show the slots, too.
    """
    if not is_array or (detail and getattr(handler, "detail", None)):
        return [project_one(handler, is_array, state, now, detail) for state in states]
    answers: list[Any] = []
    lot: list[Sequence[Framed]] = []
    size = 0
    for state in states:
        lot.append(state)
        size += sum(len(part.dump) for part in state)
        if size >= AT_ONCE_BYTES:
            answers += _project_arrays(handler, lot, now)
            lot, size = [], 0
    if lot:
        answers += _project_arrays(handler, lot, now)
    return answers


def aggregate_states(handler: Any, states: Sequence[Sequence[Framed]], groups: Any, total: int, now: float) -> list[Any] | None:
    """The Aggregates of `total` groups of an array Handler's States, in one call; None where that cannot be. Raises nothing."""
    if getattr(handler, "aggregate_array", None) is None:
        return None
    if not _are_of_now(handler, states):
        return None
    dumps, parts = _taken_apart(states)
    try:
        answers = _from_bytes(handler, dumps, parts, groups, total, now)
        return list(handler.aggregate_array(handler.load_array(dumps), parts, groups, total, now)) if answers is None else answers
    except Exception:
        return None  # each State is projected by itself then, and the one that is to blame is named


def _are_of_now(handler: Any, states: Sequence[Sequence[Framed]]) -> bool:
    """Whether all parts are of the Handler's version, or not there."""
    return {part.version for state in states for part in state} <= {0, handler.version}


def _taken_apart(states: Sequence[Sequence[Framed]]) -> tuple[list[bytes], list[list[bytes]]]:
    return [state[0].dump for state in states], [[part.dump for part in state[1:]] for state in states]


def _from_bytes(handler: Any, dumps: list[bytes], parts: list[list[bytes]], groups: Any, total: int, now: float) -> list[Any] | None:
    """As `aggregate_array`, where the Handler itself can do it in one pass over the bytes: what is built on it may show something else."""
    if "aggregate_dumps" not in vars(type(handler)):
        return None
    answers: list[Any] | None = handler.aggregate_dumps(dumps, parts, groups, total, now)
    return answers


def _project_arrays(handler: Any, states: Sequence[Sequence[Framed]], now: float) -> list[Any]:
    if _are_of_now(handler, states):
        dumps, parts = _taken_apart(states)
        try:
            answers = _from_bytes(handler, dumps, parts, np.arange(len(states)), len(states), now)
            if answers is None:
                answers = list(handler.project_array(handler.load_array(dumps), parts, now))
            if len(answers) == len(states) and all(isinstance(answer, dict) for answer in answers):
                return answers
        except BaseException as error:
            if len(states) == 1:
                return [sentence(error)]
    return [project_one(handler, True, state, now) for state in states]


def project_one(handler: Any, is_array: bool, state: Sequence[Framed], now: float, detail: bool = False) -> Any:
    """The Projection of a State, or a sentence where there can be none. Raises nothing."""
    main = state[0]
    try:
        if main.version > handler.version:
            return f"the State has version {main.version}, the Handler {handler.version}"
        show = getattr(handler, "detail", None) if detail else None
        if is_array:
            dumps = [part.dump for part in state]
            if main.version < handler.version:
                dumps = handler.upgrade_parts(dumps, main.version)
            if show is None:
                [answer] = handler.project_array(handler.load_array(dumps[:1]), [dumps[1:]], now)
            else:
                answer = show(dumps, now)
        else:
            loaded = handler.load(main.dump) if main.version == handler.version else handler.upgrade(main.dump, main.version)
            answer = (show or handler.project)(loaded, now)
    except BaseException as error:
        return sentence(error)
    return checked("Projection", answer)


def aggregate_type(handler: Any, projections: Sequence[Any]) -> Any:
    """The Aggregate of Projections, or a sentence where there can be none. Raises nothing."""
    try:
        answer = handler.aggregate(projections)
    except BaseException as error:
        return sentence(error)
    return checked("Aggregate", answer)


def render_one(handler: Any, projection: Any) -> str:
    """A Projection or Aggregate as one line for people."""
    try:
        return str(handler.render(projection)).replace("\n", " ")
    except BaseException as error:
        return f"({sentence(error)})"


def samples_one(handler: Any, projection: Any) -> Any:
    """What a Handler's `samples` are of a Projection, as lists `[suffix, labels, value, kind]`; or a sentence. Raises nothing."""
    if getattr(handler, "samples", None) is None:
        return []
    try:
        return [
            [str(suffix), {str(key): str(text) for key, text in labels.items()}, float(value), str(kind)]
            for suffix, labels, value, kind in handler.samples(projection)
        ]
    except BaseException as error:
        return sentence(error)
