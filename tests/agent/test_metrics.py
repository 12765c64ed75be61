"""`/metrics` of an Agent, read by Prometheus' own parser."""

from __future__ import annotations

from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.http import Routes
from taba.agent.status import within
from taba.calls import HTTPError
from taba.tokens import UNBOUND, Scope

STATUS = {
    "version": "1.2",
    "agent": "blue",
    "rings_open": 3,
    "recorded": 17,
    "dropped_by_reason": {"full": 2},
    "edge": {"types": {"CounterGroup": 1}, "events": 40, "states": 1},
    "sums": {"left_out": {"no_room": 7, "not_finite": 0}},
    "outbox": {"bytes": 100, "used_bytes": 10, "batches": 4, "retained_batches": 6, "retained_bytes": 700},
    "tabs": 8,
    "clients": 2,
    "caps": {"agent_tabs": 300_000, "agent_clients": 9_000},
    "keys": {"count": 5, "most": 100_000},
    "grants": {"count": 4, "most": 131_072},
    "slots": {"count": 4, "of_one_program": 3, "most": 1_000},
    "lanes": {"count": 11, "most": 32_768},
    "spool": {"bytes": 1000, "used_bytes": 20, "batches": 5},
    "servers": [{"healthy": True}, {"healthy": False}],
    "second_tries": 6,
    "inputs": [{"kind": "statsd", "address": "udp:1", "counts": {"lines": 9, "kernel": 3}}],
    "problems": ["one", "two"],
}


class Asks:
    def __init__(self, match: str | None = None):
        self.values = {"match": match}

    async def breathe(self) -> None:
        return None

    def header(self, name: str) -> str | None:
        return None


class Scrapes(SynchronousTestCase):
    def test_an_agent_tells_how_it_does_in_figures(self) -> None:
        nothing = cast(Any, None)
        routes = Routes(nothing, nothing, nothing, lambda: STATUS, nothing, nothing, nothing)
        working = routes.metrics(cast(Any, Asks()))
        with self.assertRaises(StopIteration) as stopped:
            working.send(None)
        answer = stopped.exception.value
        families = text_string_to_metric_families(answer.content.decode())
        found = {(sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples}
        for name, labels, value in (
            ("taba_build_info", ("blue", "agent", "1.2"), 1.0),
            ("taba_recorded_events_total", (), 17.0),
            ("taba_dropped_events_total", ("full",), 2.0),
            ("taba_sums_left_out_events_total", ("no_room",), 7.0),
            ("taba_second_tries_total", (), 6.0),
            ("taba_rings", (), 3.0),
            ("taba_outbox_used_bytes", (), 10.0),
            ("taba_spool_batches", (), 5.0),
            ("taba_held", ("lanes",), 11.0),
            ("taba_held_most", ("lanes",), 32_768.0),
            ("taba_held", ("keys",), 5.0),
            ("taba_held", ("grants",), 4.0),
            ("taba_held_most", ("tabs",), 300_000.0),
            ("taba_held", ("retained_bytes",), 700.0),
            ("taba_input_total", ("udp:1", "statsd", "kernel"), 3.0),
            ("taba_servers_healthy", (), 1.0),
            ("taba_servers", (), 2.0),
            ("taba_problems", (), 2.0),
        ):
            self.assertEqual(found.get((name, labels)), value, name)
        self.assertTrue(any(name == "process_resident_memory_bytes" for name, _ in found))

    def test_an_expression_that_may_take_for_ever_is_refused_with_what_is_taken(self) -> None:
        nothing = cast(Any, None)
        routes = Routes(nothing, nothing, nothing, lambda: STATUS, nothing, nothing, nothing)
        for match in ("(a*)*b", "x" * 1001, "[ab]"):
            with self.assertRaises(HTTPError) as raised:
                routes.metrics(cast(Any, Asks(match))).send(None)
            self.assertEqual(raised.exception.status, 400)
            self.assertIn("names with .* and |", raised.exception.detail)


class Bound(SynchronousTestCase):
    """What the bearer of a token that is bound is told of an Agent."""

    def test_what_is_beyond_it_is_named_nowhere(self) -> None:
        content: dict[str, Any] = {
            **STATUS,
            "rings": [{"client": "web/1"}, {"client": "pay/1"}],
            "dropped_by_client": {"web/1": {"full": 1}, "pay/1": {"full": 2}},
            "overflow": {of: {"tabs": 3, "dropped": 0, "base": "pay_salaries"} for of in ("web/1", "pay/1")},
            "refused": [{"bucket": 1, "events": 2, "reason": "bad_column", "detail": "pay_salaries of pay/1"}],
            "spool": {"path": "/srv/pay/spool", "batches": 3},
            "problems": ["pay/1 makes too many Tabs", "pay_salaries has no Handler"],
        }
        told = within(content, Scope(clients=("web/*",), prefixes=("web.",)))
        self.assertNotIn("pay", str(told))
        self.assertEqual(told["rings"], [{"client": "web/1"}])
        self.assertEqual(told["dropped_by_client"], {"web/1": {"full": 1}})
        self.assertEqual(told["overflow"]["web/1"]["tabs"], 3)
        self.assertEqual((told["recorded"], told["dropped_by_reason"], len(told["refused"])), (17, {"full": 2}, 1))
        self.assertRegex(told["problems"][0], "^2 of what needs a person")
        self.assertEqual(within(content, UNBOUND), content)
