"""A Django site, and what is recorded when it is served: run by test_frameworks, in a process of its own."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import django
from django.conf import settings
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import include, path, re_path

from taba.client import testing
from taba.names import parse_name


def user(request: Any, id: int) -> Any:
    return HttpResponse(f"user {id}")


async def later(request: Any) -> Any:
    await asyncio.sleep(0)
    return HttpResponse("later")


def broken(request: Any) -> Any:
    raise KeyError("secret")


def stream(request: Any) -> Any:
    return StreamingHttpResponse(b"ab" for _ in range(3))


async def stream_later(request: Any) -> Any:
    async def steps() -> Any:
        for _ in range(3):
            yield b"ab"

    return StreamingHttpResponse(steps())


def file(request: Any) -> Any:
    return FileResponse(io.BytesIO(b"abcdef"))


urlpatterns = [
    path("users/<int:id>/", user),
    path("later", later),
    path("broken", broken),
    path("stream", stream),
    path("stream_later", stream_later),
    path("file", file),
    path("shops/<shop>/", include([re_path(r"^(?P<page>\w+)$", lambda request, shop, page: HttpResponse(page))])),
]
# of each: path, its route, status, bytes
EXPECTED = [
    ("/users/17/", "/users/<int:id>/", "200", 7.0),
    ("/later", "/later", "200", 5.0),
    ("/stream", "/stream", "200", 6.0),
    ("/stream_later", "/stream_later", "200", 6.0),
    ("/file", "/file", "200", 6.0),
    ("/shops/main/about", r"/shops/<shop>/(?P<page>\w+)$", "200", 5.0),
    ("/nowhere/17", "(unmatched)", "404", None),
    ("/broken", "/broken", "500", None),
]


def check(recorded: Any) -> None:
    """What was recorded is what was expected."""
    labels = [parse_name(event.name)[1] for event in recorded.events if event.name.startswith("http_requests{")]
    found = [(each["route"], each["status"]) for each in labels]
    assert found == [(route, status) for _, route, status, _ in EXPECTED], found
    for _, route, _, size in EXPECTED:
        if size is not None:
            assert recorded.values("http_response_bytes", route=route) == [size], route
    assert recorded.total("http_exceptions", route="/broken", exception="KeyError") == 1
    assert recorded.count("http_exceptions") == 1
    assert recorded.total("http_requests_in_flight") == 0
    assert recorded.count("http_request_seconds") == len(EXPECTED)
    assert recorded.total("http_aborted") == 0


def main() -> None:
    settings.configure(
        MIDDLEWARE=["taba.frameworks.django.middleware"], ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None
    )
    django.setup()
    from django.test import AsyncClient, Client

    with testing.capture() as recorded:
        browser = Client(raise_request_exception=False)
        for url, *_ in EXPECTED:
            response = browser.get(url)
            b"".join(response) if response.streaming else response.content
            response.close()
        check(recorded)
        print("WSGI")

    async def ask(url: str) -> None:
        response: Any = await AsyncClient(raise_request_exception=False).get(url)
        if response.streaming and response.is_async:
            [part async for part in response]
        elif response.streaming:
            b"".join(response)
        response.close()

    with testing.capture() as recorded:
        for url, *_ in EXPECTED:
            asyncio.run(ask(url))
        check(recorded)
        print("ASGI")
    settings.DEBUG_PROPAGATE_EXCEPTIONS = True  # with which Django tells of one exception again and again
    with testing.capture() as recorded:
        try:
            Client().get("/broken")
        except KeyError:
            assert recorded.values("http_exceptions", route="/broken") == [1], recorded.events
        assert (recorded.total("http_exceptions"), recorded.total("http_requests_in_flight")) == (1, 0), recorded.events
    settings.DEBUG_PROPAGATE_EXCEPTIONS = False
    with testing.capture() as recorded:
        left: Any = Client().get("/stream")
        next(iter(left.streaming_content))
        left.close()
        assert (recorded.total("http_aborted", route="/stream"), recorded.total("http_requests_in_flight")) == (1, 0), recorded.events


if __name__ == "__main__":
    main()
