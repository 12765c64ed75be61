"""One connection to one Redis/Valkey server. The only module that knows txredisapi.

1. Many commands go out in one write; their replies come back as one list, in order; an error is a value in it.
2. Values are bytes, in and out: nothing is decoded, nothing becomes a number that was not one.
3. A connection whose replies are late, or whose user went away, is closed and never used again.

txredisapi keeps a connection on which hiredis parses, and does nothing more: its own transactions, pool and pipeline
lose WATCHes, leak connections and know no deadline for a whole pipeline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import txredisapi
from hiredis import pack_command
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from taba import parts
from taba.errors import StoreUnavailable, TabaError
from taba.shard.dirty import Command as Command
from taba.shard.servers.prefix import USUAL, with_prefix
from taba.tls import TlsWords, tls_sentence

SENT_AT_ONCE_BYTES = 65_536  # of one write that does not wait for the reactor's next turn: what a socket takes, and no turn is held up for
REPLY_SECONDS = 10.0  # all replies to one write; a store that syncs to a slow disk takes a second, never ten

ErrorReply: type[Exception] = txredisapi.ResponseError  # what a server answers to a command that it refuses: a value among the replies
Reply = bytes | int | None | list[Any] | Exception

_GOOD = frozenset([bytes, int, list, type(None)])  # what no error is of
_REDIRECTIONS = frozenset(["MOVED", "ASK", "TRYAGAIN"])
# what a server says when it will do better later; any other error is the fault of who wrote the command
_PASSING = frozenset(
    [
        *("LOADING", "BUSY", "MASTERDOWN", "READONLY", "CLUSTERDOWN", "NOREPLICAS", "MISCONF", "OOM"),
        *("NOAUTH", "WRONGPASS", "NOPERM"),  # until somebody corrects the user's rights
    ]
)
_ABORTED = "EXECABORT Transaction discarded because of: "  # what EXEC says, and why, where all was queued and the server takes it no more


WORDS = TlsWords("?cacert=FILE in the store's address", "?cert=FILE&key=FILE in the store's address", "redis:")


class ConnectionGone(StoreUnavailable):
    """The connection ended before all replies came: whether the commands were carried out is not known."""


class Redirected(StoreUnavailable):
    """A node of a cluster does not serve this slot (MOVED), or not until it has settled (ASK, TRYAGAIN); nothing was done.

    ASK is never followed: the slot's other half would be read and written without what is still here.
    """

    def __init__(self, where: str, redirection: str):
        super().__init__(f"{where}: {redirection}")
        self.redirection = redirection
        self.is_settling = not redirection.startswith("MOVED")


class TransactionRefused(TabaError):
    """The store refused a command that Taba sent; Taba's or a Handler's fault, and trying again changes nothing."""


def raise_for(reply: Exception, where: str) -> NoReturn:
    """Raise what an error reply means: StoreUnavailable when it will pass (Redirected, when elsewhere), else TransactionRefused."""
    text = _told(reply)
    word = text.partition(" ")[0]
    if word in _REDIRECTIONS:
        raise Redirected(where, text)
    if word in _PASSING:
        raise StoreUnavailable(f"{where}: {text}")
    raise TransactionRefused(f"{where}: {text}")


def _told(reply: Exception) -> str:
    """What is wrong, in the server's words."""
    return str(reply).removeprefix(_ABORTED)


_wire = parts.find("taba.shard.servers._wire")


def encode(commands: Sequence[Command]) -> bytes:
    """The bytes of `commands` on the wire."""
    if _wire is not None:
        content: bytes | None = _wire.encode(commands if type(commands) is list else list(commands))
        if content is not None:
            return content
    return b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]  # its stub wants one element


class Transactions:
    """WATCH and MULTI … EXEC over `execute`: what every kind of connection has."""

    where: str
    is_watching: bool  # keys are WATCHed: UNWATCH before anybody else may have this connection

    def execute(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS, quiet: float | None = None) -> Deferred[list[Reply]]:
        raise NotImplementedError

    def abort(self, reason: str) -> None:
        raise NotImplementedError

    async def watch(self, keys: Sequence[bytes], reads: Sequence[Command], seconds: float = REPLY_SECONDS) -> list[Reply]:
        """WATCH `keys` and do `reads` in one write; the replies to `reads`. Raises for the first error among them."""
        self.is_watching = True
        replies = await self.execute([(b"WATCH", *keys), *reads], seconds)
        if not _GOOD.issuperset(map(type, replies)):
            for reply in replies:
                if isinstance(reply, Exception):
                    self._refuse(reply)
        return replies[1:]

    async def commit(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS) -> list[Reply] | None:
        """MULTI, `commands`, EXEC in one write; EXEC's replies, or None when a WATCHed key has changed and nothing was done.

        Raises ConnectionGone when nobody knows whether it was done; for a command that is refused while it is queued
        nothing was done, for one refused in EXEC the others were: StoreUnavailable or TransactionRefused.
        """
        replies = await self.execute([(b"MULTI",), *commands, (b"EXEC",)], seconds)
        done = replies[-1]
        if isinstance(replies[0], Exception):
            # the commands were carried out one by one: the greeting makes sure that this user may use MULTI
            self.abort("MULTI was refused")
            raise_for(replies[0], self.where)
        self.is_watching = False  # EXEC ends every WATCH, whatever it answers
        if done is None:
            return None
        if isinstance(done, list):
            for number, reply in enumerate(() if _GOOD.issuperset(map(type, done)) else done):
                if isinstance(reply, Exception):
                    raise TransactionRefused(f"{self.where}: {commands[number][0].decode(errors='replace')}: {reply}")
            return done
        # EXECABORT: the reason stands in the reply to the command that could not be queued; where all could, behind that word
        refused = next((reply for reply in replies if isinstance(reply, Exception)), None)
        if refused is None:
            raise TransactionRefused(f"{self.where}: EXEC answered {done!r}")
        self._refuse(refused)

    def _refuse(self, reply: Exception) -> NoReturn:
        if _told(reply).startswith("READONLY"):
            self.abort("the server is a replica now")  # whoever connects again looks for the primary
        raise_for(reply, self.where)


class _Waiting:
    """The replies that one write waits for, until `ends`; with `quiet`, no longer than that without hearing anything."""

    __slots__ = ("done", "ends", "quiet", "replies", "sent", "wanted")

    def __init__(self, wanted: int, done: Deferred[list[Reply]], sent: float, ends: float, quiet: float | None):
        self.wanted = wanted
        self.replies: list[Reply] = []
        self.done = done
        self.sent, self.ends, self.quiet = sent, ends, quiet

    def due(self, heard: float) -> float:
        """When it is late, if nothing comes after `heard`."""
        if self.quiet is None:
            return self.ends
        quiet = (heard if heard > self.sent else self.sent) + self.quiet
        return quiet if quiet < self.ends else self.ends


class Connection(Transactions, txredisapi.HiredisProtocol):  # type: ignore[misc]  # untyped
    """One connection, to a server where keys begin with `prefix`.

    `execute` may be called again before the replies to an earlier call are there.
    """

    def __init__(self, clock: Any, where: str, lost: Callable[[Connection], None] | None = None, prefix: str = USUAL):
        super().__init__(charset=None, convertNumbers=False)
        self.where = where
        self._prefix = prefix
        self.is_watching = False
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._lost = lost
        self.is_open = False  # for others to read
        self._heard = 0.0  # when anything last came
        self._look: Any = None  # the next look whether a reply is late: one for all that waits, and so none for most of what is asked
        self._look_at = 0.0
        self._reason = ""
        self._send: Callable[[bytes], int | BaseException] | None = None  # what the socket takes of some bytes now; not of one under TLS

    @property
    def is_idle(self) -> bool:
        """Open, with no reply outstanding and no key WATCHed: fit for the next user."""
        return self.is_open and not self._waiting and not self.is_watching

    def itself(self) -> Connection:
        """This connection, also when asked through a proxy of Twisted's ClientService."""
        return self

    def execute(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS, quiet: float | None = None) -> Deferred[list[Reply]]:
        """Send `commands` in one write; the replies, in order, errors among them as ErrorReply values.

        `quiet`: how long nothing at all may come; a server that is stopped is found out by it, one that has much to say is not.
        Fails with ConnectionGone when the connection ends, is closed, or has not answered all within `seconds`; then
        nobody knows what was carried out. Cancelling closes the connection, and fails with CancelledError.
        """
        done: Deferred[list[Reply]] = Deferred(self._cancelled)
        if not self.is_open:
            done.errback(ConnectionGone(f"{self.where}: {self._reason or 'not connected'}"))
            return done
        if not commands:
            done.callback([])
            return done
        content = encode(commands if self._prefix == USUAL else with_prefix(commands, self._prefix))  # before anything waits: it may raise
        now = self._clock.seconds()
        left = seconds if seconds > 0.0 else 0.0
        is_alone = not self._waiting
        self._waiting.append(_Waiting(len(commands), done, now, now + left, quiet))
        if quiet is not None and quiet < left:
            left = quiet
        if self._look is None or now + left < self._look_at:
            self._look_again(left)
        if is_alone and self._send is not None and len(content) <= SENT_AT_ONCE_BYTES:
            # nothing of ours is on its way: all before it was answered. The reactor would send it in its next turn, and be told twice
            # what to wait for
            sent = self._send(content)
            if sent == len(content):
                return done
            if isinstance(sent, int):
                content = content[sent:]
        self.transport.write(content)
        return done

    def _look_again(self, seconds: float) -> None:
        if self._look is not None:
            self._look.cancel()
        self._look_at = self._clock.seconds() + seconds
        self._look = self._clock.callLater(seconds, self._is_anything_late)

    def _is_anything_late(self) -> None:
        self._look = None
        now = self._clock.seconds()
        heard = self._heard
        for waiting in self._waiting:
            if waiting.due(heard) <= now:
                self.abort(f"no reply within {now - waiting.sent:.3g} s")
                return
        if self._waiting:  # else the next one that asks sees to it
            self._look_again(min([waiting.due(heard) for waiting in self._waiting]) - now)

    def abort(self, reason: str) -> None:
        """Close at once. What waits for replies fails with ConnectionGone and `reason`."""
        if self.is_open:
            self._end(reason)
            self.transport.abortConnection()

    # --- called by Twisted and txredisapi ---

    def connectionMade(self) -> None:
        # not txredisapi's: it sends AUTH outside every deadline and gives up for ever when refused
        self.is_open = True
        # a transport of TLS passes on to the socket below it whatever is asked of it: in the clear
        if isinstance(self.transport, FileDescriptor) and not getattr(self.transport, "TLS", False):
            self._send = self.transport.writeSomeData

    def connectionLost(self, why: Any = None) -> None:
        super().connectionLost(why)
        self._end(
            "the connection was lost"
            if why is None
            else f"the connection was lost: {tls_sentence(why.value, WORDS) or why.getErrorMessage()}"
        )
        if self._lost is not None:
            self._lost(self)

    def dataReceived(self, content: bytes, unpause: bool = False) -> None:
        # not txredisapi's: it looks at each reply for words of its own transactions, and decodes
        self._reader.feed(content)
        self._heard = self._clock.seconds()
        gets = self._reader.gets
        try:
            while self.is_open and (reply := gets()) is not False:
                if not self._waiting:
                    self.abort("a reply that nobody asked for")
                    return
                waiting = self._waiting[0]
                replies, missing = waiting.replies, waiting.wanted - len(waiting.replies) - 1
                replies.append(reply)
                while missing and (reply := gets()) is not False:
                    replies.append(reply)
                    missing -= 1
                if not missing:
                    self._waiting.popleft()
                    waiting.done.callback(replies)
        except txredisapi.InvalidData as error:
            self.abort(f"not the protocol of Redis: {error}")

    def _cancelled(self, done: Deferred[list[Reply]]) -> None:
        for waiting in [one for one in self._waiting if one.done is done]:
            # who gave up hears that, not that the store is away: nothing of his is tried again
            self._waiting.remove(waiting)
        self.abort("the caller gave up")

    def _end(self, reason: str) -> None:
        if not self.is_open:
            return
        self.is_open = False
        self._reason = reason
        if self._look is not None:
            self._look.cancel()
            self._look = None
        waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            if not one.done.called:
                one.done.errback(Failure(ConnectionGone(f"{self.where}: {reason}")))
