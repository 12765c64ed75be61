"""Logging in: a token once, a cookie from then on, which counts for the very page of the Server alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba import guard, tries
from taba.cookies import COOKIE, SAFE_COOKIE, cookie_of, no_cookies, token_shown
from taba.tokens import KINDS, line_of, new_token
from tests.server.running import ServerCase, asynchronous

HOST = "127.0.0.1:8280"
TOKEN = new_token("read")


def shown(method: str = "GET", cookie: str = f"{COOKIE}={TOKEN}", host: str = HOST, **more: str) -> str | None:
    headers = {"cookie": [cookie], "host": [host], "origin": [], "sec-fetch-site": []}
    headers |= {name.replace("_", "-"): [value] for name, value in more.items()}
    return token_shown(headers, method)


class Cookies(SynchronousTestCase):
    def test_a_token_in_a_cookie_counts_where_the_servers_own_page_asks(self) -> None:
        own = {"origin": f"http://{HOST}", "sec_fetch_site": "same-origin"}
        self.assertEqual(shown(), TOKEN)
        self.assertEqual(shown(**own), TOKEN)
        self.assertEqual(shown("DELETE", **own), TOKEN)
        self.assertEqual(shown("PUT", host="TABA.example", origin="https://taba.example"), TOKEN)  # what ends TLS stands before us
        self.assertEqual(shown(cookie=f"a=1; {SAFE_COOKIE}={TOKEN}; {COOKIE}=x"), TOKEN)

    def test_a_header_that_is_no_cookie_costs_no_more_than_its_length(self) -> None:
        for part in (" ", "a= ", "a=", ";", "=", " ;", "\t=\t"):  # a pattern for this was quadratic: 3 s for one header of spaces
            self.assertIsNone(shown(cookie=part * 500_000), part)
        self.assertEqual(shown(cookie=f"a=1;; ={TOKEN}; x;\t{COOKIE} = {TOKEN} ;{COOKIE}=x"), TOKEN)  # the first of its name

    def test_it_counts_for_no_other_page_and_no_change_without_an_origin(self) -> None:
        for method in ("POST", "PUT", "DELETE"):
            self.assertIsNone(shown(method))
        for origin in ("http://127.0.0.1:9999", "http://evil.example", "null", "http://[", f"http://{HOST}.evil.example", ""):
            self.assertIsNone(shown(origin=origin), origin)
            self.assertIsNone(shown("POST", origin=origin), origin)
        for site in ("cross-site", "same-site", "what"):
            self.assertIsNone(shown(sec_fetch_site=site), site)

    def test_what_is_no_token_is_nobodys(self) -> None:
        for cookie in ("", COOKIE, f"{COOKIE}=", f"{COOKIE}=taba_read_x", f"x{COOKIE}={TOKEN}", f"{COOKIE}={TOKEN}x", "=" * 1000):
            self.assertIsNone(shown(cookie=cookie), cookie)

    def test_no_script_and_no_other_site_gets_it(self) -> None:
        for is_safe in (False, True):
            parts = set(cookie_of(TOKEN, is_safe).split("; ")[1:])
            self.assertEqual(parts, {"Path=/", "HttpOnly", "SameSite=Strict"} | ({"Secure"} if is_safe else set()))
        self.assertTrue(cookie_of(TOKEN, True).startswith("__Host-"))
        self.assertTrue(all(cookie.endswith("; Max-Age=0") for cookie in no_cookies()))


class LoggingIn(ServerCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(guard, "FAILED_SECONDS", 0.0)
        self.patch(tries, "FAILED_SECONDS", 0.0)
        self.tokens = {kind: new_token(kind) for kind in KINDS}
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.file = Path(directory.name) / "tokens"
        self.write(*self.tokens.values())

    def write(self, *tokens: str) -> None:
        self.file.touch(0o600)
        self.file.write_text("".join(line_of(token) + "\n" for token in tokens))

    async def login(self, server: Any, token: str) -> tuple[Any, str]:
        answered = await self.ask(server, "/login", "POST", headers={"Authorization": [f"Bearer {token}"]})
        cookies = answered.headers.getRawHeaders("set-cookie") or [""]
        return answered, cookies[0].partition(";")[0]

    @asynchronous
    async def test_a_cookie_may_what_its_token_may_and_ends_with_it(self) -> None:
        server = await self.start(tokens=str(self.file))
        self.assertEqual((await self.ask(server, "/")).status, 200)  # the page itself is for everybody
        self.assertEqual((await self.ask(server, "/v1/names")).status, 401)
        self.assertEqual((await self.ask(server, "/login")).status, 401)
        answered, cookie = await self.login(server, self.tokens["read"])
        self.assertEqual((answered.status, answered.json), (200, {"tokens": True, "kind": "read", "bound": None}))
        shown = {"Cookie": [cookie]}
        own = {**shown, "Origin": [server.presence.url]}
        self.assertEqual((await self.ask(server, "/v1/names", headers=shown)).json, [])
        self.assertEqual((await self.ask(server, "/login", headers=shown)).json["kind"], "read")
        self.assertEqual((await self.ask(server, "/v1/boards/a", "PUT", b'{"tabs": []}', own)).status, 403)
        _, cookie = await self.login(server, self.tokens["admin"])
        admin = {"Cookie": [cookie], "Origin": [server.presence.url]}
        self.assertEqual((await self.ask(server, "/v1/boards/a", "PUT", b'{"tabs": []}', admin)).status, 200)
        for origin in ({}, {"Origin": ["http://127.0.0.1:1"]}):
            answered = await self.ask(server, "/v1/boards/b", "PUT", b'{"tabs": []}', {"Cookie": [cookie], **origin})
            self.assertIn(answered.status, (401, 403))
        self.assertEqual(list((await self.ask(server, "/v1/boards", headers=admin)).json), ["a"])
        self.write(self.tokens["read"])  # the administrator's is taken back
        server.hang_up()
        self.assertEqual((await self.ask(server, "/v1/names", headers=admin)).status, 401)
        self.assertEqual((await self.ask(server, "/v1/names", headers=shown)).status, 200)

    @asynchronous
    async def test_tries_are_counted_and_shown_and_logging_out_forgets(self) -> None:
        server = await self.start(tokens=str(self.file))
        for _ in range(3):
            answered, cookie = await self.login(server, new_token("admin"))
            self.assertEqual((answered.status, answered.json["error"], cookie), (401, "unknown_token", ""))
        status = (await self.ask(server, "/v1/status", headers={"Authorization": [f"Bearer {self.tokens['read']}"]})).json
        self.assertEqual(status["listening"]["unknown_tokens"], 3)
        self.assertTrue([problem for problem in status["problems"] if "not known" in problem])
        self.assertEqual((await self.ask(server, "/login", "POST", headers={"Authorization": ["Basic x"]})).status, 401)
        out = await self.ask(server, "/logout", "POST")
        self.assertEqual(len(out.headers.getRawHeaders("set-cookie")), 2)

    @asynchronous
    async def test_where_no_tokens_are_asked_for_everybody_may_everything_and_no_cookie_is_made(self) -> None:
        server = await self.start()
        answered, cookie = await self.login(server, self.tokens["read"])
        self.assertEqual((answered.json, cookie), ({"tokens": False, "kind": "admin", "bound": None}, ""))
        self.assertEqual((await self.ask(server, "/login")).json, answered.json)
