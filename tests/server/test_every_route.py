"""Every route there is, of Server and Agent, with every kind of token: a new one cannot forget its check, nor whom it tells what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from twisted.internet.task import Clock

from taba import web
from taba.agent.http import Routes as AgentRoutes
from taba.guard import Guard, Refused, TokenFile
from taba.options import Listen
from taba.routes import Found, Route
from taba.server.service import Server
from taba.tokens import ADMIN, ANY, KINDS, OPEN, READ, WRITE, Grant, Scope, line_of, new_token
from taba.web import Api

from .running import ServerCase, asynchronous

OPEN_TO_ALL = {"GET /", "GET /page/{file}", "POST /logout", "GET /healthz", "GET /readyz"}
FOR_ANY_TOKEN = {"GET /v1/status", "GET /v1/servers", "GET /openapi.json", "GET /login", "POST /login"}
WRITES = {"POST /v1/envelopes", "POST /v1/events", "POST /v1/notes", "POST /v1/drain"}
KNOW_BOUNDS = {"POST /v1/envelopes", "POST /v1/events"} | {
    f"GET /v1/{what}"
    for what in ("names", "clients", "types", "projections", "aggregates", "superaggregate", "slots", "overview", "who", "stream")
}
MINE, THEIRS, CLIENT, HIDDEN = "team_a.mine", "team_b.theirs", "web/1", "hidden/1"
SCOPE = Scope(("web/*",), ("team_a.",))


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


def kind_of(route: Route) -> str:
    """The kind of token that it takes, by what it does: said here once more, and not by its definition."""
    name = named(route)
    if name in OPEN_TO_ALL:
        return OPEN
    if name in FOR_ANY_TOKEN:
        return ANY
    if name in WRITES:
        return WRITE
    return READ if route.method == "GET" or route.path.startswith("/api/v1/") else ADMIN


class Shown:
    """A request that shows a token, or none."""

    def __init__(self, guard: Guard, token: str | None):
        self._guard, self._token = guard, token

    def identify(self) -> Grant:
        return self._guard.identify([] if self._token is None else [f"Bearer {self._token}"], False, "192.0.2.1")


class EveryRoute(ServerCase):
    async def begin(self) -> Server:
        self.tokens = {(kind, is_bound): new_token(kind) for kind in KINDS for is_bound in (False, True) if kind != ADMIN or not is_bound}
        path = Path(self.mktemp())
        path.touch(0o600)
        path.write_text("\n".join(line_of(token, SCOPE if is_bound else Scope()) for (_, is_bound), token in self.tokens.items()))
        self.guard = Guard(TokenFile(path), None, Listen("tcp:0:interface=127.0.0.1", 0, "127.0.0.1"), Clock().seconds)
        return await self.start(tokens=str(path))

    def is_admitted(self, api: Api, route: Route, token: str | None) -> bool:
        try:
            api._admit(Shown(self.guard, token), Found(route, {}))
        except Refused as error:
            self.assertEqual(error.status, 401 if token is None or token.endswith("?") else 403, named(route))
            return False
        return True

    @asynchronous
    async def test_each_takes_the_kind_of_token_that_what_it_does_asks_for_and_no_other(self) -> None:
        server = await self.begin()
        agent: Any = None
        tables: Sequence[Sequence[Route]] = (
            cast(Any, server.site.resource).table.routes,
            AgentRoutes(agent, agent, agent, agent, agent, agent, agent).table(),
        )
        seen = set()
        for routes in tables:
            api = Api(routes, self.guard)
            for route in routes:
                seen.add(named(route))
                wanted = kind_of(route)
                self.assertEqual(route.is_scoped, wanted in KINDS and named(route) in KNOW_BOUNDS, named(route))
                for nobody in (None, new_token(ADMIN) + "?"):
                    self.assertEqual(self.is_admitted(api, route, nobody), wanted == OPEN, (named(route), nobody))
                for (kind, is_bound), token in self.tokens.items():
                    may = wanted in (OPEN, ANY, kind) or kind == ADMIN
                    may = may and (not is_bound or wanted in (OPEN, ANY) or named(route) in KNOW_BOUNDS)
                    self.assertEqual(self.is_admitted(api, route, token), may, (named(route), kind, is_bound))
        self.assertEqual((OPEN_TO_ALL | FOR_ANY_TOKEN | WRITES | KNOW_BOUNDS) - seen, set())

    async def told(self, server: Server, path: str, kind: str, is_bound: bool) -> str:
        answered = await self.ask(server, path, headers={"Authorization": [f"Bearer {self.tokens[kind, is_bound]}"]})
        self.assertIn(answered.status, (200, 400), (path, answered.body))
        return answered.text

    @asynchronous
    async def test_whatever_a_bound_token_may_ask_names_nothing_beyond_it(self) -> None:
        self.patch(web, "MAX_LISTEN_SECONDS", 0.02)
        server = await self.begin()
        bearer = {"Authorization": [f"Bearer {self.tokens[WRITE, False]}"]}
        for client in (CLIENT, HIDDEN):
            events = [{"tab": tab, "type": "TotalsCounter", "value": 1, "labels": {"of": tab}} for tab in (MINE, THEIRS)]
            body = json.dumps({"client": client, "events": [*events, {"tab": f"{client[:3]}.x", "type": "Nowhere", "value": 1}]}).encode()
            self.assertEqual((await self.ask(server, "/v1/events", "POST", body, bearer)).status, 200)
        for _ in range(2):  # what problems name
            body = json.dumps({"client": HIDDEN, "events": [{**events[1], "type": "Gauge"}]}).encode()
            self.assertEqual((await self.ask(server, "/v1/events", "POST", body, bearer)).status, 200)
        self.assertRegex(await self.told(server, "/v1/status", READ, False), f"{THEIRS}.*: Client {HIDDEN}")
        self.assertIn("a token that is bound to nothing is told which", await self.told(server, "/v1/status", READ, True))
        ways = ["name=*", "match=.*&name=*", f"name={THEIRS}&name={MINE}", "name=*&client_match=.*"]
        ways.append(f"name=*&client={HIDDEN}&client={CLIENT}")
        asked = 0
        for route in cast(Any, server.site.resource).table.routes:
            if route.method != "GET" or not (named(route) in KNOW_BOUNDS or route.token == ANY):
                continue
            takes = {one.name for one in route.parameters}
            for way in ways if "match" in takes else ("",):
                path = f"{route.path}?{way}" + "&detail=1" * ("detail" in takes)  # which tells more, and nothing less
                mine = await self.told(server, path, READ, True)
                for beyond in ("theirs", "hidden"):
                    self.assertNotIn(beyond, mine, path)
                asked += 1
                if way == "name=*" and route.path != "/v1/superaggregate":  # and who is bound to nothing is told of it
                    self.assertRegex(await self.told(server, path, READ, False), "theirs|hidden", path)
        self.assertGreater(asked, 5 * len(ways))
