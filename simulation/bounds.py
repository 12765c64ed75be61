"""Nothing beyond its bound: what each part of a world holds, beside the bound that its own room has a name for.

1. A bound is the one that the real code goes by: the name in its module, read when it is looked at. In narrow worlds these are small, so
   that worlds of half a minute meet them; else most of them would be met by days of load alone.
2. What a part holds is counted from what it holds, not read from the figure by which it keeps the bound.
3. What is bounded between two turns may hold what one turn adds: that is added to the bound, and no more. Where a turn may add as much as
   there is, it is looked at just after the real code has kept its bound.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from simulation.names import AGENT, ENVIRONMENT, OUTBOX_BYTES, RING_BYTES, SPOOL_BYTES
from taba import ring as layouts
from taba.agent import backlog, books, dispatch, grants, history, keeper, keys, lanes, openings, register
from taba.bounds import KiB, MiB
from taba.client.segment import MAX_COUNTING_BYTES
from taba.server import keys as names
from taba.server.fold import burying, ingest, posts
from taba.server.fold.bounds import DEFAULT_BOUNDS, Bounds
from taba.server.work.renewing import MAX_STATE_BYTES

if TYPE_CHECKING:
    from simulation.machine import Machine
    from taba.agent.keeper import Keeper
    from taba.agent.loop import Loop
    from taba.server.fold.ingest import Ingest
    from taba.server.fold.posts import Posts


Held = tuple[str, int, int]
"""A bound, so much of what it is for, and the most that there may be: plain, for a world makes a hundred of them each second."""


class Narrow(NamedTuple):
    """A bound as small as a narrow world has it."""

    module: Any
    name: str
    most: int


# What is given up first here is what a store that goes back is made good by: narrow worlds have none that does
NARROW = (
    Narrow(keeper, "MAX_PENDING_BATCHES", 40),
    Narrow(backlog, "MAX_LANES", 24),
    Narrow(backlog, "MAX_SPOOL_LANES", 2),
    Narrow(books, "MAX_SETTLING", 2),
    Narrow(keeper, "MOVE_BYTES", 8 * KiB),
    Narrow(books, "MAX_RETAINED_BATCHES", 60),
    Narrow(books, "MAX_RETAINED_BYTES", 16 * KiB),
    Narrow(dispatch, "MAX_RUN_BATCHES", 3),
    Narrow(dispatch, "MAX_IN_FLIGHT", 1),
    Narrow(ingest, "MAX_CYCLES", 1),
    Narrow(ingest, "MAX_LINE_BYTES", 2 * KiB),
    Narrow(ingest, "MAX_WAITING_BYTES", 4 * KiB),
    Narrow(burying, "MAX_DEAD_LETTERS", 4),
    Narrow(burying, "MAX_MISSING_TYPES", 3),
)
NARROW_BOUNDS = DEFAULT_BOUNDS._replace(streams=10)
TURN_BATCHES = 100  # more than an Agent drains, or has answered, in one of its turns here


def of_agent(loop: Loop) -> Iterator[Held]:
    """What an Agent holds in memory."""
    held = loop.keeper
    in_outbox = longest = most_sent = 0
    for lane in held.lanes.values():
        if lane.pending:
            in_outbox += sum(batch.group is not None for batch in lane.pending)
        longest = max(longest, len(lane._history or ()) // 2)  # a number and its events
        most_sent = max(most_sent, len(lane.sent))
    yield "MAX_HISTORY", longest, lanes.MAX_HISTORY + lanes.MORE_HISTORY
    yield "MAX_RUN_BATCHES", most_sent, _named(dispatch, "MAX_RUN_BATCHES")
    yield "MAX_PENDING_BATCHES", in_outbox, keeper.MAX_PENDING_BATCHES + TURN_BATCHES
    # one that has something to send is never given up
    yield "MAX_LANES", len(held.lanes), backlog.MAX_LANES + keeper.MAX_PENDING_BATCHES + TURN_BATCHES
    yield "MAX_SPOOL_LANES", len(held.schedule.backlog), backlog.MAX_SPOOL_LANES + TURN_BATCHES
    yield "MAX_SETTLING", len(held.books.settling), books.MAX_SETTLING + backlog.SPOOL_ROWS
    yield "REFUSALS_SHOWN", len(held.books.refusals), books.REFUSALS_SHOWN
    yield "outbox", held.outbox.used, held.outbox.capacity
    yield "spool", held.spool.used, held.spool.bound
    yield "MAX_OPENED", len(held.books.openings.fields()), openings.MAX_OPENED
    yield "MAX_SERVERS", len(loop.dispatch.servers), dispatch.MAX_SERVERS
    for server in loop.dispatch.servers.values():
        yield "MAX_IN_FLIGHT", server.in_flight, dispatch.MAX_IN_FLIGHT
    yield "MAX_KEYS", loop.home.keys.count, keys.MAX_KEYS
    yield "MAX_GRANTS", len(loop.grants), grants.MAX_GRANTS
    yield "MAX_STREAMS of the register", len(loop.home.register.streams), register.MAX_STREAMS
    for ring in loop.rings.open.values():
        yield "MAX_TABS", len(ring.directory), layouts.MAX_TABS


def of_what_is_retained(held: Keeper) -> Iterator[Held]:
    """What an Agent retains just after a turn, in which it has given up what is too much.

    Not looked at between two turns: when the oldest group of the outbox is acknowledged, all that waited behind it to be let go of is
    retained by then, and that may be as much as the outbox holds.
    """
    # the outbox lets go of its oldest first: what is retained behind one that waits is let go of once that is in the spool
    is_moving = held._moving > held.outbox.released
    lengths = [
        batch.length
        for lane in held.lanes.values()
        for batch in lane.retained
        if not batch.is_gone and not (is_moving and batch.group is not None)
    ]
    # what came while it moved is behind one that waits again
    more = TURN_BATCHES if held.groups.is_stuck else 0
    yield "MAX_RETAINED_BATCHES", len(lengths), books.MAX_RETAINED_BATCHES + more
    yield "MAX_RETAINED_BYTES", sum(lengths), books.MAX_RETAINED_BYTES + more * max(lengths, default=0)


def of_server(rooms: Ingest, posted: Posts) -> Iterator[Held]:
    """What a Server holds in memory: what waits to be folded."""
    waiting = largest = 0
    for line in rooms._lines.values():
        sizes = [entry.waiting.charged for entry in line.entries]
        largest = max(largest, *sizes, 0)
        waiting += sum(sizes)
        # an empty one takes any batch, and what was to be folded with other buckets is put back before what came meanwhile
        yield "MAX_LINE_BYTES", sum(sizes), 2 * (ingest.MAX_LINE_BYTES + max(sizes, default=0))
    yield "MAX_WAITING_BYTES", waiting, 2 * (ingest.MAX_WAITING_BYTES + len(rooms._lines) * largest)
    for gate in rooms._gates.values():
        yield "MAX_CYCLES", gate.running, ingest.MAX_CYCLES
    yield "MAX_TURNED_AWAY", len(rooms._turned_away), ingest.MAX_TURNED_AWAY
    yield "MAX_UNFINISHED", len(posted._unfinished), posts.MAX_UNFINISHED


def of_machine(machine: Machine) -> Iterator[Held]:
    """What lies in shared memory and on the disk."""
    rings = 0
    for name, size in _sizes(machine.shm):
        if name.startswith("taba-agent."):
            yield "the outbox's file", size, 2 * OUTBOX_BYTES
        elif size > layouts.COUNTING_BYTES:
            rings += size
            yield "TABA_RING_BYTES", size, RING_BYTES
        else:
            yield "MAX_COUNTING_BYTES", size, MAX_COUNTING_BYTES
    yield "TABA_SHM_BYTES", rings, int(ENVIRONMENT["TABA_SHM_BYTES"])
    for name, size in _sizes(machine.disk) if os.path.isdir(machine.disk) else ():
        if name.startswith(f"{AGENT}.history"):
            yield "MAX_HISTORY_BYTES", size, history.MAX_HISTORY_BYTES
        elif name.startswith(f"{AGENT}.spool"):
            yield "the spool's files", size, 2 * SPOOL_BYTES + MiB  # twice: a page of SQLite's is seldom full


def _sizes(folder: str) -> Iterator[tuple[str, int]]:
    """Each file of it, and how long it is."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name, entry.stat().st_size


class Kept(NamedTuple):
    """Keys of a bucket in the store that are bounded, and by what."""

    bound: str
    bucket: int


def bounded_keys(buckets: int) -> dict[bytes, Kept]:
    """All of them, by their names."""
    found: dict[bytes, Kept] = {}
    for bucket in range(buckets):
        for bound, key in (
            ("MAX_STREAMS", names.marks),
            ("MAX_POSTERS", names.posts),
            ("MAX_DEAD_LETTERS", names.dead_letters),
            ("MAX_MISSING_TYPES", names.missing),
            ("DEFAULT_MAX_TABS", names.tabs),
            ("DEFAULT_MAX_CLIENTS", names.clients),
            ("MAX_STATE_BYTES", names.states),
        ):
            found[key(bucket)] = Kept(bound, bucket)
    return found


def in_store(kept: Kept, value: Any, servers: Bounds) -> Held:
    """What there is of one of these. `servers`: the bounds that Servers go by."""
    if kept.bound == "MAX_STATE_BYTES":
        return kept.bound, max(map(len, value.values()), default=0), MAX_STATE_BYTES
    match kept.bound:
        case "MAX_STREAMS":
            most = servers.streams
        case "MAX_POSTERS":
            most = posts.MAX_POSTERS
        case "MAX_DEAD_LETTERS":
            most = _named(burying, "MAX_DEAD_LETTERS")
        case "MAX_MISSING_TYPES":
            most = burying.MAX_MISSING_TYPES
        case "DEFAULT_MAX_TABS":
            most = servers.tabs
        case "DEFAULT_MAX_CLIENTS":
            most = servers.clients
        case other:
            raise AssertionError(f"{other} bounds nothing that a store has")
    return kept.bound, len(value), most


def _named(module: Any, name: str) -> int:
    """The bound as a module that imported it goes by it."""
    return int(getattr(module, name))
