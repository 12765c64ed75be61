"""Histories from elsewhere: whole ones pass, all others are a sentence."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.handlers.percentile_group import PercentileGroup
from taba.handlers.testing import NOW, events_of
from taba.server.keys import Framed
from taba.server.work.pasts import history_type, pack_history, read_history


class Pasts(SynchronousTestCase):
    def packed(self) -> Any:
        handler = PercentileGroup()
        states = [handler.fold(handler.new_state(), events_of([(NOW - 9, 1.0), (NOW, 5.0)]), NOW), handler.new_state()]
        framed = [[Framed(handler.version, 0, part) for part in state] for state in states]
        return pack_history(history_type(handler, True, framed, NOW))

    def test_a_history_comes_through(self) -> None:
        history = read_history(self.packed(), 2)
        self.assertEqual((history.count, history.ever.count, history.ever.counts), ([1, 1], [2, 0], [1, 1]))

    def test_what_is_no_history_is_a_sentence(self) -> None:
        def spoil(which: int, name: str, column: Any) -> Any:
            content = self.packed()
            content[which][name] = column
            return content

        broken = [5, [], [1, 2], {}, [None, *self.packed()[1:]], [0.0, {}, {}], [0.0, self.packed()[2], self.packed()[1]]]
        broken += [spoil(1, "row", [0, 2]), spoil(1, "row", [0, -1]), spoil(1, "row", [0]), spoil(1, "start", [NOW * 2] * 2)]
        broken += [
            spoil(1, "end", [float("nan")] * 2),
            spoil(1, "count", [1, -1]),
            spoil(1, "count", [1, 1.5]),
            spoil(1, "total", ["x", 1.0]),
        ]
        broken += [
            spoil(1, "bins", [1, 2]),
            spoil(1, "codes", [1, 40_000]),
            spoil(1, "more", [1, 1]),
            spoil(2, "count", [2]),
            spoil(2, "low", 5),
        ]
        for content in broken:
            self.assertIn("history gave none", read_history(content, 2), repr(content)[:200])
        self.assertEqual((read_history(None, 2), read_history("why", 2)), (None, "why"))

    def test_a_state_of_a_newer_version_and_a_handler_that_raises_are_sentences(self) -> None:
        handler = PercentileGroup()
        self.assertIn("version 9", history_type(handler, True, [[Framed(9, 0, b"")]], NOW))
        self.assertIn("MalformedRow", history_type(handler, True, [[Framed(2, 0, b"x"), Framed(2, 0, b""), Framed(2, 0, b"")]], NOW))
