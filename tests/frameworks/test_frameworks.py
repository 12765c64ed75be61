"""The real Flask, Django, Starlette and FastAPI, with requests made in this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.client import testing
from taba.names import parse_name
from tests.client.cases import ROOT
from tests.patience import PATIENCE_SECONDS


def serve(app: Any, path: str, method: str = "GET", body: bytes = b"", read: int | None = None, kind: str = "http") -> list[Any]:
    """What an ASGI application sends for one request; with `read` the client goes away after so many messages."""
    sent: list[Any] = []

    async def connect() -> None:
        waiting: list[Any] = [{"type": "http.request", "body": body}] if kind == "http" else [{"type": "websocket.connect"}]
        gone = asyncio.Event()

        async def receive() -> Any:
            if waiting:
                return waiting.pop(0)
            if kind == "http":
                await gone.wait()
            return {"type": f"{kind}.disconnect", "code": 1000}

        async def send(message: Any) -> None:
            sent.append(message)
            if read is not None and len(sent) > read:
                gone.set()
                await asyncio.sleep(0.01)

        scope: dict[str, Any] = {
            "type": kind,
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [],
        }
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("test", 1), "asgi": {"version": "3.0"}}
        task = asyncio.ensure_future(app(scope, receive, send))
        await asyncio.wait([task], timeout=PATIENCE_SECONDS)
        task.result()

    asyncio.run(connect())
    return sent


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.recorded = testing.capture_for(self)

    def requests(self) -> list[tuple[str, str, str]]:
        labels = [parse_name(event.name)[1] for event in self.recorded.events if event.name.startswith("http_requests{")]
        return [(each["method"], each["route"], each["status"]) for each in labels]

    def failed(self) -> list[tuple[str, str]]:
        labels = [parse_name(event.name)[1] for event in self.recorded.events if event.name.startswith("http_exceptions{")]
        return [(each["route"], each["exception"]) for each in labels]

    def check_nothing_is_under_way(self) -> None:
        self.assertEqual(self.recorded.total("http_requests_in_flight"), 0)
        self.assertEqual(self.recorded.count("http_request_seconds"), len(self.requests()))


class Flask(Case):
    def setUp(self) -> None:
        super().setUp()
        import flask

        from taba.frameworks.flask import instrument

        self.app = flask.Flask("shop")
        pages = flask.Blueprint("pages", "pages", url_prefix="/pages")

        @self.app.route("/users/<int:id>", methods=["GET", "POST"])
        def user(id: int) -> str:
            return f"user {id}"

        @pages.route("/<path:rest>")
        def page(rest: str) -> Any:
            return flask.Response(b"ab" for _ in range(3))

        @self.app.route("/broken")
        def broken() -> str:
            raise KeyError("secret")

        @self.app.route("/handled")
        def handled() -> str:
            raise ValueError

        @self.app.errorhandler(ValueError)
        def handle(error: Exception) -> Any:
            return "sorry", 418

        self.app.register_blueprint(pages)
        self.assertIs(instrument(self.app), self.app)

    def ask(self, path: str, **how: Any) -> int:
        """The status of an answer that is read to its end."""
        status: int = self.app.test_client().open(path, buffered=True, **how).status_code
        return status

    def test_requests_are_counted_by_rule_and_status(self) -> None:
        self.ask("/users/17")
        self.ask("/users/18", method="POST", data=b"x" * 10)
        self.ask("/pages/a/b/c")
        self.ask("/nowhere/17")
        self.ask("/users/19", method="PUT")
        self.ask("/handled")
        found = [("GET", "/users/<int:id>", "200"), ("POST", "/users/<int:id>", "200"), ("GET", "/pages/<path:rest>", "200")]
        found += [("GET", "(unmatched)", "404"), ("PUT", "(unmatched)", "405"), ("GET", "/handled", "418")]
        self.assertEqual(self.requests(), found)
        self.assertEqual(self.recorded.values("http_request_bytes", method="POST"), [10.0])
        self.assertEqual(self.recorded.values("http_response_bytes", route="/pages/<path:rest>"), [6.0])
        self.assertEqual(self.failed(), [])
        self.check_nothing_is_under_way()

    def test_exceptions_are_counted_once_whether_flask_answers_them_or_lets_them_pass(self) -> None:
        self.assertEqual(self.ask("/broken"), 500)
        self.app.testing = True
        self.assertRaises(KeyError, self.ask, "/broken")
        self.assertEqual(self.failed(), [("/broken", "KeyError")] * 2)
        self.assertEqual(self.requests(), [("GET", "/broken", "500")] * 2)
        self.check_nothing_is_under_way()


class Starlette(Case):
    def setUp(self) -> None:
        super().setUp()
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse, StreamingResponse
        from starlette.routing import Mount, Route, WebSocketRoute

        from taba.frameworks.starlette import instrument

        async def user(request: Any) -> Any:
            return PlainTextResponse(f"user {request.path_params}")

        async def stream(request: Any) -> Any:
            async def steps() -> Any:
                while True:
                    yield b"ab"
                    await asyncio.sleep(0)

            return StreamingResponse(steps())

        async def broken(request: Any) -> Any:
            raise KeyError("secret")

        async def files(scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("file")(scope, receive, send)

        async def feed(socket: Any) -> None:
            await socket.accept()
            await socket.send_text("hello")
            await socket.close(1000)

        inner = [Route("/items/{item}", user), Route("/", user)]
        routes = [Route("/users/{id:int}", user), Route("/stream", stream), Route("/broken", broken), WebSocketRoute("/feed/{topic}", feed)]
        routes += [Mount("/shops/{shop}", routes=inner), Mount("/files", files), Mount("/halls/{hall:int}", routes=list(inner))]
        self.app: Any = instrument(Starlette(routes=routes))

    def test_requests_are_counted_by_path_and_status_below_mounts_too(self) -> None:
        for path in ("/users/17", "/shops/main/items/9", "/shops/main/", "/files/a/b", "/nowhere", "/shops/main/nowhere"):
            serve(self.app, path)
        serve(self.app, "/users/17", "POST", b"xx")
        found = [("GET", "/users/{id:int}", "200"), ("GET", "/shops/{shop}/items/{item}", "200"), ("GET", "/shops/{shop}/", "200")]
        found += [
            ("GET", "/files", "200"),
            ("GET", "(unmatched)", "404"),
            ("GET", "/shops/{shop}", "404"),
            ("POST", "/users/{id:int}", "405"),
        ]
        self.assertEqual(self.requests(), found)
        self.check_nothing_is_under_way()

    def test_a_path_is_never_a_name_however_it_is_spelled(self) -> None:
        for path in ("/halls/007/items/items", "/halls/7/items/halls", "/halls/07/nowhere", "/shops/shops/items/shops"):
            serve(self.app, path)
        expected = ["/halls/{hall:int}/items/{item}"] * 2 + ["/halls/{hall:int}", "/shops/{shop}/items/{item}"]
        self.assertEqual([route for _, route, _ in self.requests()], expected)

    def test_nor_with_a_version_that_does_not_tell_its_routes(self) -> None:
        from taba.frameworks import starlette

        seen: list[Any] = []

        def older(scope: Any, root: str) -> Any:
            scope.pop("route", None)
            seen.append(starlette.route(scope, root))
            return seen[-1]

        self.app.user_middleware[0].kwargs["route"] = older
        for path in ("/stream/", "/broken", "/files/a/b", "/halls/007/items/1", "/nowhere/1"):
            with contextlib.suppress(KeyError):
                serve(self.app, path)
        self.assertEqual(sorted(set(filter(None, seen))), ["/broken", "/files", "/halls/{hall:int}/items/{item}"])

    def test_exceptions_are_counted_and_answered_by_starlette(self) -> None:
        self.assertRaises(KeyError, serve, self.app, "/broken")
        self.assertEqual((self.failed(), self.requests()), ([("/broken", "KeyError")], [("GET", "/broken", "500")]))
        self.check_nothing_is_under_way()

    def test_a_stream_that_its_client_leaves_is_told(self) -> None:
        serve(self.app, "/stream", read=3)
        self.assertEqual((self.requests(), self.recorded.total("http_aborted", route="/stream")), ([("GET", "/stream", "200")], 1))
        self.check_nothing_is_under_way()

    def test_websockets_are_counted_by_path(self) -> None:
        serve(self.app, "/feed/news", kind="websocket")
        self.assertEqual(self.recorded.total("http_websockets", route="/feed/{topic}", code=1000), 1)
        self.assertEqual(self.recorded.total("http_websockets_in_flight"), 0)


class FastAPI(Case):
    def test_requests_are_counted_by_path_of_routers_too(self) -> None:
        import fastapi

        from taba.frameworks.fastapi import instrument

        app = instrument(fastapi.FastAPI())
        router = fastapi.APIRouter(prefix="/shops/{shop}")

        @app.get("/users/{id}")
        async def user(id: int) -> Any:
            return {"id": id}

        @router.get("/items/{item}")
        def item(shop: str, item: int) -> Any:
            return {"item": item}

        @app.get("/broken")
        def broken() -> Any:
            raise KeyError("secret")

        app.include_router(router)
        app.include_router(router, prefix="/v2/{site}")
        within = fastapi.FastAPI()
        within.include_router(router, prefix="/in")
        app.mount("/old/{year:int}", within)
        for path in ("/users/17", "/users/seventeen", "/shops/main/items/9", "/nowhere"):
            serve(app, path)
        serve(app, "/v2/main/shops/main/items/9")
        serve(app, "/old/007/in/shops/main/items/9")
        self.assertRaises(KeyError, serve, app, "/broken")
        found = [("/users/{id}", "200"), ("/users/{id}", "422"), ("/shops/{shop}/items/{item}", "200"), ("(unmatched)", "404")]
        found += [("/v2/{site}/shops/{shop}/items/{item}", "200"), ("/old/{year:int}/in/shops/{shop}/items/{item}", "200")]
        self.assertEqual(self.requests(), [("GET", *each) for each in [*found, ("/broken", "500")]])
        self.assertEqual(self.failed(), [("/broken", "KeyError")])
        self.check_nothing_is_under_way()


class Django(SynchronousTestCase):
    def test_requests_are_counted_by_route_served_either_way(self) -> None:
        # in a process of its own: settings and signals are the process's
        command = [sys.executable, "-W", "ignore", "-m", "tests.frameworks.django_site"]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.split(), ["WSGI", "ASGI"])


class Celery(SynchronousTestCase):
    def test_messages_of_anybody_and_processes_that_were_killed_leave_nothing_under_way(self) -> None:
        # in a process of its own, for the same reason
        done = subprocess.run([sys.executable, "-c", TASKS], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual((done.returncode, done.stdout), (0, "recorded\n"), done.stderr)


TASKS = """
import math, time
from celery import Celery, signals
from celery.exceptions import Reject, TimeLimitExceeded, WorkerLostError
from taba.client import testing
from taba.frameworks import celery

jobs = Celery("jobs")
celery.instrument()

@jobs.task
def add(a, b):
    return a + b

odd = [10**400, -1, 0, math.nan, math.inf, -math.inf, 2.0**40 + 1, "soon", None, True]
with testing.capture() as recorded:
    for sent in [*odd, time.time() - 5]:
        add.apply((1, 2), headers={celery.PUBLISHED: sent}, throw=True)
    assert recorded.total("celery_tasks", state="SUCCESS") == len(odd) + 1, recorded.events
    assert recorded.total("celery_tasks_in_flight") == 0
    waits = recorded.values("celery_task_wait_seconds")
    assert len(waits) == 1 and waits[0] >= 4, waits
    for error in (TimeLimitExceeded(1), WorkerLostError("gone"), Reject("no", requeue=False)):
        signals.task_failure.send(sender=add, task_id="x", exception=error, args=(), kwargs={}, traceback=None, einfo=None)
    assert recorded.total("celery_tasks", state="FAILURE") == 2
    assert recorded.total("celery_task_exceptions") == 3
print("recorded")
"""
