"""AsyncQuery: asking from code that runs under Twisted. Needs treq, which the extra `agent` brings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import treq
from treq.client import HTTPClient
from twisted.internet import defer, error
from twisted.python.failure import Failure
from twisted.web._newclient import ParseError  # nothing public tells it
from twisted.web.client import Agent, RequestGenerationFailed, RequestTransmissionFailed, ResponseFailed, ResponseNeverReceived
from twisted.web.iweb import IAgent

from taba.errors import ConfigurationError
from taba.query import questions
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
    ):
        self.url, self.timeout, self.role, self._http = questions.check_base(url, role), timeout, role, http
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

    async def who(self, *, path: str | None = None, limit: int | None = None, **filters: Unpack[Filters]) -> dict[str, Any]:
        """name → which `limit` Clients hold the greatest and the least of the figure at `path`, and each one's share."""
        return await self.ask(questions.who(filters, path, limit))

    async def status(self) -> dict[str, Any]:
        """What the Server (or Agent) says of itself."""
        return await self.ask(questions.status())

    async def latency(self) -> dict[str, Any]:
        """Seconds from record to visible: p50, p95, p99."""
        return await self.ask(questions.latency())

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
        """Send events over HTTP, for what has no ring; `key` makes a repetition harmless for 14 days."""
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
        from twisted.internet import reactor

        asking = defer.ensureDeferred(self._ask(question))
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
        # persistent connections save a millisecond and fail a question whenever the Server closed them first
        options: dict[str, Any] = {"persistent": False} if self._http is treq else {}
        options |= {"unbuffered": True, "allow_redirects": False}  # a token is for the peer that was named
        response = await self._http.request(
            question.method, question.at(self.url), headers={**question.headers, **self._headers}, data=question.body, **options
        )
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
        content_type = (response.headers.getRawHeaders("content-type") or [""])[0]
        return questions.read_answer(question, self.url, self.role, response.code, content_type, b"".join(chunks))


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
