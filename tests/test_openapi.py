"""The document that the routes describe themselves with is valid, and names them all."""

from __future__ import annotations

from typing import Any, cast

from openapi_spec_validator import validate
from twisted.trial.unittest import SynchronousTestCase

from taba.openapi import describe
from taba.routes import FLAG, FORM, WHOLE, Parameter, Route
from taba.tokens import OPEN

from .server.running import ServerCase, asynchronous


async def serve(call: Any) -> Any:
    raise AssertionError


class Documents(SynchronousTestCase):
    def test_every_kind_of_parameter_body_and_token(self) -> None:
        name, flag = Parameter("name", "A name."), Parameter("flag", "A flag.", FLAG)
        whole = Parameter("limit", "How many.", WHOLE, least=1, most=9, default=3)
        several = Parameter("client", "Ids.", repeatable=True, is_required=True, most=10)
        routes = [
            Route("GET", "/boards/{name}", serve, "a board", OPEN, (name, flag, whole)),
            Route("PUT", "/boards/{name}", serve, "nothing", parameters=(name,), body=FORM),
            Route("DELETE", "/v1/clients", serve, "counts", parameters=(several,), status=202),
        ]
        document: Any = describe(routes, "Boards", "1.0")
        validate(document)
        get = document["paths"]["/boards/{name}"]["get"]
        self.assertEqual([(one["in"], one["required"]) for one in get["parameters"]], [("path", True), ("query", False), ("query", False)])
        self.assertEqual(get["parameters"][2]["schema"], {"type": "integer", "minimum": 1, "maximum": 9, "default": 3})
        self.assertNotIn("security", get)
        delete = document["paths"]["/v1/clients"]["delete"]
        self.assertEqual((delete["security"], list(delete["responses"])), ([{"token": []}, {}], ["202", "default"]))
        self.assertEqual(delete["parameters"][0]["schema"]["maxItems"], 10)


class Served(ServerCase):
    @asynchronous
    async def test_a_server_describes_all_its_routes(self) -> None:
        server = await self.start()
        document = await self.get(server, "/openapi.json")
        validate(document)
        table = cast(Any, server.site.resource).table
        described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
        self.assertEqual(described, {(route.method, route.path) for route in table.routes})
        ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
        self.assertEqual(len(ids), len(set(ids)))
