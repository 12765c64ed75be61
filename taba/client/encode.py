"""One value as msgpack: exact built-in types only, bounded in size and depth, without calling any code of the value's own.

Numbers are the exception to "exact": of a subclass of int or float the content is taken, its methods are not called. A dictionary's
keys are scalars (a tuple would come back as a list, which is no key). What msgpack cannot say is Refused, with the reason for the drop.
The accelerator writes the same bytes; a test compares both with the msgpack library.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

from taba.bounds import MAX_VALUE_DEPTH

_FLOAT = Struct(">Bd").pack
_U8, _U16, _U32, _U64 = (Struct(f">B{form}").pack for form in "BHIQ")
_I8, _I16, _I32, _I64 = (Struct(f">B{form}").pack for form in "bhiq")


class Refused(Exception):
    """This value is not recorded; `reason` is one of ring.DROP_REASONS."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def encode(value: Any, most: int) -> bytes:
    """The msgpack of `value`, at most `most` bytes. Raises Refused."""
    out = bytearray()
    _value(out, value, most, 0)
    if len(out) > most:
        raise Refused("value_too_large")
    return bytes(out)


def _value(out: bytearray, value: Any, most: int, depth: int) -> None:
    kind = type(value)
    if kind is not list and kind is not tuple and kind is not dict:
        _scalar(out, value, most)
        return
    if depth == MAX_VALUE_DEPTH:
        raise Refused("value_too_large")
    if kind is dict:
        items = list(value.items())  # one step: another thread may change the dictionary meanwhile
        _length(out, len(items), 0x80, 0xDE)
        for key, content in items:
            _scalar(out, key, most)
            _value(out, content, most, depth + 1)
    else:
        contents = tuple(value)
        _length(out, len(contents), 0x90, 0xDC)
        for content in contents:
            _value(out, content, most, depth + 1)


def _scalar(out: bytearray, value: Any, most: int) -> None:
    kind = type(value)
    if kind is str:
        if len(value) > most:
            raise Refused("value_too_large")
        try:
            content = value.encode()
        except UnicodeEncodeError:
            raise Refused("value_type") from None
        size = len(content)
        if size < 32:
            out.append(0xA0 | size)
        else:
            out += _U8(0xD9, size) if size < 0x100 else _U16(0xDA, size) if size < 0x10000 else _U32(0xDB, size)
        out += content
    elif value is None:
        out.append(0xC0)
    elif kind is bool:
        out.append(0xC3 if value else 0xC2)
    elif isinstance(value, float):
        out += _FLOAT(0xCB, value)
    elif isinstance(value, int):
        _int(out, int.__int__(value))
    elif kind is bytes:
        size = len(value)
        if size > most:
            raise Refused("value_too_large")
        out += _U8(0xC4, size) if size < 0x100 else _U16(0xC5, size) if size < 0x10000 else _U32(0xC6, size)
        out += value
    else:
        raise Refused("value_type")
    if len(out) > most:
        raise Refused("value_too_large")


def _int(out: bytearray, value: int) -> None:
    if 0 <= value < 0x80:
        out.append(value)
    elif -32 <= value < 0:
        out.append(value & 0xFF)
    elif 0 <= value < 1 << 64:
        if value < 1 << 8:
            out += _U8(0xCC, value)
        elif value < 1 << 16:
            out += _U16(0xCD, value)
        else:
            out += _U32(0xCE, value) if value < 1 << 32 else _U64(0xCF, value)
    elif -(1 << 63) <= value < 0:
        if value >= -(1 << 7):
            out += _I8(0xD0, value)
        elif value >= -(1 << 15):
            out += _I16(0xD1, value)
        else:
            out += _I32(0xD2, value) if value >= -(1 << 31) else _I64(0xD3, value)
    else:
        raise Refused("value_type")


def _length(out: bytearray, length: int, small: int, middle: int) -> None:
    if length < 16:
        out.append(small | length)
    else:
        out += _U16(middle, length) if length < 0x10000 else _U32(middle + 1, length)
