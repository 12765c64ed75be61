"""Query: asking from plain code. Standard library only; blocks for at most its timeout; may be shared by threads."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from taba.query import listening, questions
from taba.query.errors import ServerUnavailable
from taba.query.questions import DEFAULT_SERVER, DEFAULT_TIMEOUT, MAX_ANSWER_BYTES, ClientFilters, Event, Filters, PagedFilters, Question
from taba.query.showing import Shown

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
CHUNK_BYTES = 256 * 1024  # between two looks at the clock


class Query:
    """Asks one Server (any one: all answer alike), or with `role="Agent"` one Agent for its status.

    >>> query = Query("http://127.0.0.1:8280")
    >>> query.aggregate("bids_won")["1m"]["count"]

    `timeout` is the seconds for a whole answer. `token` is a token or a file with one (default: TABA_TOKEN), `cacert` a file with the
    authorities to believe, `certificate` and `key` what a peer is shown that asks for it. With `away` a question is answered from what
    can be reached, and `away` is called with a sentence about what is left out; without it that question raises ServerUnavailable.
    Raises QueryError's subclasses; ValueError for a URL that is none, and for files that are not what they should be.
    """

    def __init__(
        self,
        url: str = DEFAULT_SERVER,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        role: str = "Server",
        token: str | None = None,
        cacert: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        away: Callable[[str], object] | None = None,
    ):
        self.url, self.timeout, self.role = questions.check_base(url, role), questions.check_timeout(timeout), role
        self._away = away
        # what listens on this very host is not reached through a proxy, whatever the environment says
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})] if _is_loopback(self.url) else []
        shown = Shown(token, cacert, certificate, key)
        self._headers = shown.headers()
        if self.url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=shown.context()))
        self._opener = urllib.request.build_opener(*handlers, _NoRedirect)

    def names(self, **filters: Unpack[PagedFilters]) -> list[str]:
        """The names of Tabs, sorted."""
        return self.ask(questions.names(filters))

    def clients(self, **filters: Unpack[PagedFilters]) -> list[str]:
        """The ids of Clients, sorted."""
        return self.ask(questions.clients(filters))

    def types(self, *, detail: bool = False, **filters: Unpack[PagedFilters]) -> dict[str, Any]:
        """name → Type; with `detail`, name → {"type", "unit", "description"}."""
        return self.ask(questions.types(filters, detail))

    def alive(self, **filters: Unpack[ClientFilters]) -> list[str]:
        """The ids of Clients of which a process lives, sorted."""
        return self.ask(questions.alive(filters))

    def projections(self, *, detail: bool = False, **filters: Unpack[PagedFilters]) -> dict[str, dict[str, Any]]:
        """name → client → Projection."""
        return self.ask(questions.projections(filters, detail))

    def aggregates(self, *, by: str | Iterable[str] = (), detail: bool = False, **filters: Unpack[PagedFilters]) -> dict[str, Any]:
        """name → Aggregate over all Clients that match; `by` groups Tabs of one base name by labels."""
        return self.ask(questions.aggregates(filters, by, detail))

    def aggregate(
        self, name: str, labels: Mapping[str, str] | None = None, *, detail: bool = False, **filters: Unpack[ClientFilters]
    ) -> Any:
        """The Aggregate of one Tab, by its canonical name or by base name and labels; None where nothing is known of it."""
        return self.ask(questions.aggregate(name, labels, filters, detail))

    def superaggregate(self, *, detail: bool = False, **filters: Unpack[Filters]) -> dict[str, Any]:
        """One Aggregate over all Tabs that match, which are of one Type; empty where none does."""
        return self.ask(questions.superaggregate(filters, detail))

    def overview(self, *, sort: str = "", limit: int | None = None, offset: int = 0, **filters: Unpack[Filters]) -> list[dict[str, Any]]:
        """Rows of what moves, by how many events were folded in the last minute, or by `sort`; `limit` of them after `offset`."""
        return self.ask(questions.overview(filters, sort, limit, offset))

    def stream(self, *, patience: float = listening.PATIENCE_SECONDS, **filters: Unpack[Filters]) -> Generator[dict[str, Any], None, None]:
        """What `aggregates` answers, now and each time something of it has changed: {"time", "every", "aggregates", "error"?}, without end.

        Each has all that matches, and whoever is slow misses some; there is at most one a second. `error` says what is away. A connection
        that breaks is made anew, and for `patience` seconds a Server that is gone is asked for again; then, and at once where it does not
        answer the first time, ServerUnavailable is raised; other QueryErrors as everywhere. `close()` ends it.
        """
        return self._listen(questions.stream(filters), patience)

    def who(self, *, path: str | None = None, limit: int | None = None, **filters: Unpack[Filters]) -> dict[str, Any]:
        """name → which `limit` Clients hold the greatest and the least of the figure at `path`, and each one's share."""
        return self.ask(questions.who(filters, path, limit))

    def status(self) -> dict[str, Any]:
        """What the Server (or Agent) says of itself."""
        return self.ask(questions.status())

    def latency(self, *, seconds: int | None = None) -> dict[str, Any]:
        """Seconds from record to visible: p50, p95, p99; of the last minute, or of the last `seconds`, 5 to 60."""
        return self.ask(questions.latency(seconds))

    def shards(self, *, detail: bool = False) -> list[dict[str, Any]]:
        """The shards of the store: name, url, buckets, keys, bytes, ops (per second); with `detail`, the uses of each bucket."""
        return self.ask(questions.shards(detail))

    def dead_letters(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The events that could not be folded and are kept, newest first; `limit` of them at the most."""
        return self.ask(questions.dead_letters(limit))

    def notes(self) -> list[dict[str, Any]]:
        """What was noted in the last day: time and text, the latest first."""
        return self.ask(questions.notes())

    def note(self, text: str, time: float | None = None) -> dict[str, Any]:
        """Keep a note for a day, of what happened at `time`, or now: the note as it is kept."""
        return self.ask(questions.note(text, time))

    def post_events(self, client: str, events: Sequence[Event], key: str | None = None) -> dict[str, Any]:
        """Send events over HTTP, for what has no ring; `key` makes a repetition harmless for a day."""
        return self.ask(questions.post_events(client, events, key))

    def delete_tabs(self, names: str | Iterable[str]) -> dict[str, int]:
        """Delete Tabs, by canonical name: how many `tabs` and `states` there were."""
        return self.ask(questions.delete_tabs(names))

    def delete_clients(self, clients: str | Iterable[str]) -> dict[str, int]:
        """Delete Clients from every Tab: how many `clients` and `states` there were."""
        return self.ask(questions.delete_clients(clients))

    def start_job(self, kind: str, *, dry_run: bool = False) -> dict[str, Any]:
        """Start maintenance (`prune`, `upgrade`, `retry`, `discard`, `check`), or join the job of its kind that runs: the job's record."""
        return self.ask(questions.start_job(kind, dry_run))

    def jobs(self, id: str | None = None) -> list[dict[str, Any]]:
        """All jobs, newest first; with `id` that one alone, and what it found."""
        return self.ask(questions.jobs(id))

    def cancel_job(self, id: str) -> dict[str, Any]:
        """End a job at its next step: the job's record."""
        return self.ask(questions.cancel_job(id))

    def ask(self, question: Question[T]) -> T:
        """The answer to any Question. Raises QueryError."""
        deadline = time.monotonic() + self.timeout
        question = question if self._away is None else question.of_what_is_there()
        with self._telling(self.timeout), self._open(question, self.timeout) as response:
            answer = self._answer(question, response, deadline)
        left_out = questions.away(response.headers.get(questions.AWAY_HEADER))
        if self._away is not None and left_out is not None:
            self._away(left_out)
        return answer

    def _open(self, question: Question[Any], timeout: float) -> Any:
        """The response, of whatever status. `timeout`: of each wait."""
        headers = {**question.headers, **self._headers}
        request = urllib.request.Request(question.at(self.url), question.body, headers, method=question.method)
        try:
            return self._opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            return error  # an answer like any other

    def _answer(self, question: Question[T], response: Any, deadline: float) -> T:
        body = self._read(response, deadline)
        kind = response.headers.get("content-type", "")
        return questions.read_answer(question, self.url, self.role, response.status or 0, kind, body)

    @contextmanager
    def _telling(self, seconds: float) -> Generator[None, None, None]:
        """Raise what went wrong as a QueryError that says it; `seconds`: how long was waited."""
        try:
            yield
        except TimeoutError:
            raise questions.too_slow(self.url, self.role, seconds) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise questions.too_slow(self.url, self.role, seconds) from None
            raise questions.unreachable(self.url, self.role, _reason(error.reason)) from None
        except http.client.RemoteDisconnected as error:
            raise questions.unreachable(self.url, self.role, _reason(error)) from None
        except (http.client.BadStatusLine, http.client.LineTooLong, http.client.UnknownProtocol):
            raise questions.no_http(self.url, self.role) from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:  # a host of a name that no host can have
            raise questions.unreachable(self.url, self.role, _reason(error)) from None

    def _listen(self, question: Question[dict[str, Any]], patience: float) -> Generator[dict[str, Any], None, None]:
        again = listening.Again(Random(), patience)
        while True:
            try:
                for content in self._heard(question):
                    again.heard(time.monotonic())
                    yield content
                error = questions.no_longer_heard(self.url)
            except ServerUnavailable as why:
                error = why
            pause = again.pause(time.monotonic())
            if pause is None:
                raise error
            time.sleep(pause)

    def _heard(self, question: Question[dict[str, Any]]) -> Generator[dict[str, Any], None, None]:
        """What one connection says until its end. It begins within the timeout, and may be silent for longer afterwards."""
        waiting = max(self.timeout, listening.SILENCE_SECONDS)
        sse = listening.Sse(question, self.url, self.role)
        deadline = time.monotonic() + self.timeout
        with self._telling(self.timeout):
            response = self._open(question, self.timeout)
        with response:
            if not sse.is_heard(response.status or 0, response.headers.get("content-type", "")):
                with self._telling(self.timeout):
                    self._answer(question, response, deadline)
                raise questions.no_answer(question, self.url, self.role)
            response.fp.raw._sock.settimeout(waiting)  # urllib has no word for it
            while True:
                with self._telling(waiting):
                    chunk = response.read1(CHUNK_BYTES)
                if not chunk:
                    return
                yield from sse.feed(chunk)

    def _read(self, response: Any, deadline: float) -> bytes:
        chunks, size = [], 0
        while chunk := response.read1(CHUNK_BYTES) if hasattr(response, "read1") else response.read(CHUNK_BYTES):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise questions.too_large(self.url, self.role)
            if time.monotonic() > deadline:
                raise TimeoutError
        if getattr(response, "length", None):  # read1 does not say that the peer closed too early
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(chunks)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Goes nowhere else: a token is for the peer that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _reason(error: object) -> str:
    """An OSError without its number: what people read."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
