"""The C part of the drain, `_drain.c`, where it was built; without it the same is done in numpy."""

from __future__ import annotations

import os
import sys
from typing import Any


def found() -> Any:
    """The module, or None."""
    # importing it would switch the GIL on for everybody
    if os.environ.get("TABA_PURE") or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    try:
        from taba.agent import _drain  # type: ignore[attr-defined]
    except ImportError:  # not built: `taba status` says so
        return None
    return _drain


NATIVE: Any = found()
