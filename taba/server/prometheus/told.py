"""What an answer says beside its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_WARNINGS = 10  # Tabs that are named because they cannot be read


class Told:
    """What an answer says beside its figures."""

    def __init__(self) -> None:
        self.infos: dict[str, None] = {}
        self.warnings: dict[str, None] = {}
        self.left_out = 0
        self.kinds: dict[str, str] = {}
        """Of the names of samples, as their Handlers say it."""

    def info(self, sentence: str) -> None:
        """Say so, once."""
        self.infos.setdefault(sentence)

    def warn(self, sentence: str) -> None:
        """Say so, once."""
        self.warnings.setdefault(sentence)

    def leave_out(self, tab: str, why: str) -> None:
        """Say that something of a Tab is left out; of many only of the first."""
        self.left_out += 1
        if self.left_out <= MAX_WARNINGS:
            self.warn(f"{tab}: {why}")
        elif self.left_out == MAX_WARNINGS + 1:
            self.warn("… and more that cannot be read: /v1/projections names each")

    def leave_out_unread(self, unread: Mapping[str, Mapping[str, Any]]) -> None:
        """The same of each State that could not be read, by Tab and Client."""
        for tab, by_client in unread.items():
            for why in by_client.values():
                self.leave_out(tab, why.error)
