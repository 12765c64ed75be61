"""The Server's routes: what each takes and answers. The work is done by ingest, query and status."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import attrs
import numpy

from taba import __version__, names, paths
from taba.batch import CONTENT_TYPE, VERDICTS_HEADER, decode_envelope, encode_verdicts
from taba.bounds import MAX_LETTERS, MAX_ROWS, MAX_WHO
from taba.calls import Answer, Call, HTTPError
from taba.codes import uppers_of
from taba.errors import StoreUnavailable, UnknownVersion
from taba.events import NotCovered, events_route, key_part, reading
from taba.handlers.lookup import Lookup
from taba.history import Past, Slot
from taba.openapi import describe
from taba.places import Crowded
from taba.routes import EVENTS, FLAG, JSON, MSGPACK, WHOLE, Parameter, Route, Serve
from taba.server.ask.answering import aggregate_as_json, aggregate_written, dumped, listed, projection_written, typed, written
from taba.server.ask.answers import Aggregated, Page, Paged, Unanswered
from taba.server.ask.choosing import QueryRefused
from taba.server.ask.filters import MAX_FILTERS, Filter, make_filter
from taba.server.ask.letters import newest_letters
from taba.server.ask.live import MAX_LIVE_TABS, Live, Stopping
from taba.server.ask.meanings import each_meaning, meanings_of, with_units
from taba.server.ask.overview import MOVES, SORTS, Overview
from taba.server.ask.query import Query
from taba.server.ask.reachable import Reachable
from taba.server.fold.envelopes import Envelopes
from taba.server.fold.ingest import Ingest
from taba.server.fold.posts import OtherRequest, PosterHasMany, Posts
from taba.server.health import Health
from taba.server.keep.deleting import delete_clients, delete_tabs
from taba.server.keep.jobs import JobConflict, Jobs, UnknownJob
from taba.server.latency import SLICE_SECONDS, WINDOW_SECONDS
from taba.server.notes import NOTE_SCHEMA, Notes, read_note
from taba.server.router import IsReader
from taba.server.status import Presence, Status
from taba.shard import Router
from taba.tokens import ADMIN, ANY, OPEN, READ, WRITE
from taba.turns import in_slices
from taba.web import sliced

DEAD_LETTERS = 1000  # shown when nobody says how many


SLICE_ROWS = 50  # of an overview that are written between two looks at the time, some 5 ms
MOST_NAMES = 1_000_000  # of a page; who wants more has no use for pages
TAKES_EVENTS = ("/v1/envelopes", "/v1/events")
NEXT_HEADER = "Taba-Next"  # the cursor of the page after this one; absent with the last

FILTERS = (
    Parameter(
        "name", "A Tab's name; a base name, which means its Tabs with labels too; or a glob of * and ?.", repeatable=True, most=MAX_FILTERS
    ),
    Parameter("client", "A Client's id, or a glob of * and ?.", repeatable=True, most=MAX_FILTERS),
    Parameter("match", "A regular expression that a Tab's whole name matches."),
    Parameter("client_match", "A regular expression that a Client's whole id matches."),
    Parameter("label", "key:value of a label that a Tab has.", repeatable=True, most=MAX_FILTERS),
)
PARTIAL = Parameter("partial", "1: what can be reached; the header Taba-Away names the buckets that cannot, and why.", FLAG)
PAGES = (
    Parameter(
        "limit",
        f"How many names at the most; the header {NEXT_HEADER} has the cursor of what comes after them.",
        WHOLE,
        least=1,
        most=MOST_NAMES,
    ),
    Parameter("cursor", "The last name of the page before: only names after it."),
)
ASKED = (*FILTERS, PARTIAL)
LISTED = (*ASKED, *PAGES)
BY = Parameter("by", "Tabs of one base name are grouped by this label.", repeatable=True)
DETAIL = Parameter("detail", "1: the slots from which the figures are made, too.", FLAG)
MEANINGS = Parameter("detail", "1: unit and description, too.", FLAG)
MOST_SHOWN = 4096  # buckets of which it is said how much they are used and which move: a page draws no more, and more would be slow to ask
USES = Parameter("detail", f"1: how often this Server used each bucket, and which move, too; of {MOST_SHOWN} buckets at the most.", FLAG)
LETTERS = Parameter("limit", "How many at the most.", WHOLE, least=1, most=MAX_LETTERS, default=DEAD_LETTERS)
ROWS = (
    Parameter("sort", f"By what, the greatest first: {', '.join(SORTS)}. Figures that only States tell sort what moves most."),
    Parameter("limit", "How many rows at the most.", WHOLE, least=1, most=MAX_ROWS, default=50),
    Parameter("offset", "How many rows are left out before the first.", WHOLE, least=0, most=MOST_NAMES, default=0),
)
WHO = (
    Parameter("path", "The figure of which Clients have their shares, such as 1h.count; by default the first that is there."),
    Parameter("limit", "How many Clients at either end.", WHOLE, least=1, most=MAX_WHO, default=5),
)
LATELY = Parameter(
    "seconds",
    "Of how many seconds, the last; slices of 5 s that began in them count.",
    WHOLE,
    least=int(SLICE_SECONDS),
    most=int(WINDOW_SECONDS),
    default=int(WINDOW_SECONDS),
)
WRONG = Parameter("detail", "1: what needs a person at each, as it said in the last half minute, too; null where it said nothing.", FLAG)
DRY_RUN = Parameter("dry_run", "1: only say what would be done.", FLAG)
JOB = Parameter("id", "The id of one job; its record says what it found.")


def _exact(name: str) -> Parameter:
    """What is to be deleted: exact names, at least one, because nothing must never mean everything."""
    return Parameter(name, "What is to be deleted, exactly.", repeatable=True, is_required=True, most=MAX_FILTERS)


class Routes:
    """The routes of one Server."""

    def __init__(
        self,
        router: Router,
        lookup: Lookup,
        ingest: Ingest,
        envelopes: Envelopes,
        posts: Posts,
        query: Query,
        overview: Overview,
        live: Live,
        status: Status,
        presence: Presence,
        jobs: Jobs,
        notes: Notes,
        health: Health,
        now: Callable[[], float],
        age: Callable[[], int | None],
        others: Sequence[Route],
    ):
        """`others`: routes of further rooms."""
        self._others = others
        self._age, self._envelopes = age, envelopes
        self._router, self._lookup, self._ingest, self._posts, self._query = router, lookup, ingest, posts, query
        self._overview, self._live = overview, live
        self._status, self._presence, self._jobs, self._health, self._now = status, presence, jobs, health, now
        self._notes = notes

    def table(self) -> list[Route]:
        """The definitions."""
        jobs = [
            Route(
                "POST",
                f"/v1/{name}",
                self._starter(name),
                "the record of the job that runs now",
                ADMIN,
                (DRY_RUN,) if kind.has_dry_run else (),
                status=202,
            )
            for name, kind in self._jobs.kinds.items()
        ]
        routes = [
            Route("POST", "/v1/envelopes", self.envelopes, "a verdict on each batch", WRITE, body=MSGPACK, produces=(MSGPACK,)),
            events_route(self.events),
            Route("GET", "/v1/names", self.names, "the names of Tabs, sorted", READ, LISTED),
            Route("GET", "/v1/clients", self.clients, "the ids of Clients, sorted", READ, LISTED),
            Route("GET", "/v1/types", self.types, "{name: Type}", READ, (*LISTED, MEANINGS)),
            Route("GET", "/v1/projections", self.projections, "{name: {client: projection}}", READ, (*LISTED, DETAIL)),
            Route("GET", "/v1/aggregates", self.aggregates, "{name: aggregate}", READ, (*LISTED, BY, DETAIL)),
            Route("GET", "/v1/superaggregate", self.superaggregate, "one aggregate over all that match", READ, (*ASKED, DETAIL)),
            Route(
                "GET",
                "/v1/slots",
                self.slots,
                '{name: {"since", "slots": [{"start", "end", "count", "total", …}, …], "ever"}}',
                READ,
                LISTED,
            ),
            Route("GET", "/v1/overview", self.overview, "rows of what moves, ranked", READ, (*ASKED, *ROWS)),
            Route(
                "GET",
                "/v1/who",
                self.who,
                "{name: which Clients hold the greatest and the least, and their shares}",
                READ,
                (*ASKED, *WHO),
            ),
            Route(
                "GET",
                "/v1/stream",
                self.stream,
                f"server-sent events, each second: the Aggregates of what matches, {MAX_LIVE_TABS} Tabs at the most",
                READ,
                (FILTERS[0]._replace(is_required=True), *FILTERS[1:]),
                produces=(EVENTS,),
            ),
            Route("GET", "/v1/status", self.status, "how the Server does, and what needs a person", ANY),
            Route("GET", "/v1/latency", self.latency, "seconds from record to visible: p50, p95, p99", READ, (LATELY,)),
            Route("GET", "/v1/servers", self.servers, '[{"url", "roles", "started"}, …]', ANY, (WRONG,)),
            Route("GET", "/v1/shards", self.shards, '[{"name", "url", "buckets", "keys", "bytes", "ops"}, …]', READ, (USES,)),
            Route("GET", "/v1/dead-letters", self.dead_letters, "events that cannot be folded, newest first", READ, (LETTERS,)),
            Route("GET", "/v1/notes", self.notes, '[{"time", "text"}, …] of the last day, the latest first', READ),
            Route("POST", "/v1/notes", self.note, "the note that is kept", WRITE, body=JSON, body_schema=NOTE_SCHEMA),
            Route("DELETE", "/v1/tabs", self.delete_tabs, '{"tabs": n, "states": n}', ADMIN, (_exact("name"),)),
            Route("DELETE", "/v1/clients", self.delete_clients, '{"clients": n, "states": n}', ADMIN, (_exact("client"),)),
            *jobs,
            Route("GET", "/v1/jobs", self.jobs, "the records of jobs, newest first", READ, (JOB,)),
            Route(
                "DELETE", "/v1/jobs", self.cancel_job, "the record of the job that is cancelled", ADMIN, (JOB._replace(is_required=True),)
            ),
            *self._others,
            Route("GET", "/openapi.json", self.openapi, "this API, as OpenAPI describes it", ANY, produces=(JSON,)),
            Route("GET", "/healthz", self.healthz, "200 while the process runs", OPEN),
            Route("GET", "/readyz", self.readyz, "200 only while it can do its work", OPEN),
        ]
        # what takes filters, or events, is within the bounds of a token; notes are everybody's, and for tokens that are not bound
        return [route._replace(is_scoped=route.path in TAKES_EVENTS or FILTERS[1] in route.parameters) for route in routes]

    # --- events in ---

    async def envelopes(self, call: Call) -> Answer:
        """What an Agent sends: a verdict on each entry. Raises MalformedBatch (400) for what is no envelope that this Server reads."""
        try:
            envelope = decode_envelope(await call.body())
        except UnknownVersion as error:
            self._envelopes.note_version(error)
            raise
        content = encode_verdicts(await self._envelopes.decide(envelope, call.breathe, call.grant.scope, call.poster), self._age())
        return Answer(content, content_type=CONTENT_TYPE, headers={VERDICTS_HEADER: "1"})

    async def events(self, call: Call) -> Answer:
        """Events posted as JSON: answers when they are visible. Sent again under the same Idempotency-Key they count once."""
        key = call.once("idempotency-key")
        content, now = await call.body(), self._now()
        try:
            posted = await call.in_turns(reading(content, now, self._router.buckets, key is not None, call.grant.scope))
            part = None if key is None else key_part(posted.client, key, posted.digest)
        except NotCovered as error:
            raise HTTPError(403, "other_token", str(error)) from None
        except ValueError as error:
            raise HTTPError(400, "bad_request", str(error)) from None
        try:
            stream = None if part is None else await self._posts.claim(part, posted.client, call.poster)
        except OtherRequest as error:
            raise HTTPError(422, "other_request", str(error)) from None
        except PosterHasMany as error:
            raise HTTPError(429, "too_many_keys", str(error), {"retry-after": "3600"}) from None
        since = self._posts.time_of(stream, now)
        if since != now:
            posted = await call.in_turns(reading(content, since, self._router.buckets, False, call.grant.scope))
        if not await self._posts.fold(posted, stream, since):
            advice = "send them again under the same Idempotency-Key" if key else "sent again, some may count twice: use an Idempotency-Key"
            raise HTTPError(503, "store_unavailable", f"not all events were folded in time; {advice}")
        rejected = [{"index": index, "reason": reason} for index, reason in posted.rejected]
        return Answer({"accepted": posted.accepted, "rejected": rejected})

    # --- answers out ---

    async def names(self, call: Call) -> Answer:
        query, reachable = self._asked(call)
        paged = await self._refusing(query.names(_filter(call), _page(call)))
        return _listed(call, paged, reachable)

    async def clients(self, call: Call) -> Answer:
        query, reachable = self._asked(call)
        paged = await self._refusing(query.clients(_filter(call), _page(call)))
        return _listed(call, paged, reachable)

    async def types(self, call: Call) -> Answer:
        query, reachable = self._asked(call)
        types, further = await self._refusing(query.types(_filter(call), _page(call)))
        if call.values["detail"]:
            told = each_meaning(self._reader(call, reachable), types)
            return _by_name(call, ((name, dumped(what)) async for name, what in told), reachable, further)
        return _streamed(call, typed(types, call.wants_text), reachable, further)

    async def projections(self, call: Call) -> Answer:
        query, reachable = self._asked(call)
        asked = await self._refusing(query.ask(_filter(call), (), call.values["detail"], _page(call)))
        pieces = self._projections(query, query.projections(asked), call.wants_text)
        return _streamed(call, pieces, reachable, asked.next)

    async def _projections(self, query: Query, found: AsyncIterator[Any], wants_text: bool) -> AsyncIterator[str]:
        """The pieces of an answer by name and Client. A Tab of many Clients comes in several parts."""
        under_way: str | None = None
        begin, colon, between, end = ("", ": {", ", ", "}\n") if wants_text else ("{", ": {", ", ", "}")
        yield begin
        async for item in found:
            if under_way != item.tab:
                head = item.tab if wants_text else json.dumps(item.tab, ensure_ascii=False)
                yield ("" if under_way is None else end if wants_text else end + between) + head + colon
            if list(item.projections) == [""]:  # what is away, whoever its Clients are
                pieces = [projection_written(item.projections[""])[1:-1]]
            elif wants_text:
                rendered = await query.render(item.type, list(item.projections.values()))
                pieces = [f"{client}: {text}" for client, text in zip(item.projections, rendered, strict=True)]
            else:
                pieces = [f"{json.dumps(client)}: {projection_written(projection)}" for client, projection in item.projections.items()]
            text, under_way = (between if under_way == item.tab else "") + between.join(pieces), item.tab
            del item, pieces  # ten times as large as their text: nobody holds them for a reader that has stopped reading
            yield text
        yield ("" if under_way is None else end) + ("" if wants_text else "}\n")

    async def aggregates(self, call: Call) -> Answer:
        by = _labels(call)
        query, reachable = self._asked(call)
        asked = await self._refusing(query.ask(_filter(call), by, call.values["detail"], _page(call)))

        wants_text = call.wants_text

        async def each() -> AsyncIterator[tuple[str, str]]:
            async for name, item in query.aggregates(asked):
                yield name, await self._rendered(item) if wants_text else aggregate_written(item)

        return _by_name(call, each(), reachable, asked.next)

    async def superaggregate(self, call: Call) -> Answer:
        query, reachable = self._asked(call)
        asked = await self._refusing(query.ask(_filter(call), (), call.values["detail"]))
        found = await self._refusing(query.superaggregate(asked))
        left_out = reachable.sentence() or None
        if found is None:
            return Answer({"error": left_out} if left_out else {}, text=lambda: "", headers=reachable.header())
        found = found._replace(error="; ".join(filter(None, (found.error, left_out))) or None)
        rendered = await self._rendered(found) if call.wants_text else ""
        return Answer(aggregate_as_json(found), text=lambda: rendered + "\n", headers=reachable.header())

    async def slots(self, call: Call) -> Answer:
        query, reachable = self._asked(call)
        asked = await self._refusing(query.ask(_filter(call), (), True, _page(call)))

        async def each() -> AsyncIterator[tuple[str, str]]:
            async for name, past in query.slots(asked):
                yield name, _past(past)

        return _by_name(call, each(), reachable, asked.next)

    async def overview(self, call: Call) -> Answer:
        sort = call.values["sort"] or MOVES
        if sort not in SORTS:
            raise HTTPError(400, "bad_request", f"sort={sort[:100]!r}: takes one of {', '.join(SORTS)}")
        query, reachable = self._asked(call)
        rows = await self._refusing(self._overview.of(query).rows(_filter(call), sort, call.values["limit"], call.values["offset"]))
        meanings = await meanings_of(self._reader(call, reachable), {row["name"]: row["type"] for row in rows})
        texts: list[str] = []
        async for some in in_slices(rows, SLICE_ROWS, query.breathe):
            texts += [written({**row, "unit": meanings[row["name"]]["unit"]}) for row in some]
        return Answer(
            f"[{', '.join(texts)}]\n".encode(),
            text=lambda: "".join(f"{row['name']}: {text}\n" for row, text in zip(rows, texts, strict=True)),
            content_type=JSON,
            headers=reachable.header(),
        )

    async def who(self, call: Call) -> Answer:
        try:
            path = call.values["path"] and paths.check(call.values["path"])
        except ValueError as error:
            raise HTTPError(400, "bad_request", f"path=: {error}") from None
        query, reachable = self._asked(call)
        asked = await self._refusing(query.ask(_filter(call)))
        shares = self._overview.of(query).who(asked, path, call.values["limit"])
        found = with_units(self._reader(call, reachable), asked.chosen, shares)
        return _by_name(call, ((name, dumped(one)) async for name, one in found), reachable)

    async def stream(self, call: Call) -> Answer:
        call.listen()  # a newcomer's place would be held for the whole first look
        try:
            broadcast = await self._refusing(self._live.hear(_filter(call)))
        except Stopping as error:
            raise HTTPError(503, "not_ready", str(error)) from None
        return Answer(broadcast, content_type=EVENTS)

    def _asked(self, call: Call) -> tuple[Query, Reachable]:
        """Whom to ask: with partial=1, whoever can be reached."""
        reachable = Reachable(self._router, call.grant.scope)
        return (self._query.of(reachable) if call.values[PARTIAL.name] else self._query), reachable

    def _reader(self, call: Call, reachable: Reachable) -> IsReader:
        """What reads for it."""
        return reachable if call.values[PARTIAL.name] else self._router

    async def _rendered(self, item: Aggregated) -> str:
        """An Aggregate, and what is wrong with it, as one line for people."""
        [rendered] = await self._query.render(item.type, [item.aggregate if item.aggregate is not None else Unanswered(item.error or "")])
        return rendered if item.aggregate is None or item.error is None else f"{rendered} ({item.error})"

    async def _refusing(self, asking: Any) -> Any:
        try:
            return await asking
        except QueryRefused as error:
            raise HTTPError(400, "bad_request", str(error)) from None
        except Crowded as error:
            raise HTTPError(503, "full", str(error)) from None

    # --- keeping ---

    async def delete_tabs(self, call: Call) -> Answer:
        try:
            return _counted(await delete_tabs(self._router, self._lookup, call.values["name"]))
        finally:
            self._query.index.forget()

    async def delete_clients(self, call: Call) -> Answer:
        try:
            return _counted(await delete_clients(self._router, self._lookup, call.values["client"]))
        finally:
            self._query.index.forget()

    def _starter(self, kind: str) -> Serve:
        async def start(call: Call) -> Answer:
            try:
                record = await self._jobs.start(kind, call.values.get(DRY_RUN.name, False))
            except JobConflict as error:
                raise HTTPError(409, "conflict", str(error)) from None
            return Answer(record, 202, text=lambda: _job_line(record or {}))

        return start

    async def jobs(self, call: Call) -> Answer:
        """All jobs; with `id=` one alone, and what it found."""
        try:
            records = await self._jobs.list(call.values["id"])
        except UnknownJob as error:
            raise HTTPError(404, "unknown_job", str(error)) from None
        return _rows(call, _each((dumped(record), _job_line(record)) for record in records))

    async def cancel_job(self, call: Call) -> Answer:
        try:
            record = await self._jobs.cancel(call.values["id"])
        except UnknownJob as error:
            raise HTTPError(404, "unknown_job", str(error)) from None
        return Answer(record, text=lambda: _job_line(record))

    # --- about the Server ---

    async def status(self, call: Call) -> Answer:
        content = {**await self._status.describe(), "url": self._presence.url}
        if call.grant.scope.is_bound:
            untold = {"problems": call.grant.scope.shown(content["problems"]), "types_missing": []}
            content |= {**untold, "store": {**content["store"], "url": ""}}
        return Answer(content, text=lambda: "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in content.items()))

    async def latency(self, call: Call) -> Answer:
        content = self._ingest.latency.percentiles(self._now(), call.values["seconds"])
        return Answer(content, text=lambda: "".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items()))

    async def servers(self, call: Call) -> Answer:
        content = await self._presence.servers(detail=bool(call.values["detail"]))
        shown = call.grant.scope.shown
        content = [{**server, "problems": shown(server["problems"])} if "problems" in server else server for server in content]
        return Answer(content, text=lambda: "".join(f"{server['url']}\n" for server in content))

    async def shards(self, call: Call) -> Answer:
        content = [attrs.asdict(shard) for shard in await self._router.shards()]
        if call.values["detail"] and self._router.buckets <= MOST_SHOWN:
            try:
                moves = await self._router.moves()
            except StoreUnavailable:  # a shard is away, and `taba status` says so; of moves nothing can be told
                moves = None
            for shard in content:
                name = shard["name"]
                # of this Server alone, since it started; who wants them of all asks each
                shard["uses"] = {str(bucket): self._router.uses[bucket] for bucket in self._router.map.owned_by(name)}
                mine = sorted((bucket, to) for bucket, (source, to) in moves.items() if source == name) if moves is not None else None
                shard["moving"] = {str(bucket): to for bucket, to in mine} if mine is not None else None
        return Answer(content, text=lambda: "".join(_shard_line(shard) for shard in content))

    async def dead_letters(self, call: Call) -> Answer:
        letters = newest_letters(self._router, call.values["limit"], self._query.breathe)

        async def pieces() -> AsyncIterator[tuple[str, str]]:
            async for event in letters:
                text = written(event)
                yield text, text + "\n"

        return _rows(call, pieces())

    async def notes(self, call: Call) -> Answer:
        found = [note.shown() for note in await self._notes.list()]
        return _rows(call, _each((dumped(note), f"{note['time']:.3f} {dumped(note['text'])}\n") for note in found))

    async def note(self, call: Call) -> Answer:
        try:
            time, text = read_note(await call.json(), self._now())
        except ValueError as error:
            raise HTTPError(400, "bad_request", str(error)) from None
        note = (await self._notes.add(time, text)).shown()
        return Answer(note, text=lambda: f"{note['time']:.3f} {dumped(note['text'])}\n")

    async def openapi(self, call: Call) -> Answer:
        return Answer(describe(self.table(), "Taba Server", __version__))

    async def healthz(self, call: Call) -> Answer:
        return Answer({"alive": True}, text=lambda: "alive\n")

    async def readyz(self, call: Call) -> Answer:
        if self._health.is_stopped:
            raise HTTPError(503, "not_ready", "this Server stops")
        # one shard of many that is away is a problem, and no reason to send nobody here
        if not self._health.is_working:
            wrong = [*self._health.problems, *self._router.problems] if call.grant.kind != OPEN else []  # they name hosts and paths
            raise HTTPError(503, "not_ready", "; ".join(wrong) or "this Server does not work now: its log says why")
        return Answer({"ready": True}, text=lambda: "ready\n")


def _filter(call: Call) -> Filter:
    values = call.values
    try:
        return make_filter(values["name"], values["client"], values["match"], values["client_match"], values["label"], call.grant.scope)
    except ValueError as error:
        raise HTTPError(400, "bad_request", str(error)) from None


def _page(call: Call) -> Page:
    return Page(call.values["limit"], call.values["cursor"])


def _streamed(call: Call, pieces: AsyncIterator[str], reachable: Reachable | None = None, further: str | None = None) -> Answer:
    """An answer that is made piece by piece, as it is read."""
    headers = {**({} if reachable is None else reachable.header()), **({} if further is None else {NEXT_HEADER: quote(further, safe="")})}
    kind = "text/plain; charset=utf-8" if call.wants_text else "application/json"
    return Answer(sliced(pieces), content_type=kind, headers=headers, is_joined=True)


async def _each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def _by_name(call: Call, items: AsyncIterator[tuple[str, str]], reachable: Reachable | None = None, further: str | None = None) -> Answer:
    """An answer of (name, what is said of it: JSON, or a text for people), one Tab a line for people."""

    wants_text = call.wants_text

    async def pieces() -> AsyncIterator[str]:
        before = "{"
        async for name, text in items:
            if wants_text:
                yield f"{name}: {text}\n"
            else:
                yield f"{before}{dumped(name)}: {text}"
                before = ", "
        if not wants_text:
            yield "{}\n" if before == "{" else "}\n"

    return _streamed(call, pieces(), reachable, further)


def _listed(call: Call, paged: Paged, reachable: Reachable) -> Answer:
    """An answer that is a list of names."""
    return _streamed(call, listed(paged.names, call.wants_text), reachable, paged.next)


def _rows(call: Call, rows: AsyncIterator[tuple[str, str]], reachable: Reachable | None = None, further: str | None = None) -> Answer:
    """An answer that is a list, of (JSON of one, its line for people)."""

    wants_text = call.wants_text

    async def pieces() -> AsyncIterator[str]:
        before = "["
        async for content, text in rows:
            if wants_text:
                yield text
            else:
                yield before + content
                before = ", "
        if not wants_text:
            yield "[]\n" if before == "[" else "]\n"

    return _streamed(call, pieces(), reachable, further)


def _labels(call: Call) -> list[str]:
    """The labels of by=: nothing is grouped by a label that no Tab can have."""
    labels: list[str] = call.values["by"]
    try:
        names.canonical_name("x", dict.fromkeys(labels, ""))
    except ValueError as error:
        raise HTTPError(400, "bad_request", "by=: " + str(error).removeprefix("Tab name 'x': ")) from None
    return labels


def _counted(counts: Mapping[str, int]) -> Answer:
    return Answer(counts, text=lambda: "".join(f"{what}: {count}\n" for what, count in counts.items()))


def _shard_line(shard: Mapping[str, Any]) -> str:
    return f"{shard['name']}: " + json.dumps({key: value for key, value in shard.items() if key != "name"}) + "\n"


def _job_line(record: Mapping[str, Any]) -> str:
    return f"{record['id']} {record['kind']} {record['state']} {record['done']}/{record['total']} {record['message']}\n"


def _past(past: Past | Unanswered) -> str:
    """JSON of it."""
    if isinstance(past, Unanswered):
        return dumped({"error": past.error})
    ever = {key: value for key, value in _slot(past.ever).items() if key not in ("start", "end")}
    return written({"since": past.since, "slots": [_slot(slot) for slot in past.slots], "ever": ever})


def _slot(slot: Slot) -> dict[str, Any]:
    """A slot without what its Type does not have; its bins by the greatest value that each counts."""
    found = {key: value for key, value in attrs.asdict(slot).items() if value is not None}
    if slot.bins is not None:
        uppers = uppers_of(numpy.array([code for code, _ in slot.bins], dtype=numpy.int64)).tolist()
        found["bins"] = [[upper, count] for upper, (_, count) in zip(uppers, slot.bins, strict=True)]
    return found
