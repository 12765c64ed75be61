"""What a terminal can show: one that knows no Unicode gets what looks most like it, and escapes for the rest."""

from __future__ import annotations

import codecs
import os
import sys
from typing import TextIO

ERRORS = "taba.ascii"
LIKE = dict(zip("–…─━│┃┏┓┗┛µ×▁▂▃▄▅▆▇█", "-~--||++++ux_.:-=+*#", strict=True))  # what the command itself writes


def _like(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(LIKE.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


codecs.register_error(ERRORS, _like)


def prepare() -> None:
    """Have nothing that is printed fail because the reader's encoding lacks it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=ERRORS, **({"encoding": "ascii"} if _is_said_to_be_ascii(stream) else {}))


def _is_said_to_be_ascii(stream: TextIO) -> bool:
    """Whether it is a terminal whose user said that it has no more. Python writes UTF-8 there nevertheless; programs, which read pipes,
    want that."""
    return os.environ.get("LC_ALL") in ("C", "POSIX") and stream.isatty()
