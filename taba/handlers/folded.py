"""States that were folded as bytes, in C, instead of as arrays."""

from __future__ import annotations

import sysconfig
from importlib import import_module
from typing import Any


def written_in_c(name: str) -> Any:
    """The module of this name in C beside this one; None where there is none: then the arrays do it all."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None  # importing it would switch the GIL on for everybody
    try:
        return import_module(f"taba.handlers.{name}")
    except ImportError:  # not built
        return None


class FoldedDumps:
    """Main parts as bytes, after a fold: how many slots each journal has, and when it was."""

    __slots__ = ("dumps", "now", "slots")

    def __init__(self, dumps: list[bytes], slots: list[int], now: float):
        self.dumps, self.slots, self.now = dumps, slots, now
