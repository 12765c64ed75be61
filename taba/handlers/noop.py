"""Noop: takes any value and keeps nothing. To silence a Tab without touching the application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from taba.handlers.base import Events, Handler, Projection


class Noop(Handler):
    """Keeps nothing."""

    type = "Noop"
    shown = ()

    def new_state(self) -> None:
        return None

    def fold(self, state: Any, events: Events, now: float) -> None:
        return None

    def project(self, state: Any, now: float) -> Projection:
        return {}

    def aggregate(self, projections: Sequence[Projection]) -> Projection:
        return {}

    def merge(self, states: Sequence[Any]) -> None:
        return None

    def prunable(self, state: Any, now: float) -> bool:
        return True
