"""Standard input as numbered lines, ended by its end or by a signal: nothing that was read whole is lost to either."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

from taba.cli.lines import MAX_LINE_CHARACTERS
from taba.interrupted import Interrupted

CHUNK_BYTES = 256 * 1024
MAX_LINE_BYTES = 4 * MAX_LINE_CHARACTERS  # UTF-8


def read_lines(descriptor: int, interrupted: Interrupted, idle_seconds: float) -> Iterator[list[tuple[int, str]]]:
    """Numbered lines as they come in; an empty list whenever nothing came for `idle_seconds`. A line that is too long comes cut off."""
    number, rest, skipping = 0, b"", False
    while True:
        ready, _, _ = select.select([descriptor, interrupted.fileno()], [], [], idle_seconds)
        if interrupted.fileno() in ready:
            return  # what is read already has been yielded; half a line is no line
        if not ready:
            yield []
            continue
        chunk = os.read(descriptor, CHUNK_BYTES)
        *whole, rest = (rest + chunk).split(b"\n")
        if not chunk:
            whole, rest = ([rest] if rest else []), b""
        numbered = []
        for line in whole:
            if skipping:
                skipping = False
                continue
            number += 1
            numbered.append((number, line.decode(errors="replace")))
        if skipping:
            rest = b""
        elif len(rest) > MAX_LINE_BYTES:
            number += 1
            numbered.append((number, rest[: MAX_LINE_BYTES + 1].decode(errors="replace")))
            rest, skipping = b"", True
        yield numbered
        if not chunk:
            return
