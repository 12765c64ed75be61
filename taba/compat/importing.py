"""Has prometheus_client's values recorded in a process that knows nothing of it: as soon as, and only if, somebody imports them.

Imported by `startup/sitecustomize.py` in each Python process that `taba-run` started, before anything of the program's: it imports
next to nothing itself.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WATCHED = ("prometheus_client.values", "prometheus_client.metrics", "prometheus_client.multiprocess")


class Watch(MetaPathFinder):
    """Finds nothing itself: of the modules WATCHED, what others find is installed once it is loaded."""

    def __init__(self) -> None:
        self._is_asking = False

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname not in WATCHED or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = After(spec.loader)
        return spec


class After(Loader):
    """Loads as another loader does, then installs."""

    def __init__(self, loader: Any):
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        found: ModuleType | None = self._loader.create_module(spec)
        return found

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        from taba.compat.values import install

        of_name = {name: module if module.__name__ == name else None for name in WATCHED[1:]}
        install(sys.modules["prometheus_client.values"], *of_name.values())


def watch() -> None:
    """From now on; twice is once."""
    if not any(isinstance(finder, Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, Watch())
