"""Finds every Handler that is installed, once, at start; and says what could not be had, and why.

1. Nothing here raises for a bad plugin: it becomes a sentence in `problems`, and the others work on.
2. Plugins are the objects in modules under `twisted/plugins/` (also on `PYTHONPATH`), and entry points of the group `taba.handlers`
   (a class or an object).
3. Of two Handlers of one Type the first stands: Taba's own before all others, then plugins, then entry points, by module name.

The modules are walked here, not by `twisted.plugin.getPlugins`: that one logs and skips what fails to import, and keeps a cache from
which a module that broke since is missing without a word.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, metadata
from typing import Any, NamedTuple

from twisted.python.modules import getModule
from zope.interface import Invalid
from zope.interface.verify import verifyObject

from taba import names
from taba.handlers.base import EDGE_SECONDS as EDGE_SECONDS
from taba.handlers.base import MAX_EDGE_TIME as MAX_EDGE_TIME
from taba.handlers.base import Events as Events  # the Server reaches Handlers, and what it hands them, through here
from taba.handlers.base import Ever as Ever
from taba.handlers.base import History as History
from taba.handlers.interface import IArrayHandler, IHandler
from taba.handlers.lazy import LazyHandler
from taba.handlers.numbers import MAX_TIMES as MAX_TIMES
from taba.handlers.numbers import column_of as column_of
from taba.handlers.numbers import read_number as read_number
from taba.handlers.numbers import takes as takes
from taba.handlers.render import shown as shown
from taba.handlers.shape import check_shape

ENTRY_POINT_GROUP = "taba.handlers"
MAX_PROBLEM = 300  # characters of one sentence in `problems`

_OWN = "taba.handlers."
_WELL_KNOWN = ("taba_", "twisted_", "cred_")  # the plugin modules that Taba and Twisted bring


class Found(NamedTuple):
    """A Handler and where it comes from: `taba`, `plugin MODULE` or `entry point NAME (DISTRIBUTION)`."""

    handler: Any
    origin: str
    own: bool


class Lookup:
    """The Handlers by Type. Made by `find_handlers`, or in tests from a mapping of Found."""

    def __init__(
        self,
        found: dict[str, Found],
        problems: tuple[str, ...] = (),
        excluded: Mapping[str, str] | None = None,
        places: tuple[str, ...] = (),
    ):
        self._found = dict(sorted(found.items()))
        self.excluded = dict(excluded or {})
        """Origins that were not imported, and why (see `find_handlers`)."""
        self.problems = problems
        """Sentences: what failed to load or was left out, and why."""
        self.places = places
        """The folders whose modules were looked at."""

    def get(self, type: str) -> Any | None:
        """The Handler of `type`, or None."""
        found = self._found.get(type)
        return None if found is None else found.handler

    @property
    def types(self) -> list[str]:
        """All Types that have a Handler, sorted."""
        return list(self._found)

    def own(self, type: str) -> bool:
        """Whether the Handler of `type` is shipped with Taba; any other runs in a child process of the Server."""
        found = self._found.get(type)
        return found is not None and found.own

    def is_array(self, type: str) -> bool:
        """Whether the Handler of `type` is an IArrayHandler."""
        found = self._found.get(type)
        return found is not None and bool(IArrayHandler.providedBy(found.handler))

    def edge(self, type: str) -> int | None:
        """The version of States of `type` that are folded at the edge and merged here; None where there are none. Only Taba's own."""
        found = self._found.get(type)
        edge: int | None = getattr(found.handler, "edge", None) if found is not None and found.own else None
        return edge

    @property
    def edges(self) -> dict[str, int]:
        """That version of each Type that has one."""
        return {type: edge for type in self._found if (edge := self.edge(type)) is not None}

    def origin(self, type: str) -> str:
        """Where the Handler of `type` comes from (see Found); KeyError where there is none."""
        return self._found[type].origin


def find_handlers(excluded: Mapping[str, str] | None = None, begin: Callable[[str], None] = lambda origin: None) -> Lookup:
    """The Lookup of everything that is installed. Imports every plugin module; call it once, at start.

    `excluded`: origins that are not to be imported, and why. `begin` is called with an origin before anything of it runs.
    """
    excluded = excluded or {}
    problems = [f"Handlers, {origin}: {reason}; it is left out"[:MAX_PROBLEM] for origin, reason in excluded.items()]
    found: dict[str, Found] = {}
    candidates = [*_plugins(problems, excluded, begin), *_entry_points(problems, excluded, begin)]
    candidates.sort(key=lambda candidate: not candidate[1].startswith("taba "))  # stable: own first
    for candidate, origin in candidates:
        begin(origin)
        try:
            handler = _resolve(candidate)
            check_handler(handler)
        except (Exception, SystemExit) as error:
            place = f", {candidate.path}" if isinstance(candidate, LazyHandler) else ""
            problems.append(_problem(origin + place, error))
            continue
        # a class of Taba's own, wherever the object was found
        own = type(handler).__module__.startswith(_OWN)
        other = found.get(handler.type)
        if other is None:
            found[handler.type] = Found(handler, "taba" if own else origin, own)
        elif type(other.handler) is not type(handler):  # one class found by both ways is no conflict
            problems.append(f"{origin}: Type {handler.type} is already there from {other.origin}; this one is left out")
    return Lookup(found, tuple(problems), excluded, _places())


def find_edges() -> dict[str, Any]:
    """The Handlers of Taba's own whose States may be folded at the edge, by Type. Imports none of the others, and nobody's plugins."""
    plugins = vars(import_module("twisted.plugins.taba_handlers")).values()
    found = [plugin.load() for plugin in plugins if isinstance(plugin, LazyHandler) and plugin.has_edge]
    return {handler.type: handler for handler in found}


def has_foreign() -> bool:
    """Whether there may be Handlers that are not Taba's own; imports none."""
    return any(not name.startswith(_WELL_KNOWN) for name, _ in _modules()) or bool(metadata.entry_points(group=ENTRY_POINT_GROUP))


def _modules() -> list[tuple[str, Any]]:
    """(name, module) of every module under twisted/plugins, not yet imported, by name."""
    import_module("twisted.plugins")  # its own code looks for the other directories of that name on sys.path
    package: Any = getModule("twisted.plugins")
    return sorted(((str(module.name).rpartition(".")[2], module) for module in package.iterModules()), key=lambda item: item[0])


def _places() -> tuple[str, ...]:
    """The folders twisted/plugins in which plugins may be; Twisted's own, which has none of Handlers, is left out."""
    package: Any = import_module("twisted.plugins")
    own = os.path.dirname(package.__file__)
    return tuple(path for path in dict.fromkeys(package.__path__) if path != own and os.path.isdir(path))


def _plugins(problems: list[str], excluded: Mapping[str, str], begin: Callable[[str], None]) -> Iterator[tuple[Any, str]]:
    """(object, origin) of everything that says it is a Handler in the modules under twisted/plugins."""
    for name, module in _modules():
        origin = f"taba {name}" if name == "taba_handlers" else f"plugin {name}"
        if origin in excluded:
            continue
        begin(origin)
        try:
            provider = module.load()
        except (Exception, SystemExit) as error:
            problems.append(_problem(origin, error))
            continue
        for value in list(vars(provider).values()):
            if _is_handler(value):
                yield value, origin


def _entry_points(problems: list[str], excluded: Mapping[str, str], begin: Callable[[str], None]) -> Iterator[tuple[Any, str]]:
    for point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value)):
        origin = f"entry point {point.name}" + (f" ({point.dist.name})" if point.dist is not None else "")
        if origin in excluded:
            continue
        begin(origin)
        try:
            value = point.load()
        except (Exception, SystemExit) as error:
            problems.append(_problem(origin, error))
            continue
        yield value, origin


def _is_handler(value: Any) -> bool:
    try:
        return not isinstance(value, type) and bool(IHandler.providedBy(value))
    except Exception:  # an object that cannot even be asked is none; plugin modules hold anything
        return False


def _resolve(candidate: Any) -> Any:
    if isinstance(candidate, LazyHandler):
        return candidate.load()
    return candidate() if isinstance(candidate, type) else candidate


def check_handler(handler: Any) -> None:
    """Raises where `handler` is none that a Server could use; the exception says why."""
    if not IHandler.providedBy(handler):
        raise TypeError(f"{handler!r} does not provide IHandler")
    names.check_type(handler.type)
    if type(handler.version) is not int or not 1 <= handler.version <= 65_535:
        raise ValueError(f"Type {handler.type}: version {handler.version!r}: takes 1 to 65535")
    try:
        verifyObject(IArrayHandler if IArrayHandler.providedBy(handler) else IHandler, handler)
    except Invalid as error:
        raise TypeError(f"Type {handler.type}: {' '.join(str(error).split())}") from None
    check_shape(handler)


def _problem(origin: str, error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"Handlers, {origin}: {type(error).__name__}: {text}"[:MAX_PROBLEM]
