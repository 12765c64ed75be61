"""What an earlier Agent left, taken up: its totals, and its batches, which go out again under their old identity.

1. A batch that a kill within a move left in both places is the spool's. Its lane does not end before it has left both.
2. Of outbox and spool the later table counts; what either says is settled is done with.
3. Of a lane that may be open, and of which the last is not left here, the store is asked for its mark: what it does not have is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from taba.agent.ages import Moment
from taba.agent.keeper import Keeper
from taba.agent.lanes import HeldBatch, Skip
from taba.agent.openings import Openings
from taba.agent.outbox import Table, decode_table
from taba.batch import BatchId, KeyPart
from taba.bounds import BATCH_DAYS, DAY


def recover(keeper: Keeper, now: float) -> None:
    """Have a keeper that is new take up what is in its outbox, spool and history. `now` is monotonic seconds."""
    spool, books, lanes = keeper.spool, keeper.books, keeper.lanes
    table, is_last = _last_table(keeper)
    books.recorded, books.dropped, books.lost_batches = table.recorded, Counter(dict(table.dropped)), table.lost
    books.covered, books.retired = table.covered, set(table.retired)
    books.sequence = table.sequence
    settled = set(table.settled)
    _take_groups(keeper, settled)
    books.settling, books.told = dict.fromkeys(settled), frozenset(settled)  # of the spool
    keeper.backlog.salvage = table.salvage
    keeper.backlog.count_lost()
    for id in settled:
        keeper.history.note(id, 0)
    books.flush_history()
    keeper.backlog.discard_settled()
    keeper.keys += [KeyPart.decode(key) for key in spool.posted()] if spool.batches else []
    books.openings = Openings(table.opened)
    if table is not keeper.outbox.table:  # damage to the spool's file may take it yet: the outbox is to have it, too
        books.is_dirty = True
    if not is_last and books.openings.doubt():  # for those who come after this Agent, too: its own tables are the last again
        books.is_dirty = True
    books.newest = None if table.newest is None else Moment.of_fields(*table.newest)
    last_known = _last_known(keeper)
    for stream, bucket in books.openings.lanes():
        lane, in_spool, known = lanes.get((stream, bucket)), spool.last(stream, bucket), last_known.get((stream, bucket), 0)
        if (lane is None or not lane.pending) and not in_spool:  # nothing of it is left: it is ended
            keeper.lane_of(BatchId(stream, bucket, 0)).unproven = known
        elif known > max(in_spool, lane.highest if lane is not None else 0):  # the last of it is not left, but released from the outbox
            if lane is None:
                lane = keeper.backlog.begin_lane(stream, bucket, True)
            lane.unproven = known
    for skip in table.skipped:
        lane, in_spool = lanes.get(skip.id[:2]), spool.last(*skip.id[:2])
        if lane is None and in_spool:  # a Server may have applied what was sent with it, and then nobody else counts what it left out
            lane = keeper.backlog.begin_lane(*skip.id[:2], True)
        if lane is not None and (skip.id.number <= max(in_spool, lane.highest) or not skip.batches):
            lane.skip = books.skips[skip.id[:2]] = Skip(skip.follows, skip.id.number, skip.batches, skip.events)
    for lane in list(lanes.values()):
        keeper.queue(lane, now)
    keeper.backlog.activate(now)
    if spool.unready is not None:
        books.spool_problem = spool.unready  # tried again each second


def _take_groups(keeper: Keeper, settled: set[BatchId]) -> None:
    """The outbox's groups, with the keys of their posts. Of `settled`, what is left afterwards is the spool's to remove."""
    outbox, spool = keeper.outbox, keeper.spool
    last: dict[tuple[bytes, int], int] = {}  # numbers in the spool, of lanes that are in the outbox as well
    twice: dict[BatchId, HeldBatch] = {}  # what is in both
    for found in outbox.groups():
        group = keeper.groups.begin(found)
        keeper.keys += [KeyPart.decode(stored.key) for stored in found.batches if stored.key]
        for stored in found.batches:
            stream, bucket, number = stored.id
            if (stream, bucket) not in last:
                last[stream, bucket] = spool.last(stream, bucket) if spool.batches else 0
            is_spooled = number <= last[stream, bucket]
            if stored.is_settled or stored.id in settled:
                outbox.settle(stored.flag)
                if not is_spooled:  # else it is to be removed there
                    settled.discard(stored.id)
                keeper.history.note(stored.id, 0)
                group.held.append(None)
                continue
            if not is_spooled:
                keeper.groups.hold(group, stored, keeper.lane_of(stored.id))
                continue
            batch = twice[stored.id] = HeldBatch(stored)
            group.held.append(batch)  # the spool's
            # its stream is not ended before the outbox has let go of it: found there by the next Agent, it would fold again
            keeper.lane_of(stored.id).in_outbox = found.end
    keeper.backlog.bring_back()
    for key, number in last.items():
        if number and (lane := keeper.lanes.get(key)) is not None:
            rows = [row for row in spool.rows(*key, 0, number) if row.id not in settled]
            lane.precede(twice.get(row.id) or HeldBatch(row) for row in rows)


def _last_known(keeper: Keeper) -> Mapping[tuple[bytes, int], int]:
    """Of each lane that the store should still know, the last number that was done with: it is asked whether it has it."""
    books = keeper.books
    if books.newest is None or keeper.born.since(books.newest) > BATCH_DAYS * DAY:
        return {}  # for so long nobody keeps a mark
    try:
        last = keeper.history.last(books.openings)
        return {lane: at for lane, at in last.items() if not books.openings.is_ending(*lane)}
    except OSError as error:  # should the store have lost the last of them, nobody counts it
        books.spool_problem = f"{error}"
        return {}


def _last_table(keeper: Keeper) -> tuple[Table, bool]:
    """The latest table that is here, and whether it is the last that was published, as far as can be told."""
    # an outbox that is new has nothing to say: the one before it is gone, and what its table said last may be in the spool
    outbox, spool = keeper.outbox, keeper.spool
    # a spool that was damaged, or is another, may have had a later one, also for who comes after an Agent that published none;
    # and on a full disk nobody knows
    is_last = not keeper.is_outbox_new and spool.problem is None and not spool.is_doubted and spool.unready is None
    kept = spool.journal(outbox.id if outbox.table.sequence else None)
    if kept is not None:
        try:
            table = decode_table(kept)
        except ValueError as error:
            keeper.books.spool_problem, is_last = f"the table in the spool: {error}", False
        else:
            if table.sequence > outbox.table.sequence:
                return table, is_last
    return outbox.table, is_last
