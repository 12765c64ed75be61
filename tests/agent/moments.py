"""Moments, for tests to which one boot and one store are enough."""

from __future__ import annotations

from taba.agent.ages import Moment


def at(seconds: float) -> Moment:
    """So long after the boot."""
    return Moment(seconds, 1, None)
