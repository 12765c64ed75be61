"""What is asked of the API: its parameters, each defined once, and read from URL, path and form.

What of a parameter's text is no value is BadRequest. Only what a route's definition names can be read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote_to_bytes

from taba.bounds import KiB
from taba.history import MAX_POINTS
from taba.routes import Parameter
from taba.series import DEFAULT_BOUNDS
from taba.server.prometheus.syntax import MAX_TIME

MAX_BOUNDS = 50  # of le=
MAX_FORM_BYTES = 256 * KiB  # a query at its bound, each character of it twelve bytes, and selectors beside it
MAX_PARAMETERS = 1000  # of a form
UNQUOTED_BYTES = 16 * KiB  # of a form, read between two looks at the time: where all of it are escapes, some 3 ms

_WHOLE = r"([0-9]{1,15})"  # what a number of a duration may be: more is longer than all of time
_DURATION = re.compile("".join(f"(?:{_WHOLE}{unit})?" for unit in ("y", "w", "d", "h", "m", "s", "ms")))
_SECONDS = (31_536_000.0, 604_800.0, 86_400.0, 3600.0, 60.0, 1.0, 0.001)

QUERY = Parameter("query", "An expression of PromQL.")
TIME = Parameter("time", "When: Unix seconds, or RFC 3339; by default now.")
START = Parameter("start", "From when: Unix seconds, or RFC 3339.")
END = Parameter("end", "Until when: Unix seconds, or RFC 3339.")
STEP = Parameter("step", f"How far from one point to the next: seconds, or a duration as 15s; at most {MAX_POINTS} points.")
LE = Parameter("le", "A bound of the buckets of distributions, instead of the default ones.", repeatable=True)
MATCH = Parameter("match[]", "A selector of series.", repeatable=True)
LIMIT = Parameter("limit", "How many at the most; a warning says that there are more.")
METRIC = Parameter("metric", "The name of which to tell.")
LABEL = Parameter("name", "The label.")


class BadRequest(ValueError):
    """This is no question."""


class Asked:
    """The parameters of one call. `values`: of those in URL and path, as the route reads them; `form`: those of the body (`fields_of`)."""

    def __init__(self, parameters: Sequence[Parameter], values: Mapping[str, Any], form: Sequence[tuple[str, str]] = ()):
        self._all: dict[str, list[str]] = {}
        for name in (parameter.name for parameter in parameters):
            value = values.get(name)
            self._all[name] = list(value) if isinstance(value, list) else [] if value is None else [value]
        for name, text in form:
            if name in self._all:
                self._all[name].append(text)

    def many(self, parameter: Parameter) -> list[str]:
        """All values of a parameter, those in the URL first. KeyError for what the route does not define."""
        return self._all[parameter.name]

    def optional(self, parameter: Parameter) -> str:
        """The first value, or nothing."""
        return (self.many(parameter) or [""])[0]

    def text(self, parameter: Parameter) -> str:
        """The value of one that is required."""
        text = self.optional(parameter)
        if not text:
            raise BadRequest(f"takes {parameter.name}=")
        return text

    def time(self, parameter: Parameter, default: float | None = None) -> float:
        """A time, in Unix seconds."""
        if default is not None and not self.optional(parameter):
            return default
        text, name = self.text(parameter), parameter.name
        try:
            found = float(text)
        except ValueError:
            try:
                moment = datetime.fromisoformat(_with_fraction(text.replace("Z", "+00:00").replace("z", "+00:00")))
                found = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
            except (ValueError, OverflowError):
                raise BadRequest(f"{name}={text[:100]!r}: takes Unix seconds, or a time as 2026-01-31T12:00:00Z") from None
        if not abs(found) <= MAX_TIME:
            raise BadRequest(f"{name}={text[:100]!r}: takes a time within 2^40 seconds")
        return found

    def duration(self, parameter: Parameter) -> float:
        """A duration of more than 0 seconds."""
        text = self.text(parameter)
        try:
            found = float(text)
        except ValueError:
            match = _DURATION.fullmatch(text)
            found = 0.0 if match is None else sum(int(part) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True) if part)
        if not 0 < found <= MAX_TIME:
            raise BadRequest(f"{parameter.name}={text[:100]!r}: takes seconds above 0, or a duration as 15s or 1h30m")
        return found

    def check_times(self) -> None:
        """Of what is told as it is now start= and end= mean nothing, but are times."""
        for parameter in (START, END):
            self.time(parameter, 0.0)

    def limit(self) -> int | None:
        """The limit; None where there is none, or 0."""
        text = self.many(LIMIT)[0] if self.many(LIMIT) else "0"
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise BadRequest(f"{LIMIT.name}={text[:100]!r}: takes a whole number")
        return int(text) or None

    def bounds(self) -> Sequence[float]:
        """The buckets' bounds."""
        return bounds_of(self.many(LE))


def fields_of(form: bytes) -> Generator[int, None, list[tuple[str, str]]]:
    """Returns the fields of a form, in their order; yields how many bytes came with each step. Raises BadRequest for what is none."""
    fields = form.split(b"&", MAX_PARAMETERS)
    if len(fields) > MAX_PARAMETERS:
        raise BadRequest(f"the form has more than {MAX_PARAMETERS} fields")
    found: list[tuple[str, str]] = []
    step = 0
    for field in fields:
        texts = []
        name, _, value = field.partition(b"=")
        for quoted in (name, value):
            pieces = []
            while quoted:
                end = min(len(quoted), UNQUOTED_BYTES - step)
                if end < len(quoted) and (escape := quoted.rfind(b"%", max(0, end - 2), end)) >= 0:
                    end = escape  # which goes on behind what is read now
                pieces.append(unquote_to_bytes(quoted[:end].replace(b"+", b" ")))
                quoted, step = quoted[end:], step + end
                if quoted or step >= UNQUOTED_BYTES:
                    yield step
                    step = 0
            try:
                texts.append(b"".join(pieces).decode())
            except UnicodeDecodeError:
                raise BadRequest("the body is no form: it is not UTF-8") from None
        if field:
            found.append((texts[0], texts[1]))
    return found


def bounds_of(texts: Sequence[str]) -> Sequence[float]:
    """The buckets' bounds that le= asks for; the default ones where it asks for none. Raises BadRequest."""
    if len(texts) > MAX_BOUNDS:
        raise BadRequest(f"le= stands {len(texts)} times; at most {MAX_BOUNDS}")
    try:
        found = sorted({float(text) for text in texts})
    except ValueError:
        raise BadRequest("le= takes numbers") from None
    if any(math.isnan(bound) or bound == -math.inf for bound in found):
        raise BadRequest("le= takes numbers")
    return found or DEFAULT_BOUNDS


def _with_fraction(text: str) -> str:
    """A time with microseconds, which every Python reads: Go writes as many digits as it needs."""
    return re.sub(r"\.([0-9]{1,9})", lambda part: "." + (part[1] + "000000")[:6], text, count=1)
