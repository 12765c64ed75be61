"""msgpack of strangers, counted before anything is made of it: bytes in, values out.

1. A list of so many items is believed only where that many bytes are left: what is made is in proportion to what came.
2. How deep a value is nested is known before it is made, so that nothing that walks it recurses further than it may.
3. Values that hold no others, nearly all there are, are read without any of this: nothing of them is larger than its bytes say.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack

from taba.bounds import MAX_VALUE_BYTES, MAX_VALUE_DEPTH

OBJECT_BYTES = 64  # of Python's for an item, about: an empty list, a float and its place in a list
MAP_OBJECTS = 4  # further items that a map counts as: a small one takes some 250 bytes

_ONE_BYTE = re.compile(rb"[\x00-\x80\x90\xa0\xc0\xc2\xc3\xe0-\xff]*", re.S)  # items of a single byte, empty lists and maps among them
_EMPTY = re.compile(rb"[\x80\x90]")
_FIXED, _LENGTH = 0, 1  # what _ITEMS says of a first byte: all that the item takes; how many bytes of its length follow
_LIST, _MAP, _NONE = 2, 3, 4  # how many bytes of its count follow, or -1 where that is in the first byte; nothing that is taken


def _items() -> list[tuple[int, int]]:
    found = [(_NONE, 0)] * 256
    for first in (*range(0x81), 0x90, 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100)):
        found[first] = _FIXED, 1
    for first in range(0x81, 0x90):
        found[first] = _MAP, -1
    for first in range(0x91, 0xA0):
        found[first] = _LIST, -1
    for first in range(0xA0, 0xC0):
        found[first] = _FIXED, 1 + (first & 0x1F)
    for first, size in {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}.items():
        found[first] = _FIXED, size
    for first, kind in {0xC4: _LENGTH, 0xD9: _LENGTH, 0xDC: _LIST, 0xDE: _MAP}.items():
        narrow = 1 if kind == _LENGTH else 2
        for place in range(3 if kind == _LENGTH else 2):
            found[first + place] = kind, narrow << place
    return found


_ITEMS = _items()


def measure(
    content: bytes, start: int = 0, most_depth: int = MAX_VALUE_DEPTH, most: float = math.inf, most_bytes: int | None = None
) -> tuple[int, int]:
    """Where the value that begins at `start` ends, and what making it takes, in OBJECT_BYTES. Makes nothing, and does not recurse.

    Raises ValueError for one that is cut off, nested more than `most_depth` deep (17 is nested 0 deep, [17] 1), of no type that Events
    have, or that takes more than `most`, or more than `most_bytes`; at most so much of it is looked at.
    """
    is_bounded = most_bytes is not None and start + most_bytes < len(content)
    size = start + most_bytes if most_bytes is not None and is_bounded else len(content)
    short = f"a value takes at most {most_bytes} bytes" if is_bounded else "cut off"
    position, weight = start, 0
    left = 1  # items of the innermost container that are still to come …
    outer: list[int] = []  # … and of those around it
    while True:
        if weight > most:
            raise ValueError(f"more than {most:.0f} items")
        while not left:
            if not outer:
                return position, weight
            left = outer.pop()
        if position >= size:
            raise ValueError(short)
        kind, extent = _ITEMS[content[position]]
        if kind == _FIXED:
            if extent == 1:
                run = _ONE_BYTE.match(content, position, position + left)
                extent = run.end() - position if run is not None else 1  # a pattern of * matches always
                left -= extent - 1
                weight += extent - 1
                if len(outer) >= most_depth and _EMPTY.search(content, position, position + extent) is not None:
                    raise ValueError(f"nested deeper than {most_depth}")
            position += extent
        elif kind == _LENGTH:
            position += 1 + extent + int.from_bytes(content[position + 1 : position + 1 + extent], "big")
        elif kind == _NONE:
            raise ValueError(f"a value's first byte is {content[position]:#04x}, of no type that is taken")
        else:
            if extent < 0:
                count = content[position] & 0x0F
                position += 1
            else:
                count = int.from_bytes(content[position + 1 : position + 1 + extent], "big")
                position += 1 + extent
            if kind == _MAP:
                count *= 2
                weight += MAP_OBJECTS
            if count > size - position:
                raise ValueError(short)
            if len(outer) >= most_depth:
                raise ValueError(f"nested deeper than {most_depth}")
            outer.append(left - 1)
            left = count
            weight += 1
            continue
        if position > size:
            raise ValueError(short)
        left -= 1
        weight += 1


def is_nested_within(packed: bytes, depth: int) -> bool:
    """Whether the value whose msgpack `packed` is, is nested at most so deep. Quicker than to walk what was made of it."""
    try:
        measure(packed, 0, depth)
    except ValueError:
        return False
    return True


def plain_reader(most: int) -> msgpack.Unpacker:
    """Reads values that hold no others, of content of at most `most` bytes: a list or map that is not empty, or an extension, raises.

    `read_array_header` and `read_map_header` say how many items follow, and make nothing.
    """
    return msgpack.Unpacker(
        strict_map_key=False, max_bin_len=most, max_str_len=most, max_array_len=0, max_map_len=0, max_ext_len=0, max_buffer_size=most or 1
    )


BAD = (ValueError, TypeError, msgpack.UnpackException, RecursionError)  # what msgpack raises for what is none; TypeError: a list as a key


def unpack_counted(content: bytes, most_depth: int = MAX_VALUE_DEPTH, most: float = math.inf) -> Any:
    """The one value whose msgpack `content` is. Raises ValueError for anything else, before it is made."""
    is_plain = bool(content) and _ITEMS[content[0]][0] < _LIST  # then nothing is larger than its bytes
    if not is_plain and measure(content, 0, most_depth, most)[0] != len(content):
        raise ValueError("more than one value")
    return _unpack(content)


def measure_values(content: bytes, start: int, count: int) -> tuple[int, int]:
    """Where `count` values that begin at `start` end, and what making them takes, in OBJECT_BYTES. Makes none.

    Each takes at most MAX_VALUE_BYTES and is nested at most MAX_VALUE_DEPTH deep; else ValueError.
    """
    end, weight = start, 0
    for _ in range(count):
        end, objects = measure(content, end, most_bytes=MAX_VALUE_BYTES)
        weight += objects
    return end, weight


def unpack_list(content: bytes, count: int) -> list[Any]:
    """The values that `content`, which was measured, is one after the other. Raises ValueError where they are not `count`, or none."""
    values: list[Any] = _unpack(b"\xdd" + count.to_bytes(4, "big") + content)
    return values


def _unpack(content: bytes) -> Any:
    size = len(content)  # no single item can be longer than the whole, so msgpack's own limits (100 MiB and more) never matter
    try:
        return msgpack.unpackb(
            content, strict_map_key=False, max_bin_len=size, max_str_len=size, max_array_len=size, max_map_len=size, max_ext_len=0
        )
    except BAD as error:
        raise ValueError(f"{type(error).__name__}: {error}"[:200]) from None
