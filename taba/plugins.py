"""What the twistd plugins are made of: a service that is imported when it is asked for, and says which extra it needs.

`offer_plugins` makes the plugins of a directory known, such as the one in which twistd runs: twistd itself looks on Python's path alone.
"""

from __future__ import annotations

import os
import stat
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from twisted.application.service import ServiceMaker

from taba.errors import ConfigurationError
from taba.installing import install_hint

PLUGINS = "twisted.plugins"


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
        made = self._imported().makeService

        def make(options: Any) -> Any:
            parent = getattr(options, "parent", None)
            try:
                offer_plugins(parent["rundir"] if parent else ".")
            except ConfigurationError as failure:
                raise SystemExit(f"{self.tapname}: {failure}") from None
            return made(options)

        return make

    def _imported(self) -> Any:
        try:
            return import_module(self.module)
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if missing in ("", "taba"):
                raise  # not a missing extra but a broken installation: its traceback says where
            raise SystemExit(f"{self.tapname}: needs {missing}: {install_hint(self.extra)}") from None


def offer_plugins(directory: str) -> None:
    """Let the modules in `directory`/twisted/plugins be found as plugins, and what lies beside `twisted` be imported.

    Here, and in the processes that this one starts; after all that is on Python's path already. Raises ConfigurationError where
    others than root and this user may write to these folders: what is in them would run as this user.
    """
    place = os.path.abspath(directory)
    folders = [Path(place), Path(place, "twisted"), Path(place, "twisted", "plugins")]
    paths = [os.path.abspath(path) for path in sys.path]
    if place in paths[1:] or not folders[-1].is_dir() or (folders[-1] / "__init__.py").exists():
        return  # with an __init__.py it would be another twisted.plugins, not a part of the one there is
    for folder in folders:
        found = folder.stat()
        if found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH:
            takes = "takes folders that are yours or root's and that not everybody can write to: mend that, or start elsewhere"
            raise ConfigurationError("twisted/plugins", str(folder), takes)
    if place not in paths:
        sys.path.append(place)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if place not in inherited:  # also where this process has it first, of `python -m` or `-c`: those that it starts have not
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, inherited), place])
    known: Any = import_module(PLUGINS).__path__
    if str(folders[-1]) not in known:
        known.append(str(folders[-1]))
