"""Lines as `taba record` reads them: text in, events out. Pure.

`name value [type] [time]`, separated by blanks. A name may have labels, `name{key="value"}`. A value is a number; or JSON where it begins
with a double quote, `{` or `[`; else a word, taken as text. A type begins with a letter and a time with a digit, so either may be left out.
Empty lines and lines that begin with `#` are nothing.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

from taba import names
from taba.bounds import MAX_TIME
from taba.nesting import no_constant

MAX_LINE_CHARACTERS = 64 * 1024  # twice the largest value; a longer line is no line but a file without any
DEFAULT_TYPE = "CounterGroup"
QUOTE_IT = 'a text that begins with ", { or [ is written in double quotes'

_NAME = re.compile(r'[^\s{]+(?:\{(?:[^"}]|"(?:[^"\\]|\\.)*")*\})?(?=\s|$)')
_INTEGER = re.compile(r"[+-]?[0-9]{1,400}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)


class TextLine(NamedTuple):
    """One event as a line tells it; `time` None stands for now."""

    name: str
    value: Any
    type: str
    time: float | None


def read_line(text: str, default_type: str = DEFAULT_TYPE) -> TextLine | None:
    """The event in one line, None where there is none. Raises ValueError with what is wrong."""
    text = text.strip()
    if not text or text.startswith("#"):
        return None
    if len(text) > MAX_LINE_CHARACTERS:
        raise ValueError(f"longer than {MAX_LINE_CHARACTERS} characters")
    match = _NAME.match(text)
    if match is None:
        raise ValueError("takes: name value [type] [time]")
    name = names.canonical_name(*_read_name(match[0]))
    rest = text[match.end() :].lstrip()
    if not rest:
        raise ValueError("has no value; takes: name value [type] [time]")
    value, rest = _read_value(rest)
    fields = rest.split()
    type = names.check_type(fields.pop(0)) if fields and fields[0][0].isalpha() else default_type
    time = _read_time(fields.pop(0)) if fields else None
    if fields:
        raise ValueError(f"has {fields[0][:50]!r} too many; takes: name value [type] [time], and a text with blanks in double quotes")
    return TextLine(name, value, type, time)


def read_value(text: str) -> tuple[Any, float | None] | None:
    """(value, time) of a line `value [time]`, None where there is none. Raises ValueError with what is wrong."""
    text = text.strip()
    if not text or text.startswith("#"):
        return None
    if len(text) > MAX_LINE_CHARACTERS:
        raise ValueError(f"longer than {MAX_LINE_CHARACTERS} characters")
    value, rest = _read_value(text)
    fields = rest.split()
    if len(fields) > 1:
        raise ValueError(f"has {fields[1][:50]!r} too many; takes: value [time], and a text with blanks in double quotes")
    return value, _read_time(fields[0]) if fields else None


def _read_name(text: str) -> tuple[str, dict[str, str]]:
    try:
        return names.parse_name(text)
    except ValueError as error:
        base, brace, _ = text.partition("{")
        names.check_base(base)
        if not brace:
            raise
        # sorted keys are for programs to write; people may write them in any order
        pairs = re.findall(r'([^=,{]+)=("(?:[^"\\]|\\.)*")', text[len(base) :])
        if not pairs or text != base + "{" + ",".join(f"{key}={value}" for key, value in pairs) + "}":
            raise
        try:
            return names.parse_name(base + "{" + ",".join(f"{key}={value}" for key, value in sorted(pairs)) + "}")
        except ValueError:
            raise error from None


def _read_value(text: str) -> tuple[Any, str]:
    if text[0] in '"{[':
        try:
            value, end = json.JSONDecoder(parse_constant=no_constant).raw_decode(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"value {text[:50]!r}: is no JSON ({getattr(error, 'msg', error)}); {QUOTE_IT}"[:300]) from None
        if text[end : end + 1].strip():
            raise ValueError(f"value {text[:50]!r}: JSON ends before {text[end : end + 20]!r}; {QUOTE_IT}")
        return value, text[end:]
    word, _, rest = text.partition(" ") if "\t" not in text else re.sub(r"\s", " ", text).partition(" ")
    if _NOT_FINITE.fullmatch(word):
        raise ValueError(f'value {word!r}: takes a finite number; as a text it is written "{word}"')
    if _INTEGER.fullmatch(word):
        return int(word), rest
    if _NUMBER.fullmatch(word):
        number = float(word)
        if math.isinf(number):
            raise ValueError(f"value {word[:50]!r}: takes a finite number")
        return number, rest
    return word, rest


def _read_time(text: str) -> float:
    if not _NUMBER.fullmatch(text) or not 0 <= float(text) <= MAX_TIME:
        raise ValueError(f"time {text[:50]!r}: takes Unix seconds, such as 1763850000.5")
    return float(text)
