"""Envelopes to Servers: which Server, how many at once, and what an answer means. The edge over treq.

1. Only status 200 with the header `Taba-Verdicts` and as many verdicts as batches counts; anything else means later, for all of them.
2. A bucket goes to the healthy Server that rendezvous hashing prefers; one that fails is left alone, longer each time.
3. Fresh batches go first; the spool's have one envelope a Server under way, beside them.
4. A batch with which three answered tries failed travels alone, so that it holds nobody else up.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from treq.client import HTTPClient
from twisted.internet import defer
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError, DNSLookupError, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from taba.agent.keeper import Keeper
from taba.agent.lanes import MAX_RUN_BATCHES, Backoff, Lane, Send
from taba.batch import APPLIED, CONTENT_TYPE, GAP, LATER, VERDICTS_HEADER, Verdict, decode_verdicts, encode_batch, encode_envelope
from taba.bounds import MAX_BUCKETS, MAX_ENVELOPE_BATCHES, MAX_ENVELOPE_BYTES, KiB, MiB
from taba.errors import MalformedBatch, TabaError
from taba.options import is_loopback

MAX_IN_FLIGHT = 4  # envelopes to one Server: it folds one while the next is on its way
TRIAL_BYTES = 64 * KiB  # of an envelope to a Server that failed last time
BACKLOG_BYTES = 2 * MiB  # of an envelope from the spool: fresh ones wait for no more than this
POST_SECONDS = 30.0  # for an answer, body and all
ASK_SECONDS = 5.0  # for /v1/status and /v1/servers
LEARN_SECONDS = 15.0  # between looks for other Servers
MAX_ANSWER_BYTES = 1 * MiB  # 1,024 verdicts with long reasons
MAX_SERVERS = 256  # learned; more are a sign of nonsense
MAX_MISSES = 3  # answered tries without a verdict, before a batch travels alone
COMPRESS_BYTES = 1 * KiB  # less is not worth it
PER_BATCH = 16  # msgpack's own bytes for a batch in an envelope
ENVELOPE_HEADER = 1 * KiB

log = Logger()


class NoVerdicts(TabaError):
    """The peer answered, but not with verdicts."""


class ServerPeer:
    """One Server, as this Agent finds it."""

    def __init__(self, url: str, is_configured: bool):
        self.url = url
        self.is_configured = is_configured
        self.is_local = is_loopback(urlsplit(url).hostname or "")
        self.in_flight = 0
        self.backlog_in_flight = 0
        self.failures = 0
        self.not_before: float = 0.0
        self.envelopes = 0
        self.problem: str | None = None
        self._scores: dict[int, bytes] = {}

    def score(self, bucket: int) -> bytes:
        found = self._scores.get(bucket)
        if found is None:
            found = self._scores[bucket] = hashlib.blake2b(f"{self.url}|{bucket}".encode(), digest_size=8).digest()
        return found

    @property
    def is_healthy(self) -> bool:
        """Whether the last thing that was asked of it was answered."""
        return not self.failures and self.problem is None

    def is_usable(self, now: float) -> bool:
        """Whether envelopes may go there; while one is tried after a failure, no second one."""
        return now >= self.not_before and not (self.failures and self.in_flight)


class Item(NamedTuple):
    """A batch or probe in an envelope."""

    lane: Lane
    send: Send
    content: bytes


class Parcel:
    """An envelope that is being filled for one Server."""

    def __init__(self, server: ServerPeer, room: int, from_spool: bool):
        self.server, self.room, self.from_spool = server, room, from_spool
        self.items: list[Item] = []

    def takes(self, run: list[Item]) -> bool:
        return not self.items or (self.room >= _run_bytes(run) and len(self.items) + len(run) <= MAX_ENVELOPE_BATCHES)

    def add(self, run: list[Item]) -> None:
        self.items += run
        self.room -= _run_bytes(run)

    def lanes(self) -> list[Lane]:
        """The lanes of its batches, each once, in order."""
        return list({id(item.lane): item.lane for item in self.items}.values())


def _run_bytes(run: list[Item]) -> int:
    return sum(len(item.content) + PER_BATCH for item in run)


class Forwarder:
    """Sends what the keeper's lanes have. `urls` are the configured Servers; the others are learned.

    `on_buckets` is called with a Server's number of buckets whenever one tells it.
    """

    def __init__(
        self, reactor: Any, keeper: Keeper, agent: str, host: str, urls: list[str], random: Random, on_buckets: Callable[[int], None]
    ):
        self._reactor: IReactorTime = reactor
        self._keeper = keeper
        self._agent, self._host = agent, host
        self._backoff = Backoff(random)
        self._on_buckets = on_buckets
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = 2 * MAX_IN_FLIGHT
        self._pool.cachedConnectionTimeout = 60  # less than a Server's own bound for idle connections
        self._pool.retryAutomatically = False
        # Twisted logs two lines a connection otherwise
        self._pool._factory = cast(Any, type("QuietFactory", (self._pool._factory,), {"noisy": False}))
        self._client = HTTPClient(cast(IAgent, Agent(reactor, pool=self._pool, connectTimeout=ASK_SECONDS)))
        self.servers: dict[str, ServerPeer] = {url: ServerPeer(url, True) for url in urls}
        self._preferred: tuple[tuple[str, ...], dict[int, ServerPeer]] = ((), {})
        self._tasks: set[defer.Deferred[None]] = set()
        self._next_learn = 0.0
        self._asking = False
        self._learn_failures = 0
        self.knows_buckets = False
        self._stopped = False

    # --- sending ---

    def pump(self) -> None:
        """Send all that may go now. Called after every publish, verdict and tick."""
        keeper = self._keeper
        if self._stopped or not (keeper.fresh or keeper.backlog):
            return
        now = keeper.now
        usable = [server for server in self.servers.values() if server.is_usable(now)]
        if usable:
            self._fill(keeper.fresh, usable, False)
            self._fill(keeper.backlog, [server for server in usable if server.is_usable(now)], True)

    def tick(self) -> None:
        """Once in a while: pump, and look for Servers."""
        self.pump()
        if not self._asking and self._keeper.now >= self._next_learn and not self._stopped:
            self._asking = True
            self._run(self._learn())

    def _fill(self, queue: Any, usable: list[ServerPeer], from_spool: bool) -> None:
        parcels: dict[str, Parcel] = {}
        for _ in range(len(queue)):
            lane = queue.popleft()
            server = self._prefer(lane.bucket, usable)
            if server is None or (server.url not in parcels and not self._has_slot(server, from_spool)):
                queue.append(lane)  # its turn comes when an envelope is answered
                continue
            lane.queued = False
            alone = lane.failures >= MAX_MISSES
            run = self._take(lane, 1 if alone else MAX_RUN_BATCHES)
            if not run:
                continue
            parcel = parcels.get(server.url)
            if parcel is not None and (alone or not parcel.takes(run)):
                if not alone:
                    self._launch(parcels.pop(server.url))
                    parcel = None
                if not self._has_slot(server, from_spool):
                    lane.unsent()
                    lane.queued = True
                    queue.append(lane)
                    continue
            if alone:
                parcel = Parcel(server, MAX_ENVELOPE_BYTES, from_spool)
                parcel.add(run)
                self._launch(parcel)
                continue
            if parcel is None:
                room = TRIAL_BYTES if server.failures else BACKLOG_BYTES if from_spool else MAX_ENVELOPE_BYTES - ENVELOPE_HEADER
                parcel = parcels[server.url] = Parcel(server, room, from_spool)
            parcel.add(run)
        for parcel in parcels.values():
            self._launch(parcel)

    def _take(self, lane: Lane, batches: int) -> list[Item]:
        """The run that the lane sends now; empty when that is nothing after all."""
        keeper = self._keeper
        run: list[Item] = []
        for send in lane.next(keeper.now, keeper.unix_now, batches):
            if send.entry is None:
                content: bytes | None = encode_batch(lane.stream, lane.bucket, send.number, keeper.unix_now, None)
            else:
                content = keeper.read(lane, send.entry)
            if content is None:
                lane.cut(send)
                if not run and send.entry is not None:
                    lane.drop(send.entry, "spool_corrupt", "its row in the spool does not match its checksum")
                break
            run.append(Item(lane, send, content))
        if not run:
            keeper.queue(lane)
        return run

    def _has_slot(self, server: ServerPeer, from_spool: bool) -> bool:
        if not server.is_usable(self._keeper.now) or server.in_flight >= MAX_IN_FLIGHT:
            return False
        return not from_spool or server.backlog_in_flight == 0

    def _prefer(self, bucket: int, usable: list[ServerPeer]) -> ServerPeer | None:
        if len(usable) <= 1:
            return usable[0] if usable else None
        urls = tuple(server.url for server in usable)
        if self._preferred[0] != urls:
            self._preferred = (urls, {})
        cache = self._preferred[1]
        found = cache.get(bucket)
        if found is None:
            found = cache[bucket] = max(usable, key=lambda server: server.score(bucket))
        return found

    def _launch(self, parcel: Parcel) -> None:
        parcel.server.in_flight += 1
        parcel.server.backlog_in_flight += parcel.from_spool
        self._run(self._send(parcel))

    async def _send(self, parcel: Parcel) -> None:
        server, keeper = parcel.server, self._keeper
        problem = None
        verdicts: list[Verdict] = []
        answered = False
        try:
            body = encode_envelope(self._agent, self._host, [(item.send.follows, item.content) for item in parcel.items])
            verdicts = await self._post(server, body, len(parcel.items))
        except (NoVerdicts, MalformedBatch) as error:
            answered, problem = True, str(error)
        except Exception as error:  # whatever treq, DNS, TLS or the peer came up with: no verdict, so later
            problem = _sentence(error)
        finally:
            server.in_flight -= 1
            server.backlog_in_flight -= parcel.from_spool
        if self._stopped:
            return
        now = keeper.now
        if problem is None:
            server.failures, server.problem = 0, None
            server.envelopes += 1
            for item, verdict in zip(parcel.items, verdicts, strict=True):
                if item.lane.awaits(item.send):
                    self._obey(item.lane, verdict, now)
        else:
            server.problem = problem
            alone = len(parcel.items) == 1 and parcel.items[0].lane.failures >= MAX_MISSES
            if not (answered and alone):
                server.failures += 1
                server.not_before = now + self._backoff.delay(server.failures)
            for lane in parcel.lanes():
                if answered:
                    lane.failed(now, self._backoff)
                else:
                    lane.unsent()  # the Server's back-off is enough: the batches may go to another at once
        for lane in parcel.lanes():
            keeper.queue(lane)
        self.pump()

    def _obey(self, lane: Lane, verdict: Verdict, now: float) -> None:
        word, detail = verdict
        if word == APPLIED:
            lane.applied(int(detail), now)
        elif word == GAP:
            lane.gap(int(detail), now, self._backoff)
        elif word == LATER:
            lane.later(float(detail), now)
        else:
            lane.refused(str(detail), now)

    async def _post(self, server: ServerPeer, body: bytes, batches: int) -> list[Verdict]:
        headers = {"Content-Type": CONTENT_TYPE}
        if not server.is_local and len(body) >= COMPRESS_BYTES:
            body = zlib.compress(body, 1)
            headers["Content-Encoding"] = "deflate"
        status, verdicts_header, content = await self._ask("POST", server.url + "/v1/envelopes", headers, body, POST_SECONDS)
        if status != 200 or not verdicts_header:
            raise NoVerdicts(f"{server.url} answered {status} without verdicts: {content[:100].decode('utf-8', 'replace')!r}")
        return decode_verdicts(content, batches)

    # --- asking ---

    async def _learn(self) -> None:
        """Ask the Servers, in turn, for the number of buckets and for the other Servers, until one answers both."""
        delay = LEARN_SECONDS
        try:
            for server in sorted(self.servers.values(), key=lambda server: (server.failures, not server.is_configured)):
                try:
                    buckets = (await self._json(server.url + "/v1/status"))["store"]["buckets"]
                    if type(buckets) is not int or not 1 <= buckets <= MAX_BUCKETS:
                        raise ValueError(f"{buckets!r} buckets")
                    self.knows_buckets = True
                    self._on_buckets(buckets)
                    self._meet(server, await self._json(server.url + "/v1/servers"))
                    server.problem = None
                    if server.failures:
                        server.not_before = self._keeper.now  # it is back: no need to wait any longer
                    self._learn_failures = 0
                    break
                except Exception as error:  # as in _send; the next one may do better
                    server.problem = _sentence(error)
            else:
                self._learn_failures += 1
                delay = min(self._backoff.delay(self._learn_failures), LEARN_SECONDS if self.knows_buckets else 2.0)
        finally:
            self._asking = False
            self._next_learn = self._keeper.now + delay

    def _meet(self, source: ServerPeer, told: Any) -> None:
        if not isinstance(told, list):
            raise ValueError("/v1/servers takes a list")
        urls = [entry["url"].rstrip("/") for entry in told[:MAX_SERVERS] if isinstance(entry, dict) and isinstance(entry.get("url"), str)]
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                continue
            if is_loopback(parts.hostname) and not source.is_local:
                continue  # its own host's loopback, not this one's
            if url not in self.servers:
                self.servers[url] = ServerPeer(url, False)
        for url in [url for url, server in self.servers.items() if not server.is_configured and url not in urls and not server.in_flight]:
            del self.servers[url]

    async def _json(self, url: str) -> Any:
        status, _, content = await self._ask("GET", url, {"Accept": "application/json"}, None, ASK_SECONDS)
        if status != 200:
            raise NoVerdicts(f"{url} answered {status}")
        return json.loads(content)

    async def _ask(self, method: str, url: str, headers: dict[str, str], body: bytes | None, seconds: float) -> tuple[int, bool, bytes]:
        async def converse() -> tuple[int, bool, bytes]:
            raw = Headers({name: [value] for name, value in headers.items()})
            response = await self._client.request(method, url, headers=raw, data=body, allow_redirects=False, unbuffered=True)
            has_verdicts = bool(response.headers.getRawHeaders(VERDICTS_HEADER))
            return response.code, has_verdicts, await _collect(response)

        # treq's own timeout ends with the headers
        return await defer.ensureDeferred(converse()).addTimeout(seconds, self._reactor)

    # --- life ---

    def _run(self, task: Any) -> None:
        running: defer.Deferred[None] = defer.ensureDeferred(task)
        self._tasks.add(running)

        def done(result: Any) -> None:
            self._tasks.discard(running)
            if isinstance(result, Failure) and not result.check(defer.CancelledError):
                log.failure("forwarding", failure=result)

        running.addBoth(done)

    async def stop(self) -> None:
        """Let go of all connections. What was under way has no verdict: it is in outbox or spool."""
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        await self._pool.closeCachedConnections()


class _Body(Protocol):
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

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone):
            self.done.callback(b"".join(self.parts))
        else:
            self.done.errback(reason)


def _collect(response: Any) -> defer.Deferred[bytes]:
    body = _Body()
    response.deliverBody(body)
    return body.done


def _sentence(error: Exception) -> str:
    """Why a Server did not answer, for people: never a bare exception where it is known what it means."""
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
        return "it closed the connection without an answer"
    if isinstance(error, NoVerdicts):
        return f"{error}"[:200]
    if isinstance(error, (KeyError, TypeError, ValueError)):
        return f"what it answered is no Server's answer ({type(error).__name__}: {error})"[:200]
    words = " ".join(str(error).split()).rstrip(".")
    return (f"{words} ({type(error).__name__})" if words else type(error).__name__)[:200]
