"""Tokens that are bound to Clients or names: of what is beyond, nothing is taken and nothing is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater

from taba import web
from taba.batch import Verdict
from taba.events import key_part
from taba.names import bucket_of
from taba.server.fold import posts
from taba.server.service import Server
from taba.tokens import ADMIN, READ, WRITE, Scope, digest_of, line_of, new_token

from ..stores import borrow
from .running import BUCKETS, Answered, ServerCase, asynchronous, encoded, reactor
from .samples import column

TEAMS = {
    "team": Scope((), ("team_a.",)),
    "hosts": Scope(("web/*",), ()),
    "both": Scope(("web/1", "job/*"), ("team_a.", "shared")),
}
NAMES = ["shared", "team_a.x", 'team_a.y{z="1"}', "team_b.x", 'team_b.x{z="1"}']
NAMED = "name=team_a.x&name=team_b.x&name=shared"
CLIENTS = ["web/1", "web/2", "job/1", "other"]


class Bound(ServerCase):
    async def begin(self) -> Server:
        self.tokens = {ADMIN: new_token(ADMIN), READ: new_token(READ), WRITE: new_token(WRITE)}
        lines = [line_of(token) for token in self.tokens.values()]
        for name, scope in TEAMS.items():
            for kind in (READ, WRITE):
                token = self.tokens[f"{name} {kind}"] = new_token(kind)
                lines.append(line_of(token, scope))
        path = Path(self.mktemp())
        path.touch(0o600)
        path.write_text("\n".join(lines))
        self.listed = str(path)
        return await self.start(tokens=self.listed)

    async def ask_as(self, who: str, server: Server, path: str, method: str = "GET", body: Any = None) -> Answered:
        return await self.ask(server, path, method, body, {"Authorization": [f"Bearer {self.tokens[who]}"]})

    async def post_as(self, who: str, server: Server, client: str, names: list[str], key: str | None = None) -> Answered:
        events = [{"tab": name, "type": "TotalsCounter", "value": 1} for name in names]
        headers = {"Authorization": [f"Bearer {self.tokens[who]}"]} | ({} if key is None else {"Idempotency-Key": [key]})
        return await self.ask(server, "/v1/events", "POST", json.dumps({"client": client, "events": events}).encode(), headers)

    async def fill(self, server: Server) -> None:
        for client in CLIENTS:
            self.assertEqual((await self.post_as(WRITE, server, client, NAMES)).json["accepted"], len(NAMES))

    def within(self, scope: Scope) -> dict[str, list[str]]:
        clients = sorted(filter(scope.covers_client, CLIENTS))
        return {name: clients for name in NAMES if scope.covers_tab(name)}

    @asynchronous
    async def test_a_team_sees_its_own_whatever_it_asks_for(self) -> None:
        server = await self.begin()
        await self.fill(server)
        for team, scope in TEAMS.items():
            within = self.within(scope)
            for filters in ("", "match=.*", "name=*", "client=*", "client_match=.*", NAMED):
                wanted = {name: of for name, of in within.items() if filters != NAMED or not name.startswith("team_a.y")}
                answers = {}
                for what in ("names", "clients", "types", "projections", "aggregates", "overview", "who", "slots"):
                    answered = await self.ask_as(f"{team} {READ}", server, f"/v1/{what}?{filters}")
                    self.assertEqual(answered.status, 200, (team, what, answered.body))
                    answers[what] = answered.json
                self.assertEqual(answers["names"], sorted(wanted), (team, filters))
                self.assertEqual(answers["clients"], next(iter(wanted.values())), (team, filters))
                self.assertEqual(sorted(answers["types"]), sorted(wanted))
                self.assertEqual({name: sorted(of) for name, of in answers["projections"].items()}, wanted, (team, filters))
                many = {name: len(of) for name, of in wanted.items()}
                self.assertEqual({name: found["count"] for name, found in answers["aggregates"].items()}, many)
                self.assertEqual(sorted(row["name"] for row in answers["overview"]), sorted(wanted))
                self.assertEqual({name: found["clients"] for name, found in answers["who"].items()}, many)
                self.assertLessEqual(set(answers["slots"]), set(wanted))
            [count] = {(await self.ask_as(f"{team} {READ}", server, "/v1/superaggregate")).json["count"]}
            self.assertEqual(count, sum(map(len, within.values())))
        everything = (await self.ask_as(READ, server, "/v1/names")).json
        self.assertEqual(everything, sorted(NAMES))

    @asynchronous
    async def test_a_team_asks_for_another_s_by_name_and_hears_of_nothing(self) -> None:
        server = await self.begin()
        await self.fill(server)
        nothing: dict[str, Any] = {"names": [], "clients": [], "types": {}, "projections": {}, "aggregates": {}, "overview": [], "who": {}}
        for what, empty in nothing.items():
            answered = await self.ask_as(f"team {READ}", server, f"/v1/{what}?name=team_b.x")
            self.assertEqual((answered.status, answered.json), (200, empty), what)

    @asynchronous
    async def test_a_team_hears_that_the_store_is_away_and_not_where_it_is(self) -> None:
        self.patch(web, "MAX_LISTEN_SECONDS", 0.05)
        self.valkey = borrow(self, tcp=True)
        server = await self.begin()
        await self.fill(server)
        where = f"127.0.0.1:{self.valkey.port}"
        self.assertIn(where, (await self.ask_as(READ, server, "/v1/status")).json["store"]["url"])
        self.assertEqual((await self.ask_as(f"team {READ}", server, "/v1/status")).json["store"]["url"], "")
        self.patch(server.router, "_away_seconds", 0.05)
        self.valkey.kill()

        async def said(who: str, path: str, method: str = "GET", body: bytes | None = None) -> str:
            """All of an answer, the header that says what is away among it."""
            answered = await self.ask_as(who, server, path, method, body)
            if "partial" in path:
                self.assertEqual(answered.status, 200, (path, answered.body))
                away = json.loads(answered.headers.getRawHeaders("Taba-Away")[0])
                self.assertEqual([(shard, of["buckets"]) for shard, of in away.items()], [("s1" if who == READ else "?", "0-15")])
            return f"{answered.headers} {answered.text}"

        for what in ("names", "clients", "types", "projections", "aggregates", "superaggregate", "overview", "who", "slots", "stream"):
            for filters in ("name=team_a.x", "name=*", "name=team_a.x&partial=1", "name=*&partial=1")[: 2 if what == "stream" else 4]:
                path = f"/v1/{what}?{filters}"
                self.assertIn(where, await said(READ, path))
                told = await said(f"team {READ}", path)
                self.assertIn("does not answer now: a token that is bound to nothing is told which, and why", told, path)
                self.assertNotIn(where, told, path)
        self.assertNotIn(where, (await self.ask_as(f"team {READ}", server, "/v1/status")).text)
        self.assertNotIn(where, (await self.post_as(f"team {WRITE}", server, "web/1", ["team_a.x"], "k")).text)
        while (ready := await self.ask(server, "/readyz")).status == 200:
            await deferLater(reactor, 0.05)
        self.assertEqual(ready.json, {"error": "not_ready", "detail": "this Server does not work now: its log says why"})

    @asynchronous
    async def test_a_team_listens_to_its_own(self) -> None:
        self.patch(web, "MAX_LISTEN_SECONDS", 0.05)
        server = await self.begin()
        await self.fill(server)
        for team, scope in TEAMS.items():
            answered = await self.ask_as(f"{team} {READ}", server, "/v1/stream?name=*")
            [heard] = [json.loads(line[6:]) for line in answered.text.splitlines() if line.startswith("data: ")]
            self.assertEqual(
                {name: one["count"] for name, one in heard["aggregates"].items()},
                {name: len(of) for name, of in self.within(scope).items()},
            )

    @asynchronous
    async def test_what_knows_no_bounds_is_refused_to_bound_tokens_alone(self) -> None:
        server = await self.begin()
        for path in ("/v1/dead-letters", "/v1/latency", "/v1/shards", "/v1/jobs", "/v1/notes"):
            answered = await self.ask_as(f"team {READ}", server, path)
            self.assertEqual((answered.status, answered.json["error"]), (403, "other_token"), path)
            self.assertIn("team_a.", answered.json["detail"])
            self.assertEqual((await self.ask_as(READ, server, path)).status, 200, path)
        self.assertEqual((await self.ask_as(f"team {READ}", server, "/v1/status")).status, 200)

    @asynchronous
    async def test_posted_events_beyond_are_rejected_by_their_place_and_another_client_as_a_whole(self) -> None:
        server = await self.begin()
        answered = await self.post_as(f"team {WRITE}", server, "anybody", NAMES)
        self.assertEqual(answered.json["accepted"], 2)
        self.assertEqual([rejected["index"] for rejected in answered.json["rejected"]], [0, 3, 4])
        self.assertIn("names that begin with team_a.", answered.json["rejected"][0]["reason"])
        answered = await self.post_as(f"hosts {WRITE}", server, "job/1", NAMES)
        self.assertEqual((answered.status, answered.json["error"]), (403, "other_token"))
        self.assertEqual((await self.post_as(f"hosts {WRITE}", server, "web/9", NAMES)).json["accepted"], len(NAMES))
        self.assertEqual((await self.ask_as(READ, server, "/v1/clients")).json, ["anybody", "web/9"])

    @asynchronous
    async def test_a_token_under_ever_new_clients_takes_no_room_for_keys_from_another_after_a_restart_too(self) -> None:
        self.patch(posts, "MAX_POSTERS", 9)
        server = await self.begin()

        def key_of(client: str) -> str:
            """One whose record lies in one bucket, whoever posts."""
            return next(f"{n}" for n in range(10_000) if int.from_bytes(key_part(client, f"{n}", b"").key[:8], "big") % BUCKETS == 0)

        async def said(who: str, *clients: str) -> list[int]:
            return [(await self.post_as(who, server, client, NAMES[:1], key_of(client))).status for client in clients]

        self.assertEqual(await said(WRITE, "good/1"), [200])
        strange = [f"flood/{number}" for number in range(6)]
        self.assertEqual(await said(f"team {WRITE}", *strange), [200] * 4 + [429] * 2)
        await self.stop(server)
        server = await self.start(tokens=self.listed)
        late = await self.post_as(f"team {WRITE}", server, "late", NAMES[:1], key_of("late"))
        self.assertEqual((late.status, late.json["error"], late.headers.getRawHeaders("retry-after")), (429, "too_many_keys", ["3600"]))
        self.assertIn("Idempotency-Keys of 4 Clients within a day: 4 more are left to others", late.json["detail"])
        self.assertEqual(await said(f"team {WRITE}", strange[0]), [200])  # what it has is known
        self.assertEqual(await said(WRITE, "good/1", "good/2", "good/2"), [200] * 3)
        problems = "\n".join((await self.ask_as(READ, server, "/v1/status")).json["problems"])
        named = digest_of(self.tokens[f"team {WRITE}"]).hex()[:16]
        self.assertIn(f"token {named} posts under Idempotency-Keys of ever new Clients", problems)
        told = (await self.ask_as(READ, server, f"/v1/projections?name={NAMES[0]}&client=good/*")).json[NAMES[0]]
        self.assertEqual({client: of["count"] for client, of in told.items()}, {"good/1": 1, "good/2": 1})

    @asynchronous
    async def test_a_post_of_which_a_token_covered_a_part_is_another_than_the_same_with_one_that_covers_more(self) -> None:
        server = await self.begin()
        bucket = bucket_of("team_a.x", BUCKETS)
        theirs = next(name for n in range(10_000) if bucket_of(name := f"team_b.{n}", BUCKETS) == bucket)
        first = await self.post_as(f"team {WRITE}", server, "web/1", ["team_a.x", theirs], "k")
        self.assertEqual((first.status, first.json["accepted"]), (200, 1))
        again = await self.post_as(f"team {WRITE}", server, "web/1", ["team_a.x", theirs], "k")
        self.assertEqual(again.json, first.json)  # it counts once
        # its batch in this bucket was applied without theirs: it would be taken for folded
        more = await self.post_as(WRITE, server, "web/1", ["team_a.x", theirs], "k")
        self.assertEqual((more.status, more.json["error"]), (422, "other_request"))
        for who in (f"both {WRITE}", WRITE):  # tokens that cover all of it are as good as each other
            whole = await self.post_as(who, server, "web/1", ["team_a.x"], "whole")
            self.assertEqual((whole.status, whole.json["accepted"]), (200, 1))
        found = (await self.ask_as(READ, server, "/v1/aggregates")).json
        self.assertEqual({name: one["count"] for name, one in found.items()}, {"team_a.x": 2})

    @asynchronous
    async def test_columns_beyond_become_dead_letters_and_those_beside_them_are_folded(self) -> None:
        server = await self.begin()
        tab = "team_a.x"
        bucket = bucket_of(tab, BUCKETS)
        theirs = next(name for n in range(10_000) if bucket_of(name := f"team_b.{n}", BUCKETS) == bucket)
        columns = [column(name, "TotalsCounter", [1.0, 2.0], client) for client in ("web/1", "other") for name in (tab, theirs)]
        self.headers = {"Authorization": [f"Bearer {self.tokens[f'both {WRITE}']}"]}
        verdicts = await self.send(server, encoded(1, bucket, 1, columns), encoded(1, bucket, 2, columns[:1]))
        self.assertEqual(verdicts, [Verdict("applied", 1), Verdict("applied", 2)])
        found = (await self.ask_as(READ, server, "/v1/projections")).json
        self.assertEqual({name: {client: one["count"] for client, one in of.items()} for name, of in found.items()}, {tab: {"web/1": 4}})
        status = (await self.ask_as(READ, server, "/v1/status")).json
        self.assertEqual((status["folded"], status["dead_letters_by_reason"]), (4, {"not_covered": 6}))
        letters = (await self.ask_as(READ, server, "/v1/dead-letters")).json
        self.assertTrue(
            all("bound to Clients web/1, job/* and names that begin with team_a., shared" in one["detail"] for one in letters), letters
        )
