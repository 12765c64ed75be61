"""What a process does besides being reached: when it looks for garbage."""

from __future__ import annotations

from types import SimpleNamespace

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from taba import listening
from taba.listening import COLLECT_SECONDS, MOST_YOUNG_COLLECTIONS, QUIET_SECONDS, freeze_when_running


class Starting(Clock):
    """A clock that is a reactor, too, and has begun."""

    def callWhenRunning(self, call: object) -> None:
        call()  # type: ignore[operator]


class Collecting(SynchronousTestCase):
    def setUp(self) -> None:
        self.did: list[object] = []
        self.young = 0
        gc = SimpleNamespace(
            collect=lambda: self.did.append("collect"),
            freeze=lambda: self.did.append("freeze"),
            get_threshold=lambda: (700, 10, 10),
            set_threshold=lambda *numbers: self.did.append(numbers),
            get_count=lambda: (0, 0, self.young),
        )
        self.patch(listening, "gc", gc)
        self.clock = Starting()

    def did_within(self, seconds: float) -> list[object]:
        self.did.clear()
        self.clock.advance(seconds)
        return list(self.did)

    def test_who_does_not_say_when_it_is_quiet_has_pythons_own_thresholds(self) -> None:
        freeze_when_running(self.clock)
        self.assertEqual((self.did, self.clock.getDelayedCalls()), (["collect", "freeze"], []))

    def test_what_is_left_is_looked_through_when_it_is_quiet_and_not_before(self) -> None:
        quiet = [QUIET_SECONDS]
        freeze_when_running(self.clock, lambda: quiet[0])
        self.assertEqual(self.did, ["collect", "freeze", (700, 10, MOST_YOUNG_COLLECTIONS)])
        self.assertEqual(self.did_within(COLLECT_SECONDS), [])  # there is nothing to look for
        self.young = 1
        self.assertEqual(self.did_within(COLLECT_SECONDS), ["collect"])
        quiet[0] = QUIET_SECONDS - 0.01
        self.assertEqual(self.did_within(COLLECT_SECONDS), [])
        quiet[0] = QUIET_SECONDS
        self.assertEqual(self.did_within(COLLECT_SECONDS), ["collect"])
