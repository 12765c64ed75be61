"""Which batches go to which Server, how many at once, and what an answer means: decides, and performs nothing.

1. A bucket goes to the healthy Server that rendezvous hashing prefers, of those that are near; one that fails is left alone, longer
   each time. Near are a few, the same for all Agents of a host: with many Agents and Servers each Server hears of few Agents.
2. Fresh batches go first; the spool's have two envelopes a Server under way, beside them: one is read from disk while the other is folded.
3. A batch with which three answered tries failed travels alone, so that it holds nobody else up.
4. What is no answer with as many verdicts as batches means later, for all of them.
5. A batch with States that were folded here goes to no Server that is known not to merge these: it waits, and whatever follows it.
6. What is posted with keys goes in envelopes of its own: a Server looks each key up first, maybe at a server of the store that is away.
7. An envelope has as much as its Server decides in a moment: what it has no time for it read in vain, and is sent again. So several
   are under way of one drain, and the first is answered, and followed, while the last is read: many small ones rather than a few
   large ones, or all are answered at once, and the Server has nothing to do until others are there.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Protocol
from urllib.parse import urlsplit

from taba.agent.ages import Moment
from taba.agent.lanes import MAX_RUN_BATCHES, Backoff, Lane, Outgoing, obey
from taba.agent.schedule import Schedule
from taba.batch import KEYS_FULL, LATER, KeyPart, SentBatch, Verdict, edges_of
from taba.bounds import MAX_ENVELOPE_BATCHES, MAX_ENVELOPE_BYTES, KiB
from taba.options import is_loopback
from taba.versions import Edges, Versions

MAX_KEYED_IN_FLIGHT = 2  # of these, such of posts with keys: each of their batches has a record that is looked up first
MAX_IN_FLIGHT = 8  # envelopes to one Server: it folds some while the next are on their way
TRIAL_BYTES = 64 * KiB  # of an envelope to a Server that failed last time
FULL_BYTES = 640 * KiB  # of an envelope to a Server that answers soon: all that are under way are half a second's work, and with what
# a Server makes of them, five times that, within what it reads of one sender
LEAST_BYTES = 64 * KiB  # … to one that never does
MAX_BACKLOG_IN_FLIGHT = 2  # of these, such of the spool's …
BACKLOG_SHARE = 2  # … each of which may have as much as so many others
BATCH_BYTES = 512  # that a batch counts as beside its own: what it costs a Server, whatever is in it
SOON_SECONDS = 0.6  # an answer within this: the next full envelope may be larger, by SOON_MORE
LATE_SECONDS = 1.0  # one that took longer, or decided only a part: those that go from now on are half as large
SOON_MORE = 1.25
HURRIED_SECONDS = 0.5  # `later` by so little, and without a reason: there was no time for it, or no room
HURRIED_SHARE = 8  # of an envelope's batches this part, and more: a bucket that another Server holds says nothing of the pace
NEAR_SERVERS = 8  # that a host sends to, while one of them is well: thousands of Agents × hundreds of Servers would be too many envelopes
MAX_SERVERS = 256  # learned; more are a sign of nonsense
MAX_WHY = 300  # characters of why a Server takes something later
POSTPONED_SECONDS = 5.0  # `later` by so much is not over by itself in a moment: another version, another store, a mark that cannot be read
MAX_MISSES = 3  # answered tries without a verdict, before a batch travels alone


class Holder(Protocol):
    """Who holds the lanes: a keeper."""

    schedule: Schedule

    @property
    def holds_backlog(self) -> bool:
        """Whether nothing of the spool may go now."""

    def queue(self, lane: Lane, now: float) -> None: ...
    def settle_totals(self) -> None: ...


class ServerPeer:
    """One Server, as this Agent finds it."""

    def __init__(self, url: str, is_configured: bool):
        self.url = url
        self.is_configured = is_configured
        self.is_local = is_loopback(urlsplit(url).hostname or "")
        self.in_flight = 0
        self.backlog_in_flight = 0
        self.keyed_in_flight = 0
        self.room = FULL_BYTES  # of an envelope
        self._narrowed = 0.0  # when that became less: what was sent before says nothing of it
        self.failures = 0
        self.not_before: float = 0.0
        self.envelopes = 0
        self.problem: str | None = None
        self.failing_since: float | None = None
        self.is_known = False  # it answered once
        self.postponing: tuple[str, float] | None = None  # why it takes some batches for later, and when it last said so
        self.merges: Mapping[str, int] | None = None  # States of which Types and versions, as was told; None where nothing was
        self._scores: dict[int, bytes] = {}

    def score(self, bucket: int) -> bytes:
        found = self._scores.get(bucket)
        if found is None:
            found = self._scores[bucket] = hashlib.blake2b(f"{self.url}|{bucket}".encode(), digest_size=8).digest()
        return found

    def answers(self) -> None:
        """It answered as a Server does."""
        self.problem, self.failing_since, self.is_known = None, None, True

    def paced(self, parcel: Parcel, hurried: int, now: float) -> None:
        """It decided a parcel, but for so many batches that it had no time for."""
        seconds = now - parcel.sent
        if HURRIED_SHARE * hurried >= len(parcel.sends) or seconds > LATE_SECONDS:
            if parcel.sent >= self._narrowed and parcel.size >= LEAST_BYTES:
                self.room, self._narrowed = max(LEAST_BYTES, self.room // 2), now
        elif seconds < SOON_SECONDS and parcel.size >= self.room // 2:
            self.room = min(FULL_BYTES, int(self.room * SOON_MORE))

    def postpones(self, why: str, now: float) -> None:
        """It takes some batches for so much later that a person should know why."""
        self.postponing = why[:MAX_WHY], now

    def fails(self, problem: str, now: float) -> None:
        """It did not, and why."""
        self.problem = problem
        if self.failing_since is None:
            self.failing_since = now

    @property
    def is_healthy(self) -> bool:
        """Whether the last thing that was asked of it was answered."""
        return not self.failures and self.problem is None

    def is_usable(self, now: float) -> bool:
        """Whether envelopes may go there; while one is tried after a failure, no second one."""
        return now >= self.not_before and not (self.failures and self.in_flight)

    def has_place(self, now: float, from_spool: bool, is_keyed: bool) -> bool:
        """Whether one more envelope may be under way."""
        if is_keyed and self.keyed_in_flight >= MAX_KEYED_IN_FLIGHT:
            return False
        return (
            self.is_usable(now) and self.in_flight < MAX_IN_FLIGHT and not (from_spool and self.backlog_in_flight >= MAX_BACKLOG_IN_FLIGHT)
        )


class Parcel:
    """An envelope for one Server, as it is filled and until it is answered. `room`: bytes that it still takes; `sent`: when, in seconds."""

    def __init__(self, server: ServerPeer, room: int, from_spool: bool, is_keyed: bool, sent: float):
        self.server, self.room, self.from_spool, self.is_keyed, self.sent = server, room, from_spool, is_keyed, sent
        self.size = 0  # as it counts
        self.sends: list[Outgoing] = []

    def takes(self, run: Sequence[Outgoing]) -> bool:
        return not self.sends or (self.room >= _run_bytes(run) and len(self.sends) + len(run) <= MAX_ENVELOPE_BATCHES)

    def add(self, run: Sequence[Outgoing]) -> None:
        self.sends += run
        size = _run_bytes(run)
        self.room -= size
        self.size += size

    def lanes(self) -> list[Lane]:
        """The lanes of its batches, each once, in order."""
        return list({id(send.lane): send.lane for send in self.sends}.values())


def _run_bytes(run: Sequence[Outgoing]) -> int:
    """What they count as in an envelope."""
    return sum([send.size for send in run]) + BATCH_BYTES * len(run)


def _is_hurried(verdict: Verdict) -> bool:
    """Whether a batch is told to come again because the Server had no time or no room for it, not for what it is: then it says why."""
    word, seconds, why = verdict
    return word == LATER and not why and isinstance(seconds, (int, float)) and seconds <= HURRIED_SECONDS


class Dispatch:
    """Who gets what of the holder's lanes. `urls` are the configured Servers; `meet` adds those that they tell of.

    What `parcels` gives is under way until `answered` or `failed` hears of it. `host`: all of one name have the same Servers near.
    `edges`: States of which Types may be in batches, and in which versions. `told_full` hears of each key for which a Server has no room.
    """

    def __init__(
        self,
        holder: Holder,
        urls: Sequence[str],
        random: Random,
        host: str = "",
        edges: Edges = (),
        told_full: Callable[[bytes, float], None] = lambda key, now: None,
    ):
        self._holder, self._told_full = holder, told_full
        self.backoff = Backoff(random)
        self.servers: dict[str, ServerPeer] = {url: ServerPeer(url, True) for url in urls}
        self._preferred: tuple[tuple[str, ...], dict[int, ServerPeer]] = ((), {})
        self._edges: frozenset[tuple[str, int]] = frozenset(edges)
        self._host = int.from_bytes(hashlib.blake2b(host.encode(), digest_size=8).digest(), "big")
        self._near: tuple[tuple[str, ...], frozenset[str]] = ((), frozenset())  # of which Servers, and their addresses

    def near(self, usable: Sequence[ServerPeer]) -> Sequence[ServerPeer]:
        """Those of `usable` that are near this host; all of them where none is.

        All Servers, in an order that no list tells, are cut into runs of NEAR_SERVERS at the most, as even as can be: so each Server
        is near as many hosts as any other, and a bucket is written by one Server of each run.
        """
        urls = tuple(sorted(self.servers))
        if len(urls) <= NEAR_SERVERS:
            return usable
        if self._near[0] != urls:
            ordered = sorted(urls, key=lambda url: hashlib.blake2b(url.encode(), digest_size=8).digest())
            runs = -(-len(ordered) // NEAR_SERVERS)
            run = self._host % runs
            self._near = urls, frozenset(ordered[run * len(ordered) // runs : (run + 1) * len(ordered) // runs])
        return [server for server in usable if server.url in self._near[1]] or usable

    @property
    def has_turns(self) -> bool:
        """Whether anything waits that may go now, once there is a Server to take it."""
        return self._holder.schedule.has_turns

    def parcels(self, now: float, moment: Moment) -> list[Parcel]:
        """All that may go now: fresh batches first.

        What was counted before is safe when this returns: a batch that goes out may move a mark past what was dropped.
        """
        schedule = self._holder.schedule
        usable = self.near([server for server in self.servers.values() if server.is_usable(now)])
        if not usable or not schedule.has_turns:
            return []
        parcels = self._fill(schedule.fresh, usable, False, now, moment)
        usable = [server for server in usable if server.is_usable(now)]
        if not self._holder.holds_backlog:
            parcels += self._fill(schedule.backlog, usable, True, now, moment)
        try:
            self._holder.settle_totals()
        except BaseException:
            for parcel in parcels:
                self._let_go(parcel)
                for lane in parcel.lanes():
                    lane.unsent()
                    self._holder.queue(lane, now)
            raise
        return parcels

    def answered(self, parcel: Parcel, verdicts: Sequence[Verdict], now: float) -> None:
        """A Server gave its verdicts on a parcel, in order."""
        self._let_go(parcel)
        server = parcel.server
        server.failures = 0
        server.answers()
        server.envelopes += 1
        hurried = 0
        for send, verdict in zip(parcel.sends, verdicts, strict=True):
            hurried += _is_hurried(verdict)
            if verdict.word == LATER and verdict.why and isinstance(verdict.detail, (int, float)) and verdict.detail >= POSTPONED_SECONDS:
                server.postpones(str(verdict.why), now)
                if send.batch is not None and send.batch.key and str(verdict.why).startswith(KEYS_FULL):
                    self._told_full(KeyPart.decode(send.batch.key).key, now)
            if send.lane.awaits(send):
                obey(send, verdict, now, self.backoff)
        server.paced(parcel, hurried, now)
        for lane in parcel.lanes():
            self._holder.queue(lane, now)

    def failed(self, parcel: Parcel, problem: str, is_answer: bool, now: float) -> None:
        """No verdicts came on a parcel: `is_answer` where the Server said something else instead."""
        self._let_go(parcel)
        server = parcel.server
        server.fails(problem, now)
        is_alone = len(parcel.sends) == 1 and parcel.sends[0].lane.failures >= MAX_MISSES
        if not (is_answer and is_alone):
            server.failures += 1
            server.not_before = now + self.backoff.delay(server.failures)
        for lane in parcel.lanes():
            if is_answer:
                lane.failed(now, self.backoff)
            else:
                lane.unanswered()  # the Server's back-off is enough: the batches may go to another at once
            self._holder.queue(lane, now)

    def learn_edges(self, told: Mapping[str, Versions]) -> None:
        """What these Servers merge, by address; of others it is not known by now."""
        for url, server in self.servers.items():
            server.merges = dict(told[url].edges) if url in told else None

    def meet(self, source: ServerPeer, told: Any) -> None:
        """Learn the other Servers from what `source` told of them. Raises ValueError for what is no list."""
        if not isinstance(told, list):
            raise ValueError("/v1/servers takes a list")
        urls = [entry["url"].rstrip("/") for entry in told[:MAX_SERVERS] if isinstance(entry, dict) and isinstance(entry.get("url"), str)]
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                continue
            if is_loopback(parts.hostname) and not source.is_local:
                continue  # its own host's loopback, not this one's
            if parts.scheme == "http" and source.url.startswith("https:"):
                continue  # what is told to one Server under TLS is not told to another for all to read
            if url not in self.servers:
                self.servers[url] = ServerPeer(url, False)
        for url in [url for url, server in self.servers.items() if not server.is_configured and url not in urls and not server.in_flight]:
            del self.servers[url]

    def _fill(self, queue: deque[Lane], usable: Sequence[ServerPeer], from_spool: bool, now: float, moment: Moment) -> list[Parcel]:
        full: list[Parcel] = []
        filling: dict[tuple[str, bool], Parcel] = {}  # by address, and whether it is of posts with keys
        for _ in range(len(queue)):
            lane = queue.popleft()
            server = self._prefer(lane.bucket, usable)
            is_keyed = bool(lane.pending and lane.pending[0].key)
            if server is None or ((server.url, is_keyed) not in filling and not server.has_place(now, from_spool, is_keyed)):
                queue.append(lane)  # its turn comes when an envelope is answered
                continue
            lane.queued = False
            alone = lane.failures >= MAX_MISSES
            run = lane.next(now, moment, 1 if alone else MAX_RUN_BATCHES)
            if not run:
                self._holder.queue(lane, now)
                continue
            at, unmerged = self._unmerged(server, run)
            if unmerged:
                lane.unsent()
                server.postpones(f"it does not merge what was folded here: {unmerged}; upgrade it, or wait until all that was is sent", now)
                run = lane.next(now, moment, at) if at else []
                if not run:
                    lane.not_before = max(lane.not_before, now + POSTPONED_SECONDS)
                    self._holder.queue(lane, now)
                    continue
            of = server.url, is_keyed
            parcel = filling.get(of)
            if parcel is not None and (alone or not parcel.takes(run)):
                if not alone:
                    full.append(filling.pop(of))
                    parcel = None
                if not server.has_place(now, from_spool, is_keyed):
                    lane.unsent()
                    lane.queued = True
                    queue.append(lane)
                    continue
            if alone:
                own = self._begin(server, MAX_ENVELOPE_BYTES, from_spool, is_keyed, now)
                own.add(run)
                full.append(own)
                continue
            if parcel is None:
                room = TRIAL_BYTES if server.failures else server.room * (BACKLOG_SHARE if from_spool else 1)
                parcel = filling[of] = self._begin(server, room, from_spool, is_keyed, now)
            parcel.add(run)
        return full + list(filling.values())

    def _unmerged(self, server: ServerPeer, run: Sequence[Outgoing]) -> tuple[int, str]:
        """Where in this run the first States are that the Server is known not to merge, and of which Types; "" where none are."""
        merges = server.merges
        if merges is not None and not self._edges <= merges.items():
            for at, send in enumerate(run):
                found = set(edges_of(send.entry.batch).items()) - set(merges.items()) if isinstance(send.entry, SentBatch) else ()
                if found:
                    return at, ", ".join(f"{type} in version {edge}" for type, edge in sorted(found))
        return 0, ""

    def _begin(self, server: ServerPeer, room: int, from_spool: bool, is_keyed: bool, now: float) -> Parcel:
        server.in_flight += 1
        server.backlog_in_flight += from_spool
        server.keyed_in_flight += is_keyed
        return Parcel(server, room, from_spool, is_keyed, now)

    def _let_go(self, parcel: Parcel) -> None:
        parcel.server.in_flight -= 1
        parcel.server.backlog_in_flight -= parcel.from_spool
        parcel.server.keyed_in_flight -= parcel.is_keyed

    def _prefer(self, bucket: int, usable: Sequence[ServerPeer]) -> ServerPeer | None:
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
