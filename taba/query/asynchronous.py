"""AsyncQuery: asking from code that runs under Twisted. Needs treq, which the extra `agent` brings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, cast

import treq
from treq.client import HTTPClient
from twisted.internet import defer, error
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web._newclient import ParseError  # nothing public tells it
from twisted.web.client import (
    Agent,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.iweb import IAgent

from taba.errors import ConfigurationError
from taba.query import listening, questions
from taba.query.errors import NotTaba, QueryError, ServerUnavailable
from taba.query.questions import DEFAULT_SERVER, DEFAULT_TIMEOUT, MAX_ANSWER_BYTES, ClientFilters, Event, Filters, PagedFilters, Question
from taba.query.showing import Shown

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
UNREACHABLE = (
    error.ConnectError,
    error.ConnectionClosed,
    error.DNSLookupError,
    OSError,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    ResponseNeverReceived,
)


class AsyncQuery:
    """Query with coroutines in place of functions: the same questions, the same answers, the same errors.

    >>> query = AsyncQuery("http://127.0.0.1:8280")
    >>> (await query.aggregate("bids_won"))["1m"]["count"]

    `http` is treq, or a `treq.client.HTTPClient` of the caller's own, which then says itself whom it believes.
    """

    def __init__(
        self,
        url: str = DEFAULT_SERVER,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        role: str = "Server",
        http: Any = treq,
        token: str | None = None,
        cacert: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        away: Callable[[str], object] | None = None,
    ):
        self.url, self.timeout, self.role, self._http = questions.check_base(url, role), questions.check_timeout(timeout), role, http
        self._away = away
        shown = Shown(token, cacert, certificate, key)
        self._headers = shown.headers()
        if http is treq and shown.has_certificates and self.url.startswith("https:"):
            self._http = _client_that_believes(shown)

    async def names(self, **filters: Unpack[PagedFilters]) -> list[str]:
        """The names of Tabs, sorted."""
        return await self.ask(questions.names(filters))

    async def clients(self, **filters: Unpack[PagedFilters]) -> list[str]:
        """The ids of Clients, sorted."""
        return await self.ask(questions.clients(filters))

    async def types(self, *, detail: bool = False, **filters: Unpack[PagedFilters]) -> dict[str, Any]:
        """name → Type; with `detail`, name → {"type", "unit", "description"}."""
        return await self.ask(questions.types(filters, detail))

    async def alive(self, **filters: Unpack[ClientFilters]) -> list[str]:
        """The ids of Clients of which a process lives, sorted."""
        return await self.ask(questions.alive(filters))

    async def projections(self, *, detail: bool = False, **filters: Unpack[PagedFilters]) -> dict[str, dict[str, Any]]:
        """name → client → Projection."""
        return await self.ask(questions.projections(filters, detail))

    async def aggregates(self, *, by: str | Iterable[str] = (), detail: bool = False, **filters: Unpack[PagedFilters]) -> dict[str, Any]:
        """name → Aggregate over all Clients that match; `by` groups Tabs of one base name by labels."""
        return await self.ask(questions.aggregates(filters, by, detail))

    async def aggregate(
        self, name: str, labels: Mapping[str, str] | None = None, *, detail: bool = False, **filters: Unpack[ClientFilters]
    ) -> Any:
        """The Aggregate of one Tab, by its canonical name or by base name and labels; None where nothing is known of it."""
        return await self.ask(questions.aggregate(name, labels, filters, detail))

    async def superaggregate(self, *, detail: bool = False, **filters: Unpack[Filters]) -> dict[str, Any]:
        """One Aggregate over all Tabs that match, which are of one Type; empty where none does."""
        return await self.ask(questions.superaggregate(filters, detail))

    async def overview(
        self, *, sort: str = "", limit: int | None = None, offset: int = 0, **filters: Unpack[Filters]
    ) -> list[dict[str, Any]]:
        """Rows of what moves, by how many events were folded in the last minute, or by `sort`; `limit` of them after `offset`."""
        return await self.ask(questions.overview(filters, sort, limit, offset))

    def stream(self, *, patience: float = listening.PATIENCE_SECONDS, **filters: Unpack[Filters]) -> AsyncGenerator[dict[str, Any], None]:
        """What `aggregates` answers, now and each time something of it has changed: {"time", "every", "aggregates", "error"?}, without end.

        Each has all that matches, and whoever is slow misses some; there is at most one a second. `error` says what is away. A connection
        that breaks is made anew, and for `patience` seconds a Server that is gone is asked for again; then, and at once where it does not
        answer the first time, ServerUnavailable is raised; other QueryErrors as everywhere. `aclose()` ends it.
        """
        return self._listen(questions.stream(filters), patience)

    async def who(self, *, path: str | None = None, limit: int | None = None, **filters: Unpack[Filters]) -> dict[str, Any]:
        """name → which `limit` Clients hold the greatest and the least of the figure at `path`, and each one's share."""
        return await self.ask(questions.who(filters, path, limit))

    async def status(self) -> dict[str, Any]:
        """What the Server (or Agent) says of itself."""
        return await self.ask(questions.status())

    async def latency(self, *, seconds: int | None = None) -> dict[str, Any]:
        """Seconds from record to visible: p50, p95, p99; of the last minute, or of the last `seconds`, 5 to 60."""
        return await self.ask(questions.latency(seconds))

    async def shards(self, *, detail: bool = False) -> list[dict[str, Any]]:
        """The shards of the store: name, url, buckets, keys, bytes, ops (per second); with `detail`, the uses of each bucket."""
        return await self.ask(questions.shards(detail))

    async def dead_letters(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The events that could not be folded and are kept, newest first; `limit` of them at the most."""
        return await self.ask(questions.dead_letters(limit))

    async def notes(self) -> list[dict[str, Any]]:
        """What was noted in the last day: time and text, the latest first."""
        return await self.ask(questions.notes())

    async def note(self, text: str, time: float | None = None) -> dict[str, Any]:
        """Keep a note for a day, of what happened at `time`, or now: the note as it is kept."""
        return await self.ask(questions.note(text, time))

    async def post_events(self, client: str, events: Sequence[Event], key: str | None = None) -> dict[str, Any]:
        """Send events over HTTP, for what has no ring; `key` makes a repetition harmless for a day."""
        return await self.ask(questions.post_events(client, events, key))

    async def delete_tabs(self, names: str | Iterable[str]) -> dict[str, int]:
        """Delete Tabs, by canonical name: how many `tabs` and `states` there were."""
        return await self.ask(questions.delete_tabs(names))

    async def delete_clients(self, clients: str | Iterable[str]) -> dict[str, int]:
        """Delete Clients from every Tab: how many `clients` and `states` there were."""
        return await self.ask(questions.delete_clients(clients))

    async def start_job(self, kind: str, *, dry_run: bool = False) -> dict[str, Any]:
        """Start maintenance (`prune`, `upgrade`, `retry`, `discard`, `check`), or join the job of its kind that runs: the job's record."""
        return await self.ask(questions.start_job(kind, dry_run))

    async def jobs(self, id: str | None = None) -> list[dict[str, Any]]:
        """All jobs, newest first; with `id` that one alone, and what it found."""
        return await self.ask(questions.jobs(id))

    async def cancel_job(self, id: str) -> dict[str, Any]:
        """End a job at its next step: the job's record."""
        return await self.ask(questions.cancel_job(id))

    async def ask(self, question: Question[T]) -> T:
        """The answer to any Question. Raises QueryError."""
        return await self._in_time(self._ask(question if self._away is None else question.of_what_is_there()))

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` comes to, within the timeout. Raises QueryError."""
        from twisted.internet import reactor

        asking = defer.ensureDeferred(work)
        is_late = False

        def give_up() -> None:
            nonlocal is_late
            is_late = True
            asking.cancel()

        # one deadline over all of it: treq's own does not cover the body
        deadline = cast(Any, reactor).callLater(self.timeout, give_up)
        try:
            return await asking
        except (*UNREACHABLE, defer.CancelledError) as failure:
            if is_late:
                raise questions.too_slow(self.url, self.role, self.timeout) from None
            if isinstance(failure, defer.CancelledError):
                raise
            if _is_no_http(failure):
                raise questions.no_http(self.url, self.role) from None
            raise questions.unreachable(self.url, self.role, _reason(failure)) from None
        finally:
            if deadline.active():
                deadline.cancel()

    async def _ask(self, question: Question[T]) -> T:
        response = await self._request(question)
        answer = await self._answer(question, response)
        left_out = questions.away((response.headers.getRawHeaders(questions.AWAY_HEADER) or [None])[0])
        if self._away is not None and left_out is not None:
            self._away(left_out)
        return answer

    async def _request(self, question: Question[Any]) -> Any:
        # persistent connections save a millisecond and fail a question whenever the Server closed them first
        options: dict[str, Any] = {"persistent": False} if self._http is treq else {}
        options |= {"unbuffered": True, "allow_redirects": False}  # a token is for the peer that was named
        return await self._http.request(
            question.method, question.at(self.url), headers={**question.headers, **self._headers}, data=question.body, **options
        )

    async def _answer(self, question: Question[T], response: Any) -> T:
        chunks: list[bytes] = []
        size = 0

        def collect(chunk: bytes) -> None:
            nonlocal size
            size += len(chunk)
            if size <= MAX_ANSWER_BYTES:
                chunks.append(chunk)

        await treq.collect(response, collect)
        if size > MAX_ANSWER_BYTES:
            raise questions.too_large(self.url, self.role)
        return questions.read_answer(question, self.url, self.role, response.code, _content_type(response), b"".join(chunks))

    async def _listen(self, question: Question[dict[str, Any]], patience: float) -> AsyncGenerator[dict[str, Any], None]:
        from twisted.internet import reactor

        clock = cast(Any, reactor)
        again = listening.Again(Random(), patience)
        while True:
            hearing: _Hearing | None = None
            try:
                response = await self._in_time(self._begun(question))
                hearing = _Hearing(listening.Sse(question, self.url, self.role), self.url, clock)
                response.deliverBody(hearing)
                while (content := await hearing.next()) is not None:
                    again.heard(clock.seconds())
                    yield content
                failure = questions.no_longer_heard(self.url)
            except ServerUnavailable as why:
                failure = why
            finally:
                if hearing is not None:
                    hearing.stop()
            pause = again.pause(clock.seconds())
            if pause is None:
                raise failure
            await deferLater(clock, pause)

    async def _begun(self, question: Question[dict[str, Any]]) -> Any:
        """A response that is events, of which none is read yet."""
        response = await self._request(question)
        if not listening.Sse.is_heard(response.code, _content_type(response)):
            await self._answer(question, response)
            raise questions.no_answer(question, self.url, self.role)
        return response


class _Hearing(Protocol):
    """What one connection says. Of several events that nobody has taken yet the latest is kept: it has all."""

    def __init__(self, sse: listening.Sse, url: str, clock: Any):
        self._sse, self._url = sse, url
        self._latest: dict[str, Any] | None = None
        self._ended: QueryError | None = None
        self._has_ended = False
        self._waiting: defer.Deferred[None] | None = None
        self._silence = clock.callLater(listening.SILENCE_SECONDS, self._give_up)

    async def next(self) -> dict[str, Any] | None:
        """The next event; None after the last. Raises what ended it otherwise."""
        while self._latest is None and not self._has_ended:
            self._waiting = defer.Deferred()
            await self._waiting
        found, self._latest = self._latest, None
        if found is None and self._ended is not None:
            raise self._ended
        return found

    def stop(self) -> None:
        """Hear no more."""
        self._end(None)
        if self.transport is not None:
            cast(Any, self.transport).loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """More of it."""
        if self._has_ended:
            return
        self._silence.reset(listening.SILENCE_SECONDS)
        try:
            found = self._sse.feed(data)
        except NotTaba as error:
            self._end(error)
            return
        if found:
            self._latest = found[-1]
            self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The end."""
        self._end(None if reason.check(ResponseDone) else questions.unreachable(self._url, "Server", _reason(reason.value)))

    def _give_up(self) -> None:
        self._end(questions.too_slow(self._url, "Server", listening.SILENCE_SECONDS))

    def _end(self, error: QueryError | None) -> None:
        if self._has_ended:
            return
        self._has_ended, self._ended = True, error
        if self._silence.active():
            self._silence.cancel()
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)


def _content_type(response: Any) -> str:
    return str((response.headers.getRawHeaders("content-type") or [""])[0])


def _client_that_believes(shown: Shown) -> HTTPClient:
    from twisted.internet import reactor

    from taba.tls import SendingTls, TlsFiles

    own = None if shown.certificate is None else TlsFiles(Path(shown.certificate), Path(shown.key or shown.certificate))
    try:
        trust: Any = SendingTls(None if shown.cacert is None else Path(shown.cacert), own)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None
    return HTTPClient(cast(IAgent, Agent(reactor, trust)))


def _is_no_http(failure: BaseException) -> bool:
    """Whether the peer answered with something that is no HTTP."""
    return any(reason.check(ParseError) for reason in getattr(failure, "reasons", None) or () if isinstance(reason, Failure))


def _reason(failure: BaseException | None) -> str:
    """The first cause that says something to people."""
    inner = getattr(failure, "reasons", None)
    if inner and isinstance(inner[0], Failure):
        return _reason(inner[0].value)
    if isinstance(failure, error.ConnectionRefusedError):
        return "connection refused"
    return str(failure).rstrip(".").lower() or type(failure).__name__
