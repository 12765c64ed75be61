"""For Starlette and FastAPI.

app = FastAPI()
instrument(app)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from starlette.applications import Starlette

from taba.frameworks import asgi
from taba.frameworks.serving import OTHER

App = TypeVar("App", bound=Starlette)


def instrument(app: App, *, name: str = "http") -> App:
    """Record what the application serves, by its paths such as /users/{id}. Before it starts; what is added after it is inside."""
    app.add_middleware(asgi.Middleware, route=route, name=name)
    return app


def route(scope: asgi.Scope, root: str) -> str | None:
    """The path that took a request, as the application wrote it; None where none did."""
    try:  # most: mounted in nothing, and not FastAPI's
        if scope["root_path"] == root and "fastapi" not in scope and "endpoint" in scope:
            at_once: str | None = scope["route"].path
            if at_once is not None:
                return at_once
    except (KeyError, AttributeError):
        pass
    if "endpoint" not in scope:
        return None
    found, endpoint = scope.get("route"), scope["endpoint"]
    path: str | None = getattr(found, "path", None)
    if path is not None and "fastapi" not in scope and (scope.get("root_path") or "") == root:
        return path  # as below, for most: mounted in nothing
    included = (scope.get("fastapi") or {}).get("effective_route_context")  # FastAPI keeps the route apart from what it is included under
    is_included = included is not None and (path is None or found is getattr(included, "original_route", None))
    if is_included:
        path = getattr(included, "path", None) or path
    prefix = (scope.get("root_path") or "")[len(root) :]
    if path is not None and not prefix:
        return path
    taken = scope["path"]
    routes = getattr(scope.get("router"), "routes", ())
    below: str | None = None
    for written, matched, rest, each in _written(routes, taken[len(root) :] if taken.startswith(root) else taken):
        if not is_included and (each is found if found is not None else _takes(each, endpoint, rest)):
            return written + getattr(each, "path", "")
        if matched == prefix and below is None and path is not None:
            below = written + path
    return below or path or OTHER


def _takes(route: Any, endpoint: Any, rest: str) -> bool:
    """Whether this is the route: older versions do not tell which it was."""
    pattern = getattr(route, "path_regex", None)
    is_its = any(getattr(route, name, None) is endpoint for name in ("endpoint", "app"))
    return is_its and (pattern is None or pattern.match(rest) is not None)


def _written(routes: Iterable[Any], taken: str) -> Iterator[tuple[str, str, str, Any]]:
    """Each route that a path may come to: what it is mounted in, as written and as taken, what is left of the path, and the route."""
    for each in routes:
        yield "", "", taken, each
        inner, pattern = getattr(each, "routes", None), getattr(each, "path_regex", None)
        if not inner:
            continue
        written, rest = "", taken  # of a Host, which has no path
        if pattern is not None:
            match = pattern.match(taken)
            if match is None or "path" not in match.groupdict():
                continue
            written, rest = each.path, "/" + match["path"]
        matched = taken[: len(taken) - len(rest)]
        for its_written, its_matched, its_rest, route in _written(inner, rest):
            yield written + its_written, matched + its_matched, its_rest, route


__all__: list[Any] = ["instrument", "route"]
