"""What keys of the store in memory hold, and how a real server reads the arguments of its commands. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from zlib import crc32

from taba.shard.servers.connection import ErrorReply

NOT_A_NUMBER = "ERR value is not an integer or out of range"


class SetMembers(set[bytes]):
    """A set's members; a kind of its own beside dict and list."""


class SortedMembers(dict[bytes, float]):
    """The members of a sorted set, and their scores."""

    def in_order(self) -> list[bytes]:
        return sorted(self, key=lambda member: (self[member], member))


def scan_options(options: Sequence[bytes]) -> tuple[Callable[[bytes], bool] | None, int]:
    pattern: Callable[[bytes], bool] | None = None
    count = 10
    for word, value in zip(options[::2], (*options[1::2], None), strict=False):
        if word.upper() == b"MATCH" and value is not None:
            matches = re.compile(fnmatch.translate(value.decode("latin-1")), re.S).match
            pattern = lambda name, matches=matches: matches(name.decode("latin-1")) is not None  # noqa: E731
        elif word.upper() == b"COUNT" and value is not None:
            count = as_integer(value)
            if count < 1:
                raise ErrorReply("ERR syntax error")
        else:
            raise ErrorReply("ERR syntax error")
    return pattern, count


def walk(names: Iterable[bytes], cursor: bytes, count: int) -> tuple[bytes, list[bytes]]:
    """About `count` of `names` from `cursor` on, and the next cursor, 0 at the end.

    In the order of their digests, which does not change: what is there all the time is met, whatever comes and goes meanwhile.
    """
    try:
        first = int(cursor)
    except ValueError:
        raise ErrorReply("ERR invalid cursor") from None
    ordered = sorted((crc32(name) + 1, name) for name in names)
    left = [(place, name) for place, name in ordered if place >= first]
    if len(left) <= count:
        return b"0", [name for _, name in left]
    following = left[count][0]  # those of one digest go together
    met = [name for place, name in left if place < following]
    return (b"%d" % following, met) if met else walk(names, cursor, count + 1)


def element(held: Any, name: bytes) -> tuple[bytes, ...]:
    if isinstance(held, SetMembers):
        return (name,)
    return (name, score_text(held[name])) if isinstance(held, SortedMembers) else (name, held[name])


def shown(held: SortedMembers, members: Sequence[bytes], words: Sequence[bytes]) -> list[bytes]:
    return [part for member in members for part in ((member, score_text(held[member])) if words else (member,))]


def check_shown(words: Sequence[bytes]) -> None:
    if [word.upper() for word in words] not in ([], [b"WITHSCORES"]):
        raise ErrorReply("ERR syntax error")


def limited(words: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], tuple[int, int]]:
    """`words` without LIMIT, and its offset and count: all, where it is not there."""
    names = [word.upper() for word in words]
    if b"LIMIT" not in names:
        return words, (0, -1)
    place = names.index(b"LIMIT")
    if len(words) < place + 3:
        raise ErrorReply("ERR syntax error")
    return (*words[:place], *words[place + 3 :]), (as_integer(words[place + 1]), as_integer(words[place + 2]))


def as_float(text: bytes) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ErrorReply("ERR value is not a valid float") from None
    if number != number or text != text.strip():
        raise ErrorReply("ERR value is not a valid float")
    return number


def score_text(number: float) -> bytes:
    return b"%d" % number if number.is_integer() and abs(number) < 1e17 else repr(number).encode()


def is_above(member: bytes, low: bytes) -> bool:
    return low == b"-" or member > low[1:] or (low[:1] == b"[" and member == low[1:])


def is_below(member: bytes, high: bytes) -> bool:
    return high == b"+" or member < high[1:] or (high[:1] == b"[" and member == high[1:])


def as_integer(text: bytes) -> int:
    try:
        number = int(text)
    except ValueError:
        raise ErrorReply(NOT_A_NUMBER) from None
    if b"%d" % number != text or not -(2**63) <= number < 2**63:
        raise ErrorReply(NOT_A_NUMBER)
    return number


def sum_of(one: int, other: int) -> int:
    if not -(2**63) <= one + other < 2**63:
        raise ErrorReply("ERR increment or decrement would overflow")
    return one + other


def as_slice(length: int, start: int, end: int) -> slice:
    start, end = (index + length if index < 0 else index for index in (start, end))
    return slice(max(start, 0), max(end + 1, 0))
