from __future__ import annotations

from random import Random
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.dispatch import Dispatch


class Meeting(SynchronousTestCase):
    def learned(self, source: str, *told: str) -> set[str]:
        dispatch = Dispatch(cast(Any, None), [source], Random(1))
        dispatch.meet(dispatch.servers[source], [{"url": url} for url in told])
        return set(dispatch.servers) - {source}

    def test_a_server_under_tls_leads_to_none_without(self) -> None:
        secured, plain = "https://b:8280", "http://c:8280"
        self.assertEqual(self.learned("https://a:8280", secured, plain), {secured})
        self.assertEqual(self.learned("http://a:8280", secured, plain), {secured, plain})

    def test_the_loopback_of_another_host_is_not_this_ones(self) -> None:
        self.assertEqual(self.learned("http://a:8280", "http://127.0.0.1:8281"), set())
        self.assertEqual(self.learned("http://127.0.0.1:8280", "http://127.0.0.1:8281"), {"http://127.0.0.1:8281"})
