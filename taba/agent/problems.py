"""What needs a person: sentences with a count and a cure, by a key each. An empty answer means that nothing does.

No clock and no log: `look` is called about once a second, and what it found last is what a status shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from taba.agent.admission import MAX_SHOWN
from taba.agent.dispatch import Dispatch
from taba.agent.keeper import MIN_BATCH_BYTES, Keeper
from taba.agent.lanes import UNREADABLE_SECONDS
from taba.agent.pump import RingPump
from taba.agent.tallies import MAX_CUT, MAX_GONE
from taba.bounds import MIN_RING_BYTES, MiB
from taba.names import OVERFLOW_CLIENT
from taba.plural import many

LOSS_SHOWN_SECONDS = 3600.0  # after its count grew for the last time: long enough to be seen, then it is history
POSTPONING_SECONDS = 60.0  # for which it is shown that a Server takes batches later: they are sent again each half minute
GRACE_SECONDS = 3.0  # for what mends itself: a Server that starts, or restarts, beside its Agents
STUCK_SECONDS = 15.0  # that batches wait without one being applied: a Server asks for less patience than this, once
RING_SHARE = 8  # a ring takes this part of what is free, at the most

# what it means that events were dropped for a reason, and what to do; docs/operations.md has the same reasons
LOSSES = {
    "ring_full": "the Agent did not run, not fast enough, or had no room: keep it running; a larger TABA_RING_BYTES holds longer",
    "bytes_full": "values that are no numbers came faster than they were read: record shorter ones, or set a larger TABA_RING_BYTES",
    "value_too_large": "one value was larger than a ring takes: record less in one value",
    "value_type": "a value was none that can be sent: convert it to a number, text, bytes, list or dict",
    "bad_time": "a time was no number of Unix seconds",
    "directory_full": "one process named more Tabs than its ring can: use fewer label values, or a larger TABA_RING_BYTES",
    "no_ring": "no ring could be made: make room in /dev/shm, raise TABA_SHM_BYTES, or the process's limit of descriptors, as its "
    "log, or its client.stats()['problem'], says",
    "stopped": "they were recorded after client.stop(): stop later",
    "reentrant": "a signal handler, or another thread, recorded while a ring was being made: record once before threads and signals come",
    "exhausted": "a process had no memory, stack or interpreter left for them: give it more",
    "function_raised": "what gauge.set_function() was given raises: stats()['function_problem'] says of which Tab; mend it",
    "unknown": "somebody removed a ring that was being written: see RemoveIPC in the documentation of operations",
    "spool_full": "Servers took less than came for so long that outbox and spool are full: bring one back, or raise --spool-bytes",
    "no_disk": "the outbox had no room, and the spool's disk is full or fails: make room on that disk, and in /dev/shm, or look at it",
    "too_many_tabs": "one Client named so many Tabs, of so many base names, that there is no sum for them: look for data in their names",
    "malformed": "a ring held records that are none: its process has a fault, or another version of Taba",
    "refused": "a Server found batches malformed, or has another request under their key; kept aside: `refused` in this status says which",
    "gap": "the store came back with an older past, and nobody had the batches any more: let it sync each write",
    "too_old": "no Server took them within 7 days: bring one back sooner",
    "outbox_corrupt": "something cut the outbox in shared memory, or wrote to it; kept aside: see what else writes or cleans there",
    "spool_corrupt": "rows of the spool did not match their checksum, or are gone with its file: look at its disk",
}


class Space(NamedTuple):
    """Of shared memory, in bytes; `total` is 0 where it has no bound."""

    free: int
    total: int


class Problems:
    """Finds the problems of one Agent. `space` tells how full shared memory is; `own` are the owner's, by key."""

    def __init__(self, keeper: Keeper, pump: RingPump, dispatch: Dispatch, shm: str, space: Callable[[], Space], now: float):
        self._keeper, self._pump, self._dispatch = keeper, pump, dispatch
        self._shm, self._space = shm, space
        self._began = self._progress = now
        self._acknowledged = keeper.books.acknowledged_batches
        self._lost: Counter[str] = keeper.books.totals()  # when it was seen last
        self._lost_batches = keeper.books.lost_batches
        self._damaged, self._damage_seen = keeper.groups.damaged, now
        self._grew: dict[str, float] = {}
        self._overflowed: dict[str, tuple[str, float]] = {}  # by Client, what was said of it, and when last
        self.found: dict[str, str] = {}

    def look(self, now: float, own: Mapping[str, str]) -> dict[str, str]:
        """The problems as of now."""
        found = dict(own)
        self._look_at_losses(now, found)
        self._look_at_memory(now, found)
        self._look_at_spool(found)
        self._look_at_rings(now, found)
        self._look_at_servers(now, found)
        self.found = found
        return found

    def _look_at_losses(self, now: float, found: dict[str, str]) -> None:
        live = self._pump.live_drops()
        totals = self._keeper.books.totals() + live
        for reason, events in totals.items():
            if events > self._lost[reason]:
                self._grew[reason] = now
        self._lost = totals
        if self._keeper.books.lost_batches > self._lost_batches:
            self._grew["gap"], self._lost_batches = now, self._keeper.books.lost_batches
        for reason, grew in list(self._grew.items()):
            # none are left where a ring counted nonsense that is read no more
            if now - grew > LOSS_SHOWN_SECONDS or not totals[reason]:
                del self._grew[reason]
                continue
            who, most = self._pump.worst(reason)
            by = f" by Client {who}" if who else ""
            if who and most < totals[reason]:  # others, or nobody knows who, or before this Agent
                by = f", most{by} ({most}) as far as this Agent knows since it began"
            lost = many(totals[reason], "event")
            if reason == "gap" and self._lost_batches:
                lost += f" in {many(self._lost_batches, 'batch')}, of which some may have more that nobody can count,"
            found[f"dropped {reason}"] = f"{lost} dropped as {reason}{by}: {LOSSES.get(reason, 'a reason that this version does not know')}"

    def _look_at_memory(self, now: float, found: dict[str, str]) -> None:
        damaged = self._keeper.groups.damaged
        if damaged > self._damaged:
            self._damaged, self._damage_seen = damaged, now
        if damaged and now - self._damage_seen <= LOSS_SHOWN_SECONDS:
            found["damaged"] = (
                f"something wrote over, or cut, {many(damaged, 'group')} of the outbox in {self._shm}: what is gone of their"
                " batches is dropped and counted as outbox_corrupt; see what else writes or cleans there, and restart this Agent"
            )
        free, total = self._space()
        if not total:
            return
        if free < RING_SHARE * MIN_RING_BYTES:
            found["shm"] = (
                f"{self._shm} is full: {free // 1024} of {total // 1024} KiB are free, too few for new rings; remove what else is there,"
                " or make it larger (in a container --shm-size)"
            )
        if self._keeper.outbox.limit < 2 * MIN_BATCH_BYTES:
            found["outbox"] = (
                f"the outbox has no room in {self._shm} ({free // 1024} KiB are free): what is fresh goes through the spool, and its disk;"
                " make room there"
            )

    def _look_at_spool(self, found: dict[str, str]) -> None:
        keeper, spool = self._keeper, self._keeper.spool
        if problem := keeper.books.spool_problem or keeper.books.history_problem:
            found["spool"] = (
                f"the spool {spool.path} cannot be read or written ({problem}):"
                f" {many(keeper.unacknowledged, 'batch waits', 'batches wait')} in memory; make room on its disk, or look at that"
            )
        if keeper.books.unreadable:
            reason = next(iter(keeper.books.unreadable.values()))
            found["spool unreadable"] = (
                f"{many(len(keeper.books.unreadable), 'batch')} in the spool {spool.path} cannot be read now ({reason}): nothing "
                f"of that is given up, what follows waits, and it is tried again every {UNREADABLE_SECONDS:.0f} s; look at its disk"
            )
        if spool.batches and spool.free < MiB:
            found["spool full"] = (
                f"the spool {spool.path} is full: {many(spool.batches, 'batch')}, {spool.used} of {spool.bound} bytes; the newest "
                "events are dropped once the outbox is full as well; bring a Server back, or raise --spool-bytes"
            )

    def _look_at_rings(self, now: float, found: dict[str, str]) -> None:
        rings = self._pump.rings
        if self._pump.had_no_place:
            found["no place"] = (
                f"processes found no room in {self._shm} or TABA_SHM_BYTES, not even to count what they drop: these drops are in no count;"
                " raise TABA_SHM_BYTES, or make room there"
            )
        for client, (_, seen) in list(self._overflowed.items()):
            if now - seen > LOSS_SHOWN_SECONDS or len(self._overflowed) > MAX_SHOWN:
                del self._overflowed[client]  # the one that was seen first, first
        for one in rings.admission.overflowing()[:MAX_SHOWN]:
            self._overflowed.pop(one.client, None)
            summed = one.tabs - one.dropped
            under = "" if one.is_own else f" under the Client {OVERFLOW_CLIENT} (but for what goes up and down)"
            parts = [f'{summed} are summed up{under}, most of them in {one.base}{{overflow="true"}}'] if summed else []
            if one.dropped:
                parts.append(f"{one.dropped} have not even a sum, and what is recorded for them is dropped as too_many_tabs")
            sentence = (
                f"Client {one.client} {one.why}: "
                f"{many(one.tabs, 'Tab does not go under its own name', 'Tabs do not go under their own names')}, "
                f"{'; '.join(parts)}; {one.cure}"
            )
            self._overflowed[one.client] = sentence, now
        found.update((f"overflow {client}", sentence) for client, (sentence, _) in self._overflowed.items())
        sums = self._pump.tallies
        if sums.cut and sums.is_asked:
            found["sums"] = (
                f"{sums.cut} Tabs{' or more' if sums.cut >= MAX_CUT else ''} are not among the sums that match= of this Agent's /metrics"
                f" shows: it keeps those of {MAX_GONE} Tabs of processes that ended, and {many(sums.left_out, 'event')} of others "
                "had no room; scrape a Server for them; where their names hold data take that out, and restart the Agent: its sums "
                "begin anew"
            )
        names: dict[str, list[str]] = {}
        for name, reason in rings.problems.items():
            names.setdefault(reason, []).append(name)
        for reason, those in names.items():
            what = f"ring {those[0]}" if len(those) == 1 else f"{len(those)} rings, such as {those[0]}"
            found[f"rings {reason}"] = reason if those[0].startswith("/") else f"{what}: {reason}"
        if rings.unshown:
            found["rings unshown"] = (
                f"{rings.unshown} further segments of this Agent's name in {rings.directory} are not read: see whose they are (ls -l), and"
                " remove what is no ring"
                + (f"; {rings.beyond} are more than are remembered, and a ring among such is found late" if rings.beyond else "")
            )
        if rings.taken:
            holder = f"process {rings.taken_by}" if rings.taken_by else "in a process that this one may not look into"
            found["taken"] = (
                f"{many(len(rings.taken), 'ring of this name is', 'rings of this name are')} read by another Agent, {holder}: end "
                "one of the two, or give it another name (--agent, and TABA_AGENT for its clients)"
            )

    def _look_at_servers(self, now: float, found: dict[str, str]) -> None:
        keeper = self._keeper
        for server in self._dispatch.servers.values():
            if server.problem is not None and server.failing_since is not None and now - server.failing_since >= GRACE_SECONDS:
                found[f"server {server.url}"] = (
                    f"Server {server.url}: {server.problem}, for {now - server.failing_since:.0f} s;"
                    " what it would take waits in outbox and spool, or goes to other Servers"
                )
            if server.postponing is not None and now - server.postponing[1] < POSTPONING_SECONDS:
                found[f"postponing {server.url}"] = (
                    f"Server {server.url} takes some batches later: {server.postponing[0]}; they wait in outbox and spool until then"
                )
        for type, error in self._pump.edge.failed.items():
            found[f"edge {type}"] = (
                f"the Handler of Type {type} failed to fold events of a drain ({error}): they go as they are, as all of the Type until this"
                " Agent is started again; nothing is lost. Please report it"
            )
        if self._pump.buckets is None and now - self._began >= GRACE_SECONDS:
            found["buckets"] = (
                "no Server has told the number of buckets yet: rings are not drained; start one, or give its URL with --server"
            )
        unread = {id[:2] for id in keeper.books.unreadable}  # that is not the Servers' doing
        waiting = sum(len(lane.pending) for key, lane in keeper.lanes.items() if key not in unread)
        if keeper.books.acknowledged_batches != self._acknowledged or not waiting:
            self._acknowledged, self._progress = keeper.books.acknowledged_batches, now
        elif now - self._progress >= STUCK_SECONDS:
            found["stuck"] = (
                f"{many(waiting, 'batch waits', 'batches wait')}, and no Server applied one for {now - self._progress:.0f} s: see "
                "what the Servers say of their store (taba status)"
            )
