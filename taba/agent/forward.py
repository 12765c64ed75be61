"""Envelopes to Servers: performs what `taba.agent.dispatch` decides, over treq, and asks Servers what it must know.

Only status 200 with the header `Taba-Verdicts` and as many verdicts as batches counts as an answer to an envelope.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from treq.client import HTTPClient
from twisted.internet import defer, protocol
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError, DNSLookupError, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, RequestTransmissionFailed, ResponseDone, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from taba import versions
from taba.agent.ages import Moment
from taba.agent.dispatch import MAX_IN_FLIGHT, Dispatch, Parcel, ServerPeer
from taba.agent.pin import Store, StoreUnknown, read_store
from taba.batch import CONTENT_TYPE, VERDICTS_HEADER, EnvelopeAnswer, Verdict, decode_verdicts, encode_envelope
from taba.bounds import KiB, MiB
from taba.caps import Caps, read_caps
from taba.errors import NoVerdicts, TabaError
from taba.tls import tls_sentence
from taba.versions import Chosen, Edges, Versions

POST_SECONDS = 30.0  # for an answer, body and all
ASK_SECONDS = 5.0  # for /v1/status and /v1/servers
NOTE_SERVERS = 3  # that are asked to keep a note, one after the other, before it waits
LEARN_SECONDS = 15.0  # between looks for other Servers
MAX_ANSWER_BYTES = 1 * MiB  # 1,024 verdicts with long reasons
COMPRESS_BYTES = 1 * KiB  # less is not worth it

log = Logger()


class OtherStore(TabaError):
    """A Server serves another store than the one that this Agent sends to."""

    def __init__(self, id: str):
        known = "another than this Agent sent to until now"
        super().__init__(f"it serves the store {id[:8]}…, {known}; if that is meant: taba store --accept")


class NotAdmitted(TabaError):
    """A Server does not take this Agent: everything is kept, and tried again later."""


class Kept(Protocol):
    """What a Forwarder asks of the connections that its client keeps."""

    was_kept: bool  # whether the last connection that was asked for was one that had been used before
    is_fresh: bool  # the next one is to be new


class KeptConnections(HTTPConnectionPool):
    """Connections to Servers that are kept for the next envelope."""

    was_kept = False
    is_fresh = False

    def getConnection(self, key: Any, endpoint: Any) -> Any:
        kept: Any = self._connections.get(key, ())
        self.was_kept = not self.is_fresh and any(connection.state == "QUIESCENT" for connection in kept)
        return self._newConnection(key, endpoint) if self.is_fresh else super().getConnection(key, endpoint)


def connection_pool(reactor: Any) -> KeptConnections:
    """Connections to Servers. Whoever makes it closes it."""
    pool = KeptConnections(reactor, persistent=True)
    pool.maxPersistentPerHost = 2 * MAX_IN_FLIGHT
    pool.cachedConnectionTimeout = 60  # less than a Server's own bound for idle connections
    pool.retryAutomatically = False
    # Twisted logs two lines a connection otherwise
    pool._factory = cast(Any, type("QuietFactory", (pool._factory,), {"noisy": False}))
    return pool


def client_over(reactor: Any, pool: HTTPConnectionPool, tls: Any) -> HTTPClient:
    """What a Forwarder sends with; `tls` says which Servers are who they say."""
    return HTTPClient(cast(IAgent, Agent(reactor, tls, connectTimeout=ASK_SECONDS, pool=pool)))


class Forwarder:
    """Sends what `dispatch` has, with `client`, as the Agent `agent` of this `host`.

    `moment` tells what age is told by, `wall` what this host's clock says, `store_id` which store the Agent knows. `on_store` is told
    which store a Server serves, and says whether that is the one to send to; `on_store_age` is told the store's age, `on_caps` the caps,
    `on_versions` in which versions all Servers read what is written here, and whether all of them were asked: else it is no later one.
    `shown` gives the headers that show to a Server who asks. `pool` is what `client` has its connections from. `edges`: what is folded
    here, where all Servers merge it.
    """

    def __init__(
        self,
        reactor: Any,
        client: HTTPClient,
        dispatch: Dispatch,
        agent: str,
        host: str,
        moment: Callable[[], Moment],
        wall: Callable[[], float],
        store_id: Callable[[], str | None],
        on_store: Callable[[Store], bool],
        on_store_age: Callable[[int], None],
        shown: Callable[[], Mapping[str, str]] = dict,
        pool: Kept | None = None,
        on_caps: Callable[[Caps], None] = lambda caps: None,
        on_versions: Callable[[Chosen, bool], None] = lambda chosen, is_complete: None,
        edges: Edges = (),
    ):
        self._edges = edges
        self._pool, self._on_caps, self._on_versions = pool, on_caps, on_versions
        self.envelope_version = versions.HERE.envelopes[-1]  # whoever reads any that is written here reads the earliest
        self._reads: dict[str, Versions] = {}  # by URL: what all Servers read, as they were listed completely the last time
        self.second_tries = 0  # since the start: a kept connection had been closed by its Server
        self._reactor: Any = reactor
        self._client = client
        self._dispatch = dispatch
        self._agent, self._host = agent, host
        self._moment, self._wall = moment, wall
        self._store_id, self._on_store, self._on_store_age, self._shown = store_id, on_store, on_store_age, shown
        self._tasks: set[defer.Deferred[None]] = set()
        self._next_learn = 0.0
        self._asking = False
        self._learn_failures = 0
        self.knows_buckets = False
        self.may_send: Callable[[], bool] = lambda: True  # asked each time
        self._stopped = False

    # --- sending ---

    def pump(self) -> None:
        """Send all that may go now. Called after every publish, verdict and tick."""
        if self._dispatch.has_turns and not self._stopped and self.may_send():
            for parcel in self._dispatch.parcels(self._now(), self._moment()):
                self._run(self._send(parcel))

    def tick(self) -> None:
        """Once in a while: pump, and look for Servers."""
        self.pump()
        if not self._asking and self._now() >= self._next_learn and not self._stopped:
            self._asking = True
            self._run(self._learn())

    async def _send(self, parcel: Parcel) -> None:
        verdicts: list[Verdict] = []
        problem, is_answer = None, False
        try:
            entries = [send.entry for send in parcel.sends]
            body = encode_envelope(self._agent, self._host, self._wall(), self._store_id(), entries, self.envelope_version)
            verdicts, age = await self._post(parcel.server, body, len(parcel.sends))
            if age is not None:
                self._on_store_age(age)
        except NoVerdicts as error:
            problem, is_answer = str(error), True
        except Exception as error:  # whatever treq, DNS, TLS or the peer came up with: no verdict, so later
            problem = _reason(error, parcel.server.url)
        if self._stopped:
            return
        if problem is None:
            self._dispatch.answered(parcel, verdicts, self._now())
        else:
            self._dispatch.failed(parcel, problem, is_answer, self._now())
        self.pump()

    async def _post(self, server: ServerPeer, body: bytes, entries: int) -> EnvelopeAnswer:
        headers = {"Content-Type": CONTENT_TYPE}
        if not server.is_local and len(body) >= COMPRESS_BYTES:
            body = zlib.compress(body, 1)
            headers["Content-Encoding"] = "deflate"
        status, verdicts_header, content = await self._ask("POST", server.url + "/v1/envelopes", headers, body, POST_SECONDS)
        if status != 200 or not verdicts_header:
            raise NoVerdicts(f"{server.url} answered {status} without verdicts: {content[:100].decode('utf-8', 'replace')!r}")
        return decode_verdicts(content, entries)

    async def note(self, text: str, time: float) -> bool:
        """Have a Server keep a note; False where it refuses it for good. Raises TabaError where none takes it now."""
        problem = "no Server is known"
        body = json.dumps({"text": text, "time": time}).encode()
        for server in [server for server in self._dispatch.servers.values() if server.is_known and server.problem is None][:NOTE_SERVERS]:
            try:
                headers = {"Content-Type": "application/json"}
                status, _, content = await self._ask("POST", server.url + "/v1/notes", headers, body, ASK_SECONDS)
            except defer.CancelledError:
                raise
            except Exception as error:  # as in _send; the next one may do better
                problem = f"{server.url}: {_reason(error, server.url)}"
                continue
            if status in (200, 400):
                return status == 200
            problem = f"{server.url} answered {status}: {content[:100].decode('utf-8', 'replace')!r}"
        raise NoVerdicts(problem)

    # --- asking ---

    async def _learn(self) -> None:
        """Ask the Servers, in turn, for the number of buckets and for the other Servers, until one answers both.

        Of the others, those that failed last are asked whether they are back, where nothing goes to them that would tell.
        """
        dispatch, delay = self._dispatch, LEARN_SECONDS
        asked: set[str] = set()
        try:
            for server in sorted(dispatch.servers.values(), key=lambda server: (server.failures, not server.is_configured)):
                asked.add(server.url)
                try:
                    told = await self._told_by(server)
                    self._on_caps(read_caps(told.get("caps")))
                    self.knows_buckets = True
                    listed = await self._json(server.url + "/v1/servers")
                    is_complete = _is_complete(listed)
                    if is_complete:  # else nobody new is among them, and nobody is gone
                        dispatch.meet(server, listed)
                    self._choose(server.url, told, listed, is_complete)
                    self._is_back(server)
                    self._learn_failures = 0
                    for other in dispatch.servers.values():
                        if other.url not in asked and self._is_left_alone(other):
                            self._run(self._look_again(other))
                    break
                except Exception as error:  # as in _send; the next one may do better
                    server.fails(_reason(error, server.url), self._now())
            else:
                self._learn_failures += 1
                delay = min(dispatch.backoff.delay(self._learn_failures), LEARN_SECONDS if self.knows_buckets else 2.0)
        finally:
            self._asking = False
            self._next_learn = self._now() + delay

    async def _told_by(self, server: ServerPeer) -> Any:
        """What its status tells. Raises whatever keeps it from that, and OtherStore."""
        told = await self._json(server.url + "/v1/status")
        store = read_store(told["store"])
        if not self._on_store(store):
            raise OtherStore(store.id)
        return told

    def _is_left_alone(self, server: ServerPeer) -> bool:
        """Whether it failed, and nothing was sent to it since it may be tried again."""
        return server.problem is not None and not server.in_flight and self._now() >= server.not_before + LEARN_SECONDS

    async def _look_again(self, server: ServerPeer) -> None:
        """Whether a Server is back to which nothing is sent now. Over long before it is asked the next time."""
        try:
            await self._told_by(server)
        except Exception as error:  # as in _send
            server.fails(_reason(error, server.url), self._now())
        else:
            self._is_back(server)

    def _is_back(self, server: ServerPeer) -> None:
        server.answers()
        if server.failures:
            server.not_before = self._now()  # no need to wait any longer

    def _choose(self, url: str, told: Any, listed: Any, is_complete: bool) -> None:
        """What is written from now on: what the Server that told, and all that it lists, read. Raises ValueError for nonsense.

        A Server that does not know all others lists itself alone: those that were known last count then, too, and nothing later than
        until now is written.
        """
        reads = {} if is_complete else dict(self._reads)
        reads.update((str(one.get("url")), versions.read_told(one)) for one in listed if isinstance(one, dict))
        reads[url] = versions.read_told(told)
        chosen = versions.choose(versions.HERE._replace(edges=self._edges), reads.items())
        self._dispatch.learn_edges(reads)
        if is_complete:
            self._reads = reads
            self.envelope_version = chosen.envelope
        else:
            self.envelope_version = min(chosen.envelope, self.envelope_version)
        self._on_versions(chosen, is_complete)

    async def _json(self, url: str) -> Any:
        status, _, content = await self._ask("GET", url, {"Accept": "application/json"}, None, ASK_SECONDS)
        if status != 200:
            raise NoVerdicts(f"{url} answered {status}")
        return json.loads(content)

    async def _ask(self, method: str, url: str, headers: dict[str, str], body: bytes | None, seconds: float) -> tuple[int, bool, bytes]:
        async def converse() -> tuple[int, bool, bytes]:
            raw = Headers({name: [value] for name, value in {**headers, **self._shown()}.items()})
            response = await self._request(method, url, raw, body)
            has_verdicts = bool(response.headers.getRawHeaders(VERDICTS_HEADER))
            content = await _collect(response)
            if response.code in (401, 403):
                raise NotAdmitted(_why_not(response.code, content))
            return response.code, has_verdicts, content

        # treq's own timeout ends with the headers
        return await defer.ensureDeferred(converse()).addTimeout(seconds, self._reactor)

    async def _request(self, method: str, url: str, headers: Headers, body: bytes | None) -> Any:
        """The response. On a kept connection that its Server closed before any byte, it is asked once more on a new one.

        No failure of the Server's: it may close what is idle. What is sent twice is folded once.
        """
        pool = self._pool
        asked = self._client.request(method, url, headers=headers, data=body, allow_redirects=False, unbuffered=True)
        was_kept = pool is not None and pool.was_kept  # the connection is chosen before `request` returns
        try:
            return await asked
        except (ResponseNeverReceived, RequestTransmissionFailed) as error:
            if pool is None or not was_kept or not any(reason.check(ConnectionDone, ConnectionLost) for reason in error.reasons):
                raise
        self.second_tries += 1
        pool.is_fresh = True
        try:
            asked = self._client.request(method, url, headers=headers, data=body, allow_redirects=False, unbuffered=True)
        finally:
            pool.is_fresh = False
        return await asked

    # --- life ---

    def _now(self) -> float:
        return float(self._reactor.seconds())

    def _run(self, task: Any) -> None:
        running: defer.Deferred[None] = defer.ensureDeferred(task)
        self._tasks.add(running)

        def done(result: Any) -> None:
            self._tasks.discard(running)
            if isinstance(result, Failure) and not result.check(defer.CancelledError):
                log.failure("forwarding", failure=result)

        running.addBoth(done)

    def stop(self) -> None:
        """Send nothing more. What is under way has no verdict: it is in outbox or spool."""
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()


class _Body(protocol.Protocol):
    """Collects an answer's body, MAX_ANSWER_BYTES at the most."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.length = 0
        self.done: defer.Deferred[bytes] = defer.Deferred(lambda _: self.abort())

    def abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            getattr(transport, "abortConnection", transport.loseConnection)()

    def dataReceived(self, data: bytes) -> None:
        self.length += len(data)
        if self.length > MAX_ANSWER_BYTES:
            if not self.done.called:
                self.done.errback(NoVerdicts(f"an answer of more than {MAX_ANSWER_BYTES} bytes"))
                self.abort()
            return
        self.parts.append(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone):
            self.done.callback(b"".join(self.parts))
        else:
            self.done.errback(reason)


def _is_complete(listed: Any) -> bool:
    """Whether a Server listed all Servers: else one of the entries says that it is not all."""
    return not isinstance(listed, list) or not any(isinstance(one, dict) and one.get("complete") is False for one in listed)


def _collect(response: Any) -> defer.Deferred[bytes]:
    body = _Body()
    response.deliverBody(body)
    return body.done


def _why_not(status: int, content: bytes) -> str:
    """What a Server that does not take this Agent said, and the cure."""
    try:
        fields = json.loads(content)
        error, detail = str(fields["error"]), str(fields["detail"])
    except (ValueError, TypeError, KeyError, RecursionError):
        error = detail = ""
    cure = {
        "no_token": "it takes a token: give one for writing with --token FILE",
        "unknown_token": "it does not know this token: put one that is in its file of --tokens into the file of --token, and send SIGHUP",
        "other_token": "this token is not for writing: put one that is into the file of --token, and send SIGHUP",
        "no_certificate": "it takes a client certificate: give --tls-cert and --tls-key",
    }.get(error, f"it does not answer this Agent: {detail or 'it says no more'}")
    return f"{cure} ({status}; nothing is lost, it is tried again)"[:300]


def _reason(error: Exception, url: str = "") -> str:
    """Why the Server at `url` did not answer, for people: never a bare exception where it is known what it means."""
    reasons = getattr(error, "reasons", None)  # twisted.web wraps what happened
    if reasons:
        error = reasons[0].value
    if isinstance(error, (defer.CancelledError, defer.TimeoutError, TimeoutError)):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there: the connection was refused"
    if isinstance(error, DNSLookupError):
        return "its name cannot be resolved"
    if isinstance(error, (ConnectionDone, ConnectionLost)):
        hint = "" if url.startswith("https:") else "; if it speaks TLS, its address begins with https:"
        return f"it closed the connection without an answer{hint}"
    if isinstance(error, (NoVerdicts, NotAdmitted, OtherStore, StoreUnknown)):
        return f"{error}"[:300]
    words = tls_sentence(error)
    if words is not None:
        return words
    if isinstance(error, (KeyError, TypeError, ValueError)):
        return f"what it answered is no Server's answer ({type(error).__name__}: {error})"[:200]
    words = " ".join(str(error).split()).rstrip(".")
    return (f"{words} ({type(error).__name__})" if words else type(error).__name__)[:200]
