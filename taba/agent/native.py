"""The C part of the drain, `_drain.c`, where it was built; without it the same is done in numpy."""

from __future__ import annotations

from typing import Any

from taba import parts

NAME = "taba.agent._drain"
NATIVE: Any = parts.find(NAME)
