"""With many Servers each host sends to few of them, and each of them hears of as many hosts as the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.dispatch import NEAR_SERVERS, Dispatch

URLS = [f"http://server-{number}:8280" for number in range(100)]


def dispatch_of(host: str, urls: list[str] = URLS) -> Dispatch:
    return Dispatch(cast(Any, None), urls, Random(1), host)


def near_of(dispatch: Dispatch) -> list[str]:
    return [server.url for server in dispatch.near(list(dispatch.servers.values()))]


class Near(SynchronousTestCase):
    def test_few_servers_are_near_as_many_hosts_each_and_all_agents_of_a_host_have_the_same(self) -> None:
        hosts = [f"host-{number}" for number in range(1300)]
        heard = Counter(url for host in hosts for url in near_of(dispatch_of(host)))
        self.assertEqual(set(heard), set(URLS))
        self.assertGreater(min(heard.values()), 65)  # 100 on the average
        self.assertLess(max(heard.values()), 140)
        self.assertEqual(near_of(dispatch_of("a")), near_of(dispatch_of("a", URLS[::-1]))[::-1])

    def test_a_bucket_is_written_by_one_server_of_each_run(self) -> None:
        writers = defaultdict(set)
        for number in range(60):
            dispatch = dispatch_of(f"host-{number}")
            usable = dispatch.near(list(dispatch.servers.values()))
            for bucket in range(20):
                preferred = dispatch._prefer(bucket, usable)
                assert preferred is not None
                writers[bucket].add(preferred.url)
        self.assertLessEqual(max(map(len, writers.values())), 13)

    @given(st.integers(1, 40), st.text(max_size=5))
    def test_there_are_never_more_than_a_few_and_never_none(self, count: int, host: str) -> None:
        found = near_of(dispatch_of(host, URLS[:count]))
        self.assertTrue(min(count, NEAR_SERVERS // 2) <= len(found) <= NEAR_SERVERS)
        if count <= NEAR_SERVERS:
            self.assertEqual(len(found), count)

    def test_where_none_of_them_is_well_any_other_is_taken(self) -> None:
        dispatch = dispatch_of("host")
        near = near_of(dispatch)
        well = [server for server in dispatch.servers.values() if server.url not in near]
        self.assertEqual(dispatch.near(well), well)
        one = [server for server in dispatch.servers.values() if server.url == near[0]]
        self.assertEqual(dispatch.near(well + one), one)
