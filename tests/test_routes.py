"""The table of definitions: what it finds, what it refuses."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.routes import FLAG, WHOLE, Parameter, Route, Table


async def serve(call: Any) -> Any:
    raise AssertionError


def route(method: str, path: str, *parameters: Parameter) -> Route:
    return Route(method, path, serve, "", parameters=parameters)


class Tables(SynchronousTestCase):
    def test_what_is_defined_is_found_and_nothing_else(self) -> None:
        name = Parameter("name", "")
        table = Table([route("GET", "/a"), route("POST", "/a"), route("GET", "/b/{name}", name), route("GET", "/b/{name}/c", name)])
        for method, path, expected in [
            ("GET", "/a", ("/a", {})),
            ("HEAD", "/a", ("/a", {})),
            ("DELETE", "/a", None),
            ("GET", "/a/", None),
            ("GET", "/b/x%2Fy", ("/b/{name}", {"name": "x/y"})),
            ("GET", "/b/x/c", ("/b/{name}/c", {"name": "x"})),
            ("GET", "/b/", None),
            ("GET", "/b/%ff", None),
        ]:
            found = table.find(method, path)
            self.assertEqual(None if found is None else (found.route.path, found.in_path), expected, path)
        self.assertEqual(table.methods("/a"), ["GET", "HEAD", "POST"])
        self.assertEqual((table.methods("/b/x"), table.methods("/nowhere")), (["GET", "HEAD"], []))

    def test_a_table_that_contradicts_itself_is_none(self) -> None:
        for routes in ([route("GET", "/a"), route("GET", "/a")], [route("GET", "/a/{name}")]):
            self.assertRaises(ValueError, Table, routes)


class Parameters(SynchronousTestCase):
    def test_values_at_their_bounds_and_past_them(self) -> None:
        whole = Parameter("n", "", WHOLE, least=1, most=10, default=5)
        self.assertEqual([whole.read(values) for values in ([], ["1"], ["10"], ["007"])], [5, 1, 10, 7])
        several = Parameter("n", "", repeatable=True, most=2)
        self.assertEqual([several.read(values) for values in ([], ["a", "a"])], [[], ["a", "a"]])
        flag = Parameter("n", "", FLAG)
        self.assertEqual([flag.read(values) for values in ([], ["0"], ["1"])], [False, False, True])
        for parameter, bad in [
            (whole, ["0"]),
            (whole, ["11"]),
            (whole, [""]),
            (whole, ["-1"]),
            (whole, ["1e1"]),
            (whole, ["²"]),
            (whole, ["1" * 5000]),
            (whole, ["1", "2"]),
            (several, ["a"] * 3),
            (flag, ["yes"]),
            (flag, [""]),
            (Parameter("n", "", is_required=True), []),
            (Parameter("n", "", repeatable=True, is_required=True), []),
        ]:
            message = str(self.assertRaises(ValueError, parameter.read, bad))
            self.assertIn("n=", message)
            self.assertLess(len(message), 250)
