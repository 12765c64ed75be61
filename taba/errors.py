"""The errors that cross a boundary between Taba's parts. The docstring of each is the sentence that its reader gets."""

from __future__ import annotations

from collections.abc import Sequence


class TabaError(Exception):
    """The base of Taba's own errors."""


class ConfigurationError(TabaError):
    """An option has a value that it does not take; names the option, the value and what it takes, in one line."""

    def __init__(self, option: str, value: object, takes: str):
        super().__init__(f"{option}: {value!r}: {takes}")
        self.option, self.value, self.takes = option, value, takes


class MalformedBatch(TabaError):
    """The sender's fault: these bytes are no batch or envelope of a version that this Server reads (HTTP 400)."""


class NoVerdicts(TabaError):
    """The Server's fault, or a proxy's: what came for an answer to an envelope is no verdicts on it. Its batches are for later."""


class UnknownVersion(MalformedBatch):
    """Nobody's fault: a batch or envelope of a version that is not read here. It is for later: one of the two is to be upgraded."""

    def __init__(self, what: str, version: int, known: Sequence[int]):
        reads = ", ".join(map(str, known))
        super().__init__(f"{what} version {version}; version {reads} is read here: upgrade the older side")
        self.what, self.version = what, version


class StoreUnavailable(TabaError):
    """Nobody's fault: the store does not answer, or not for this bucket now; try later (HTTP 503)."""
