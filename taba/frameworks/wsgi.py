"""For WSGI applications of any kind.

    application = Middleware(application, route=lambda environ: environ.get("my.router.template"))

`route(environ)` tells the template of the route that took a request, or None; it is asked once there is a response. Without it all requests
go under one name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from taba.client.metering import Reply, length_of
from taba.frameworks.serving import FAILED, Serving

Route = Callable[[dict[str, Any]], "str | None"]


class Middleware:
    """Records what an application serves: see Serving for the Tabs."""

    def __init__(self, app: Callable[..., Iterable[bytes]], route: Route | None = None, *, name: str = "http"):
        self.app = app
        self._route = route or _none
        self._serving = Serving(name)
        self._reply = self._serving.meter.reply

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = self._reply(self._route, environ, start_response, self)
        try:
            body = self.app(environ, request.start)
        except BaseException as error:
            self.failed(request, error)
            raise
        if isinstance(body, (list, tuple)):  # whole, and the server may want to know its length
            try:
                request.sent += len(body[0]) if len(body) == 1 else sum(map(len, body))
            except TypeError as error:  # it holds what is no bytes: the server finds that, too, and answers instead
                self.failed(request, error)
                return body
            request.end()
            return body
        wrapper = environ.get("wsgi.file_wrapper")
        if wrapper is not None and isinstance(wrapper, type) and isinstance(body, wrapper):  # which the server may send as a file
            try:
                body.close = _closing(getattr(body, "close", None), request)  # type: ignore[attr-defined]
                request.sent = _promised(request)
                return body
            except AttributeError:
                pass  # it takes none: sent piece by piece
        watched: Iterable[bytes] = request.watch(body)
        return watched

    # --- what is rare of a request ---

    def failed(self, request: Reply, error: BaseException) -> None:
        """The application raised this, which is the end."""
        if not request.is_over:
            # without a byte sent it is what the server answers instead
            request.answers(request.status if request.sent else FAILED, request.asked() if request.route is None else request.route)
        self._serving.fail(request.route, error)
        request.end()

    def stopped(self, request: Reply, error: BaseException | None) -> None:
        """The server is done with it before its end, or the body's own close() raised this."""
        if error is not None:
            self._serving.fail(request.route, error)
        if not request.is_over:
            # of a HEAD some servers read no body, and of others no more than was promised
            if request.environ.get("REQUEST_METHOD") != "HEAD" and request.sent != _promised(request):
                self._serving.abort(request.route)
            request.end()


def _promised(request: Reply) -> int:
    """What its headers say of its body; -1 for nothing."""
    return next((length_of(value) for name, value in request.headers or () if name.lower() == "content-length"), -1)


def _closing(close: Callable[[], object] | None, request: Reply) -> Callable[[], None]:
    def closed() -> None:
        try:
            if close is not None:
                close()
        finally:
            request.end()

    return closed


def _none(environ: dict[str, Any]) -> None:
    return None
