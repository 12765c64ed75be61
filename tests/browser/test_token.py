"""The page in a real browser, of a Server that asks for a token."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.query import Query, QueryError
from taba.tokens import Scope, line_of, new_token
from tests.browser.chromium import Keys, share, shared, unshare
from tests.processes import Process, twistd, wait_for_port
from tests.services import START_SECONDS, Services

pytestmark = pytest.mark.real
setUpModule, tearDownModule = share, unshare


class LoggedIn(SynchronousTestCase):
    def is_ready(self, query: Query) -> bool:
        try:
            query.names()
        except QueryError:
            return False
        return True

    def test_a_token_is_asked_for_once_and_one_for_reading_changes_nothing(self) -> None:
        services = Services()
        self.addCleanup(services.stop)
        tokens = {kind: new_token(kind) for kind in ("read", "admin")}
        file = Path(tempfile.mkdtemp(dir=services.directory)) / "tokens"
        file.touch(0o600)
        bound = new_token("read")
        file.write_text("".join(f"{line_of(token)}\n" for token in tokens.values()) + line_of(bound, Scope(clients=("web:1",))) + "\n")
        browser = shared[0]
        options = ("--listen", f"tcp:{services.server_port}:interface=127.0.0.1", "--store", f"embedded:{services.directory / 'store'}")
        child = Process("server", twistd("taba-server", *options, "--tokens", str(file)), services.directory, services.environ)
        services.children.append(child)
        wait_for_port(child, services.server_port, START_SECONDS)
        query = Query(services.server_url, token=tokens["admin"])
        browser.until(lambda: self.is_ready(query))
        query.post_events("batch/1", [{"tab": "lost", "type": "NoSuchType", "value": 1}])
        browser.open(services.server_url)
        browser.type("#token", new_token("read"))
        browser.press(Keys.ENTER)
        browser.until_text("[role=alert]", "not known")
        for kind, may in (("read", False), ("admin", True)):
            browser.type("#token", tokens[kind])
            browser.press(Keys.ENTER)
            browser.until_text("#top", f"{kind} · log out")
            self.assertEqual(browser.run("return document.cookie"), "")
            browser.press("y")
            browser.until_text("h1", "System")
            browser.until_text("#jobs", "Jobs")
            self.assertEqual(bool(browser.texts("#job-prune")), may)
            browser.press("d")
            browser.until_text(".letter summary", "no Handler of Type NoSuchType")
            self.assertEqual((bool(browser.texts("#retry")), bool(browser.texts("#discard"))), (may, may))
            browser.click("#top .corner button")
            browser.until_text("main", "asks for a token")
        browser.type("#token", bound)
        browser.press(Keys.ENTER)
        browser.until_text("#top", "read · log out")
        browser.press("d")
        browser.until_text("main .empty", "bound to nothing; yours is bound to")  # not a page that says nothing
        browser.press("y")
        browser.until(lambda: len([text for text in browser.texts("main .empty") if "bound to nothing" in text]) == 2)
        refused = "return performance.getEntriesByType('resource').filter(one => /shards|jobs/.test(one.name)).length"
        asked = browser.run(refused)
        statuses = "return performance.getEntriesByType('resource').filter(one => one.name.includes('/v1/status')).length"
        before = browser.run(statuses)
        browser.until(lambda: browser.run(statuses) >= before + 4)  # what is not refused is asked on and on
        self.assertEqual(browser.run(refused), asked)
