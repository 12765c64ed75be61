"""What nobody could go below: a C function that is called as `record` is, and reads the coarse clock. Built where a compiler is."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from importlib import util
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("floor.c")
FLAGS = ("-O3", "-fPIC", "-shared", "-fvisibility=hidden")


def build_floor(directory: Path) -> Path | None:
    """The extension, in `directory`; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    built = directory / f"floor{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, *FLAGS, f"-I{sysconfig.get_path('include')}", str(SOURCE), "-o", str(built)], check=True, timeout=60)
    return built


def load_floor(path: str) -> Callable[[Any], None]:
    """The function of an extension that was built."""
    loader = ExtensionFileLoader("floor", path)
    spec = util.spec_from_loader("floor", loader)
    assert spec is not None
    module = util.module_from_spec(spec)
    loader.exec_module(module)
    record: Callable[[Any], None] = module.record
    return record
