"""Maintenance as jobs: each runs in one Server, and every Server knows of it.

1. Records lie in one hash of the store. A job raises a number in its own again and again; one whose record stood unchanged for
   LOST_SECONDS, by the clock of who looks, is lost, because its Server died, and is shown as failed. What a job does can be begun
   again from the start, and done by two at once.
2. One job of a kind runs at a time. Who asks for another gets the one that runs.
3. The records of what has ended are kept for a while of the store's age, and not too many.
4. A record that is none of this version is nobody's job: it is not read, told once in the log, and goes with the oldest.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from taba.bounds import DAY, KiB
from taba.errors import StoreUnavailable, TabaError
from taba.server import keys
from taba.server.aging import passed
from taba.server.router import IsRouter
from taba.server.work.sandbox import HandlersAway
from taba.shard import Standing, Writes

BUCKET = 0  # where the records lie
RECORD_VERSION = 1
MAX_RECORDS = 100  # the oldest that have ended go first
KEEP_MINUTES = int(7 * DAY / 60)  # a record of what has ended
SAY_SECONDS = 1.0  # between two records of a job's progress
LOST_SECONDS = 10.0  # a running job that was seen to say nothing for so long has lost its Server
PATIENCE_SECONDS = 60.0  # for a bucket whose store is away or which others hold, before a job fails
PAUSE_SECONDS = 0.5  # between two tries of a bucket
MAX_MESSAGE = 500  # characters
MAX_FOUND_BYTES = 64 * KiB  # of what a dry run found, kept in its record

RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"

log = Logger()


class JobEnded(TabaError):
    """This job is not wanted any more: it was cancelled, its Server stops, or another took its place."""


class JobConflict(TabaError):
    """A job of this kind runs already, and not as it was asked for."""


class UnknownJob(TabaError):
    """No job of this id is known."""


class Job:
    """One job as its work sees it, which keeps `done`, `total` and `message` true; others read them. `age`: the store's at its start,
    in minutes; `started`: in Unix seconds."""

    def __init__(self, id: str, kind: str, started: float, is_dry_run: bool, clock: Any, age: int = 0):
        self.id, self.kind, self.started, self.is_dry_run, self.age = id, kind, started, is_dry_run, age
        self.said = 0
        self.state = RUNNING
        self.done = self.total = 0
        self.message = ""
        self.unwanted: str | None = None
        self.found: list[Any] = []
        self._found_bytes = 0
        self._clock = clock

    def check(self) -> None:
        """Raises JobEnded when the job is to end; between two steps."""
        if self.unwanted is not None:
            raise JobEnded(self.unwanted)

    def note(self, item: Any) -> None:
        """Keep `item` (JSON) in the record, for who asks for this job alone, while there is room."""
        size = len(json.dumps(item))
        if self._found_bytes + size <= MAX_FOUND_BYTES:
            self._found_bytes += size
            self.found.append(item)

    async def over_buckets(self, buckets: int, step: Callable[[int], Awaitable[None]]) -> None:
        """`step` for each bucket, again after a pause where the store is away, others hold it or no Handler starts; else raises."""
        self.total = buckets
        for bucket in range(buckets):
            deadline = self._clock.seconds() + PATIENCE_SECONDS
            while True:
                self.check()
                try:
                    await step(bucket)
                    break
                except (StoreUnavailable, HandlersAway):
                    if self._clock.seconds() > deadline:
                        raise
                await deferLater(self._clock, PAUSE_SECONDS)
            self.done = bucket + 1
            await deferLater(self._clock, 0)  # others have their turn


Work = Callable[[Job], Awaitable[None]]


Records = list[dict[str, Any]]
Ids = list[bytes]


class Kind(NamedTuple):
    """What a kind of job does, and whether it can be tried without doing it."""

    work: Work
    has_dry_run: bool = False


class Jobs:
    """The kinds of jobs that there are, and the jobs of this Server. `register` kinds before the routes are made. `now` tells Unix seconds,
    `age` the store's minutes, None while nobody knows."""

    def __init__(self, router: IsRouter, now: Callable[[], float], age: Callable[[], int | None], clock: Any):
        self.kinds: dict[str, Kind] = {}
        self.failed: Counter[str] = Counter()
        """Jobs of this Server that failed, and that nobody had cancelled, by kind."""
        self.why: dict[str, str] = {}
        self._strange: set[bytes] = set()
        self._router, self._now, self._age, self._clock = router, now, age, clock
        self._standing = Standing(clock)
        self._ended: set[bytes] = set()
        self._server = os.urandom(8).hex()
        self._mine: dict[str, Job] = {}
        self._working: dict[str, Deferred[None]] = {}
        self._is_closed = False

    def register(self, kind: str, work: Work, has_dry_run: bool = False) -> None:
        """Let `POST /v1/<kind>` start `work`."""
        self.kinds[kind] = Kind(work, has_dry_run)

    async def start(self, kind: str, is_dry_run: bool = False, quiet_seconds: float = 0.0) -> dict[str, Any] | None:
        """Start a job, or join the one of its kind that runs; its record.

        With `quiet_seconds` nothing starts, and the answer is None, where one has begun within that time. Raises JobConflict
        where a dry run is asked for and the job itself runs, or the other way round.
        """
        if self._is_closed:
            raise StoreUnavailable("the Server stops")
        age = self._age()
        job = Job(
            os.urandom(6).hex(), kind, self._now(), is_dry_run, self._clock, age or 0
        )  # not known: soon forgotten, and in nobody's way

        def update(replies: Sequence[Any]) -> Writes:
            records, strange = self._all(replies[0])
            for record in records:
                if record["kind"] != kind:
                    continue
                if record["state"] == RUNNING:
                    return Writes([], record)
                if not record["dry_run"] and record["state"] == DONE and passed(record["age"], age) * 60 < quiet_seconds:
                    return Writes([], None)
            ended = sorted((record for record in records if record["state"] != RUNNING), key=_newest_first)
            old = [*[record["id"].encode() for record in ended], *strange][MAX_RECORDS - 1 :]
            old += [record["id"].encode() for record in ended[: MAX_RECORDS - 1] if passed(record["age"], age) > KEEP_MINUTES]
            commands: list[tuple[bytes, ...]] = [(b"HDEL", keys.jobs(BUCKET), *old)] if old else []
            return Writes([*commands, self._written(job)], self._record(job))

        record: dict[str, Any] | None = await self._router.transact(BUCKET, [(b"HGETALL", keys.jobs(BUCKET))], update)
        if record is None:
            return None
        if record["id"] == job.id:
            self._mine[job.id] = job
            self._working[job.id] = ensureDeferred(self._run(job))
        elif record["dry_run"] != is_dry_run:
            other = "a dry run" if record["dry_run"] else "a job"
            raise JobConflict(f"{other} of the kind {kind} runs already: {record['id']}; wait for its end, or cancel it")
        return shown(record)

    async def list(self, id: str | None = None) -> list[dict[str, Any]]:
        """All jobs of all Servers, newest first; with `id` that one, and what it found. Raises UnknownJob."""
        [content] = await self._router.read(BUCKET, [(b"HGETALL", keys.jobs(BUCKET))])
        records, strange = self._all(content)
        if id is not None:
            records = [record for record in records if record["id"] == id]
            if id.encode() in strange:
                raise UnknownJob(f"the record of job {id[:40]!r} is none that this version reads")
            if not records:
                raise UnknownJob(f"no job {id[:40]!r}")
        records.sort(key=_newest_first)
        return [shown(record, id is not None) for record in records]

    async def look(self) -> None:
        """See which jobs of others live; every few seconds, so that a lost one is known when somebody asks. Raises StoreUnavailable."""
        try:
            [ids] = await self._router.read(BUCKET, [(b"HKEYS", keys.jobs(BUCKET))])
            self._ended.intersection_update(ids)
            if running := [id for id in ids if id not in self._ended]:  # what has ended never runs again, and may be long
                [contents] = await self._router.read(BUCKET, [(b"HMGET", keys.jobs(BUCKET), *running)])
                for id, content in zip(running, contents, strict=True):
                    if content is None:
                        continue
                    self._as_is(id, content)  # sees whether it changes
                    stored = read_record(content)
                    # by what is stored: one that stands still is not over, for whoever takes it for lost may have slept itself
                    if stored is None or stored["state"] != RUNNING:
                        self._ended.add(id)
        except StoreUnavailable:
            self._standing = Standing(self._clock)  # nobody could say anything meanwhile
            raise

    async def cancel(self, id: str) -> dict[str, Any]:
        """Have a job end at its next step, on whatever Server it runs; its record. Raises UnknownJob."""

        def update(replies: Sequence[Any]) -> Writes:
            if replies[0] is None:
                return Writes([], None)
            record = self._as_is(id.encode(), replies[0])
            if record is None or record["state"] != RUNNING:
                return Writes([], record)
            record = {**record, "state": CANCELLED}
            return Writes([(b"HSET", keys.jobs(BUCKET), id.encode(), json.dumps(record).encode())], record)

        record: dict[str, Any] | None = await self._router.transact(BUCKET, [(b"HGET", keys.jobs(BUCKET), id.encode())], update)
        if record is None:
            raise UnknownJob(f"no job {id[:40]!r}")
        if record["state"] == CANCELLED and id in self._mine:
            self._mine[id].unwanted = "it was cancelled"
        return shown(record)

    async def close(self) -> None:
        """End this Server's jobs, at their next step; they are shown as failed, and may be started again elsewhere."""
        self._is_closed = True
        for job in self._mine.values():
            job.unwanted = job.unwanted or "its Server stopped"
        for working in list(self._working.values()):
            await working

    async def _run(self, job: Job) -> None:
        saying = LoopingCall(self._say, job)
        saying.clock = self._clock
        said = saying.start(SAY_SECONDS, now=False)
        log.info("job {id} begins: {kind}", id=job.id, kind=job.kind)
        try:
            await self.kinds[job.kind].work(job)
            job.state = DONE
        except JobEnded as ended:
            job.state, job.message = FAILED, f"{ended}; {job.message}".rstrip("; ")
        except StoreUnavailable as failure:
            job.state, job.message = FAILED, f"the store is away: {failure}"
        except TabaError as failure:
            job.state, job.message = FAILED, str(failure)
        except Exception as failure:
            log.failure("job {id} failed: {kind}", id=job.id, kind=job.kind)
            job.state, job.message = FAILED, f"{type(failure).__name__}; the Server's log says more"
        saying.stop()
        await said
        if job.state == FAILED and job.unwanted is None:
            self.failed[job.kind] += 1
            self.why[job.kind] = job.message[:MAX_MESSAGE]
        log.info("job {id} is {state}: {message}", id=job.id, state=job.state, message=job.message)
        for _ in range(3):
            if await self._say(job):
                break
            await deferLater(self._clock, PAUSE_SECONDS)
        del self._mine[job.id], self._working[job.id]

    async def _say(self, job: Job) -> bool:
        """Write how far the job is; whether that was possible. Learns here that it is not wanted any more."""
        job.said += 1

        def update(replies: Sequence[Any]) -> Writes:
            record = (read_record(replies[0]) if replies[0] is not None else None) or {}
            if record.get("state") == RUNNING and record["server"] == self._server:
                return Writes([self._written(job)], None)
            if record.get("state") == CANCELLED:
                # that it was cancelled stays; how far it came is of interest
                cancelled = {**self._record(job), "state": CANCELLED}
                return Writes([(b"HSET", keys.jobs(BUCKET), job.id.encode(), json.dumps(cancelled).encode())], "it was cancelled")
            return Writes([], "its record is gone")

        try:
            unwanted = await self._router.transact(BUCKET, [(b"HGET", keys.jobs(BUCKET), job.id.encode())], update)
        except StoreUnavailable as failure:
            log.debug("job {id}: {failure}", id=job.id, failure=failure)
            return False
        except Exception:
            log.failure("job {id}: its record could not be written", id=job.id)
            return False
        job.unwanted = job.unwanted or unwanted
        return True

    def _record(self, job: Job) -> dict[str, Any]:
        return {
            "v": RECORD_VERSION,
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "done": job.done,
            "total": job.total,
            "started": job.started,
            "message": job.message[:MAX_MESSAGE],
            "dry_run": job.is_dry_run,
            "found": job.found if job.state != RUNNING else [],
            "server": self._server,
            "age": job.age,
            "said": job.said,
        }

    def _written(self, job: Job) -> tuple[bytes, ...]:
        return (b"HSET", keys.jobs(BUCKET), job.id.encode(), json.dumps(self._record(job)).encode())

    def _all(self, pairs: Sequence[bytes]) -> tuple[Records, Ids]:
        """The records of a whole hash as they stand now, and the ids of those that are none of this version."""
        read = {id: self._as_is(id, content) for id, content in zip(pairs[::2], pairs[1::2], strict=True)}
        self._strange.intersection_update(read)
        return [record for record in read.values() if record is not None], [id for id, record in read.items() if record is None]

    def _as_is(self, id: bytes, content: bytes) -> dict[str, Any] | None:
        """A record as it stands now: fresher where the job runs here, failed where its Server is gone; None for what is none."""
        record = read_record(content)
        if record is None:
            if id not in self._strange:
                self._strange.add(id)
                log.warn("the record of job {id!r} is none of version {version}: not read", id=id[:40], version=RECORD_VERSION)
            return None
        job = self._mine.get(record["id"])
        if record["state"] != RUNNING:
            return record
        if job is not None:
            return self._record(job) if job.state == RUNNING else record
        if self._standing.seconds(record["id"], content) >= LOST_SECONDS:
            return {**record, "state": FAILED, "message": f"its Server is gone; {record['message']}".rstrip("; ")}
        return record


def shown(record: dict[str, Any], with_found: bool = False) -> dict[str, Any]:
    """What `/v1/jobs` says of a record."""
    names = ["id", "kind", "state", "done", "total", "started", "message", "dry_run"] + ["found"] * with_found
    return {name: record[name] for name in names}


def _newest_first(record: dict[str, Any]) -> tuple[Any, ...]:
    return -record["age"], -record["started"], record["id"]


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "kind": str,
    "state": str,
    "done": int,
    "total": int,
    "started": (int, float),
    "message": str,
    "dry_run": bool,
    "found": list,
    "server": str,
    "age": int,
    "said": int,
}


def read_record(content: bytes) -> dict[str, Any] | None:
    """The record in `content`; None for what is none of this version."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("v") != RECORD_VERSION:
        return None
    return record if all(isinstance(record.get(name), kind) for name, kind in _FIELDS.items()) else None
