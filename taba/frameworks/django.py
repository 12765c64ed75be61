"""For Django, served by WSGI or ASGI.

MIDDLEWARE = ["taba.frameworks.django.middleware", …]
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache, lru_cache
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.signals import got_request_exception
from django.utils.decorators import sync_and_async_middleware

from taba.client.metering import length_of
from taba.frameworks.serving import FAILED, FAILURES, GONE, MAX_ROUTES, Serving


@cache
def _serving() -> Serving:
    """That of this process: Django makes its middlewares anew for each handler."""
    serving = Serving()

    def failed(sender: Any, request: Any = None, **rest: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and getattr(request, "taba_failed", None) != id(
            error
        ):  # with DEBUG_PROPAGATE_EXCEPTIONS each middleware sends it
            request.taba_failed = id(error)
            serving.fail(_route(request), error)

    got_request_exception.connect(failed, weak=False, dispatch_uid="taba")
    return serving


def _middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Records what Django serves, by the routes of its URLconf such as users/<int:id>/, and the exceptions that views raise."""
    serving = _serving()

    if iscoroutinefunction(get_response):

        async def around_async(request: Any) -> Any:
            served = _Served(serving, request)
            try:
                response = await get_response(request)
            except FAILURES as error:
                served.fail(error)
                raise
            except BaseException:
                served.gone()
                raise
            return served.answered(response)

        return around_async

    def around(request: Any) -> Any:
        served = _Served(serving, request)
        try:
            response = get_response(request)
        except BaseException as error:
            served.fail(error)
            raise
        return served.answered(response)

    return around


middleware = sync_and_async_middleware(_middleware)


def _route(request: Any) -> str | None:
    match = getattr(request, "resolver_match", None)
    if match is None:
        return None
    return _written(match.route)


@lru_cache(MAX_ROUTES)
def _written(route: Any) -> str:
    return f"/{route}".replace("//", "/")


class _Served:
    """One request on its way through Django."""

    __slots__ = ("_began", "_is_over", "_request", "_serving", "_status", "sent")

    def __init__(self, serving: Serving, request: Any):
        self._serving, self._request = serving, request
        self._status = FAILED
        self._is_over = False
        self.sent = 0
        self._began = serving.begin()

    def fail(self, error: BaseException) -> None:
        if getattr(self._request, "taba_failed", None) != id(error):
            self._serving.fail(_route(self._request), error)
        self.end()

    def answered(self, response: Any) -> Any:
        """The response, which is watched until its end where it is a stream."""
        self._status = response.status_code
        if not response.streaming:
            self.sent = len(response.content)
            self.end()
        elif getattr(response, "file_to_stream", None) is not None:  # which the server may send as a file
            self.sent = length_of(response.headers.get("Content-Length", ""))
            response._resource_closers.append(self.end)
        elif response.is_async:
            response.streaming_content = _AsyncBody(response.streaming_content, self)
        else:
            response.streaming_content = _Body(response.streaming_content, self)
        return response

    def gone(self) -> None:
        """The client went away before there was a response."""
        self._status = GONE
        self.close()

    def close(self) -> None:
        """The server is done with it, whether or not it came to the end."""
        if not self._is_over:
            if self._request.method != "HEAD":
                self._serving.abort(_route(self._request))
            self.end()

    def end(self) -> None:
        if not self._is_over:
            self._is_over = True
            request = self._request
            length = request.META.get("CONTENT_LENGTH")
            received = length_of(length) if length else 0  # of a body in pieces nobody knows
            self._serving.end(self._began, request.method, _route(request), self._status, received, self.sent)


class _Body:
    """A stream on its way to the server."""

    def __init__(self, steps: Iterator[bytes], served: _Served):
        self._steps, self._served = iter(steps), served
        self.close = served.close

    def __iter__(self) -> _Body:
        return self

    def __next__(self) -> bytes:
        try:
            content = next(self._steps)
        except StopIteration:
            self._served.end()
            raise
        except BaseException as error:
            self._served.fail(error)
            raise
        self._served.sent += len(content)
        return content


class _AsyncBody:
    """Likewise, of an asynchronous one."""

    def __init__(self, steps: AsyncIterator[bytes], served: _Served):
        self._steps, self._served = steps.__aiter__(), served
        self.close = served.close

    def __aiter__(self) -> _AsyncBody:
        return self

    async def __anext__(self) -> bytes:
        try:
            content = await self._steps.__anext__()
        except StopAsyncIteration:
            self._served.end()
            raise
        except FAILURES as error:
            self._served.fail(error)
            raise  # and where the client went away close() tells
        self._served.sent += len(content)
        return content
