"""What the shard layer's tests say again and again: a Router, one question, writes that depend on nothing, and what is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor

from taba.shard.router import Router
from taba.shard.servers.url import parse_store
from taba.shard.transaction import Writes


async def connect(case: Any, url: str, buckets: int | None, **options: Any) -> Router:
    """A Router of the store at `url`, connected, and closed with the test."""
    router = Router(parse_store(url), buckets, reactor, **options)
    case.addCleanup(router.close)
    await router.connect()
    return router


async def ask(pool: Any, *command: bytes) -> Any:
    """The reply to one command, from a pool or a connection."""
    [reply] = await pool.execute([command])
    return reply


def always(*commands: tuple[bytes, ...]) -> Callable[[Any], Writes]:
    """An update that writes these, whatever it reads."""
    return lambda _: Writes(list(commands))


def note_commands(asked: Any, noted: list[Any]) -> None:
    """Have `noted` tell, from now on, what a pool or a connection is asked to execute: a list of commands each time."""
    original = asked.execute

    def execute(commands: Any, *more: Any) -> Any:
        noted.append(commands)
        return original(commands, *more)

    asked.execute = execute
