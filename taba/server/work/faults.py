"""What a Handler did wrong, in one bounded line for its author: the exception, and the place in the source. Standard library only."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

MAX_SENTENCE = 200  # characters of what an exception says
MAX_PLACE = 80  # characters of a file's path, whose end says most, and of a function's name
MAX_DETAIL = MAX_SENTENCE + 2 * MAX_PLACE + 40  # of both together

_OWN = str(Path(__file__).parent)


def sentence(error: BaseException) -> str:
    """An exception in one line: its class, what it says, and the last frame of its traceback (file, line, function)."""
    text = " ".join(f"{type(error).__name__}: {_said(error)}".split())[:MAX_SENTENCE]
    place = place_of(error)
    return f"{text} ({place})" if place else text


def place_of(error: BaseException) -> str:
    """The last frame of the traceback, `file:line, in function`; "" where that is in this room, which found fault with an answer."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    if last is None or last.filename.startswith(_OWN):
        return ""
    path = last.filename if len(last.filename) <= MAX_PLACE else "…" + last.filename[-MAX_PLACE:].partition(os.sep)[2]
    return f"{path}:{last.lineno}, in {last.name[:MAX_PLACE]}"


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # the exception is the Handler's own, and so is its text
        return "(its text raises)"
