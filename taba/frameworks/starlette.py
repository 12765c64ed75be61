"""For Starlette and FastAPI.

app = FastAPI()
instrument(app)
"""

from __future__ import annotations

from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.routing import Host, Mount

from taba.frameworks import asgi

App = TypeVar("App", bound=Starlette)


def instrument(app: App, *, name: str = "http") -> App:
    """Record what the application serves, by its paths such as /users/{id}. Before it starts; what is added after it is inside."""
    app.add_middleware(asgi.Middleware, route=route, name=name)
    return app


def route(scope: asgi.Scope, root: str) -> str | None:
    """The path that took a request, as the application wrote it; None where none did."""
    if "endpoint" not in scope:
        return None
    found = scope.get("route")
    prefix = (scope.get("root_path") or "")[len(root) :]
    path: str | None = getattr(found, "path", None)
    if path is None:  # of an older version, or a route of somebody else's
        return _written(scope["path"][len(root) :] if scope["path"].startswith(root) else scope["path"], scope)
    if not prefix:
        return path
    prefix = _written(prefix, scope)
    return prefix if isinstance(found, (Mount, Host)) else prefix + path


def _written(path: str, scope: asgi.Scope) -> str:
    """A path with the names of its parameters in their places."""
    names = {str(value): f"{{{key}}}" for key, value in (scope.get("path_params") or {}).items()}
    for value in [value for value in names if "/" in value]:
        path = path.replace(value, names[value])
    return "/".join(names.get(part, part) for part in path.split("/"))


__all__: list[Any] = ["instrument", "route"]
