"""What a Server says of itself and of its store: counts, dead letters, Servers, problems."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, TimeoutError, ensureDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from taba import __version__, parts, versions
from taba.caps import Caps
from taba.connections import BoundedSite
from taba.errors import StoreUnavailable
from taba.handlers.lookup import Lookup
from taba.places import ASKER, NOBODY
from taba.plural import many
from taba.server import keys
from taba.server.aging import StoreAge
from taba.server.ask.query import Query
from taba.server.fold.bounds import Bounds
from taba.server.fold.burying import TYPE_CONFLICT
from taba.server.fold.deadletters import MAX_DEAD_LETTERS, address_of
from taba.server.fold.envelopes import Envelopes
from taba.server.fold.ingest import MAX_LINE_BYTES, MAX_WAITING_BYTES, Ingest
from taba.server.fold.posts import MAX_KEYS, MAX_POSTERS
from taba.server.health import Health
from taba.server.held import Held, held_in_store
from taba.server.keep.jobs import Jobs
from taba.server.notes import MAX_NOTES
from taba.server.page.boards import MAX_BOARDS
from taba.server.problems import (
    Happened,
    Recent,
    buried,
    died,
    dropped,
    failed,
    gapped,
    job_failed,
    late,
    misread,
    printed,
    restarted,
    slow,
    unmarked,
)
from taba.server.rates import Moving
from taba.server.starts import Starts
from taba.server.steady import SteadyClock
from taba.server.work.sandbox import FOLD_SECONDS, Sandbox
from taba.shard import EmbeddedStore, Router, Standing, Writes

COUNTS_SECONDS = 1.0  # how old the counts in an answer may be: they are read from every bucket
TYPES_SECONDS = 10.0  # how old the Types of all Tabs may be
HELD_SECONDS = 10.0  # how old the number of Tabs and the like of a bucket may be whose counts say of no change
SLICE_BUCKETS = 100  # … asked at a time, some 5 ms
LOOK_SECONDS = 1.0  # for the store to tell both; then what was known before is shown, and the look goes on
PRESENCE_SECONDS = 5.0  # how often a Server says that it is there
GONE_SECONDS = 20.0  # a Server that has not said so for this long is not
MAX_SERVERS = 1000  # in the list
MAX_SAID_PROBLEMS = 20  # of a Server, that the others are told of; all of them are in its own status …
MAX_SAID_CHARACTERS = 600  # … and of a sentence so much: what all say is read by each
PRESENCE_BUCKET = 0

MAX_CONFLICTS = 3  # Tabs of two Types that are named
CONFLICT_BUCKETS = 4  # looked into for them at a time, of those that have any
CONFLICT_LETTERS = 10  # … the latest of each: 640 KiB at the most

_DEAD = b"dead:"
_CONFLICT = _DEAD + TYPE_CONFLICT.encode()

log = Logger()


class Counts(NamedTuple):
    """The sums over all buckets, of Events since ever."""

    folded: int
    dead_by_reason: dict[str, int]
    dead_dropped: int
    discarded: int
    known_key: int
    missing: list[str]


# of all buckets; posters: Clients that post with a key; dead_letters: entries, of which one may have many Events
HELD = ("tabs", "clients", "streams", "keyed_streams", "posters", "dead_letters", "boards", "notes")


class _Measured(NamedTuple):
    """How many of each of HELD a bucket had, and what its counts were before it was asked."""

    at: float  # by the monotonic clock
    counts: Sequence[bytes]
    sizes: Sequence[int]


def _counts_of(bucket: int) -> list[Any]:
    return [(b"HGETALL", keys.counts(bucket)), (b"LRANGE", keys.missing(bucket), b"0", b"-1")]


def _sizes_of(bucket: int) -> list[Any]:
    """In the order of HELD."""
    return [
        (b"HLEN", keys.tabs(bucket)),
        (b"SCARD", keys.clients(bucket)),
        (b"HLEN", keys.marks(bucket)),
        (b"HLEN", keys.posted(bucket)),
        (b"HLEN", keys.posts(bucket)),
        (b"LLEN", keys.dead_letters(bucket)),
        (b"HLEN", keys.boards(bucket)),
        (b"LLEN", keys.notes(bucket)),
    ]


UNKNOWN = Counts(0, {}, 0, 0, 0, [])  # before anything was read


class Status:
    """Reads what status routes show. `now`: Unix seconds."""

    def __init__(
        self,
        router: Router,
        lookup: Lookup,
        ingest: Ingest,
        envelopes: Envelopes,
        query: Query,
        sandbox: Sandbox,
        age: StoreAge,
        now: SteadyClock,
        workers: int,
        store: str,
        clock: Any,
        health: Health,
        jobs: Jobs,
        starts: Starts,
        bounds: Bounds,
        caps: Caps,
        site: Callable[[], BoundedSite],
        embedded: EmbeddedStore | None = None,
        others: Callable[[], Sequence[str]] = tuple,
        held: Callable[[], Mapping[str, Held]] = dict,
    ):
        """`others`: what is wrong with parts that it is not given: what the Server remembers, names under which Prometheus knows Tabs.
        `held`: of what this process has bounds for, how much there is.
        """
        self._held_here = held
        self._others = others
        self._jobs, self._starts = jobs, starts
        self._caps = {**caps._asdict(), "bucket_tabs": bounds.tabs, "bucket_clients": bounds.clients, "all_tabs": bounds.all_tabs}
        self._caps |= {"all_clients": bounds.all_clients, "bucket_streams": bounds.streams, "bucket_posters": MAX_POSTERS}
        self._caps |= {"client_keys": MAX_KEYS, "bucket_dead_letters": MAX_DEAD_LETTERS, "boards": MAX_BOARDS, "notes": MAX_NOTES}
        self._caps |= {"line_bytes": MAX_LINE_BYTES, "waiting_bytes": MAX_WAITING_BYTES}
        self._site = site
        self._router, self._lookup, self._ingest, self._query, self._sandbox = router, lookup, ingest, query, sandbox
        self._envelopes, self._age = envelopes, age
        self._now, self._workers, self._store, self._clock = now, workers, store, clock
        self._health, self._embedded = health, embedded
        self._recent = Recent(clock.seconds)
        self._looking: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._counts: tuple[float, Counts] | None = None
        self._cycles = 0
        self._held: dict[str, int] = {}  # of HELD, how many all buckets have
        self._measured: dict[int, _Measured] = {}
        self._counted: dict[int, list[Any]] = {}  # bucket → what it said of its counts last
        self._away: dict[int, str] = {}  # buckets that did not say so when they were asked last
        self._types: tuple[float, set[str]] | None = None
        self._conflicts: dict[int, tuple[int, str]] = {}  # bucket → how many Events of a second Type it has, and whose, or ""

    async def counts(self) -> Counts:
        """Counts of all buckets, at most COUNTS_SECONDS old."""
        now = self._now()
        if self._counts is None or self._ingest.cycles != self._cycles or not 0 <= now - self._counts[0] < COUNTS_SECONDS:
            self._cycles = self._ingest.cycles  # what this Server itself has folded is in its next answer
            self._away = {}
            # of a bucket that is away, what was known of it last
            self._counted.update(
                await self._router.read_many({bucket: _counts_of(bucket) for bucket in range(self._router.buckets)}, self._away)
            )
            if not self._counted:
                raise StoreUnavailable(next(iter(self._away.values()), "nothing is known"))
            await self._measure()
            sums: Counter[bytes] = Counter()
            missing: set[str] = set()
            for pairs, types in self._counted.values():
                for name, count in zip(pairs[::2], pairs[1::2], strict=True):
                    sums[name] += keys.count_of(count)
                missing.update(map(keys.text_of, types))
            self._held = {name: sum(of_bucket.sizes[place] for of_bucket in self._measured.values()) for place, name in enumerate(HELD)}
            self._ingest.in_all.learn(self._held["tabs"], self._held["clients"])
            dead = {keys.text_of(name[len(_DEAD) :]): count for name, count in sorted(sums.items()) if name.startswith(_DEAD) and count}
            known = Counts(sums[b"folded"], dead, sums[b"dead_dropped"], sums[keys.DISCARDED], sums[b"known_key"], sorted(missing))
            self._counts = (now, known)
        return self._counts[1]

    async def _measure(self) -> None:
        """Have how many of HELD each bucket has: of those whose counts have changed, or that were asked HELD_SECONDS ago."""
        now = self._clock.seconds()
        stale = {
            bucket: pairs
            for bucket, [pairs, _] in self._counted.items()
            if bucket not in self._away
            and ((known := self._measured.get(bucket)) is None or known.counts != pairs or now - known.at >= HELD_SECONDS)
        }
        buckets = list(stale)
        for start in range(0, len(buckets), SLICE_BUCKETS):
            some = buckets[start : start + SLICE_BUCKETS]
            for bucket, sizes in (await self._router.read_many({bucket: _sizes_of(bucket) for bucket in some}, {})).items():
                self._measured[bucket] = _Measured(now, stale[bucket], sizes)

    async def _all_types(self) -> set[str]:
        now = self._now()
        if self._types is None or not 0 <= now - self._types[0] < TYPES_SECONDS:
            reads = {b: [(b"HVALS", keys.tabs(b))] for b in range(self._router.buckets) if b not in self._away}
            replies = await self._router.read_many(reads, {})
            known = self._types[1] if self._away and self._types else set()  # those of what is away are still there
            self._types = (now, known | {keys.text_of(type) for [types] in replies.values() for type in set(types)})
        return self._types[1]

    async def _look(self) -> None:
        ASKER.set(NOBODY)  # all who ask meanwhile wait for it
        await self.counts()
        await self._all_types()
        await self._look_for_conflicts()

    async def _refresh(self) -> None:
        """Have counts and Types up to date. Raises StoreUnavailable where they are not within LOOK_SECONDS; the look goes on."""
        late = self._clock.seconds() + LOOK_SECONDS
        is_mine = False
        while not is_mine:  # a look that is under way may have begun before the last fold
            is_mine = self._looking is None
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            waiting.addTimeout(max(0.0, late - self._clock.seconds()), self._clock)
            if is_mine:
                self._looking = ensureDeferred(self._look())
                self._looking.addBoth(self._looked)
            try:
                await waiting
            except TimeoutError:
                raise StoreUnavailable(f"no answer within {LOOK_SECONDS:g} s") from None

    async def _look_for_conflicts(self) -> None:
        """Have an example of each of some buckets that have Events of a second Type."""
        asked: dict[int, int] = {}
        for bucket, [pairs, _] in self._counted.items():
            count = next((keys.count_of(count) for name, count in zip(pairs[::2], pairs[1::2], strict=True) if name == _CONFLICT), 0)
            before, said = self._conflicts.get(bucket, (0, ""))
            if not count:
                self._conflicts.pop(bucket, None)
            elif (count < before if said else count != before) and bucket not in self._away and len(asked) < CONFLICT_BUCKETS:
                asked[bucket] = count
            elif said:
                self._conflicts[bucket] = count, said
        span = b"0", b"%d" % (CONFLICT_LETTERS - 1)
        commands = {bucket: [(b"LRANGE", keys.dead_letters(bucket), *span)] for bucket in asked}
        for bucket, [contents] in (await self._router.read_many(commands, {})).items() if asked else ():
            addresses = (address_of(content) for content in contents)
            letter = next((address for address in addresses if address is not None and address.reason == TYPE_CONFLICT), None)
            said = ""
            if letter is not None:
                owners = [client async for _, clients in self._query.clients_of([letter.tab]) for client in clients]
                owner = next((client for client in owners if client != letter.client), letter.client)
                said = f"{letter.tab:.300}: Client {letter.client} records it as {letter.type}; {letter.detail}, of Client {owner}"
            self._conflicts[bucket] = asked[bucket], said

    def _looked(self, outcome: Any) -> None:
        self._looking = None
        waiting, self._waiting = self._waiting, []
        if isinstance(outcome, Failure) and not any(not waiter.called for waiter in waiting):
            log.debug("the counts in the store are not known: {failure}", failure=outcome.value)
        for waiter in waiting:
            if not waiter.called:
                waiter.callback(outcome)

    async def describe(self) -> dict[str, Any]:
        """`/v1/status`. Answers soon with the store away, too; then what is in the store is as it was last known, and 0 before that."""
        problems = self._now_wrong()
        try:
            if not self._is_reached():
                raise StoreUnavailable("; ".join(self._router.problems) or "not connected")  # at once, not after the Router's patience
            await self._refresh()
        except StoreUnavailable as error:
            if not any("away" in problem for problem in problems):
                problems.append(f"the store is away: {error}")
            age = f"of {max(0.0, self._now() - self._counts[0]):.0f} s ago" if self._counts else "not known yet, and shown as 0"
            problems.append(f"folded and dead_letters are {age}")
        else:
            if self._away:
                problems.append(
                    f"folded and dead_letters are, of {many(len(self._away), 'bucket that is', 'buckets that are')} away, as they "
                    "were last known"
                )
        counts = self._counts[1] if self._counts else UNKNOWN
        types = self._types[1] if self._types else set()
        dropped = {"dead_letters_full": counts.dead_dropped, "discarded": counts.discarded, "known_key": counts.known_key}
        there = set(self._lookup.types)
        missing = sorted((types | set(counts.missing)) - there)  # of Tabs, and of dead letters: not of what came for Tabs of another Type
        if missing:
            looked = " or ".join(self._lookup.places) or "twisted/plugins on Python's path"
            problems.append(
                f"no Handler of Type {', '.join(missing)[:300]}, neither among the entry points taba.handlers nor in {looked}: "
                "install what has it and start this Server again"
            )
        errors = self._ingest.errors + self._query.errors
        problems += buried(counts.dead_by_reason, [said for _, said in sorted(self._conflicts.values()) if said][:MAX_CONFLICTS])
        problems += late(self._ingest.latency.percentiles(self._now()))
        problems += self._recent.problems(self._happened(errors))
        handlers = {
            type: {
                "version": handler.version,
                "origin": self._lookup.origin(type),
                "errors": errors[type],
                "edge": self._lookup.edge(type),
                "absolute": bool(getattr(handler, "absolute", False)),
            }
            for type in self._lookup.types
            for handler in (self._lookup.get(type),)
            if handler is not None
        }
        return {
            "version": __version__,
            "store": {**self._router.describe(), "url": self._store, "age": self._age()},
            "workers": self._workers,
            "listening": self._site().describe(),
            "folded": counts.folded,
            "dead_letters": sum(counts.dead_by_reason.values()),
            "dead_letters_by_reason": counts.dead_by_reason,
            "dropped_by_reason": {reason: events for reason, events in dropped.items() if events},
            "handlers": handlers,
            "child": self._sandbox.describe(),
            **versions.HERE.told(),
            "caps": self._caps,
            "held": {what: one.told() for what, one in self._all_held().items()},
            "in_all": {**self._held, "tabs": self._ingest.in_all.tabs, "clients": self._ingest.in_all.clients},
            "waiting": self._ingest.waiting(),
            "types_missing": missing,
            "latency": self._ingest.latency.percentiles(self._now()),
            "agents": self._now.senders,
            "states_read": self._query.read["states"],
            "in_c": parts.told(),
            "problems": problems,
        }

    def _all_held(self) -> dict[str, Held]:
        in_all = {**self._held, "tabs": self._ingest.in_all.tabs, "clients": self._ingest.in_all.clients}
        fullest = {name: max((one.sizes[place] for one in self._measured.values()), default=0) for place, name in enumerate(HELD)}
        return {**held_in_store(in_all, fullest, self._caps), **self._held_here()}

    def _is_reached(self) -> bool:
        known = self._router.atlas.known
        return known is not None and any(
            self._router.reaches(known.owned_by(shard.name)[0]) for shard in known.shards if known.owned_by(shard.name)
        )

    def _now_wrong(self) -> list[str]:
        of_store = [*self._router.problems, *self._health.problems]
        if (self._health.problems or not self._router.is_ready) and self._ingest.postponed:
            of_store.append(
                f"{many(self._ingest.postponed, 'batch was', 'batches were')} turned away since this Server began, as the store "
                "took none: Agents keep them"
            )
        return [
            *of_store,
            *(self._embedded.problems if self._embedded is not None else ()),
            *self._age.problems,
            *([self._starts.problem] if self._starts.problem else []),
            *self._lookup.problems,
            *self._sandbox.problems,
            *([self._now.problem] if self._now.problem else []),
            *self._ingest.problems,
            *self._envelopes.problems,
            *self._others(),
            *self._site().problems(self._now()),
        ]

    def _happened(self, errors: Counter[str]) -> list[Happened]:
        """What is counted and needs a person where it grows."""
        there = self._lookup.types
        return [
            *(Happened(f"errors of {what}", total, failed(what, what in there)) for what, total in sorted(errors.items())),
            *(Happened(f"deaths of {type}", total, died(type)) for type, total in sorted(self._sandbox.deaths.items())),
            *(
                Happened(f"slow folds of {type}", of_type.times, slow(type, of_type.seconds, FOLD_SECONDS))
                for type, of_type in sorted(self._sandbox.slow.items())
            ),
            Happened("prints", self._sandbox.prints.unlogged, printed),
            Happened("gaps", self._ingest.gaps, gapped),
            Happened("unmarked", self._ingest.unmarked, unmarked),
            *(Happened(f"failed jobs {kind}", times, job_failed(kind, self._jobs.why[kind])) for kind, times in self._jobs.failed.items()),
            *(Happened(f"worker {number}", times, restarted(number)) for number, times in enumerate(self._starts.again())),
            Happened("bad_meanings", self._ingest.bad_meanings, misread),
            # not before it is known
            *(
                Happened("dead_letters_full", counts.dead_dropped, dropped, is_kept=True)
                for _, counts in ([self._counts] if self._counts else [])
            ),
        ]


class Presence:
    """Says in the store that this Server is there, and knows which others are.

    Each raises a number in its entry again and again. An entry that stood unchanged for GONE_SECONDS, by the clock of who looks, is
    that of a Server that is gone: so whatever the hosts' clocks say, nobody who lives is missing.
    """

    def __init__(self, router: Router, now: Callable[[], float], clock: Any, moving: Moving, edges: versions.Edges = ()):
        self._router, self._clock, self._moving, self._edges = router, clock, moving, edges
        self._others: tuple[float, list[Mapping[str, int]]] | None = None
        self._started, self._said = now(), 0
        self._standing = Standing(clock)
        self.url: str | None = None  # None until it listens, or where no URL leads here
        self.problems: list[str] | None = None  # what needs a person here, as the others are told; None until it is known

    def _told(self) -> dict[str, Any]:
        """What this Server reads and merges."""
        return versions.HERE._replace(edges=self._edges).told()

    async def announce(self) -> None:
        """Say once that this Server is there, and forget those that are gone."""
        if self.url is None:
            return
        url = self.url
        self._said += 1
        about = {"roles": ROLES, "started": self._started, **self._told(), "said": self._said}
        said = json.dumps({**about, "moving": self._moving.said(), "problems": _bounded(self.problems)}).encode()

        def update(replies: Sequence[Any]) -> Writes:
            gone = [name for name, content in _pairs(replies[0]).items() if self._read(name, content) is None]
            commands: list[tuple[bytes, ...]] = [(b"HSET", keys.servers(PRESENCE_BUCKET), url.encode(), said)]
            return Writes(([(b"HDEL", keys.servers(PRESENCE_BUCKET), *gone)] if gone else []) + commands)

        try:
            await self._router.transact(PRESENCE_BUCKET, [(b"HGETALL", keys.servers(PRESENCE_BUCKET))], update)
        except StoreUnavailable:
            self._standing = Standing(self._clock)  # nobody could say anything meanwhile
            raise

    async def withdraw(self) -> None:
        """Say that this Server goes."""
        if self.url is not None:
            url, self.url = self.url, None
            gone = Writes([(b"HDEL", keys.servers(PRESENCE_BUCKET), url.encode())])
            await self._router.transact(PRESENCE_BUCKET, [(b"HGET", keys.servers(PRESENCE_BUCKET), url.encode())], lambda _: gone)

    async def servers(self, detail: bool = False) -> list[dict[str, Any]]:
        """All Servers of this store that are there, this one among them, by URL; with `detail` what needs a person at each.

        While the store is away it is this one alone, and its entry says that it is not all: `complete` is False. `problems` are as a Server
        said lately, MAX_SAID_PROBLEMS at the most, then how many more; None where it has said none: one that just began, or an older one.
        """
        found: dict[str, dict[str, Any]] = {}
        replies: list[bytes] = []
        is_complete = self._router.reaches(PRESENCE_BUCKET)
        try:
            if is_complete:
                [replies] = await self._router.read(PRESENCE_BUCKET, [(b"HGETALL", keys.servers(PRESENCE_BUCKET))])
        except StoreUnavailable as failure:
            log.debug("the other Servers are not known: {failure}", failure=failure)
            is_complete = False
        for name, content in _pairs(replies).items():
            entry = self._read(name, content, detail)
            if entry is not None and len(found) < MAX_SERVERS:
                found[keys.text_of(name)] = {"url": keys.text_of(name), **entry}
        if self.url is not None:
            found[self.url] = {"url": self.url, "roles": ROLES, "started": self._started, **self._told()}
            if detail:
                found[self.url]["problems"] = _bounded(self.problems)
            if not is_complete:
                found[self.url]["complete"] = False
        return [found[url] for url in sorted(found)]

    async def moving(self) -> Counter[str]:
        """Tab → Events folded in the last minute: by this Server, and of what moved most at the others, as they last said.

        While what they say cannot be read, it is what is known of them, or nothing: that ranks, and is no answer to anybody.
        """
        now = self._clock.seconds()
        if self._others is None or now - self._others[0] >= PRESENCE_SECONDS:
            self._others = now, await self._moving_elsewhere()
        counts = Counter(self._moving.counts())
        for entry in self._others[1]:
            counts.update({tab: events for tab, events in entry.items() if isinstance(events, int)})
        return counts

    async def _moving_elsewhere(self) -> list[Mapping[str, int]]:
        known = [] if self._others is None else self._others[1]
        if not self._router.reaches(PRESENCE_BUCKET):
            return known
        try:
            [replies] = await self._router.read(PRESENCE_BUCKET, [(b"HGETALL", keys.servers(PRESENCE_BUCKET))])
        except StoreUnavailable as error:
            log.debug("what moves at other Servers is not known: {error}", error=error)
            return known
        own = (self.url or "").encode()
        entries = [
            json.loads(content).get("moving", {})
            for name, content in _pairs(replies).items()
            if name != own and self._read(name, content) is not None
        ]
        return [entry for entry in entries if isinstance(entry, dict)]

    def _read(self, name: bytes, content: bytes, detail: bool = False) -> dict[str, Any] | None:
        """What the Server at `name` says of itself; None where it is gone, or this is no entry."""
        if self._standing.seconds(name, content) >= GONE_SECONDS:
            return None
        try:
            entry = json.loads(content)
            told = {"roles": entry["roles"], "started": entry["started"], **versions.read_told(entry).told()}
            return {**told, "problems": _bounded(entry.get("problems"))} if detail else told
        except (ValueError, TypeError, KeyError):
            return None


ROLES = ["ingest", "query"]


def _bounded(problems: Any) -> list[str] | None:
    """Sentences that others are told, or have told; None where these are none."""
    if not isinstance(problems, list):
        return None
    shown = [f"{problem}" for problem in problems]
    more = len(shown) - MAX_SAID_PROBLEMS
    if more > 0:
        shown = [*shown[: MAX_SAID_PROBLEMS - 1], f"and {more + 1} more problems: see the status of this Server"]
    return [problem if len(problem) <= MAX_SAID_CHARACTERS else f"{problem[: MAX_SAID_CHARACTERS - 1]}…" for problem in shown]


def _pairs(replies: Sequence[bytes]) -> Mapping[bytes, bytes]:
    return dict(zip(replies[::2], replies[1::2], strict=True))
