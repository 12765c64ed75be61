"""What the twistd plugins are made of: a service that is imported when it is asked for, and says which extra it needs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from twisted.application.service import ServiceMaker

from taba.installing import install_hint


class LazyServiceMaker(ServiceMaker):
    """The service `tapname` in `module`. Where a distribution is missing, the process ends with one line that names the `extra`."""

    def __init__(self, name: str, module: str, description: str, tapname: str, extra: str):
        super().__init__(name, module, description, tapname)
        self.extra = extra

    @property
    def options(self) -> Any:
        return self._imported().Options

    @property
    def makeService(self) -> Any:
        return self._imported().makeService

    def _imported(self) -> Any:
        try:
            return import_module(self.module)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", "taba"):
                raise  # not a missing extra but a broken installation: its traceback says where
            raise SystemExit(f"{self.tapname}: needs {missing}: {install_hint(self.extra)}") from None
