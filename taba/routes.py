"""The table of definitions from which everything about a route follows: how it is found, what it takes, who may ask, what is said of it.

1. A route is defined once: method, path pattern, parameters, body, answer, kind of token. Parsing, refusals, help and documents read that.
2. What a definition does not name is refused: a filter that is misspelt must not match everything.
3. In a pattern, `{name}` stands for one part of a path, which is a parameter like others.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from taba.calls import Answer, Call
from taba.tokens import ADMIN

TEXT, FLAG, WHOLE = "text", "flag", "whole"  # kinds of parameters: any text; 0 or 1; a whole number from `least` to `most`
JSON, MSGPACK, FORM, LINES = "application/json", "application/msgpack", "application/x-www-form-urlencoded", "text/plain"
EVENTS = "text/event-stream"
MAX_SHOWN = 100  # characters of what somebody sent, in a refusal


class Parameter(NamedTuple):
    """What may stand in a query as `name=`, or in a path as `{name}`."""

    name: str
    help: str
    kind: str = TEXT
    repeatable: bool = False
    is_required: bool = False
    least: int = 0
    most: int = 0
    default: int | None = None

    def read(self, values: Sequence[str]) -> Any:
        """The value: a list where it is repeatable, else a text, bool or int, or None. Raises ValueError with a sentence."""
        if self.is_required and not values:
            raise ValueError(f"takes {self.name}=" + (" at least once" if self.repeatable else ""))
        if self.repeatable:
            if self.most and len(values) > self.most:
                raise ValueError(f"{self.name}= stands {len(values)} times; at most {self.most}")
            return list(values)
        if len(values) > 1:
            raise ValueError(f"{self.name}= stands {len(values)} times; once at most")
        if not values:
            return False if self.kind == FLAG else self.default
        [text] = values
        if self.kind == FLAG:
            if text not in ("0", "1"):
                raise ValueError(f"{self.name}={text[:MAX_SHOWN]!r}: takes 0 or 1")
            return text == "1"
        if self.kind == WHOLE:
            if not text.isascii() or not text.isdigit() or len(text) > 18 or not self.least <= int(text) <= self.most:
                raise ValueError(f"{self.name}={text[:MAX_SHOWN]!r}: takes a whole number from {self.least} to {self.most}")
            return int(text)
        return text


Serve = Callable[[Call], Awaitable[Answer]]


class Route(NamedTuple):
    """One definition. `answer` says in words what comes back; `produces` are the kinds in which it does."""

    method: str
    path: str
    serve: Serve
    answer: str
    token: str = ADMIN  # the kind it takes; who forgets to say it lets nobody in
    parameters: tuple[Parameter, ...] = ()
    body: str | None = None
    body_schema: Mapping[str, Any] | None = None  # of a body that is JSON, for the document
    produces: tuple[str, ...] = (JSON, LINES)
    status: int = 200
    is_scoped: bool = False
    """A token that is bound to Clients or names is answered within its bounds; else it is refused where the route takes a token's kind."""
    is_lenient: bool = False  # parameters that it does not name are ignored, as Prometheus does; of one that stands twice the first counts

    @property
    def path_names(self) -> list[str]:
        """The parameters in the path, in its order."""
        return re.findall(r"\{([a-z_]+)\}", self.path)


class Found(NamedTuple):
    """A route, and what stood in the path where its pattern has names."""

    route: Route
    in_path: dict[str, str]

    def read(self, arguments: Mapping[str, list[str]]) -> dict[str, Any]:
        """What the route's parameters are, by name, where `arguments` stood in the query. Raises ValueError with a sentence."""
        route = self.route
        in_query = [parameter for parameter in route.parameters if parameter.name not in self.in_path]
        unknown = sorted(set(arguments) - {parameter.name for parameter in in_query})
        if unknown and not route.is_lenient:
            takes = ", ".join(parameter.name for parameter in in_query) or "none"
            raise ValueError(f"no parameter {unknown[0][:MAX_SHOWN]!r} here; there are: {takes}")
        return {parameter.name: parameter.read(self._values(parameter, arguments)) for parameter in route.parameters}

    def _values(self, parameter: Parameter, arguments: Mapping[str, list[str]]) -> list[str]:
        if parameter.name in self.in_path:
            return [self.in_path[parameter.name]]
        values = arguments.get(parameter.name, [])
        return values if parameter.repeatable or not self.route.is_lenient else values[:1]


class Table:
    """The routes of a service. Raises ValueError for two of one method and path, or a pattern whose names are no parameters."""

    def __init__(self, routes: Iterable[Route]):
        self.routes = tuple(routes)
        self._paths: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        for route in self.routes:
            if missing := set(route.path_names) - {parameter.name for parameter in route.parameters}:
                raise ValueError(f"{route.path}: no parameter {min(missing)!r}")
            methods = self._paths.get(route.path)
            if methods is None:
                methods = self._paths[route.path] = {}
                if route.path_names:
                    self._patterns.append((_pattern(route.path), methods))
            if route.method in methods:
                raise ValueError(f"{route.method} {route.path} is there twice")
            methods[route.method] = route

    def find(self, method: str, path: str) -> Found | None:
        """The route; HEAD is GET. None where there is none."""
        methods, in_path = self._at(path)
        route = methods.get("GET" if method == "HEAD" else method)
        return None if route is None else Found(route, in_path)

    def methods(self, path: str) -> list[str]:
        """What may be asked of a path; nothing where nothing is there."""
        methods, _ = self._at(path)
        return sorted({*methods, "HEAD"} if "GET" in methods else methods)

    def _at(self, path: str) -> tuple[Mapping[str, Route], dict[str, str]]:
        exact = self._paths.get(path)
        if exact is not None and "{" not in path:
            return exact, {}
        for pattern, methods in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                try:
                    return methods, {name: unquote(text, errors="strict") for name, text in match.groupdict().items()}
                except UnicodeDecodeError:
                    break
        return {}, {}


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{([a-z_]+)\}", path)
    return re.compile("".join(re.escape(part) if place % 2 == 0 else f"(?P<{part}>[^/]+)" for place, part in enumerate(parts)))
