"""What an `upgrade` gives is held against what a State must do before it is written in place of the one that it was made of."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.handlers import Handler
from taba.server.keys import Framed
from taba.server.work.keeping import merge_states, upgrade_type
from taba.server.work.renewing import MAX_STATE_BYTES, renewed

NOW = 1000.0


class Pair(Handler):
    """An amount and a word: a dictionary, once a number alone."""

    type = "Pair"
    version = 2
    given: Any = None

    def new_state(self) -> Any:
        return {"amount": 0, "word": ""}

    def project(self, state: Any, now: float) -> Any:
        return {"amount": state["amount"] + 0, "word": state["word"], "now": now}

    def merge(self, states: Any) -> Any:
        return {"amount": 1, "word": "merged"}

    def upgrade(self, content: bytes, version: int) -> Any:
        return self.given


class Parts(Pair):
    """The same with a further part, as an array Handler has it."""

    further_parts = 1

    def upgrade_parts(self, parts: Any, version: int) -> Any:
        return self.given

    def load_array(self, dumps: Any) -> Any:
        return [self.load(dump) for dump in dumps]

    def project_array(self, states: Any, parts: Any, now: float) -> Any:
        return [self.project(state, now) for state in states]


GOOD = {"amount": 7, "word": "ok"}
OLD = [Framed(1, 5, b"\x07")]


def of(kind: type[Pair], given: Any) -> Pair:
    handler = kind()
    handler.given = given
    return handler


class RenewingTests(SynchronousTestCase):
    def test_what_can_be_read_again_and_shown_is_a_state(self) -> None:
        handler = of(Pair, GOOD)
        self.assertEqual(renewed(handler, False, OLD, NOW), [handler.dump(GOOD)])
        parts = of(Parts, (handler.dump(GOOD), b"more"))
        self.assertEqual(renewed(parts, True, [*OLD, Framed(0, 0, b"")], NOW), [handler.dump(GOOD), b"more"])

    def test_nothing_a_state_of_another_type_one_too_large_and_one_that_no_dump_takes_are_none(self) -> None:
        for given, why in (
            (None, "cannot be shown: TypeError"),
            ([7, "ok"], "cannot be shown: TypeError"),
            ({"amount": "seven", "word": ""}, "cannot be shown: TypeError"),
            ({"word": "only"}, "cannot be shown: KeyError"),
            ({"amount": 1, "word": "x" * MAX_STATE_BYTES}, f"more than {MAX_STATE_BYTES} bytes"),
            (object(), "serialize"),
        ):
            with self.subTest(given=repr(given)[:40]):
                handler = of(Pair, given)
                self.assertRaisesRegex((ValueError, TypeError), why, renewed, handler, False, OLD, NOW)
                [answer] = upgrade_type(handler, False, [OLD], NOW)
                self.assertRegex(str(answer), why)
                self.assertRegex(str(merge_states(handler, False, [OLD], NOW)), why)  # what is not there is not in a sum either

    def test_of_parts_there_are_as_many_as_the_handler_has_and_all_are_bytes(self) -> None:
        good = Pair().dump(GOOD)
        for given, why in (
            ([good], "2 parts of bytes"),
            ([good, "text"], "2 parts of bytes"),
            ([good, b"", b""], "2 parts of bytes"),
            ([good, bytes(MAX_STATE_BYTES + 1)], f"more than {MAX_STATE_BYTES} bytes"),
            ([b"\xc1", b""], "cannot be shown"),
            (None, "not iterable"),
        ):
            with self.subTest(given=repr(given)[:40]):
                self.assertRaisesRegex((ValueError, TypeError), why, renewed, of(Parts, given), True, OLD, NOW)
