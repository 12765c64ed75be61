"""What a process does besides being reached: when it looks for garbage."""

from __future__ import annotations

from types import SimpleNamespace

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import listening
from taba.listening import COLLECT_SECONDS, MOST_FROZEN, MOST_YOUNG_COLLECTIONS, QUIET_SECONDS, freeze_when_running


class Starting(Clock):
    """A clock that is a reactor, too, and has begun."""

    def callWhenRunning(self, call: object) -> None:
        call()  # type: ignore[operator]


class Collecting(SynchronousTestCase):
    def setUp(self) -> None:
        self.did: list[object] = []
        self.frozen = 100
        gc = SimpleNamespace(
            collect=lambda *generation: self.did.append(("collect", *generation)),
            freeze=lambda: self.did.append("freeze"),
            unfreeze=lambda: self.did.append("unfreeze"),
            get_freeze_count=lambda: self.frozen,
            get_threshold=lambda: (700, 10, 10),
            set_threshold=lambda *numbers: self.did.append(numbers),
        )
        self.patch(listening, "gc", gc)
        self.clock = Starting()

    def did_within(self, seconds: float) -> list[object]:
        self.did.clear()
        self.clock.advance(seconds)
        return list(self.did)

    def test_who_does_not_say_when_it_is_quiet_has_pythons_own_thresholds(self) -> None:
        freeze_when_running(self.clock)
        self.assertEqual((self.did, self.clock.getDelayedCalls()), ([("collect",), "freeze"], []))

    def test_what_has_come_to_live_long_is_left_alone_when_it_is_quiet_and_not_before(self) -> None:
        quiet = [QUIET_SECONDS]
        freeze_when_running(self.clock, lambda: quiet[0])
        self.assertEqual(self.did, [("collect",), "freeze", (700, 10, MOST_YOUNG_COLLECTIONS)])
        self.assertEqual(self.did_within(COLLECT_SECONDS), [("collect", 1), "freeze"])
        quiet[0] = QUIET_SECONDS - 0.01
        self.assertEqual(self.did_within(COLLECT_SECONDS), [])
        quiet[0] = QUIET_SECONDS
        self.assertEqual(self.did_within(COLLECT_SECONDS), [("collect", 1), "freeze"])

    def test_all_is_looked_through_once_that_is_twice_as_much_and_beyond_its_bound(self) -> None:
        freeze_when_running(self.clock, lambda: QUIET_SECONDS)
        some, all = [("collect", 1), "freeze"], [("collect", 1), "freeze", "unfreeze", ("collect",), "freeze"]
        for frozen, did in (
            (100 + MOST_FROZEN, some),  # the bound
            (101 + MOST_FROZEN, all),  # one past it
            (2 * (101 + MOST_FROZEN), some),  # twice as much as then
            (2 * (101 + MOST_FROZEN) + 1, all),
            (100, some),
        ):
            self.frozen = frozen
            self.assertEqual(self.did_within(COLLECT_SECONDS), did)
