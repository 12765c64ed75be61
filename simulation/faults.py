"""The faults: what may befall the parts of a world, drawn from its seed before it begins, each with a number.

A kind of fault that never fires is a hole in the simulator: the counts of what fired are printed, and those that did nothing are named.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Any, NamedTuple

from simulation.ground import Part
from simulation.machine import PAGE
from simulation.names import AGENT, part_of
from simulation.server import Server
from simulation.store import REPLICA_SECONDS, Store
from simulation.world import BACK, MOVES, PASTS, World
from taba.agent.database import DAMAGE

MOVE_SECONDS = 0.3  # about as long as a command takes that moves a bucket or two
NAP_STEPS = 150  # about as many as a command takes that moves a bucket or two
# of a move, before which somebody may be stopped: those after which a bucket's owner is another, or what was copied counts
STEPS = ("begin", "seal", "staged", "open", "open", "leave", "remove", "disown", "disown", "reopen")
LONG_OUTAGES, LONG = (3, 4), 4.0  # of six draws two: of the first server and of the second
LEAST_DAMAGE, DAMAGED_BYTES = 4, 200  # of six draws two write over bytes of the spool's file, wherever they lie
# what an Agent keeps on the disk beside the spool, of which no byte is missed: a record that is damaged is known elsewhere, or stands twice
MANIFEST, TWICE = ".spool.list", (".sums", ".store")
KEPT = (".history", ".keys", ".keys-wal", MANIFEST, *TWICE)
SHIELD_SECONDS = 0.5  # after an outbox was removed nobody kills its Agent: what it holds would be lost, and who could count it?

# Faults that do not go together. A store that goes back is made good by what Agents retain: a full disk takes that, and so does a host that
# boots anew. In full memory what was acknowledged longest ago is given up first: a failover takes back what is younger than that, a store
# that is as it was twenty seconds ago takes back more than is retained, and what it had of that nobody can tell. And one that is as it was
# before its buckets left has them again: a person repairs that, and some is lost by it
APART = (
    (BACK, frozenset(("disk full", "disk tears", "spool spoilt", "file spoilt", "outbox removed", "host boots", "power fails"))),
    (PASTS, MOVES | frozenset(("memory full",))),
)


class Fault(NamedTuple):
    """Something that happens at a time."""

    number: int
    at: float
    kind: str
    detail: dict[str, Any]


class Kind(NamedTuple):
    """A kind of fault: `weight`, how often it is drawn; `shape` draws what it needs to know; `happen` does it.

    Something was done where one of `counted` was, in a world's `fired`.
    """

    weight: float
    shape: Callable[[Random], dict[str, Any]]
    happen: Callable[[World, Fault], None]
    counted: tuple[str, ...]


def draw(random: Random, duration: float, kinds: Collection[str], density: float) -> list[Fault]:
    """The faults of one world: about `density` a second, in its first nine tenths."""
    names = list(kinds)
    if not names:
        return []
    # worlds differ: some know a few kinds of faults only, so that others do not hide what these do
    chosen = names if random.random() < 0.5 else random.sample(names, min(len(names), random.randint(2, 5)))
    for one, others in APART:
        if one & set(chosen) and others & set(chosen):
            taken = one if random.random() < 0.5 else others
            chosen = [name for name in chosen if name not in taken]
    weights = [KINDS[name].weight for name in chosen]
    count = random.randint(1, max(1, int(2 * density * duration)))
    faults: list[Fault] = []
    for at in sorted(random.uniform(0.5, 0.9 * duration) for _ in range(count)):
        kind = random.choices(chosen, weights)[0]
        faults.append(Fault(len(faults), at, kind, KINDS[kind].shape(random)))
    return faults


def _lasts(world: World, what: Any, put: Callable[[Any], None], value: Any, usual: Any, seconds: float) -> None:
    """Have it be so for so long. Several of one kind at once each end by themselves: felt is the last begun of those that are not over."""
    standing = world.lasting.setdefault(what, [])
    standing.append(value)
    put(value)

    def over() -> None:
        standing.remove(value)
        if not world.is_quiet:
            put(standing[-1] if standing else usual)

    world.later(seconds, None, over)


def _attribute(where: Any, name: str) -> tuple[Any, Callable[[Any], None]]:
    """What lasts where it is an attribute: its place, and how it is set."""
    return (where, name), lambda value: setattr(where, name, value)


def _nothing(random: Random) -> dict[str, Any]:
    return {}


def _seconds(least: float, most: float) -> Callable[[Random], dict[str, Any]]:
    return lambda random: {"seconds": round(random.uniform(least, most), 3)}


def _one(part: Part) -> str:
    name = part_of(part.name)
    return f"an {name}" if name == "agent" else f"a {name}"


def _kill_at_once(group: str) -> Callable[[World, Fault], None]:
    def happen(world: World, fault: Fault) -> None:
        parts = getattr(world, group)
        part = parts[fault.detail["which"] % len(parts)]
        if part.process is not None and not (world.is_shielded and group == "agents"):
            world.fired[f"killed {_one(part)}"] += 1
            world.kill(part.process)

    return happen


def _end_agent(world: World, fault: Fault) -> None:
    agent = world.agents[fault.detail["which"] % len(world.agents)]
    if agent.process is not None and agent.process.wakes <= world.now and not world.is_shielded:
        world.fired["ended an agent in order"] += 1
        world.run(agent.process, agent.end)


def _burn(group: str) -> Callable[[World, Fault], None]:
    def happen(world: World, fault: Fault) -> None:
        parts = getattr(world, group)
        part = parts[fault.detail["which"] % len(parts)]
        if part.process is not None and not (world.is_shielded and group == "agents"):
            world.fired[f"lit a fuse in {_one(part)}"] += 1
            part.process.fuse = fault.detail["steps"]
        elif part.process is None and part.may_start:  # it may be killed while it starts
            world.fired[f"lit a fuse in {_one(part)} that starts"] += 1
            part.fuse = fault.detail["steps"]

    return happen


def _which(random: Random) -> dict[str, Any]:
    return {"which": random.randrange(6)}


def _fuse(random: Random) -> dict[str, Any]:
    return {"which": random.randrange(6), "steps": random.choice((0, 1, 2, 3, 5, 8, 13, 30, 100))}


def _kill_store(world: World, fault: Fault) -> None:
    store = world.stores[fault.detail["which"] % len(world.stores)]
    world.fired["killed a store"] += 1
    store.end_life()
    _lasts(world, *_attribute(store, "is_up"), False, True, fault.detail["seconds"])


def _outage(random: Random) -> dict[str, Any]:
    """Mostly short; now and then so long that what was applied meanwhile on other servers is not retained any more."""
    drawn = _which_for(0.1, 8.0)(random)
    return {**drawn, "seconds": round(drawn["seconds"] * LONG, 3)} if drawn["which"] in LONG_OUTAGES else drawn


def _store_for(name: str, value: Any, back: Any) -> Callable[[World, Fault], None]:
    def happen(world: World, fault: Fault) -> None:
        for store in world.stores:
            _lasts(world, *_attribute(store, name), value, back, fault.detail["seconds"])

    return happen


def _weather(name: str) -> Callable[[World, Fault], None]:
    def happen(world: World, fault: Fault) -> None:
        _lasts(world, *_attribute(world.network.weather, name), fault.detail["share"], 0.0, fault.detail["seconds"])

    return happen


def _share(random: Random) -> dict[str, Any]:
    return {"share": round(random.choice((0.05, 0.2, 0.6)), 2), "seconds": round(random.uniform(0.5, 10.0), 3)}


def _cut_off(world: World, fault: Fault) -> None:
    url, cut = world.servers[fault.detail["which"] % len(world.servers)].url, world.network.cut
    world.fired["cut a server off"] += 1
    _lasts(world, (world.network, url), lambda is_cut: cut.add(url) if is_cut else cut.discard(url), True, False, fault.detail["seconds"])


def _which_for(least: float, most: float) -> Callable[[Random], dict[str, Any]]:
    return lambda random: {"which": random.randrange(6), "seconds": round(random.uniform(least, most), 3)}


def _full(name: str) -> Callable[[World, Fault], None]:
    def happen(world: World, fault: Fault) -> None:
        world.may_lose = True
        _lasts(world, *_attribute(world.machine, name), True, False, fault.detail["seconds"])

    return happen


def _step_clock(world: World, fault: Fault) -> None:
    parts = [*world.servers, *world.agents, *world.clients]
    part = parts[fault.detail["which"] % len(parts)]
    world.fired["stepped a clock"] += 1
    world.step_clock(part, fault.detail["skew"])


def _step_store_clock(world: World, fault: Fault) -> None:
    world.fired["stepped the store's clock"] += 1
    for store in world.stores:
        store.clock.skew = fault.detail["skew"]


def _skew(random: Random) -> dict[str, Any]:
    return {"which": random.randrange(8), "skew": random.choice((-1e9, -3600.0, -60.0, 60.0, 3600.0, 40 * 86_400.0))}


def _remove_outbox(world: World, fault: Fault) -> None:
    holder = world.holder
    if holder is None or holder.process is None:
        return  # what nobody holds would be lost, and nobody could count it
    holder.process.fuse = None
    world.shielded_until = world.now + SHIELD_SECONDS
    for name in os.listdir(world.machine.shm):
        if name.startswith("taba-agent."):
            os.unlink(os.path.join(world.machine.shm, name))
            world.machine.notes_change()
            world.fired["removed an outbox"] += 1


def _second_agent(world: World, fault: Fault) -> None:
    world.fired["started a second Agent"] += 1
    second = world.agents[1]
    second.may_start = True
    second.start()
    second.ends = max(second.ends, world.now + fault.detail["seconds"])

    def end() -> None:
        if world.now < second.ends:
            return  # it was started once more meanwhile
        second.may_start = False
        if second.process is not None and not world.is_shielded:
            world.kill(second.process)

    world.later(fault.detail["seconds"], None, end)


def _cut_from_store(world: World, fault: Fault) -> None:
    """A Server that Agents reach, and that reaches no store."""
    name, cut = world.servers[fault.detail["which"] % len(world.servers)].name, world.network.without_store
    put = lambda is_cut: cut.add(name) if is_cut else cut.discard(name)  # noqa: E731
    world.fired["cut a server from its store"] += 1
    _lasts(world, (world.network, name), put, True, False, fault.detail["seconds"])


def _kill_all(world: World, fault: Fault) -> None:
    """All processes end at once, the store's too, and start again in any order."""
    if world.is_shielded:
        return
    world.fired["killed all at once"] += 1
    for part in (*world.servers, *world.agents, *world.clients, *world.movers):
        if part.process is not None:
            world.kill(part.process)
    for store in world.stores:
        store.end_life()
        seconds = world.random.uniform(0.0, fault.detail["seconds"])
        _lasts(world, *_attribute(store, "is_up"), False, True, seconds)


def _go_back(world: World, fault: Fault) -> None:
    for store in world.stores:
        _goes_back(world, store, fault.detail["seconds"])


def _one_goes_back(world: World, fault: Fault) -> None:
    world.fired["one store went back in time"] += 1
    _goes_back(world, world.stores[fault.detail["which"] % world.first_stores], fault.detail["seconds"])


def _goes_back(world: World, store: Store, seconds: float) -> None:
    back = store.go_back(seconds)
    store.end_life()  # it is another process now, or another server
    world.say(f"{store.name} is as it was {back:.1f} s ago")
    world.fired["a store went back in time"] += 1


def _spoil_spool(world: World, fault: Fault) -> None:
    """Flip a bit of what the spool holds, or write over a part of its file."""
    path = os.path.join(world.machine.disk, f"{AGENT}.spool")
    if not os.path.exists(path):
        return
    if fault.detail["which"] >= LEAST_DAMAGE:
        _damage(world, path, fault)
        return
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0.1)) as database, contextlib.suppress(*DAMAGE):
        row = database.execute("SELECT id, content FROM batches ORDER BY id LIMIT 1 OFFSET ?", (fault.detail["which"],)).fetchone()
        if row is not None and isinstance(row[1], bytes) and row[1]:  # damage to the file leaves any value there
            content = bytearray(row[1])
            content[len(content) // 2] ^= 1 << fault.detail["which"] % 8
            database.execute("UPDATE batches SET content = ? WHERE id = ?", (bytes(content), row[0]))
            world.may_lose = True
            world.fired["flipped a bit in the spool"] += 1


def _tear(world: World, fault: Fault) -> None:
    world.may_lose = True
    _lasts(world, *_attribute(world.machine, "disk_left"), fault.detail["left"], None, fault.detail["seconds"])


def _few_bytes(random: Random) -> dict[str, Any]:
    return {"left": random.randrange(2000), "seconds": round(random.uniform(0.2, 4.0), 3)}


def _spoil_file(world: World, fault: Fault) -> None:
    """Flip bits of a byte of what an Agent keeps beside its spool: of that nothing is lost."""
    path = os.path.join(world.machine.disk, AGENT)
    # what both have lost that say the same nobody knows: of a line that stands twice the other one, of a spool its manifest
    left_out = {*world.spoilt, MANIFEST} if world.may_spoil_spool else world.spoilt
    there = [which for which in KEPT if which not in left_out and os.path.exists(path + which) and os.path.getsize(path + which)]
    if not there:
        return
    which = there[fault.detail["file"] % len(there)]
    path, size = path + which, os.path.getsize(path + which)
    if which in TWICE:
        world.spoilt.add(which)
    with open(path, "r+b") as file:
        place = int(fault.detail["place"] * size)
        file.seek(place)
        byte = file.read(1)[0] ^ fault.detail["bits"]
        file.seek(place)
        file.write(bytes([byte]))
    world.say(f"byte {place} of {which} is another")
    world.fired["flipped bits in a file"] += 1
    world.fired[f"flipped bits in a file: {which}"] += 1


def _byte(random: Random) -> dict[str, Any]:
    return {"file": random.randrange(60), "place": random.random(), "bits": random.randrange(1, 256)}


def _damage(world: World, path: str, fault: Fault) -> None:
    """Write over some bytes of one of the file's pages, as a disk may; the first one is among them."""
    pages = os.path.getsize(path) // PAGE
    if not pages:
        return
    place = fault.number % pages * PAGE + int(fault.at * 1000) % (PAGE - DAMAGED_BYTES)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(Random(fault.number).randbytes(DAMAGED_BYTES))
    world.may_lose = True
    world.fired["damaged the spool"] += 1


def _future(world: World, fault: Fault) -> None:
    server = world.servers[fault.detail["which"] % len(world.servers)]
    if world.is_folding and fault.detail["which"] >= 2:
        _step_back(world, server, fault.detail["seconds"])
        return
    _lasts(world, *_attribute(server, "is_future"), True, False, fault.detail["seconds"])


def _step_back(world: World, server: Server, seconds: float) -> None:
    """It is one of a version before, for so long: what Agents have folded by then it cannot merge."""

    def become(is_older: bool) -> None:
        if server.is_older != is_older:
            server.is_older = is_older
            if server.process is not None:
                world.kill(server.process)

    world.may_bury = True
    world.fired["stepped a server back"] += 1
    _lasts(world, (server, "is_older"), become, True, False, seconds)


def _call_mover(world: World, fault: Fault) -> None:
    world.fired[f"called {fault.detail['aim']}"] += 1
    world.movers[fault.detail["which"] % len(world.movers)].call(fault.detail["aim"], fault.detail["shard"])


def _aim(random: Random) -> dict[str, Any]:
    aim = random.choice(("add", "add", "add", "drain", "drain", "rebalance", "abort", "check", "repair"))
    return {"which": random.randrange(6), "aim": aim, "shard": random.randrange(6)}


def _on_mover(do: Callable[[World, Fault], None]) -> Callable[[World, Fault], None]:
    """To a command that runs: commands are short, so that one is called where none is."""

    def happen(world: World, fault: Fault) -> None:
        mover = world.movers[fault.detail["which"] % len(world.movers)]
        if mover.process is None:
            mover.call("add" if fault.number % 2 else "drain", fault.number)
        # at some moment of its life, which follows from the fault's own
        world.later(fault.at * 7919 % MOVE_SECONDS, None, lambda: None if world.is_quiet else do(world, fault))

    return happen


def _interrupt(world: World, fault: Fault) -> None:
    mover = world.movers[fault.detail["which"] % len(world.movers)]
    if mover.process is not None and mover.process.wakes <= world.now:
        world.fired["interrupted a mover"] += 1
        world.run(mover.process, mover.interrupt)


def _stop(groups: tuple[str, ...]) -> Callable[[World, Fault], None]:
    """SIGSTOP, and SIGCONT after a while: whoever sleeps in the middle of something wakes in a world that went on."""

    def happen(world: World, fault: Fault) -> None:
        parts = [part for group in groups for part in getattr(world, group)]
        part = parts[fault.detail["which"] % len(parts)]
        if part.process is not None:
            world.fired[f"stopped {_one(part)}"] += 1
            part.process.wakes = max(part.process.wakes, world.now + fault.detail["seconds"])

    return happen


def _send_to_sleep(world: World, fault: Fault) -> None:
    mover = world.movers[fault.detail["which"] % len(world.movers)]
    if mover.process is not None:
        mover.process.nap = fault.detail["steps"], fault.detail["seconds"]


def _nap(random: Random) -> dict[str, Any]:
    # longer than others take it for alive
    return {"which": random.randrange(6), "steps": random.randrange(NAP_STEPS), "seconds": round(random.uniform(5.0, 60.0), 3)}


def _sleep_before(world: World, fault: Fault) -> None:
    """Whoever moves a bucket, or ends a move of others, stops just before a step of it: the world goes on, and it wakes into that."""
    if fault.detail["is_mover"]:
        mover = world.movers[fault.detail["which"] % len(world.movers)]
        mover.call("add" if fault.number % 2 else "drain", fault.number)  # where it does not run already
    parts = world.movers if fault.detail["is_mover"] else world.servers
    part = parts[fault.detail["which"] % len(parts)]
    if part.process is not None:
        part.process.sleep = fault.detail["step"], fault.detail["seconds"]


def _step(random: Random) -> dict[str, Any]:
    # shorter and longer than others take it for alive
    seconds = random.choice((random.uniform(0.2, 5.0), random.uniform(11.0, 40.0)))
    return {
        "which": random.randrange(6),
        "is_mover": random.random() < 0.6,
        "step": random.choice(STEPS),
        "seconds": round(seconds, 3),
    }


def _fail_over(world: World, fault: Fault) -> None:
    store = world.stores[fault.detail["which"] % len(world.stores)]
    lost = store.fail_over()
    world.say(f"{store.name} is its replica now, which lacked {lost} changes")
    world.fired["a store failed over" if not lost else "a store failed over to a replica that lagged"] += 1
    store.end_life()
    _lasts(world, *_attribute(store, "is_up"), False, True, fault.detail["seconds"])


def _lag(world: World, fault: Fault) -> None:
    store = world.stores[fault.detail["which"] % len(world.stores)]
    world.fired["a replica lagged"] += 1
    _lasts(world, *_attribute(store, "lag"), fault.detail["seconds"] / 4, REPLICA_SECONDS, fault.detail["seconds"])


def _boot(world: World, fault: Fault) -> None:
    """The host of Agent and applications begins anew: shared memory is gone, the disk is as it was."""
    world.fired["a host booted"] += 1
    world.boots_anew()


def _power(world: World, fault: Fault) -> None:
    """Their host loses power, now or within what its Agent does: what was not synced is not on its disk."""
    world.fired["the power failed"] += 1
    process, steps = next((agent.process for agent in world.agents if agent.process is not None), None), fault.detail["steps"]
    if process is None or steps is None:
        world.lose_power()
        world.have_power_back()
        return
    process.takes_power = True
    process.fuse = steps


def _burn_in_move(world: World, fault: Fault) -> None:
    """Whoever next moves what the outbox holds to the spool is killed within that."""
    world.steps_of_move = fault.detail["steps"]


def _few_steps(random: Random) -> dict[str, Any]:
    return {"steps": random.randrange(12)}


def _any_steps(random: Random) -> dict[str, Any]:
    return {"steps": random.choice((None, None, 0, 1, 2, 3, 5, 8, 13, 30, 100))}


def _burnt(part: str) -> tuple[str, ...]:
    return tuple(f"killed {when} a write: {part}" for when in ("before", "within", "after"))


def silent(kinds: Collection[str], fired: Mapping[str, int]) -> list[str]:
    """Those that did nothing, whether they were drawn or not: holes."""
    return [kind for kind in kinds if not any(fired.get(word) for word in KINDS[kind].counted)]


# kinds by name; what each does to the world is said in its detail
KINDS: dict[str, Kind] = {
    "kill agent": Kind(2.0, _which, _kill_at_once("agents"), ("killed an agent",)),
    "agent ends": Kind(1.0, _which, _end_agent, ("ended an agent in order",)),
    "kill server": Kind(1.0, _which, _kill_at_once("servers"), ("killed a server",)),
    "kill client": Kind(1.0, _which, _kill_at_once("clients"), ("killed a client",)),
    "agent's fuse": Kind(4.0, _fuse, _burn("agents"), (*_burnt("agent"),)),
    "server's fuse": Kind(2.0, _fuse, _burn("servers"), (*_burnt("server"),)),
    "client's fuse": Kind(2.0, _fuse, _burn("clients"), (*_burnt("client"),)),
    "store dies": Kind(1.0, _outage, _kill_store, ("killed a store",)),
    "store cut before": Kind(1.0, _seconds(0.5, 8.0), _store_for("cut_before", 0.2, 0.0), ("store cut before",)),
    "store cut after": Kind(1.0, _seconds(0.5, 8.0), _store_for("cut_after", 0.2, 0.0), ("store cut after",)),
    "store late": Kind(1.0, _seconds(0.5, 8.0), _store_for("late", 0.1, 0.0), ("store answers late",)),
    "store takes no writes": Kind(0.5, _seconds(0.5, 8.0), _store_for("is_reading_only", True, False), ("store takes no writes",)),
    "messages lost": Kind(1.0, _share, _weather("lost"), ("message lost",)),
    "messages repeated": Kind(1.0, _share, _weather("repeated"), ("message repeated",)),
    "messages late": Kind(1.0, _share, _weather("late"), ("message late",)),
    "connections closed": Kind(0.7, _share, _weather("stale"), ("kept connection closed",)),
    "server cut off": Kind(1.0, _which_for(0.5, 10.0), _cut_off, ("server not reached",)),
    "clock stepped": Kind(0.7, _skew, _step_clock, ("stepped a clock",)),
    "store's clock stepped": Kind(0.5, _skew, _step_store_clock, ("stepped the store's clock",)),
    "store goes back": Kind(0.5, _seconds(0.2, 20.0), _go_back, ("a store went back in time",)),
    "memory full": Kind(1.0, _seconds(0.5, 8.0), _full("is_memory_full"), ("shared memory full",)),
    "disk full": Kind(0.5, _seconds(0.2, 4.0), _full("is_disk_full"), ("disk full",)),
    "spool spoilt": Kind(0.7, _which, _spoil_spool, ("flipped a bit in the spool", "damaged the spool")),
    "outbox removed": Kind(0.5, _nothing, _remove_outbox, ("removed an outbox",)),
    "second Agent": Kind(0.5, _seconds(0.5, 8.0), _second_agent, ("started a second Agent",)),
    "other version": Kind(0.7, _which_for(0.5, 8.0), _future, ("a batch of another version", "stepped a server back")),
    "buckets move": Kind(3.0, _aim, _call_mover, ("buckets moved",)),
    "kill mover": Kind(0.5, _which, _on_mover(_kill_at_once("movers")), ("killed a mover",)),
    "mover's fuse": Kind(2.0, _fuse, _on_mover(_burn("movers")), (*_burnt("mover"),)),
    "process stopped": Kind(
        1.0,
        _which_for(0.5, 20.0),
        _stop(("servers", "agents", "clients")),
        (
            "stopped a server",
            "stopped an agent",
            "stopped a client",
        ),
    ),
    "mover stopped": Kind(1.0, _which_for(0.5, 40.0), _on_mover(_stop(("movers",))), ("stopped a mover",)),
    "mover naps": Kind(1.0, _nap, _on_mover(_send_to_sleep), ("stopped after a step: mover",)),
    "sleeps before a step": Kind(
        2.0, _step, _sleep_before, ("slept before a step of a move: mover", "slept before a step of a move: server")
    ),
    "mover interrupted": Kind(0.5, _which, _on_mover(_interrupt), ("interrupted a mover",)),
    "store fails over": Kind(
        0.5,
        _which_for(0.05, 3.0),
        _fail_over,
        (
            "a store failed over",
            "a store failed over to a replica that lagged",
        ),
    ),
    "replica lags": Kind(0.7, _which_for(0.5, 10.0), _lag, ("a replica lagged",)),
    "host boots": Kind(0.3, _nothing, _boot, ("a host booted",)),
    "disk tears": Kind(0.5, _few_bytes, _tear, ("a write took a part",)),
    "file spoilt": Kind(0.7, _byte, _spoil_file, ("flipped bits in a file",)),
    "server cut from store": Kind(0.7, _which_for(0.5, 20.0), _cut_from_store, ("no store reached",)),
    "one store goes back": Kind(0.5, _which_for(0.2, 20.0), _one_goes_back, ("one store went back in time",)),
    "all restart": Kind(0.3, _seconds(0.0, 8.0), _kill_all, ("killed all at once",)),
    "move's fuse": Kind(0.7, _few_steps, _burn_in_move, ("lit a fuse in a move to the spool",)),
    "store has no memory": Kind(0.5, _seconds(0.5, 8.0), _store_for("is_full", True, False), ("store has no memory",)),
    "power fails": Kind(0.3, _any_steps, _power, ("the power failed",)),
}
