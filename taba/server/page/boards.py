"""Boards: Tabs that people have put side by side, by name, the same at every Server. They lie in the store, and are bounded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from taba import names
from taba.calls import Answer, Call, HTTPError
from taba.errors import TabaError
from taba.routes import JSON, Parameter, Route
from taba.server import keys
from taba.server.router import IsRouter
from taba.shard import Writes
from taba.tokens import ADMIN, READ

BUCKET = 0  # where they lie
MAX_BOARDS = 200  # read in one go to be listed: 200 × 64 KiB at the very most
MAX_PINNED = 64  # Tabs of one board: each is listened to, and nobody sees more at once
MAX_TITLE = 200  # characters

BOARD_SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": MAX_TITLE, "pattern": r"^[^\x00]*$"},
        "tabs": {"type": "array", "maxItems": MAX_PINNED, "items": {"type": "string"}},
    },
    "required": ["tabs"],
    "additionalProperties": False,
}

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,64}")  # in an address . and .. name another place
NAME = Parameter("name", "A board's name: 1 to 64 letters, digits, _, . and -; not . or ..")


class TooManyBoards(TabaError):
    """There are MAX_BOARDS already."""


class Board(NamedTuple):
    """What somebody put together: the canonical names of Tabs, in order."""

    title: str
    tabs: tuple[str, ...]

    def shown(self) -> dict[str, Any]:
        """As answers have it."""
        return {"title": self.title, "tabs": list(self.tabs)}


def read_board(content: Any) -> Board:
    """The board that was sent. Raises ValueError with a sentence."""
    if not isinstance(content, dict) or not {"tabs"} <= set(content) <= {"title", "tabs"}:
        raise ValueError('takes {"tabs": [name, …], "title": text or nothing}')
    title, tabs = content.get("title", ""), content["tabs"]
    if not isinstance(title, str) or len(title) > MAX_TITLE or "\0" in title or not _is_text(title):
        raise ValueError(f"title: takes at most {MAX_TITLE} characters")
    if not isinstance(tabs, list) or len(tabs) > MAX_PINNED:
        raise ValueError(f"tabs: takes a list of at most {MAX_PINNED} names")
    for tab in tabs:
        if not isinstance(tab, str) or not _is_text(tab):
            raise ValueError("tabs: takes names")
        try:
            names.check_tab(tab)
        except ValueError as error:
            raise ValueError(f"tabs: {error}"[:300]) from None
    if len(set(tabs)) < len(tabs):
        raise ValueError("tabs: one stands more than once")
    return Board(title, tuple(tabs))


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


class Boards:
    """The boards of all Servers, and their routes."""

    def __init__(self, router: IsRouter):
        self._router = router

    async def every(self) -> dict[str, Board]:
        """All of them by name."""
        [contents] = await self._router.read(BUCKET, [(b"HGETALL", keys.boards(BUCKET))])
        found = {name.decode("utf-8", "replace"): _kept(content) for name, content in _pairs(contents)}
        return {name: board for name, board in sorted(found.items()) if board is not None}

    async def get(self, name: str) -> Board | None:
        """One of them."""
        [content] = await self._router.read(BUCKET, [(b"HGET", keys.boards(BUCKET), name.encode())])
        return None if content is None else _kept(content)

    async def put(self, name: str, board: Board) -> None:
        """Keep one, in the place of one of that name. Raises TooManyBoards."""
        key, field = keys.boards(BUCKET), name.encode()

        def update(replies: Sequence[Any]) -> Writes:
            there, total = replies
            if not there and total >= MAX_BOARDS:
                raise TooManyBoards(f"there are {MAX_BOARDS} boards; delete one first")
            return Writes([(b"HSET", key, field, json.dumps(board.shown(), ensure_ascii=False).encode())], None)

        await self._router.transact(BUCKET, [(b"HEXISTS", key, field), (b"HLEN", key)], update)

    async def delete(self, name: str) -> int:
        """Forget one; how many were there."""
        key, field = keys.boards(BUCKET), name.encode()

        def update(replies: Sequence[Any]) -> Writes:
            return Writes([(b"HDEL", key, field)] if replies[0] else [], int(bool(replies[0])))

        deleted: int = await self._router.transact(BUCKET, [(b"HEXISTS", key, field)], update)
        return deleted

    # --- routes ---

    def routes(self) -> list[Route]:
        """The definitions."""
        one = "/v1/boards/{name}"
        return [
            Route("GET", "/v1/boards", self.listed, '{name: {"title", "tabs"}}', READ, produces=(JSON,)),
            Route("GET", one, self.shown, '{"title", "tabs"}', READ, (NAME,), produces=(JSON,)),
            Route("PUT", one, self.kept, "the board that is kept", ADMIN, (NAME,), JSON, BOARD_SCHEMA, (JSON,)),
            Route("DELETE", one, self.deleted, '{"boards": n}', ADMIN, (NAME,), produces=(JSON,)),
        ]

    async def listed(self, call: Call) -> Answer:
        """All boards."""
        return Answer({name: board.shown() for name, board in (await self.every()).items()})

    async def shown(self, call: Call) -> Answer:
        """One board."""
        name = _name(call)
        board = await self.get(name)
        if board is None:
            raise HTTPError(404, "unknown_board", f"there is no board {name!r}")
        return Answer(board.shown())

    async def kept(self, call: Call) -> Answer:
        """Keep one."""
        name = _name(call)
        try:
            board = read_board(await call.json())
        except ValueError as error:
            raise HTTPError(400, "bad_request", str(error)) from None
        try:
            await self.put(name, board)
        except TooManyBoards as error:
            raise HTTPError(409, "full", str(error)) from None
        return Answer(board.shown())

    async def deleted(self, call: Call) -> Answer:
        """Forget one."""
        return Answer({"boards": await self.delete(_name(call))})


def _name(call: Call) -> str:
    name: str = call.values["name"]
    if _NAME.fullmatch(name) is None:
        raise HTTPError(400, "bad_request", f"{name[:100]!r}: a board's name takes 1 to 64 letters, digits, _, . and -; not . or ..")
    return name


def _kept(content: bytes) -> Board | None:
    """A board as it lies in the store; None for what is none."""
    try:
        return read_board(json.loads(content))
    except ValueError:
        return None


def _pairs(flat: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
