"""Who lives: of each client id that has a ring here `taba.alive` says 1 for half a minute, again and again, and 0 once its process is dead.

1. The events stand for nothing that was recorded: they are in no count.
2. What is not over is said anew every REFRESH_SECONDS, but not while what was said last still waits here: an hour without a Server
   leaves one batch of it, and not hundreds. What went to the spool meanwhile is waited for only until Servers take anything again: fresh
   batches go beside the backlog, however long that is. A death, and whoever is new, is said at once.
3. A ring that is given up, or left to another Agent, says nothing of its process: what was said of it runs out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from taba.agent.ages import Moment
from taba.agent.drain import Packed, absolute_section
from taba.agent.pump import RingPump
from taba.names import ALIVE_TAB, ALIVE_TYPE

HOLDS_SECONDS = 30.0  # for which a process counts as alive after it was last seen
REFRESH_SECONDS = 10.0  # so that two in a row may be late
ALIVE: dict[str, Any] = {"value": 1, "seconds": HOLDS_SECONDS}
DEAD = 0  # for a day, as any value that says nothing of its own


class Alive:
    """What is said of the processes whose rings `pump` reads. `wall`: Unix seconds."""

    def __init__(self, pump: RingPump, wall: Callable[[], float]):
        self._pump, self._wall = pump, wall
        self._scans = 0  # of the pump's, at the last tick
        self._told: set[str] = set()
        self._refreshed = float("-inf")
        self._last: tuple[bytes, int] | None = None  # stream and number of the last batch
        self._acknowledged = 0  # batches of any bucket, when that was published

    def tick(self, now: float, moment: Moment) -> None:
        """Say what there is to say since the last look for rings."""
        pump = self._pump
        if pump.scans == self._scans or pump.buckets is None:
            return
        self._scans = pump.scans
        living = pump.living()
        dead = pump.deaths - living
        is_due = now >= self._refreshed + REFRESH_SECONDS and not self._is_waiting()
        saying: dict[str, Any] = dict.fromkeys(sorted(living if is_due else living - self._told), ALIVE)
        saying |= dict.fromkeys(sorted(dead), DEAD)
        if not saying or self._say(saying, now, moment):
            pump.deaths.clear()
            self._told = living
            if is_due:
                self._refreshed = now

    def _say(self, saying: dict[str, Any], now: float, moment: Moment) -> bool:
        bucket = self._pump.bucket_of(ALIVE_TAB)
        packed: Packed = defaultdict(list)
        for client, value in saying.items():
            packed[bucket].append(absolute_section(client, ALIVE_TAB, ALIVE_TYPE, self._wall(), value, 0))
        # rows that stand for no events
        if not self._pump.publish(packed, {bucket: -len(saying)}, now, moment):
            return False
        keeper = self._pump.keeper
        number = keeper.numbers.get(bucket)
        self._last = (b"", 0) if number is None else (keeper.stream, number)  # without one it went to the spool with the stream before
        self._acknowledged = keeper.acknowledged_batches
        return True

    def _is_waiting(self) -> bool:
        """Whether the last batch is still to be applied, and another one would come no sooner."""
        if self._last is None:
            return False
        (stream, number), keeper = self._last, self._pump.keeper
        if stream != keeper.stream:  # it moved to the spool, or is about to
            return keeper.acknowledged_batches == self._acknowledged and bool(keeper.spool.batches or keeper.holds_any)
        lane = keeper.lanes.get((stream, self._pump.bucket_of(ALIVE_TAB)))
        if lane is None:  # fresh batches go into the spool, and this one was not yet taken up
            return bool(keeper.spool.batches)
        return bool(lane.more or (lane.pending and lane.pending[0].number <= number))
