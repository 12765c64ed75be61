"""A Handler that cannot work is refused when it is found, with a sentence for its author."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import ArrayHandler, Handler
from taba.handlers.lookup import check_handler, find_handlers


class Longest(Handler):
    type = "Longest"

    def new_state(self) -> Any:
        return ""

    def fold(self, state: Any, events: Any, now: float) -> Any:
        return max([state, *events.values], key=len)

    def project(self, state: Any, now: float) -> Any:
        return {"longest": state}

    def aggregate(self, projections: Any) -> Any:
        return max(projections, key=lambda one: len(one["longest"]))


class Last(ArrayHandler):
    type = "Last"

    def load_array(self, dumps: Any) -> Any:
        return dumps

    def fold_array(self, states: Any, rows: Any, times: Any, values: Any, now: float) -> Any:
        return states

    def dump_array(self, states: Any) -> Any:
        return states

    def project_array(self, states: Any, parts: Any, now: float) -> Any:
        return [{}] * len(states)

    def aggregate(self, projections: Any) -> Any:
        return {}


def but(base: type, **members: Any) -> Any:
    """One of `base` that differs in these; None takes the method away."""
    root = ArrayHandler if issubclass(base, ArrayHandler) else Handler
    kept = {name: value for name, value in vars(base).items() if name not in members and not name.startswith("__")}
    return type(base.__name__, (root,), {**kept, **{name: value for name, value in members.items() if value is not None}})()


class Shape(SynchronousTestCase):
    def refused(self, handler: Any) -> str:
        return str(self.assertRaises(TypeError, check_handler, handler))

    def test_what_is_whole_is_taken(self) -> None:
        for handler in (Longest(), Last(), but(Longest, merge=lambda self, states: states[0])):
            check_handler(handler)
        self.assertEqual(find_handlers().problems, ())

    def test_each_method_that_a_handler_must_write_is_missed_by_name(self) -> None:
        for name in ("new_state", "fold", "project", "aggregate"):
            self.assertIn(f"Type Longest: has no {name}", self.refused(but(Longest, **{name: None})))
        for name in ("load_array", "fold_array", "dump_array", "project_array", "aggregate"):
            self.assertIn(f"Type Last: has no {name}", self.refused(but(Last, **{name: None})))
        self.assertIn("has no spill", self.refused(but(Last, further_parts=2)))

    def test_methods_of_a_wrong_shape(self) -> None:
        async def later(self: Any, state: Any, events: Any, now: float) -> Any:
            return state

        def bit_by_bit(self: Any, state: Any, now: float) -> Any:
            yield {}

        shapes: list[tuple[dict[str, Any], str]] = [
            ({"fold": lambda self, state: state}, "fold"),
            ({"fold": lambda self, state, events, now, more: state}, "fold"),
            ({"fold": 7}, "fold"),
            ({"fold": later}, "fold is asynchronous"),
            ({"project": bit_by_bit}, "project is a generator"),
            ({"dump": "text"}, "dump"),
            ({"merge": lambda self: None}, "merge takes (states)"),
            ({"merge": 7}, "merge takes (states)"),
            ({"detail": lambda self, state: None}, "detail takes (state, now)"),
        ]
        for members, said in shapes:
            self.assertIn(said, self.refused(but(Longest, **members)), members)
