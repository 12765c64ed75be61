"""Who lives, and what is known of it: Tabs of Taba's own, of each client id that has a ring here, and of this Agent itself.

| Tab | what is said | when |
| --- | --- | --- |
| `taba.alive` | 1 for half a minute, 0 once its process is dead | again and again; a death, and whoever is new, at once |
| `taba.process` | since when it lives or is gone, how many processes it has, how many events it lost | when it changes |
| `taba.starts` | the id of each of its rings, one a process: there were as many starts as there are different ones | once |
| `taba.problems` | this Agent's own, of the Client that stands for it | again and again, while there are any |

1. The events stand for nothing that was recorded: they are in no count.
2. What is not over is said anew every REFRESH_SECONDS, but not while what was said last still waits here: an hour without a Server
   leaves one batch of it, and not hundreds. What went to the spool meanwhile is waited for only until Servers take anything again: fresh
   batches go beside the backlog, however long that is. What is said when it changes is said anew every REPEAT_SECONDS: it may be lost.
3. A ring that is given up, or left to another Agent, says nothing of its process: what was said of it runs out.
4. A process is as old as its ring said when it was first seen here, and from then on by the Agent's own clock, whatever the host's does.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from taba.agent.ages import Moment
from taba.agent.encoding import SectionsByBucket, absolute_section
from taba.agent.pump import RingPump
from taba.agent.reader import Ring
from taba.names import ALIVE_TAB, ALIVE_TYPE, PROBLEMS_TAB, PROBLEMS_TYPE, PROCESS_TAB, PROCESS_TYPE, STARTS_TAB, STARTS_TYPE

HOLDS_SECONDS = 30.0  # for which a process counts as alive after it was last seen
REFRESH_SECONDS = 10.0  # so that two in a row may be late
REPEAT_SECONDS = 600.0  # between two sayings of what has not changed
STEADY_SECONDS = 0.1  # by which it may differ between two looks that have the same rings: slower changes are seen at the next refresh
STEP_SECONDS = 2.0  # by which the host's clock may differ before it is said anew since when a process lives
MAX_GONE = 10_000  # Clients without a process of which it is known what was said, until the next repeat
MAX_PROBLEMS, MAX_PROBLEM = 20, 500  # sentences, and characters of each, that are told to Servers; the Agent's own status has all
ALIVE: dict[str, Any] = {"value": 1, "seconds": HOLDS_SECONDS}
DEAD = 0  # for a day, as any value that says nothing of its own

_NO_CLIENT = re.compile(r"[^A-Za-z0-9_./:@+-]")


class Saying(NamedTuple):
    """One event of a Tab of Taba's own."""

    tab: str
    type: str
    client: str
    value: Any


class Last(NamedTuple):
    """The last batch that was published for a bucket."""

    stream: bytes
    number: int
    acknowledged: int  # batches of any bucket, when that was published


class Alive:
    """What is said of the processes whose rings `pump` reads, and of this Agent. `wall`: Unix seconds."""

    def __init__(self, pump: RingPump, wall: Callable[[], float], sender: str, problems: Callable[[], Collection[str]]):
        """`sender` is the client id that stands for this Agent; `problems` has its sentences as of its last look."""
        self._pump, self._wall, self._sender, self._problems = pump, wall, sender, problems
        self._scans = 0  # of the pump's, at the last tick
        self._before: tuple[list[Ring], float] | None = None  # the rings of those who lived when all was said, and how far `wall` was ahead
        self._told: set[str] = set()
        self._refreshed = self._repeated = float("-inf")
        self._last: dict[int, Last] = {}  # by bucket
        self._births: dict[bytes, float] = {}  # by ring, on the Agent's own clock
        self._started: set[bytes] = set()  # rings whose start was said
        self._facts: dict[str, dict[str, Any]] = {}  # by Client that lives, what was said last of its processes
        self._gone: dict[str, dict[str, Any]] = {}  # and of those without one, which are looked at seldom: they may be very many
        self._has_problems = False

    def tick(self, now: float, moment: Moment) -> None:
        """Say what there is to say since the last look for rings."""
        pump = self._pump
        if pump.scans == self._scans or pump.buckets is None:
            return
        self._scans = pump.scans
        wall = self._wall()
        rings = [ring for ring in pump.told_rings() if not pump.is_dead(ring)]
        is_old = now >= self._refreshed + REFRESH_SECONDS
        # nearly always: all are those that they were, and the host's clock goes on as it did
        if not (is_old or pump.deaths) and self._before is not None:
            known, ahead = self._before
            if rings == known and abs(wall - now - ahead) < STEADY_SECONDS:
                return
        self._before = None
        births = self._look(rings, now, wall)
        living = set(births)
        dead = set(pump.deaths.values()) - living
        is_due = is_old and not self._is_waiting(ALIVE_TAB)
        is_looked_at = is_due and not self._is_waiting(PROCESS_TAB)
        is_repeated = is_looked_at and now >= self._repeated + REPEAT_SECONDS and not self._is_waiting(STARTS_TAB)
        said = [Saying(ALIVE_TAB, ALIVE_TYPE, client, ALIVE) for client in sorted(living if is_due else living - self._told)]
        said += [Saying(ALIVE_TAB, ALIVE_TYPE, client, DEAD) for client in sorted(dead)]
        facts = self._facts_now(births, dead, now, wall, is_looked_at)
        before = {**self._gone, **self._facts} if is_looked_at else self._facts
        fresh = [client for client, found in facts.items() if found != before.get(client) or (is_repeated and client in living)]
        said += [Saying(PROCESS_TAB, PROCESS_TYPE, client, facts[client]) for client in sorted(fresh)]
        starts = {ring.header.ring_id: ring.client for ring in pump.told_rings()} | pump.deaths
        unsaid = starts if is_repeated else {ring: client for ring, client in starts.items() if ring not in self._started}
        said += [Saying(STARTS_TAB, STARTS_TYPE, client, ring.hex()) for ring, client in unsaid.items()]
        problems = list(self._problems())
        is_told = is_due and not self._is_waiting(PROBLEMS_TAB)
        if is_told and (problems or self._has_problems):
            shown = [_as_text(problem) for problem in problems[:MAX_PROBLEMS]]
            said.append(Saying(PROBLEMS_TAB, PROBLEMS_TYPE, self._sender, {"value": shown, "seconds": HOLDS_SECONDS}))
        if said and not self._say(said, wall, now, moment):
            return
        self._before = rings, wall - now
        pump.deaths.clear()
        self._told, self._started, self._facts = living, set(starts), {client: facts[client] for client in living}
        self._gone.update((client, found) for client, found in facts.items() if client not in living)
        for client in living & self._gone.keys():
            del self._gone[client]
        if is_due:
            self._refreshed = now
        if is_told:
            self._has_problems = bool(problems)
        if is_repeated or len(self._gone) > MAX_GONE:
            self._gone.clear()
        if is_repeated:
            self._repeated = now

    def _look(self, rings: list[Ring], now: float, wall: float) -> dict[str, list[float]]:
        """By Client with a living process when its rings, which are these, were made, on the Agent's own clock."""
        known = self._births
        self._births = {}
        found: dict[str, list[float]] = {}
        for ring in rings:
            birth = known.get(ring.header.ring_id)
            if birth is None:
                birth = now - max(0.0, wall - ring.header.created)
            self._births[ring.header.ring_id] = birth
            found.setdefault(ring.client, []).append(birth)
        return found

    def _facts_now(
        self, births: Mapping[str, list[float]], dead: Collection[str], now: float, wall: float, is_looked_at: bool
    ) -> dict[str, dict[str, Any]]:
        """What is to be said of each Client's processes; what it dropped where that `is_looked_at`, and only then of who is gone."""
        facts = {}
        for client, known in self._gone.items() if is_looked_at else ():
            if client not in births and client not in dead:  # it is gone, and that was said
                facts[client] = {**known, "dropped": self._pump.dropped_by(client)}
        for client in dead:
            facts[client] = {"since": wall, "processes": 0, "dropped": self._pump.dropped_by(client)}
        for client, born in births.items():
            before = self._facts.get(client)
            since = wall - (now - min(born))
            if before is not None and before["processes"] and abs(since - before["since"]) < STEP_SECONDS:
                since = before["since"]
            dropped = self._pump.dropped_by(client) if is_looked_at or before is None else before["dropped"]
            facts[client] = {"since": since, "processes": len(born), "dropped": dropped}
        return facts

    def _say(self, said: list[Saying], wall: float, now: float, moment: Moment) -> bool:
        packed: SectionsByBucket = defaultdict(list)
        rows: Counter[int] = Counter()
        for one in said:
            bucket = self._pump.bucket_of(one.tab)
            packed[bucket].append(absolute_section(one.client, one.tab, one.type, wall, one.value, 0))
            rows[bucket] -= 1  # rows that stand for no events
        if not self._pump.publish(packed, rows, now, moment):
            return False
        keeper = self._pump.keeper
        for bucket in packed:
            number = keeper.numbers.get(bucket)
            # without one it went to the spool with the stream before
            stream, number = (b"", 0) if number is None else (keeper.stream, number)
            self._last[bucket] = Last(stream, number, keeper.books.acknowledged_batches)
        return True

    def _is_waiting(self, tab: str) -> bool:
        """Whether what was said last of a Tab is still to be applied, and more would come no sooner."""
        bucket = self._pump.bucket_of(tab)
        last, keeper = self._last.get(bucket), self._pump.keeper
        if last is None:
            return False
        if last.stream != keeper.stream:  # it moved to the spool, or is about to
            return keeper.books.acknowledged_batches == last.acknowledged and bool(keeper.spool.batches or keeper.holds_any)
        lane = keeper.lanes.get((last.stream, bucket))
        if lane is None:  # fresh batches go into the spool, and this one was not yet taken up
            return bool(keeper.spool.batches)
        return bool(lane.more or (lane.pending and lane.pending[0].number <= last.number))


def _as_text(problem: str) -> str:
    """As much of a sentence as is told. What is no text in it, as a name of a file or a Server's answer may have it, is spelt out."""
    return problem[:MAX_PROBLEM].encode(errors="backslashreplace").decode()[:MAX_PROBLEM]


def sender_of(host: str, agent: str) -> str:
    """The client id that stands for an Agent in what it says of itself."""
    name = _NO_CLIENT.sub("-", f"{host}:taba-agent/{agent}")
    return (f"@{name}" if name.startswith(("taba.", "_")) else name)[:200]
