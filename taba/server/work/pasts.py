"""The History of States: asked of a Handler, checked, and on its way between the Server and its child process. Pure; raises nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from taba.handlers.lookup import Ever, History
from taba.server.keys import Framed
from taba.server.work.faults import sentence

_SLOTS = ("row", "start", "end", "count", "total", "low", "high", "bins")
_EVER = ("count", "total", "low", "high", "bins")
_BINS = ("codes", "counts")
_OPTIONAL = {"low", "high", "bins", *_BINS}
_WHOLE = {"row", "count", "bins", *_BINS}
_MAX_CODE = 32_767  # of a bin; see taba.codes


def history_type(handler: Any, is_array: bool, states: Sequence[Sequence[Framed]], now: float) -> Any:
    """The History of States, None where the Type has none, or a sentence where there can be none."""
    if getattr(handler, "history", None) is None:
        return None
    try:
        loaded = []
        for state in states:
            main = state[0]
            if main.version > handler.version:
                return f"a State has version {main.version}, the Handler {handler.version}"
            if is_array:
                dumps = [part.dump for part in state]
                loaded.append(dumps if main.version in (0, handler.version) else handler.upgrade_parts(dumps, main.version))
            else:
                loaded.append(handler.load(main.dump) if main.version == handler.version else handler.upgrade(main.dump, main.version))
        return handler.history(loaded, now)
    except BaseException as error:
        return sentence(error)


def pack_history(history: Any) -> Any:
    """A History as lists that msgpack carries; None and sentences as they are."""
    if history is None or isinstance(history, str):
        return history
    try:
        return [float(history.since), _lists(history, (*_SLOTS, *_BINS)), _lists(history.ever, (*_EVER, *_BINS))]
    except BaseException as error:
        return sentence(error)


def read_history(content: Any, states: int) -> Any:
    """The History that `pack_history` packed of so many States; a sentence for what is none."""
    if content is None or isinstance(content, str):
        return content
    try:
        since, slots, ever = content
        _check(slots, _SLOTS, None)
        _check(ever, _EVER, states)
        if not all(0 <= row < states for row in slots["row"]):
            raise ValueError("a slot of a State that was not asked for")
        if not all(math.isfinite(start) and start <= end < math.inf for start, end in zip(slots["start"], slots["end"], strict=True)):
            raise ValueError("a slot that ends before it starts")
        return History(since=float(since), ever=Ever(**ever), **slots)
    except Exception as error:  # what a child sent may be anything
        return f"history gave none: {sentence(error)}"


def _lists(figures: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    columns = {name: getattr(figures, name) for name in names}
    return {
        name: [int(item) if name in _WHOLE else float(item) for item in column] for name, column in columns.items() if column is not None
    }


def _check(columns: dict[str, list[Any]], names: Sequence[str], length: int | None) -> None:
    wanted = set(names) | set(_BINS)
    if not wanted - _OPTIONAL <= set(columns) <= wanted:
        raise ValueError(f"columns {sorted(columns)}")
    for name, column in columns.items():
        kind = int if name in _WHOLE else (int, float)
        if not isinstance(column, list) or not all(isinstance(item, kind) and not isinstance(item, bool) for item in column):
            raise ValueError(f"{name} is no column of numbers")
    lengths = {len(columns[name]) for name in names if name in columns} | ({length} if length is not None else set())
    if len(lengths) > 1:
        raise ValueError("columns of different lengths")
    if ("bins" in columns) != ("codes" in columns) or ("codes" in columns) != ("counts" in columns):
        raise ValueError("bins without codes and counts")
    if min(columns["count"], default=0) < 0 or ("bins" in columns and min(columns["bins"], default=0) < 0):
        raise ValueError("a count below 0")
    if "bins" in columns and not (sum(columns["bins"]) == len(columns["codes"]) == len(columns["counts"])):
        raise ValueError("bins that no slot has")
    if "codes" in columns and not all(-_MAX_CODE <= code <= _MAX_CODE for code in columns["codes"]):
        raise ValueError("codes beyond all bins")
