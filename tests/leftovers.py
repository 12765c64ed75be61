"""What a run of tests leaves in shared memory: whatever it makes there has the run's own word in its name.

A ring outlives its process until an Agent has read it. One that no Agent of the tests reads, or that took the name of the Agent of whoever
runs them, would stay for good, or be counted there.
"""

from __future__ import annotations

import os
import secrets
import shutil

from taba.ring import SHM_DIRECTORY

VARIABLE = "TESTS_RUN"  # benchmarks that tests run know it, too
IS_FIRST = VARIABLE not in os.environ  # else a process of a run, which is looked after by the first
RUN = os.environ.setdefault(VARIABLE, f"run{secrets.token_hex(5)}")


def agent_name(kind: str = "t") -> str:
    """A name for an Agent that nobody else has."""
    return f"{kind}-{RUN}-{secrets.token_hex(4)}"


def left() -> list[str]:
    """What there is in shared memory that this run, and no other, has made."""
    return sorted(name for name in os.listdir(SHM_DIRECTORY) if RUN in name)


def remove(names: list[str]) -> None:
    """Away with what `left` named."""
    for name in names:
        path = os.path.join(SHM_DIRECTORY, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
