"""Problems, as a log hears of them: when one begins, again once in REPEAT_SECONDS while it lasts, and when it is over.

What comes and goes is told no more often than what lasts: a log tells what happened, and never fills a disk.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from twisted.logger import Logger

REPEAT_SECONDS = 600.0  # between two lines on the same thing
MAX_TOLD = 1000  # things that are remembered as told; more kinds of problems, and Servers, there are not
MAX_LINES = 20  # that one look writes to the log

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
_AGREEING = re.compile(r"\b(?:an?|is|are|was|were|its?|their|they|them|do|does)\b ?")  # with how many there are
_ENDING = re.compile(r"(?<=\w)(?:ies|y|es|s|e)\b")  # of names of things, and of what they do


class Teller:
    """Tells `log` of problems. Time is any clock's that never goes back."""

    def __init__(self, log: Logger):
        self._log = log
        self._told: dict[str, float] = {}  # when each was told last
        self._open: dict[str, str] = {}  # those that were told, and are there still

    def tell(self, problems: Mapping[str, str], now: float) -> None:
        """These are there now; one under the same key is the same, whatever its sentence says."""
        news = [key for key in problems if self._is_news(key, now)]
        for key in news[:MAX_LINES]:
            if self.may(key, now):
                self._open[key] = problems[key]
                self._log.warn("problem: {problem}", problem=problems[key])
        there = set(problems.values())
        for key in [key for key in self._open if key not in problems]:
            ended = self._open.pop(key)
            if ended in there:  # of several that differ in numbers alone, another one has ended
                other = next((one for one, sentence in self._open.items() if one in problems and sentence not in there), None)
                if other is not None:
                    ended, self._open[other] = self._open[other], ended
            self._log.info("no problem any more: {problem}", problem=ended)

    def may(self, key: str, now: float) -> bool:
        """Whether this is to be told now; if so, it was."""
        if not self._is_news(key, now):
            return False
        if len(self._told) >= MAX_TOLD:
            self._told = {key: when for key, when in self._told.items() if now - when < REPEAT_SECONDS}
            if len(self._told) >= MAX_TOLD:
                return False
        self._told[key] = now
        return True

    def _is_news(self, key: str, now: float) -> bool:
        return now - self._told.get(key, -REPEAT_SECONDS) >= REPEAT_SECONDS


def by_kind(problems: Iterable[str]) -> dict[str, str]:
    """Problems under what they say without their numbers: a sentence whose numbers alone have changed is the same problem, also where
    that makes one of several: "1 event is a dead letter" is what "2 events are dead letters" says.

    Of several at once that differ in numbers alone, each has a key of its own, in their order.
    """
    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for problem in problems:
        kind = _ENDING.sub("", _AGREEING.sub("", _NUMBER.sub("#", problem)))
        seen[kind] += 1
        found[kind if seen[kind] == 1 else f"{kind} ({seen[kind]})"] = problem
    return found
