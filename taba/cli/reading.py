"""Standard input as numbered lines, ended by its end or by a signal: nothing that was read whole is lost to either."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

from taba.cli.lines import MAX_LINE_CHARACTERS

CHUNK_BYTES = 256 * 1024
MAX_LINE_BYTES = 4 * MAX_LINE_CHARACTERS  # UTF-8


class Interrupted:
    """SIGINT and SIGTERM as something to `select` on, so that a signal never cuts an event in two.

    A context manager; the handlers that were there before are put back.
    """

    def __enter__(self) -> Interrupted:
        self.number: int | None = None
        self._pipe = os.pipe()
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for descriptor in self._pipe:
            os.close(descriptor)

    def _note(self, number: int, frame: object) -> None:
        if self.number is None:
            os.write(self._pipe[1], b"!")
        self.number = number

    def fileno(self) -> int:
        """Readable once a signal came."""
        return self._pipe[0]

    def wait(self, seconds: float) -> bool:
        """Sleep; whether a signal came."""
        return bool(select.select([self], [], [], seconds)[0])


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
