"""Small files that say for themselves whether they are whole. Standard library only.

1. Each entry is a line `<version> <checksum> <text>`; the checksum is of version and text.
2. Each line stands twice, with an empty line between: whichever byte of the two is another, one of them is whole.
3. A file that another version wrote without checksums begins otherwise than any of these lines: its reader tells the two apart by the
   first byte, and never takes a damaged line for an older one.
4. A damaged file is kept, under a name with a number, beside the one that is written anew of what could be read.
"""

from __future__ import annotations

import os
import zlib
from typing import NamedTuple

VERSION = 2  # of these lines; 1 were the files without checksums
MAX_ASIDE = 100  # damaged files that are kept under a name each; the last name is used again
_SEPARATOR = b"\n\n"


class Unsealed(NamedTuple):
    """What could be read: the texts in their order, how many lines were damaged, and of how many entries no line was whole (about)."""

    texts: list[str]
    damaged: int
    lost: int


def seal(text: str) -> bytes:
    """An entry as it stands in a file. `text` has no line breaks."""
    return b"".join(_line(copy, text) + _SEPARATOR for copy in "ab")


def unseal(content: bytes) -> Unsealed:
    """The entries of a file. What a kill cut off at its end is no damage: nothing was done that it would have told of."""
    *lines, _torn = content.split(b"\n")
    texts: list[str] = []
    damaged = lost = run = 0
    before = ""  # which copy stood before a run of damaged lines
    is_torn = False  # the line before is damaged, and nothing is between: one of which a byte became a line break
    for line in lines:
        text = _read(line) if line else None
        if not text:
            if line and not is_torn:
                damaged, run = damaged + 1, run + 1
            is_torn = bool(line)
            continue
        is_torn = False
        copy = chr(line[1])
        lost += _lost(before, run, copy)
        if not (texts and copy == "b" and before == "a" and run == 0 and texts[-1] == text):
            texts.append(text)  # a second time where the first is far: who reads it takes that for the same
        before, run = copy, 0
    return Unsealed(texts, damaged, lost + _lost(before, run, "a"))


def is_sealed(content: bytes) -> bool:
    """Whether a file is of these lines, damaged or not, and not of a version before: those begin with `[` or `{`."""
    return content[:1] not in (b"[", b"{") or unseal(content).texts != []


def aside_name(path: str) -> str:
    """Where a damaged `path` is to be kept."""
    names = (f"{path}.damaged-{number}" for number in range(1, MAX_ASIDE))
    return next((name for name in names if not os.path.lexists(name)), f"{path}.damaged-{MAX_ASIDE}")


def keep_aside(path: str) -> str:
    """Keep a damaged file under another name, too, until one that is whole takes its place. Says where, or why that cannot be."""
    aside = aside_name(path)
    try:
        if os.path.lexists(aside):
            os.unlink(aside)
        os.link(path, aside)
    except OSError as error:
        return f"it could not be kept ({error.strerror})"
    return f"it is kept as {aside}"


def _line(copy: str, text: str) -> bytes:
    content = f"{VERSION}{copy} ".encode(), text.encode()
    return b"%s%08x %s" % (content[0], zlib.crc32(b"".join(content)), content[1])


def _read(line: bytes) -> str | None:
    """The text of a line that is whole."""
    try:
        text = line[12:].decode()
    except ValueError:
        return None
    return text if any(line == _line(copy, text) for copy in "ab") else None


def _lost(before: str, run: int, after: str) -> int:
    """Of how many entries a run of damaged lines has both."""
    return max(0, run - (before == "a") - (after == "b") + 1) // 2
