"""The page in a real browser while its Server, or the store, is away."""

from __future__ import annotations

import os
import signal

import pytest

from tests.browser.chromium import share, unshare
from tests.browser.page import WithBrowser

pytestmark = pytest.mark.real
setUpModule, tearDownModule = share, unshare


class Away(WithBrowser):
    def test_a_server_that_is_away_is_said_and_what_it_says_later_is_shown(self) -> None:
        self.open("#/tab/hits")
        self.browser.until_text(".large dd", "")
        self.services.kill_server()
        self.browser.until_text("#banner", "does not answer")
        self.assertNotEqual(self.browser.text(".large dd"), "")  # what was shown stays
        self.services.start_server()
        self.browser.until(lambda: not self.browser.texts("#banner"))
        shown = self.browser.text(".large dd")
        self.browser.until(lambda: self.browser.text(".large dd") != shown)

    def test_a_store_that_is_away_is_said(self) -> None:
        self.open("#/")
        self.browser.until_text(".row .name", "hits")
        store = self.services.store_pid()
        os.kill(store, signal.SIGSTOP)
        try:
            self.browser.until(lambda: self.browser.texts("#banner"))
        finally:
            os.kill(store, signal.SIGCONT)
        self.browser.until(lambda: not self.browser.texts("#banner"))
