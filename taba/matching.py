"""Regular expressions over names, in bounded time.

What people mostly write, texts with `.*` and `|` between them, is matched here, in linear time. Everything else goes to a
child process with a deadline, because Python's own engine can take for ever and cannot be stopped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

_SPECIAL = frozenset(".^$*+?{}[]\\|()")

Matcher = Callable[[str], bool]
MatchElsewhere = Callable[[str, Sequence[str]], Awaitable[list[str]]]
"""Those of the texts that the pattern matches whole, found in another process."""


def simple_matcher(pattern: str) -> Matcher | None:
    """Whether a whole text matches `pattern`, as a function; None for a pattern that is more than texts, `.*` and `|`."""
    alternatives: list[list[str]] = [[""]]
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if pattern.startswith(".*", position):
            if pattern[position + 2 : position + 3] in ("*", "+", "?", "{"):
                return None
            alternatives[-1].append("")
            position += 2
        elif character == "|":
            alternatives.append([""])
            position += 1
        else:
            if character == "\\" and position + 1 < len(pattern) and not pattern[position + 1].isalnum():
                position += 1
                character = pattern[position]
            elif character in _SPECIAL:
                return None
            if pattern[position + 1 : position + 2] in ("*", "+", "?", "{"):
                return None
            alternatives[-1][-1] += character
            position += 1
    if len(alternatives) == 1:
        [only] = alternatives
        return lambda text: _matches(only, text)
    return lambda text: any(_matches(pieces, text) for pieces in alternatives)


def _matches(pieces: list[str], text: str) -> bool:
    """Whether `text` is the pieces in order, with anything but a line feed between two of them."""
    first, *middle = pieces
    if not middle:
        return text == first
    last = middle.pop()
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    position, end = len(first), len(text) - len(last)
    if "\n" in text:
        return _matches_lines(middle, text, position, end)
    for piece in middle:
        # the earliest place leaves most for the rest
        position = text.find(piece, position, end)
        if position < 0:
            return False
        position += len(piece)
    return True


def _matches_lines(middle: list[str], text: str, position: int, end: int) -> bool:
    """The same of a text of several lines, between what its first and its last piece match: nothing but a piece goes over a line's end."""
    for piece in middle:
        line = text.find("\n", position, end)
        stop = end if line < 0 else line
        before, feed, _ = piece.partition("\n")
        if not feed:
            position = text.find(piece, position, stop)  # the earliest place leaves most for the rest
        elif stop - len(before) >= position and text.startswith(piece, stop - len(before), end):
            position = stop - len(before)  # the only place: its line's end is this one
        else:
            return False
        if position < 0:
            return False
        position += len(piece)
    return "\n" not in text[position:end]
