"""The parts that are written in C: which there are, and whether one is used in this process.

1. Each is optional. Without it Python does the same, with the same bytes, more slowly; statuses say so.
2. A part says of which form it is, `FORM`. One of another form was built from other sources, as where Python was brought up to date beside
   a library of before: it is left alone, or each call of what it does not have yet would fail.
3. All of them rely on the GIL, and importing one would switch the GIL on for everybody: a build without it uses Python.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# The form of each, here and in its source: one more with each change of what it is given, or gives
FORMS = {
    "taba.client._accelerator": 1,
    "taba.agent._drain": 18,
    "taba.batch._entries": 1,
    "taba.batch._sections": 6,
    "taba.handlers._fresh": 1,
    "taba.handlers._latest": 1,
    "taba.handlers._rows": 6,
    "taba.handlers._spreads": 7,
    "taba.server.ask._writing": 1,
    "taba.server.fold._plain": 7,
    "taba.shard.servers._wire": 3,
}

USED = "used"
NOT_BUILT = "not built here: Python does it"
OTHER = "of another version, and not used: install Taba again where a compiler is"
OFF = "switched off by TABA_PURE"
FREE = "not used in a Python without the GIL"

_asked: dict[str, str] = {}


def find(name: str) -> Any:
    """The module `name`, one of FORMS, or None where Python has to do the same. What was found is told by `told`."""
    found = None
    if os.environ.get("TABA_PURE"):
        how = OFF
    elif not getattr(sys, "_is_gil_enabled", lambda: True)():
        how = FREE
    else:
        try:
            found = __import__(name, fromlist=("FORM",))  # importlib would be one more module in every application
        except ImportError:
            how = NOT_BUILT
        else:
            how = USED
            if getattr(found, "FORM", None) != FORMS[name]:
                found, how = None, OTHER
    _asked[name] = how
    return found


def told() -> dict[str, str]:
    """Of each part that this process asked for: whether it is used, or why not."""
    return dict(sorted(_asked.items()))
