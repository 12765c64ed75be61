"""Single questions to one server: a few are under way at a time, and what is asked meanwhile goes together in the next write.

Who asks alone is asked for at once, as if this were not here. Nobody waits for longer than the answers that are under way may take, and
a server that does not give them is away for all who wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from taba.errors import StoreUnavailable
from taba.places import ASKER, NOBODY
from taba.shard.servers.connection import Command, Connection, Reply

ASKED_AT_ONCE = 2  # writes: while one is answered the next is made
MOST_JOINED = 64  # questions in one write: its server hears nobody else for as long
MOST_JOINED_BYTES = 262_144  # of what they bring along to be written, beside one that is larger: a server reads it in one go
MOST_QUEUED = 1000  # questions that wait, as many as callers may wait for a connection; more go the long way, which says that it is busy

Answer = list[Reply]  # to a question, and to what reads the owner key


class Connections(Protocol):
    """What this needs of a pool."""

    text: str

    def idle(self) -> Connection | None: ...

    def take(self, seconds: float) -> Deferred[Connection]: ...

    def release(self, connection: Connection) -> None: ...


class Joiner:
    """`command`, and `owner`, which reads the bucket's owner key after it, where that is wanted. `done` gets the replies to both (None for
    the second where nothing was wanted), or None where it was not asked.

    For `seconds` since `began` it may take, and for `quiet` nothing at all may be heard of the server: then StoreUnavailable. `is_whole`:
    one command may read the owner keys of many buckets there. `size`: about how many bytes it brings along.
    """

    __slots__ = ("began", "command", "done", "ends", "is_whole", "owner", "quiet", "seconds", "size")

    def __init__(self, command: Command, owner: Command | None, is_whole: bool, began: float, seconds: float, quiet: float, size: int = 0):
        self.command, self.owner, self.is_whole, self.size = command, owner, is_whole, size
        self.began, self.seconds, self.quiet = began, seconds, quiet
        self.ends = began + min(seconds, quiet)
        self.done: Deferred[Answer | None] = Deferred()


class Asking:
    """The questions to `pool`. `under_way`: how many writes of them have no answer; who asks alone adds one, and calls `go_on` after it."""

    def __init__(self, pool: Connections, clock: Any):
        self.under_way = 0
        self._pool, self._clock = pool, clock
        self._waiting: deque[Joiner] = deque()

    def join(self, question: Joiner) -> Deferred[Answer | None]:
        """Its `done`, once it was asked with the others that wait. Who gives up harms nobody."""
        if len(self._waiting) < MOST_QUEUED:
            self._waiting.append(question)
            if not self.under_way:
                self._send(None)
        else:
            question.done.callback(None)
        return question.done

    def go_on(self) -> None:
        """A write was answered, or will not be: the next one may go."""
        self.under_way -= 1
        while self._waiting and self.under_way < ASKED_AT_ONCE:
            connection = self._pool.idle()
            if connection is None and self.under_way:
                return  # who waits follows those that are asked for now
            self._send(connection)

    def _send(self, connection: Connection | None) -> None:
        """Ask for what waits, over `connection` or the next that is free."""
        now = self._clock.seconds()
        lot: list[Joiner] = []
        late: list[Joiner] = []
        size = 0
        while self._waiting and len(lot) < MOST_JOINED:
            question = self._waiting[0]
            if lot and size + question.size > MOST_JOINED_BYTES:
                break
            self._waiting.popleft()
            if question.done.called:  # it was given up
                continue
            if now < question.ends:
                lot.append(question)
                size += question.size
            else:
                late.append(question)
        if lot:
            self.under_way += 1
            ensureDeferred(self._ask(connection, lot))
        elif connection is not None:
            self._pool.release(connection)
        _tell(late, [StoreUnavailable(f"{self._pool.text}: no answer to what was asked before")] * len(late))

    async def _ask(self, connection: Connection | None, lot: Sequence[Joiner]) -> None:
        ASKER.set(NOBODY)  # they are of several, and so are those that go on from here: else all waited in the line of who came first
        owners = list(dict.fromkeys([question.owner for question in lot if question.owner is not None]))
        is_whole = bool(owners) and all([question.is_whole for question in lot])
        # after all that was asked: what was read was read while the buckets were open here
        last = [(b"MGET", *[key for _, key in owners])] if is_whole else owners
        answers: Sequence[Answer | Exception | None] = [None] * len(lot)
        try:
            ends = min([question.ends for question in lot])
            if connection is None:
                connection = await self._pool.take(max(ends - self._clock.seconds(), 0.0))
            now = self._clock.seconds()
            if now >= ends:  # it came in a turn that took long
                raise StoreUnavailable(f"{self._pool.text}: no connection in time for what was asked")
            seconds = min([question.began + question.seconds for question in lot]) - now
            quiet = min([question.began + question.quiet for question in lot]) - now
            replies = await connection.execute([*[question.command for question in lot], *last], seconds, quiet)
            told = replies[-1] if is_whole else replies[len(lot) :]
            if isinstance(told, list):
                said: dict[Command | None, Reply] = dict(zip(owners, told, strict=True))
                answers = [[reply, said.get(question.owner)] for reply, question in zip(replies, lot, strict=False)]
        except StoreUnavailable as error:  # each who asked hears it
            answers = [error] * len(lot)
        except Exception as error:  # of what one of them asks: alone, it hears that again, and harms no other
            answers = [error if len(lot) == 1 else None] * len(lot)
        finally:
            if connection is not None:
                self._pool.release(connection)
        _tell(lot, answers)
        self.go_on()


def _tell(questions: Sequence[Joiner], answers: Sequence[Answer | Exception | None]) -> None:
    for question, answer in zip(questions, answers, strict=True):
        if isinstance(answer, Exception):
            question.done.errback(Failure(answer))
        else:
            question.done.callback(answer)
