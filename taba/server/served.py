"""What a Server remembers of the store that it serves, and what was wrong with the file of it: a problem, not only a line in a log.

The file is `taba.pins`'s. What was damaged in it and is mended is told for RECENT_SECONDS, by all workers where their parent mended it;
what cannot be written is told while it is so, and tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from twisted.logger import Logger

from taba.errors import ConfigurationError
from taba.pins import Pin, mend_pins, read_pins, write_pin
from taba.server.problems import RECENT_SECONDS

FOUND = "TABA_WORKER_FOUND"  # the variable by which a parent hands on to its workers what it found

log = Logger()


class Found(NamedTuple):
    """What was wrong and is mended, and when that was found, by the clock that processes of one boot share."""

    at: float
    said: str

    @classmethod
    def of(cls, text: str) -> Found | None:
        """What `str` made; None of nothing."""
        at, _, said = text.partition(" ")
        return cls(float(at), said) if said else None

    def __str__(self) -> str:
        return f"{self.at} {self.said}"


class Served:
    """What the Server that listens at `listen` (where that is None it has no address to be known by) served last: `pin`.

    `found`: what its parent found already. Raises ConfigurationError for a file that does not tell any more which stores were served.
    """

    def __init__(self, directory: Path, listen: str | None, seconds: Callable[[], float], found: Found | None = None):
        self._directory, self._listen, self._seconds = directory, listen, seconds
        self.found = found
        self._unmended: str | None = None
        self._unwritten: str | None = None
        self.pin = None if listen is None else read_pins(directory).get(listen)
        if listen is not None:
            self._mend()

    @property
    def problems(self) -> list[str]:
        """In sentences."""
        is_recent = self.found is not None and self._seconds() - self.found.at <= RECENT_SECONDS
        return [said for said in (self.found.said if is_recent and self.found else None, self._unmended, self._unwritten) if said]

    def remember(self, pin: Pin) -> None:
        """It serves this one: written where that has changed, and again what could not be written before."""
        if self._listen is None:
            return
        if self._unmended is not None:
            self._mend()
        if pin == self.pin or not pin.store:
            return
        try:
            write_pin(self._directory, self._listen, pin)
        except (OSError, ConfigurationError) as failure:
            if self._unwritten is None:
                log.warn("which store is served cannot be remembered: {failure}", failure=failure)
            self._unwritten = (
                f"which store is served cannot be remembered ({failure}): started again, this Server would take whichever it finds behind "
                "the address; make room in the state directory, or let this user write there"
            )
        else:
            self.pin, self._unwritten = pin, None

    def _mend(self) -> None:
        """Of a file of which one of two lines is whole, nothing is lost."""
        try:
            said = mend_pins(self._directory)
        except (OSError, ConfigurationError) as failure:
            if self._unmended is None:
                log.warn("{directory}: which stores were served is damaged: {failure}", directory=self._directory, failure=failure)
            self._unmended = (
                f"{self._directory}: which stores were served is damaged, and cannot be written anew ({failure}): one more damaged byte, "
                "and this Server does not start; make room there, and look at its disk"
            )
            return
        self._unmended = None
        if said is not None:
            log.warn("{said}", said=said)
            self.found = Found(self._seconds(), said)
