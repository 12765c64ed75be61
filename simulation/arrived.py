"""Calls as routes get them, of what arrived in a world."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from twisted.web.http_headers import Headers

from taba.calls import Body, Call


class Arrived:
    """A request that came, its channel and its site: what a `Call` asks of them. What is asked here is short, and takes no turns."""

    uri = b""
    args: ClassVar[dict[bytes, list[bytes]]] = {}
    poster = "this host"

    def __init__(self, content: bytes, key: str):
        self.content = Body()
        self.content.write(content)
        self.requestHeaders = Headers({"idempotency-key": [key]} if key else None)
        self.channel = self.site = self.turns = self

    def getHeader(self, name: str) -> str | None:
        values = self.requestHeaders.getRawHeaders(name)
        return values[-1] if values else None

    def take_room(self, size: int) -> bool:
        """There is."""
        return True

    async def breathe(self) -> None:
        """Nobody waits."""


def call_of(content: bytes, key: str) -> Call:
    """The real call that a route gets."""
    return Call(cast(Any, Arrived(content, key)))
