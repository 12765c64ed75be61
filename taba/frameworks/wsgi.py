"""For WSGI applications of any kind.

    application = Middleware(application, route=lambda environ: environ.get("my.router.template"))

`route(environ)` tells the template of the route that took a request, or None; it is asked once there is a response. Without it all requests
go under one name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from taba.frameworks.serving import FAILED, NO_STATUS, Serving, length_of

Route = Callable[[dict[str, Any]], "str | None"]


class Middleware:
    """Records what an application serves: see Serving for the Tabs."""

    def __init__(self, app: Callable[..., Iterable[bytes]], route: Route | None = None, *, name: str = "http"):
        self.app = app
        self._route = route or _none
        self._serving = serving = Serving(name)
        self._begin, self._done, self._known, self._clock = serving.begin, serving.done, serving.known, serving.clock  # one look each

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = _Request(self._serving, self._route, environ, start_response, self._clock())
        self._begin()
        try:
            body = self.app(environ, request.start)
        except BaseException as error:
            request.fail(error)
            raise
        if isinstance(body, (list, tuple)):  # whole, and the server may want to know its length
            try:
                sent = request.sent = request.sent + (len(body[0]) if len(body) == 1 else sum(map(len, body)))
            except TypeError as error:  # it holds what is no bytes: the server finds that, too, and answers instead
                request.fail(error)
                return body
            if "CONTENT_LENGTH" in environ:
                request.end()
                return body
            # as end() does, without the calls: most requests come by here
            self._done()
            key = method, route, status = environ.get("REQUEST_METHOD", ""), request.route, request.status
            requests, seconds, _, of_sent = self._known(key) or self._serving.made(method, route, status)
            requests()
            seconds(self._clock() - request.began)
            of_sent(sent)
            return body
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):  # which the server may send as a file
            try:
                body.close = _closing(getattr(body, "close", None), request)  # type: ignore[attr-defined]
                request.sent = request.length()
                return body
            except AttributeError:
                pass  # it takes none: sent piece by piece
        return _Body(body, request)


class _Request:
    """One request on its way through the application."""

    __slots__ = ("began", "environ", "headers", "is_over", "route", "route_of", "sent", "serving", "start_response", "status", "write")

    def __init__(
        self, serving: Serving, route_of: Route, environ: dict[str, Any], start_response: Callable[..., Any], began: float
    ) -> None:
        self.serving, self.route_of, self.environ, self.start_response, self.began = serving, route_of, environ, start_response, began
        # what it is before there is a response
        self.status: int | str = NO_STATUS
        self.sent = 0
        self.is_over = False
        self.route: str | None = None
        self.headers: Any = ()

    def start(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        self.route = self.route_of(self.environ)  # now: frameworks forget it at the end
        self.write = self.start_response(status, headers) if exc_info is None else self.start_response(status, headers, exc_info)
        self.status, self.headers = status, headers  # which the server took: with another one on its way it raises
        return self.written

    def written(self, content: bytes) -> Any:
        self.sent += len(content)
        return self.write(content)

    def length(self) -> int:
        """What its headers say of its body; -1 for nothing."""
        return next((length_of(value) for name, value in self.headers if name.lower() == "content-length"), -1)

    def fail(self, error: BaseException) -> None:
        if not self.is_over:
            if not self.sent:
                self.status = FAILED  # what the server answers instead
            self.route = self.route or self.route_of(self.environ)
        self.serving.fail(self.route, error)
        self.end()

    def end(self) -> None:
        if not self.is_over:
            self.is_over = True
            environ = self.environ
            length = environ.get("CONTENT_LENGTH")
            received = length_of(length) if length else 0  # of a body in pieces nobody knows
            self.serving.end(self.began, environ.get("REQUEST_METHOD", ""), self.route, self.status, received, self.sent)


class _Body:
    """A response's body on its way to the server."""

    __slots__ = ("_body", "_request")

    def __init__(self, body: Iterable[bytes], request: _Request):
        self._body, self._request = body, request

    def __iter__(self) -> Iterator[bytes]:
        request = self._request
        try:
            for content in self._body:
                request.sent += len(content)
                yield content
        except GeneratorExit:
            raise  # the server stopped: close() tells
        except BaseException as error:
            request.fail(error)
            raise
        request.end()

    def close(self) -> None:
        """The server is done with it."""
        request = self._request
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            request.serving.fail(request.route, error)
            raise
        finally:
            if not request.is_over:
                # of a HEAD some servers read no body, and of others no more than was promised
                if request.environ.get("REQUEST_METHOD") != "HEAD" and request.sent != request.length():
                    request.serving.abort(request.route)
                request.end()


def _closing(close: Callable[[], object] | None, request: _Request) -> Callable[[], None]:
    def closed() -> None:
        try:
            if close is not None:
                close()
        finally:
            request.end()

    return closed


def _none(environ: dict[str, Any]) -> None:
    return None
