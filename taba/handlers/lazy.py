"""A plugin that costs nothing until it is used: it stands for a Handler in a module that is not yet imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from taba.handlers.interface import IHandler


@implementer(IHandler, IPlugin)
class LazyHandler:
    """Stands for the Handler class `path` (`module:Class`); imports it when one first asks for anything but its `path` and `has_edge`,
    which says whether its States may be folded at the edge."""

    def __init__(self, path: str, has_edge: bool = False):
        self.path, self.has_edge = path, has_edge

    def load(self) -> Any:
        """The Handler itself. Raises what importing or making it raises."""
        if "handler" not in self.__dict__:
            module, _, name = self.path.partition(":")
            self.__dict__["handler"] = getattr(import_module(module), name)()
        return self.__dict__["handler"]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what zope.interface and copy probe for is no reason to import
            raise AttributeError(name)
        return getattr(self.load(), name)
