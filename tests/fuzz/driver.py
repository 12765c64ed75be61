"""Mutates bytes, and keeps what reaches lines that nothing reached before.

1. Every input is taken as it is, at full speed, where that helps some at once. One in TRACED is traced; what reaches something new is one
   more to begin from.
2. All follows from the seed, but for what new lines there are with another Python.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from types import FrameType
from typing import Any, TypeAlias

import taba

TABA = os.path.dirname(taba.__file__) + os.sep
TRACED = 16  # one input of so many is traced, which takes as long as some ten that are not; …
TRACED_LATER = 64  # … where EARLY were taken: by then few reach what is new
EARLY = 20_000
MOST_BYTES = 4096  # of an input
MOST_CORPUS = 400  # inputs to begin from
CORPUS_BYTES = 1024  # of one that is kept in the repository …
CORPUS_FILES = 24  # … of each target
WORDS = [0, 1, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC4, 0xC6, 0xC7, 0xD9, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xFF]

Take: TypeAlias = Callable[[bytes], None]
Mutate: TypeAlias = Callable[[bytes, bytes, random.Random], bytes]
Together: TypeAlias = tuple[Callable[[Sequence[bytes]], None], int]


class Found(Exception):
    """An input that a target does not bear."""

    def __init__(self, content: bytes, error: BaseException):
        super().__init__(f"{type(error).__name__}: {error}")
        self.content = content


def mutate(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Another input, some steps away from `content`, with parts of `other`."""
    made = bytearray(content)
    for _ in range(1 << chance.randrange(5)):
        at = chance.randrange(len(made) + 1)
        kind = chance.randrange(9)
        if kind == 0 and made:
            made[at - 1] ^= 1 << chance.randrange(8)
        elif kind == 1 and made:
            made[at - 1] = chance.choice(WORDS)
        elif kind == 2:
            made[at:at] = bytes(chance.choice(WORDS) for _ in range(chance.randrange(1, 9)))
        elif kind == 3:
            del made[at : at + chance.randrange(1, 1 + max(1, len(made) // 4))]
        elif kind == 4:
            start = chance.randrange(len(other) + 1)
            made[at:at] = other[start : start + chance.randrange(1, 64)]
        elif kind == 5:
            made[at:at] = made[at : at + chance.randrange(1, 64)] * chance.randrange(1, 5)
        elif kind == 6:
            made[at : at + 8] = chance.getrandbits(64).to_bytes(8, "little")
        elif kind == 7:
            del made[at:]
        else:
            made[at : at + 4] = chance.choice((0, 1, 255, 65_535, 2**31, 2**32 - 1)).to_bytes(4, chance.choice(("big", "little")))
    return bytes(made[:MOST_BYTES])


def reached(take: Callable[[bytes], None], content: bytes) -> set[tuple[str, int]]:
    """Which lines of Taba's `take` comes to."""
    lines: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(TABA):
            return None
        lines.add((name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        take(content)
    finally:
        sys.settrace(before)
    return lines


def fuzz(
    take: Take, corpus: list[bytes], chance: random.Random, mutate: Mutate = mutate, together: Together | None = None
) -> Iterator[bytes | None]:
    """Take one input after another, for as long as who iterates wants; gives those that reach something new, else None. Raises Found.

    `together`: what takes some at once, and how many.
    """
    known: set[tuple[str, int]] = set()
    begin: list[bytes] = []
    for content in reversed(corpus):
        known |= _traced(take, content)
        begin.append(content)
        yield None
    del begin[:-MOST_CORPUS]
    begin = begin or [b""]
    taken = count()
    while True:
        content = mutate(chance.choice(begin), chance.choice(begin), chance)
        lines = _traced(take, content)
        is_kept = not lines <= known
        known |= lines
        if is_kept:
            begin.append(content)
            del begin[:-MOST_CORPUS]
        yield content if is_kept else None
        several = (TRACED if next(taken) < EARLY // TRACED else TRACED_LATER) - 1
        made = [mutate(chance.choice(begin), chance.choice(begin), chance) for _ in range(several)]
        step = 1 if together is None else together[1]
        for start in range(0, several, step):
            part = made[start : start + step]
            if together is not None:
                _taken_together(take, together[0], part)
            else:
                _taken(take, part[0])
            yield from (None for _ in part)


def _traced(take: Take, content: bytes) -> set[tuple[str, int]]:
    try:
        return reached(take, content)
    except Exception as error:
        raise Found(content, error) from error


def _taken(take: Take, content: bytes) -> None:
    try:
        take(content)
    except Exception as error:
        raise Found(content, error) from error


def _taken_together(take: Take, together: Callable[[Sequence[bytes]], None], contents: list[bytes]) -> None:
    try:
        together(contents)
    except Exception as error:
        for content in contents:
            _taken(take, content)
        raise Found(b"".join(contents), error) from error  # none of them alone


def smaller(take: Callable[[bytes], None], content: bytes) -> bytes:
    """A smaller input that `take` does not bear either."""

    def fails(part: bytes) -> bool:
        try:
            take(part)
        except Exception:
            return True
        return False

    step = max(1, len(content) // 2)
    while step:
        at = 0
        while at < len(content):
            part = content[:at] + content[at + step :]
            if fails(part):
                content = part
            else:
                at += step
        step //= 2
    return content
