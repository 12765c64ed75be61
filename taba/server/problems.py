"""What needs a person, in sentences: each with its count and its cure. Empty when nothing does.

What is wrong now is a problem while it is. What has happened is one for RECENT_SECONDS after it last did: later nobody can mend it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from taba.plural import many

RECENT_SECONDS = 3600.0  # a person who looks once an hour sees it
LATE_SECONDS = 5.0  # from record to visible, p99 of the last minute: more than is promised at the highest load


class Happened(NamedTuple):
    """Something that is counted. `say` makes a sentence of how often it happened lately. `is_kept`: it was counted before this process."""

    name: str
    total: int
    say: Callable[[int], str]
    is_kept: bool = False


class Recent:
    """How much counts have grown lately. One that is kept is first seen as it is: what happened before that is no news."""

    def __init__(self, seconds: Callable[[], float]):
        self._seconds = seconds
        self._seen: dict[str, tuple[int, int, float]] = {}  # name → count, how much of it is recent, when it last grew

    def problems(self, happened: Iterable[Happened]) -> list[str]:
        """Sentences on those that have grown within RECENT_SECONDS."""
        now = self._seconds()
        found = []
        for name, total, say, is_kept in happened:
            before, recent, grew = self._seen.get(name, (total if is_kept else 0, 0, now))
            if total > before:
                recent, grew = recent + total - before, now
            elif total < before or now - grew > RECENT_SECONDS:
                recent = 0
            self._seen[name] = (total, recent, grew)
            if recent:
                found.append(say(recent))
        return found


def late(percentiles: Mapping[str, Any]) -> list[str]:
    """A sentence where events become visible later than is promised."""
    p99 = percentiles.get("p99")
    if p99 is None or p99 <= LATE_SECONDS:
        return []
    return [
        f"it takes {p99:.0f} s from record to visible (p99 of the last minute; {LATE_SECONDS:.0f} s are promised at the most): Agents send "
        "what waited, or clocks of hosts are behind, or events of before are recorded now (with a time), or Servers or shards are too few "
        "(--workers, taba reshard --add)"
    ]


def buried(by_reason: Mapping[str, int], conflicts: Sequence[str] = ()) -> list[str]:
    """Sentences where Events lie as dead letters; `conflicts`: which Tabs came under two Types, some of them."""
    count = sum(by_reason.values())
    if not count:
        return []
    reasons = ", ".join(f"{reason} {events}" for reason, events in sorted(by_reason.items(), key=lambda item: -item[1]))
    found = [
        f"{many(count, 'event is a dead letter', 'events are dead letters')} ({reasons[:300]}): see taba dead-letters, put right "
        "what is wrong, then taba retry"
    ]
    if by_reason.get("type_conflict"):
        found.append(
            f"{many(by_reason['type_conflict'], 'event')} came for Tabs that have another Type: processes record one name as two, "
            "and the first "
            f"stands{': ' if conflicts else ''}{'; '.join(conflicts)}. taba dead-letters names all of "
            "them: give one another name, or delete the Tab that has the wrong Type, then taba retry"
        )
    return found


def failed(what: str, is_handler: bool) -> Callable[[int], str]:
    """The sentence on a Handler, or a part of the Server, that failed so often lately."""
    if is_handler:
        return lambda times: f"the Handler of Type {what} failed {many(times, 'time')} lately: see taba dead-letters and this Server's log"
    return lambda times: f"{what} failed {many(times, 'time')} lately: this Server's log says why"


def died(type: str) -> Callable[[int], str]:
    """The sentence on children that died at the work of a Type."""
    return lambda times: (
        f"the process of Handlers was restarted {many(times, 'time')} lately, because that of Type {type} hung, crashed or was killed: "
        "this Server's log says how"
    )


def slow(type: str, seconds: float, most: float) -> Callable[[int], str]:
    """The sentence on a Handler that takes longer than the `most` seconds that a cycle waits."""
    return lambda times: (
        f"the Handler of Type {type} is slow: {many(times, 'fold')} lately took more than the {most:g} s that a cycle waits, the last one "
        f"{seconds:.1f} s; its events wait at their Agents meanwhile. Have its fold do less for an event, or fold arrays "
        "(docs/writing-handlers.md)"
    )


def printed(size: int) -> str:
    """The sentence on Handlers that print."""
    return f"Handlers print too much, {size} bytes lately that the log has not: take the printing out of them"


def gapped(batches: int) -> str:
    """The sentence on a store that has lost what it had acknowledged."""
    return (
        f"the store went back in time: {many(batches, 'batch')} followed on some that it does not know any more. Agents send "
        "again what they "
        "retain, and count as dropped what they do not (see their status): have the store sync its file (appendfsync always)"
    )


def misread(count: int) -> str:
    """The sentence on units and descriptions that did not decode."""
    return (
        f"{many(count, 'unit or description of a Tab was', 'units or descriptions of Tabs were')} left out, against the rules: "
        "whatever sent them is no Agent of this version"
    )


def unmarked(batches: int) -> str:
    """The sentence on batches whose stream has no mark that can be read."""
    return (
        f"{many(batches, 'batch was', 'batches were')} told to wait lately, since the mark of the stream is damaged and nobody "
        "can tell what of it was folded: "
        "start their Agents again, which then open new streams; what waits in the old one stays in the spool"
    )


def job_failed(kind: str, why: str) -> Callable[[int], str]:
    """The sentence on jobs of a kind that fail."""
    return lambda times: (
        f"{many(times, 'job')} of the kind {kind} failed lately, the last one: {why[:200]}. See taba jobs, and start it again (taba {kind})"
    )


def restarted(worker: int) -> Callable[[int], str]:
    """The sentence on a worker that dies."""
    return lambda times: (
        f"worker {worker} was started again {many(times, 'time')} lately, because it died: the log says how, or the kernel's (dmesg)"
    )


def dropped(events: int) -> str:
    """The sentence on dead letters that are kept no more."""
    return (
        f"{many(events, 'dead letter was', 'dead letters were')} dropped lately, because buckets were full: put right why there are "
        "any (taba dead-letters)"
    )
