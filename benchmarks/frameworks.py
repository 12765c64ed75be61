"""What recording a request costs an application: the same one with the middleware and without, in turns, in one process, without a network.

Processor time, so that a busy machine says about the same. What is recorded goes into memory of this process (`taba.client.testing`), as
into a ring, so no Agent is needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import thread_time
from types import SimpleNamespace
from typing import Any

import django
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from benchmarks import budgets
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import Effort
from taba.client import testing
from taba.frameworks import asgi, flask, starlette, wsgi
from taba.frameworks import django as of_django
from taba.frameworks.logging import Handler

HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "2")]
START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"ok"}
RULE = SimpleNamespace(url_rule=SimpleNamespace(rule="/users/<id>"))  # what Flask has found when its response begins
PATH = SimpleNamespace(path="/users/{id}")  # likewise Starlette, at its end


def run(effort: Effort) -> list[Row]:
    requests, rounds = effort.pick(500, 5_000), effort.pick(3, 15)
    with testing.capture():
        rows = [
            _beside("a WSGI request", _wsgi(requests, wsgi.Middleware(_whole, _route)), _wsgi(requests, _whole), rounds),
            _beside("… whose body is an iterator", _wsgi(requests, wsgi.Middleware(_steps, _route)), _wsgi(requests, _steps), rounds),
            _beside("… by Flask's rules", _wsgi(requests, wsgi.Middleware(_flask, flask.route)), _wsgi(requests, _flask), rounds),
            _beside("an ASGI request", _asgi(requests, asgi.Middleware(_app, _scope_route)), _asgi(requests, _app), rounds),
            _beside(
                "… by Starlette's paths", _asgi(requests, asgi.Middleware(_starlette, starlette.route)), _asgi(requests, _starlette), rounds
            ),
            _beside("a Django request", *_django(requests), rounds),
            _beside("a line logged", _logged(requests, Handler()), _logged(requests, logging.NullHandler()), rounds),
        ]
    return rows


def _beside(name: str, recorded: Callable[[], float], bare: Callable[[], float], rounds: int) -> Row:
    """What recording adds to one, in µs; each round compares neighbours."""
    found = interleave({"recorded": recorded, "bare": bare}, rounds)
    added = [with_it - without for with_it, without in zip(found["recorded"], found["bare"], strict=True)]
    floor = Beside("without it, in all", Figure.of(found["bare"]))
    return Row(f"{name}: recording adds", Figure.of(added), "µs", budgets.REQUEST, floor)


def _timed(times: int, call: Callable[[], Any]) -> float:
    began = thread_time()
    for _ in range(times):
        call()
    return (thread_time() - began) / times * 1e6


def _wsgi(times: int, app: Callable[..., Any]) -> Callable[[], float]:
    def serve() -> None:
        body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/users/17", "route": "/users/<id>"}, _start)
        for _ in body:
            pass
        if hasattr(body, "close"):
            body.close()

    return lambda: _timed(times, serve)


def _start(status: str, headers: Any, error: Any = None) -> None:
    pass


def _whole(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", HEADERS)
    return [b"ok"]


def _steps(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", HEADERS)
    return iter((b"ok",))


def _route(environ: Any) -> str | None:
    route: str | None = environ.get("route")
    return route


def _asgi(times: int, app: Callable[..., Any]) -> Callable[[], float]:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def serve() -> float:
        began = thread_time()
        for _ in range(times):
            await app({"type": "http", "method": "GET", "path": "/users/17", "root_path": ""}, receive, send)
        return (thread_time() - began) / times * 1e6

    return lambda: asyncio.run(serve())


async def _app(scope: Any, receive: Any, send: Any) -> None:
    scope["route"] = "/users/{id}"
    await receive()
    await send(START)
    await send(BODY)


def _flask(environ: Any, start_response: Any) -> Any:
    environ["werkzeug.request"] = RULE
    return _steps(environ, start_response)


async def _starlette(scope: Any, receive: Any, send: Any) -> None:
    scope["endpoint"], scope["route"] = _starlette, PATH
    await receive()
    await send(START)
    await send(BODY)


def _django(times: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """A view by itself: what Django does around it is no matter here."""
    if not settings.configured:
        settings.configure()
        django.setup()
    request, response = HttpRequest(), HttpResponse(b"ok")
    request.method, request.META["REQUEST_METHOD"] = "GET", "GET"
    request.resolver_match = SimpleNamespace(route="users/<int:id>/")

    def view(request: HttpRequest) -> HttpResponse:
        return response

    recorded = of_django.middleware(view)
    return (lambda: _timed(times, lambda: recorded(request))), (lambda: _timed(times, lambda: view(request)))


def _scope_route(scope: Any, root: str) -> str | None:
    route: str | None = scope.get("route")
    return route


def _logged(times: int, handler: logging.Handler) -> Callable[[], float]:
    logger = logging.Logger("benchmark")
    logger.addHandler(handler)
    return lambda: _timed(times, lambda: logger.info("a line"))
