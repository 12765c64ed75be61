"""Numbers as a server takes them: what a caller may give, what a key may hold, and what their sum is. Pure.

1. What a caller gives wrongly is a TypeError or a ValueError before anything is asked or sent.
2. What a key holds, or would come to, is a TransactionRefused: it names the key, and nothing is written.
3. A number is taken where a server takes it, and nowhere else: Python reads more texts as numbers than a server does, and a
   command that is refused inside EXEC would leave the others of its transaction done.
"""

from __future__ import annotations

import math
import re

from taba.shard.keys.places import Text
from taba.shard.servers.connection import TransactionRefused

INT_LIMIT = 2**63  # a server's whole numbers lie from -INT_LIMIT to INT_LIMIT - 1
LEAST_SECONDS, MOST_SECONDS = 0.001, 1e9  # that a key may be told to stay: a millisecond to thirty years
MAX_NUMBER_BYTES = 5 * 1024  # of a number that a key holds; a server reads no longer one
SHOWN_CHARACTERS = 60  # of what was wrong

_WHOLE = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_DECIMAL = re.compile(rb"[+-]?(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf", re.IGNORECASE)


def whole(what: str, number: int) -> int:
    """`number`, which `what` takes. TypeError for what is no int, ValueError for one that no server holds."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{what} takes a whole number, not {number.__class__.__name__}: {_shown(number)}")
    if not -INT_LIMIT <= number < INT_LIMIT:
        raise ValueError(f"{what} takes a whole number of 64 bits, not {_shown(number)}")
    return number


def fraction(what: str, number: float) -> float:
    """`number`, which `what` takes, as a float. TypeError for what is no number, ValueError for NaN and for what no float holds."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{what} takes an int or a float, not {number.__class__.__name__}: {_shown(number)}")
    try:
        found = float(number)
    except OverflowError:
        raise ValueError(f"{what} takes a number that a float holds, not {_shown(number)}") from None
    if math.isnan(found):
        raise ValueError(f"{what} takes a number, not nan")
    return found


def finite(what: str, number: float) -> float:
    """`fraction`, and ValueError for what is infinite."""
    found = fraction(what, number)
    if math.isinf(found):
        raise ValueError(f"{what} takes a finite number, not {_shown(number)}")
    return found


def written(number: float) -> bytes:
    """A float as a server reads it back exactly."""
    return repr(number).encode()


def milliseconds(what: str, seconds: float) -> bytes:
    """How long a key is to stay, which `what` takes in seconds, as a server hears it. TypeError, ValueError as `fraction`."""
    if not LEAST_SECONDS <= fraction(what, seconds) <= MOST_SECONDS:
        raise ValueError(f"{what} takes {LEAST_SECONDS:g} to {MOST_SECONDS:g} seconds, not {_shown(seconds)}")
    return b"%d" % round(seconds * 1000)


def whole_sum(where: str, before: bytes | None, amount: int) -> int:
    """What a counter that holds `before` comes to. TransactionRefused where it is no counter, or would leave its 64 bits."""
    if before is not None and not (_WHOLE.fullmatch(before) and -INT_LIMIT <= int(before) < INT_LIMIT):
        raise TransactionRefused(f"{where} is no counter: it holds {_shown(before)}")
    total = int(before or b"0") + amount
    if not -INT_LIMIT <= total < INT_LIMIT:
        raise TransactionRefused(f"{where} holds {int(before or b'0')}, and {amount:+d} would leave the 64 bits of a counter")
    return total


def finite_sum(where: str, before: bytes | None, amount: float) -> float:
    """What a number that `before` says comes to. TransactionRefused where it is none, or the sum is not finite."""
    if before is not None and not (len(before) <= MAX_NUMBER_BYTES and _DECIMAL.fullmatch(before)):
        raise TransactionRefused(f"{where} is no number: it holds {_shown(before)}")
    total = float(before or b"0") + amount
    if not math.isfinite(total):
        raise TransactionRefused(f"{where} holds {_shown(before or b'0')}, and with {amount!r} it would be no finite number")
    return total


def what_of(operation: str, name: Text, part: Text | None = None) -> str:
    """An operation, as what is wrong with its arguments names it."""
    return f"{operation} of {name!r:.100}" if part is None else f"{operation} of {part!r:.100} in {name!r:.100}"


def place_of(operation: str, name: Text, index: int) -> bytes:
    """An index of a list or a range as a command has it, negative from the end. Raises TypeError or ValueError, which name `operation`."""
    return b"%d" % whole(what_of(operation, name), index)


def count_of(operation: str, name: Text, count: int) -> int:
    """`count`, which is a whole number from 1 on. Raises TypeError or ValueError, which name `operation`."""
    if not 1 <= whole(what_of(operation, name), count) < INT_LIMIT - 1:
        raise ValueError(f"{what_of(operation, name)} takes a count from 1, not {count}")  # a server takes less for all there are
    return count


def _shown(given: object) -> str:
    if isinstance(given, int) and given.bit_length() > 4 * SHOWN_CHARACTERS:
        return f"one of {given.bit_length()} bits"  # Python does not write the longest of them
    if isinstance(given, bytes):
        return f"{given[:SHOWN_CHARACTERS]!r}"
    return f"{given!r:.{SHOWN_CHARACTERS}}"
