"""The producer of this process, and what it records with: the C accelerator where it was built and is sound, else pure Python."""

from __future__ import annotations

import os
import sys
from typing import Any

from taba.client import pure
from taba.client.producer import Producer


def ports() -> Any:
    """What Tabs and their Port are made of here."""
    # the accelerator relies on the GIL, and importing it would switch the GIL on for everybody
    if os.environ.get("TABA_PURE") or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return pure
    try:
        from taba.client import _accelerator  # type: ignore[attr-defined]
    except ImportError:  # not built: stats() and `taba status` say so
        return pure
    return _accelerator


PORTS: Any = ports()
producer = Producer(PORTS)
