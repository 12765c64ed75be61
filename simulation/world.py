"""One world: its parts, what is true of them at every step, and what must be true in the end."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable
from random import Random
from typing import Any

from simulation.agent import Agent
from simulation.bounds import NARROW, NARROW_BOUNDS, Held, bounded_keys, in_store, of_agent, of_machine, of_server, of_what_is_retained
from simulation.callers import Asker, Poster
from simulation.census import CENSUSES, RECORDED, Ledger, count, numbers
from simulation.client import Client
from simulation.ground import Ground
from simulation.mover import Mover
from simulation.names import AGENT
from simulation.power import Left
from simulation.server import Server
from simulation.store import Store
from taba.agent import drain, keeper, lanes
from taba.agent.loop import Loop
from taba.server import keys
from taba.server.aging import read_record
from taba.server.fold.deadletters import decode_dead_letter
from taba.server.fold.marks import decode_mark
from taba.shard.buckets import MAP_KEY, STORE_KEY, decode_map, decode_owner, decode_record, lease_key, owner_key
from taba.shard.servers.url import parse_store

BUCKETS = 4
CENSUS_SECONDS = 5.0  # between two looks at each State's identities
NOWHERE_SECONDS = 60.0  # a mover that died is waited for, a Server comes by, and shards that were away are back
# kinds of faults that a world has to know of
MOVES = frozenset(
    ("buckets move", "kill mover", "mover's fuse", "mover interrupted", "mover stopped", "mover naps", "sleeps before a step")
)
PASTS = frozenset(("store goes back", "one store goes back"))
BACK = PASTS | {"store fails over", "replica lags"}
LOST_OUTBOX = frozenset(("host boots", "power fails", "outbox removed"))
FILLING = frozenset(("memory full", "disk full", "disk tears", "spool spoilt"))
# keys that the world looks at whenever they change: (bucket, whether it is its owner key)
WATCHED = {key: (bucket, key == owner_key(bucket)) for bucket in range(BUCKETS) for key in (owner_key(bucket), keys.counts(bucket))}
MARKS = {keys.marks(bucket): bucket for bucket in range(BUCKETS)}
LETTERS = {keys.dead_letters(bucket): bucket for bucket in range(BUCKETS)}
LEASES = {lease_key(bucket): bucket for bucket in range(BUCKETS)}
# what transactions write, and nobody else, but who moves the bucket and removes it where it is not any more
WRITTEN = {key(bucket): bucket for bucket in range(BUCKETS) for key in (keys.marks, keys.posted, keys.states, keys.counts)}
BOUNDED = bounded_keys(BUCKETS)
LOOKED_AT = frozenset((*WATCHED, *MARKS, *LETTERS, *LEASES, *WRITTEN, *BOUNDED, MAP_KEY))  # keys whose change anything is asked of
BOUND_SECONDS = 0.5  # between two looks at what Agents and Servers hold, and half of those at what lies in files; at what a store holds the
# world looks whenever it changes
LEASE_AFTER = (1, 3)  # conflicts: where it is one, leases are taken often
CALM_SECONDS = 240.0  # after the last fault: by then all is folded, and no problem left
# How long an Agent's host is busy with others between two of its turns: it looks at its rings twenty times a second, or four times
PACES = (0.0, 0.25, 0.25)
NARROW_SHARE = 0.3  # of the worlds in which no store goes back: there bounds are so small that they are met
OLDER_SHARE = 0.2  # of the worlds whose Agents fold: one of two Servers merges nothing of that
UNKNOWN_TYPE = b"dead:unknown_type"  # the count of dead letters of ODD
ODD, ODD_SHARE = "odd", 0.2  # a Tab of a Type that no Server has, in so many worlds: what is recorded there becomes dead letters
RETAIN = (None, None, 6.0)  # seconds that Agents retain what is acknowledged, where no store goes back; None: as long as they do
RATES = (10.0, 30.0, 60.0)  # how often a second a Client records a few events: rings that are sparse, and that fill
MOVE_BATCHES = 2  # that move to the spool at once, where somebody is killed within that: of a group one part, and then another
LOOK_SECONDS = 1.0  # between two looks whether all is folded
# In so many worlds an Agent reads a ring and some events in a turn, and others have long turns in between
TURNS_SHARE, TURN_EVENTS, TURN_SECONDS = 0.3, 8, 0.02


# What a status says of what has happened, and nobody can mend any more: for an hour. A clock is followed after an hour, where nobody sends
# who agrees with it
PAST_OF_AGENT = re.compile(r"dropped |start |buckets changed|(?:keys|pin|spool) mended")
PAST_OF_SERVER = re.compile(r" lately|the store(?:'s map)? went back in time[:,] |clock is .* off from what this Server goes by")
# Agents say every ten minutes who lives, in Tabs whose Types no Server here has: in a full bucket these letters push out others for ever
FOR_A_PERSON = re.compile(
    r"\d+ events? (?:is a dead letter|are dead letters) |\d+ events? came for Tabs that have another Type|no Handler of Type |"
    r"\d+ dead letters? (?:was|were) dropped lately"
)
HOUR_SECONDS = 3700.0
HOUR_SHARE = 0.03  # of the worlds: in these the hour passes, and then nothing is said of what has happened, either
IDLE_SECONDS = 30.0  # that a host is busy with others then
CALM_STEPS = 100_000  # after the last fault: by then all is folded, and no problem left


class Broken(AssertionError):
    """Something that must be true is not."""


class World(Ground):
    """A world without faults of its own: `kinds` are those that will befall it."""

    def __init__(
        self,
        seed: int,
        shape: Random,
        kinds: Collection[str] = (),
        directory: str | None = None,
        types: Collection[str] = RECORDED,
        rate: float | None = None,
    ):
        super().__init__(seed, shape, self._changed, directory)
        self._open: dict[int, str] = {}  # bucket → the store that has it open
        self._nowhere = dict.fromkeys(range(BUCKETS), 0.0)  # for how long nobody had it open while nothing was wrong
        self._booked = dict.fromkeys(range(BUCKETS), 0)  # bucket → how many events its counts name
        self._next_census = CENSUS_SECONDS
        self.unsure = 0  # events that went with a host that booted anew
        self._on_disk: Left | None = None  # of its disk, while it has no power
        self.servers = [Server(self, f"server-{number}", url, BUCKETS) for number, url in enumerate(self.urls, 1)]
        self.agents = [Agent(self, "agent", self.urls[:1]), Agent(self, "other-agent", self.urls[:1])]
        self.agents[1].may_start = False  # until somebody starts it
        self.shielded_until = 0.0
        self.steps_of_move: int | None = None  # whoever moves something to the spool has so many steps left then
        rate = rate if rate is not None else shape.choice(RATES)
        tabs = [(f"{type.lower()}{number}", type) for number, type in enumerate(types)]
        if "Census" in types and Random(f"odd {seed}").random() < ODD_SHARE:
            tabs.append((ODD, "Nobody"))
        self.clients = [Client(self, f"client-{number}", tabs, rate) for number in range(1, shape.choice((1, 2, 3)) + 1)]
        self.movers = [Mover(self, f"mover-{number}") for number in (1, 2)]
        posters = [Poster(self, "poster-server"), Poster(self, "poster-agent", lambda: self.holder)]
        self.posters = posters[: shape.choice((0, 2, 2))]
        self.drifts = {part.name: shape.uniform(0.999, 1.001) for part in (*self.servers, *self.agents, *self.clients)}
        self.lease_after = shape.choice(LEASE_AFTER)
        self._leases: dict[tuple[str, int], bytes] = {}  # (store, bucket) → what its lease says
        self._epochs: dict[str, tuple[int, ...]] = {}  # store → those of the map that it has
        self._newest_map = 0
        self._names_in_map: dict[str, str] = {}  # store → what the newest map calls it
        self.paces = dict.fromkeys((agent.name for agent in self.agents), shape.choice(PACES))
        self.drains_in_turns = Random(f"turns {seed}").random() < TURNS_SHARE
        if self.drains_in_turns:
            self.turns = dict.fromkeys((agent.name for agent in self.agents), TURN_SECONDS)
        self.goes_back = bool(set(kinds) & BACK)
        if self.goes_back:
            # what a Server has folded of a post nobody retains: it is the poster's to know that a store went back
            self.posters = [poster for poster in self.posters if not poster.is_for_servers]
        sources: list[Client | Poster] = [*self.clients, *self.posters]
        counting = {name: type for source in sources for name, type in source.tabs if type in CENSUSES}
        # nobody asks where there is no Tab whose numbers an answer shows
        self.askers = [Asker(self, "asker", counting)][: min(shape.choice((0, 1, 1)), len(counting))]
        self.may_move = bool(set(kinds) & MOVES)
        self.may_lose = False  # a fault made it right that something is dropped, counted
        self.may_fill = bool(set(kinds) & FILLING)
        self.may_spoil_spool = "spool spoilt" in kinds
        self.spoilt: set[str] = set()  # files of which one copy of each line is left
        self.is_folding = Ledger.type in types
        self.may_bury = False  # a fault made it right that what an Agent folded becomes dead letters
        # Servers are upgraded one after another: one of two may be older all the time, and then nobody sends what it does not merge
        self.servers[-1].is_older = len(self.servers) > 1 and self.is_folding and Random(f"older {seed}").random() < OLDER_SHARE
        if self.servers[-1].is_older:
            self.servers[-1].lookup = self.older_lookup  # also before it starts: nobody is told otherwise
        self.is_narrow = shape.random() < NARROW_SHARE and not self.goes_back
        # the streams of an outbox that is lost stay open in buckets of which nothing else tells: their marks go with age alone
        if self.is_narrow and not set(kinds) & LOST_OUTBOX:
            self.bounds = NARROW_BOUNDS
        retain = shape.choice(RETAIN)
        self.retain_seconds = None if self.goes_back else retain
        self.has_an_hour = shape.random() < HOUR_SHARE
        self.bound_seconds, self._looks = BOUND_SECONDS, 0

    def edges_of(self, url: str) -> dict[str, int]:
        return next(server.lookup.edges for server in self.servers if server.url == url)

    def boots_anew(self) -> None:
        """The host of Agent and applications begins anew: its processes end, its shared memory is gone, its disk is as it was."""
        self.unsure = max(0, self._all_recorded() - sum(self._booked.values()) - self._waiting_on_disk())
        for part in (*self.agents, *self.clients):
            if part.process is not None:
                self.kill(part.process)
        for name in os.listdir(self.machine.shm):
            os.unlink(os.path.join(self.machine.shm, name))
        self.machine.notes_change()
        self.boot += 1
        self._boot_base = -self.now
        self.may_lose = True

    def lose_power(self) -> None:
        self._on_disk = self.machine.lose_power()

    def have_power_back(self) -> None:
        self.boots_anew()
        assert self.machine.synced is not None and self._on_disk is not None
        self.machine.synced.come_back(self._on_disk)
        self.machine.notes_change()

    def _waiting_on_disk(self) -> int:
        """Events in the spool that the store does not have: what is there no boot takes, whatever of it comes to nothing is counted."""
        path = os.path.join(self.machine.disk, f"{AGENT}.spool")
        if not os.path.exists(path):
            return 0
        with contextlib.closing(sqlite3.connect(path, timeout=0.1)) as database:
            try:
                rows = database.execute("SELECT stream, bucket, number, events FROM batches").fetchall()
            except (sqlite3.Error, OverflowError):
                return 0  # spoilt, or begun and nothing in it yet
        waiting = 0
        for stream, bucket, number, events in rows:
            marks = [store.server._values.get(keys.marks(bucket)) or {} for store in self.stores]
            known = [decode_mark(found[stream]) for found in marks if stream in found]
            waiting += events if number > max((mark.number for mark in known if mark is not None), default=0) else 0
        return waiting

    # --- what is true at every step ---

    def narrow(self) -> None:
        """Where this world is narrow, have the bounds be small until it ends, and Agents retain as long as they do in it."""
        for bound in NARROW if self.is_narrow else ():
            self.machine.put(bound.module, bound.name, bound.most)
        if self.drains_in_turns:
            self.machine.put(drain, "TURN_RINGS", 1)
            self.machine.put(drain, "TURN_EVENTS", TURN_EVENTS)
            self.machine.put(drain.Drain, "steps", self._counted(drain.Drain.steps))
        if self.retain_seconds is not None:  # streams end soon then, and groups of the outbox outlive what was retained
            for module in (lanes, keeper):
                self.machine.put(module, "RETAIN_SECONDS", self.retain_seconds)

    def _counted(self, steps: Any) -> Any:
        """Whether drains take several turns."""

        def counted(*arguments: Any, **keywords: Any) -> Any:
            under_way = steps(*arguments, **keywords)
            while True:
                try:
                    yield next(under_way)
                except StopIteration as done:
                    return done.value
                self.fired["a drain took one more turn"] += 1

        return counted

    def look_at_bounds(self) -> None:
        """What Agents, Servers, shared memory and disk hold is within its bounds, and is looked at again."""
        self.later(self.bound_seconds, None, self.look_at_bounds)
        for agent in self.agents:
            if agent.is_alive and agent.loop is not None:
                self._bounded(agent.name, of_agent(agent.loop))
        for server in self.servers:
            if server.is_alive:
                self._bounded(server.name, of_server(server.ingest, server.posts))
        self._looks += 1
        if self._looks % 2:
            self._bounded("the machine", of_machine(self.machine))

    def watch_what_is_retained(self) -> None:
        """Look at it just after Agents have given up what is too much, as often as at their other bounds."""
        tick = keeper.Keeper.tick
        due: dict[str, float] = {}  # process → when it is looked at again

        def watched(held: keeper.Keeper, *arguments: Any) -> None:
            tick(held, *arguments)
            name = self.running.name
            if self.now >= due.get(name, 0.0):
                due[name] = self.now + self.bound_seconds
                self._bounded(name, of_what_is_retained(held))

        self.machine.put(keeper.Keeper, "tick", watched)

    def watch_moves_to_the_spool(self) -> None:
        """Light the fuse of who moves what the outbox holds, where one is to burn then."""
        move = keeper.Keeper._move_some

        def watched(held: keeper.Keeper, *arguments: Any) -> bool:
            if self.steps_of_move is not None and held.holds_any and not self.is_shielded:
                self.running.fuse, self.steps_of_move = self.steps_of_move, None
                self.fired["lit a fuse in a move to the spool"] += 1
            return move(held, *arguments)

        self.machine.put(keeper, "MOVE_BATCHES", MOVE_BATCHES)
        self.machine.put(keeper.Keeper, "_move_some", watched)

    def _bounded(self, where: str, held: Iterable[Held]) -> None:
        for bound, amount, most in held:
            if amount > most:
                self.errors.append(f"{where} holds {amount} of what {bound} bounds at {most}")

    def _changed(self, store: Store, touched: set[bytes]) -> None:
        """A store has changed these keys."""
        values = store.server._values
        if touched.isdisjoint(LOOKED_AT):  # what says who is alive, locks, jobs, …
            return
        for key in touched & BOUNDED.keys():
            if (value := values.get(key)) is not None:
                self._bounded(store.name, [in_store(BOUNDED[key], value, self.bounds)])
        if self.may_move and not self.goes_back:
            for key in touched & WRITTEN.keys():
                if values.get(key) is not None and not self._has_open(store, WRITTEN[key]):
                    self.errors.append(f"{store.name} has {key.decode()} written, and bucket {WRITTEN[key]} is not open there")
        self._look_at_guards(store, touched)
        for key in touched & LETTERS.keys():
            if self._open.get(LETTERS[key]) == store.name:
                self._count_letters(store, LETTERS[key])
        for key in touched:
            found = WATCHED.get(key)
            if found is None:
                continue
            bucket, is_owner = found
            if is_owner:
                opens = [one.name for one in self.stores if self._has_open(one, bucket)]
                if len(opens) > 1:
                    self.errors.append(f"bucket {bucket} is open on {' and on '.join(opens)}")
                if opens:
                    self._open[bucket] = opens[0]
                else:
                    self._open.pop(bucket, None)
                if opens and opens[0] != store.name:
                    continue
            if self._open.get(bucket) == store.name:
                self._book(store, bucket)

    def _look_at_guards(self, store: Store, touched: set[bytes]) -> None:
        """Whoever writes a bucket has its lease, or nobody has; and no map says what is older than what it said before."""
        values = store.server._values
        if not self.goes_back:
            for key in touched & MARKS.keys():
                held = self._leases.get((store.name, MARKS[key]))
                if held is not None and held == values.get(lease_key(MARKS[key])):
                    self.errors.append(f"bucket {MARKS[key]} is written while another has its lease")
        for key in touched & LEASES.keys():
            content = values.get(key)
            if content is None:
                self._leases.pop((store.name, LEASES[key]), None)
            else:
                self.fired["a lease was taken"] += 1
                self._leases[store.name, LEASES[key]] = content
        if MAP_KEY in touched and (content := values.get(MAP_KEY)) is not None:
            map = decode_map(content)
            if map.epoch >= self._newest_map:  # it counts, whatever a failover took from the record of a shard
                self._newest_map = map.epoch
                self._names_in_map = {parse_store(shard.url, "").addresses[0].host: shard.name for shard in map.shards}
            epochs = map.epochs
            before, self._epochs[store.name] = self._epochs.get(store.name, epochs), epochs
            if any(now < then for now, then in zip(epochs, before, strict=True)) and not self.goes_back:
                self.errors.append(f"the map of {store.name} had epochs {before}, and has {epochs}")

    def _has_open(self, store: Store, bucket: int) -> bool:
        content = store.server._values.get(owner_key(bucket))
        if content is None or not content.startswith(b"open:"):
            return False
        name = self._names_in_map.get(store.name)
        if name is None:
            record = store.server._values.get(STORE_KEY)
            name = None if record is None else decode_record(record).shard
        return decode_owner(content).name == name

    def _count_letters(self, store: Store, bucket: int) -> None:
        """Its books say of a bucket's dead letters what they are."""
        values = store.server._values
        letters = map(decode_dead_letter, values.get(keys.dead_letters(bucket)) or ())
        there = sum(letter.events for letter in letters if letter is not None)
        counts = values.get(keys.counts(bucket)) or {}
        booked = sum(int(number) for name, number in counts.items() if name.startswith(b"dead:"))
        if there != booked:
            self.errors.append(f"bucket {bucket} has dead letters of {there} events, and its books say {booked}")

    def _book(self, store: Store, bucket: int) -> None:
        """What a bucket's counts name is never more than there was, and never less than it was."""
        content = store.server._values.get(keys.counts(bucket)) or {}
        booked = sum(int(number) for name, number in content.items() if name == b"folded" or name.startswith(b"dead"))
        if booked < self._booked[bucket] and not self.goes_back:
            self.errors.append(f"bucket {bucket} names {booked} events, and named {self._booked[bucket]} before")
        self._booked[bucket] = booked
        if sum(self._booked.values()) > self._all_recorded():
            self.errors.append(f"{sum(self._booked.values())} events are in the books; {self._all_recorded()} were recorded")

    def _all_recorded(self) -> int:
        """Events that somebody began to record or to post."""
        posted = sum(len(numbers) for poster in self.posters for of in (poster.recorded, poster.doubtful) for numbers in of.values())
        return sum(client.attempts for client in self.clients) + posted

    def _look_at_buckets(self) -> None:
        """A bucket that is open nowhere is open soon, while nothing else is wrong."""
        self.later(LOOK_SECONDS, None, self._look_at_buckets)
        stores_are_well = all(
            store.is_up and not (store.is_reading_only or store.is_full or store.late or store.cut_before) for store in self.stores
        )
        weather = self.network.weather
        if not stores_are_well or weather.lost or weather.late or all(server.url in self.network.cut for server in self.servers):
            return
        if self.network.without_store:
            return
        for bucket in range(BUCKETS):
            is_somewhere = bucket in self._open or not self._booked[bucket]  # what nobody used may not be made yet
            self._nowhere[bucket] = 0.0 if is_somewhere else self._nowhere[bucket] + LOOK_SECONDS
            if self._nowhere[bucket] > NOWHERE_SECONDS:
                self.errors.append(f"bucket {bucket} is open nowhere for {self._nowhere[bucket]:.0f} s in which nothing was wrong")

    # --- what is true in the end ---

    @property
    def is_shielded(self) -> bool:
        """Whether nobody kills an Agent now."""
        return self.now < self.shielded_until

    @property
    def holder(self) -> Agent | None:
        """The Agent that has the name now."""
        return next((agent for agent in self.agents if agent.is_alive and agent.loop is not None), None)

    @property
    def loop(self) -> Loop | None:
        """Its loop."""
        holder = self.holder
        return holder.loop if holder is not None else None

    @property
    def completed(self) -> int:
        """Events whose record returned, and that somebody can know of."""
        return sum(client.attempts - client.interrupted - client.unknown for client in self.clients)

    def is_settled(self) -> bool:
        """Whether nothing is on its way any more."""
        loop = self.loop
        if loop is None or loop.pump.buckets is None:
            return False
        keeper = loop.keeper
        if keeper.unacknowledged or keeper.spool.batches or any(lane.pending or lane.sent for lane in keeper.lanes.values()):
            return False
        if self.may_move and not self.movers[0].is_done:
            return False
        if any(ring.look(loop.pump._scratch).records for ring in loop.rings.open.values()):
            return False
        if any(poster.under_way for poster in self.posters):
            return False
        # what a store lost comes again only when its mark is asked for
        posted = sum(poster.accepted for poster in self.posters if not poster.is_for_servers)
        return self.completed + posted <= self.accounted() + self.unsure

    def ask_for_problems(self) -> None:
        """Have Servers say what is wrong; Agents do each second."""
        for server in self.servers:
            server.ask_for_problems()

    def problems(self, past_too: bool = False) -> list[str]:
        """What statuses say that is wrong, without what needs a person, nor, unless `past_too`, what has happened and is over."""
        found = []
        for agent in self.agents:
            if agent.is_alive:
                said = {key: text for key, text in agent.problems.items() if past_too or not PAST_OF_AGENT.match(key)}
                found += [f"{agent.name}: {key}: {text}" for key, text in said.items()]
        for server in self.servers:
            said_by_server = ["it does not answer"] if server.problems is None else server.problems
            found += [
                f"{server.name}: {text}"
                for text in said_by_server
                if not FOR_A_PERSON.match(text) and (past_too or not PAST_OF_SERVER.search(text))
            ]
        return found

    def accounted(self) -> int:
        """Events that the books name, however they ended."""
        figures = self.figures()
        return figures["folded"] + figures["dead"] + sum(self.dropped().values())

    def dropped(self) -> Counter[str]:
        dropped: Counter[str] = Counter()
        loop = self.loop
        if loop is not None:
            dropped += loop.keeper.books.totals() + loop.pump.live_drops()
        return dropped

    def figures(self) -> Counter[str]:
        """The store's counts of what came by the Agent."""
        counts, states = self.folded(), self.states()
        for poster in self.posters:
            if poster.is_for_servers:
                for name, _ in poster.tabs:
                    for _, (again, runs) in states.get((poster.name, name), []):
                        counts["folded"] -= again + count(runs)
        return counts

    def folded(self) -> Counter[str]:
        """What the store's own counts say."""
        counts: Counter[str] = Counter()
        for bucket, store in self._holders():
            for name, number in (store.server._values.get(keys.counts(bucket)) or {}).items():
                word = name.decode()
                counts["dead" if word.startswith("dead") else word] += int(number)
        return counts

    def letters(self) -> int:
        """Events that are dead letters, and not for their Type."""
        found = 0
        for bucket, store in self._holders():
            counts = store.server._values.get(keys.counts(bucket)) or {}
            found += sum(int(number) for name, number in counts.items() if name.startswith(b"dead:") and name != UNKNOWN_TYPE)
        return found

    def _holders(self) -> list[tuple[int, Store]]:
        """(bucket, store that has it open)"""
        stores = {store.name: store for store in self.stores}
        return [(bucket, stores[name]) for bucket, name in sorted(self._open.items())]

    def states(self) -> dict[tuple[str, str], list[tuple[str, Any]]]:
        """(Client, Tab) → where each of its States is and what it says."""
        found: dict[tuple[str, str], list[tuple[str, Any]]] = {}
        for bucket, store in self._holders():
            types = store.server._values.get(keys.tabs(bucket)) or {}
            for field, content in (store.server._values.get(keys.states(bucket)) or {}).items():
                tab, _, client = field.decode().partition("\0")
                handler: Any = self.lookup.get(types[tab.encode()].decode())
                state: Any = content
                if handler.type in CENSUSES:
                    dump = keys.unframe(content).dump
                    state = handler.load_array([dump])[0] if handler.type == Ledger.type else handler.load(dump)
                found.setdefault((client, tab), []).append((f"{store.name} bucket {bucket}", state))
        return found

    def raise_for_errors(self) -> None:
        """Raises Broken for the first thing that was seen to be wrong on the way."""
        if self.errors:
            raise Broken(self.errors[0])

    def check(self) -> None:
        """What must be true in the end. Raises Broken."""
        for bucket, store in self._holders():
            self._count_letters(store, bucket)
        self.raise_for_errors()
        if not self.is_settled():
            raise Broken(f"{CALM_SECONDS:.0f} s after the last fault not all is folded: {self._left()}")
        self._check_books()
        self._check_identities()
        self._check_age()
        self._check_updowns()

    def _left(self) -> str:
        agent, loop = self.holder, self.loop
        if agent is None or loop is None:
            return "no Agent runs"
        keeper = loop.keeper
        waiting = [f"{lane.bucket}:{len(lane.pending)}" for lane in keeper.lanes.values() if lane.pending or lane.sent]
        held = f"outbox {keeper.unacknowledged}, spool {keeper.spool.batches}, lanes {waiting[:5]}, {list(agent.problems.values())[:3]}"
        return f"{agent.name}: {held}; {self.completed} recorded, {self.accounted()} accounted for"

    def _check_books(self) -> None:
        posted = [poster for poster in self.posters if not poster.is_for_servers]
        completed = self.completed + sum(poster.accepted for poster in posted)
        doubtful = sum(client.interrupted for client in self.clients)
        doubtful += sum(len(numbers) for poster in posted for numbers in poster.doubtful.values())
        loop = self.loop
        assert loop is not None
        recorded = loop.keeper.books.recorded + sum(loop.pump.live_drops().values())
        figures, dropped = self.figures(), self.dropped()
        if dropped["gap"] and not self.goes_back:  # also where a host booted anew, and nobody can know what there was
            raise Broken(f"{dropped['gap']} events were counted as lost by a store, and none lost any")
        if letters := self.letters():
            raise Broken(f"{letters} events are dead letters, and nobody sent what cannot be folded")
        accounted = figures["folded"] + figures["dead"] + sum(dropped.values())
        books = f"recorded {recorded}, folded {figures['folded']}, dead {figures['dead']}, dropped {dict(dropped)}"
        recorded -= figures["known_key"]  # posted again after the Agent had lost their key: they count there, and were folded once
        if self.boot > 1:  # the Agent's own counts went with shared memory
            if accounted > completed + doubtful + figures["known_key"]:
                raise Broken(f"{completed} events were recorded, {doubtful} perhaps, and a host booted anew; the books: {books}")
            return
        if not completed <= recorded <= completed + doubtful:
            raise Broken(f"{completed} events were recorded and {doubtful} perhaps; the books: {books}")
        if recorded != accounted:
            raise Broken(f"the books do not balance: {books}")
        own = sum(client.told for client in self.clients)
        lost = sum(dropped.values()) - own
        if lost and not self.may_lose:
            raise Broken(f"nothing had to be dropped, and was: {books}; by the clients themselves: {own}")

    def _check_doubles(self) -> int:
        """Each event is in one State, once, or nowhere yet; how many are nowhere."""
        states = self.states()
        missing = 0
        sources: list[Any] = [*self.clients, *self.posters]
        for client in sources:
            for (name, type), recorded in client.recorded.items():
                if type not in CENSUSES:
                    continue
                found = states.get((client.name, name), [])
                if len(found) > 1:
                    raise Broken(f"{client.name}'s {name} has {len(found)} States: {[where for where, _ in found]}")
                again, runs = found[0][1] if found else (0, [])
                if again:
                    raise Broken(f"{client.name}'s {name}: {again} events were folded twice")
                there = numbers(runs)
                strange = there - recorded - client.doubtful[name, type]
                if strange:
                    raise Broken(f"{client.name}'s {name}: {sorted(strange)[:5]} were folded and never recorded, or dropped")
                missing += len(recorded - there)
        return missing

    def _check_identities(self) -> None:
        missing = self._check_doubles()
        dropped = self.dropped()
        odd = sum(len(client.recorded.get((ODD, "Nobody"), ())) for client in self.clients)  # each a dead letter, or dropped
        allowed = sum(dropped.values()) + self.figures()["dead"] - odd - sum(client.told for client in self.clients)
        if missing > max(0, allowed) + self.unsure:
            raise Broken(f"{missing} events were recorded and are nowhere; dropped {dict(dropped)}")

    def _check_age(self) -> None:
        for store in self.stores:
            record = read_record(store.server._values.get(keys.age(0)))
            if record is not None and record.age > self.now / 60.0 * 1.01 + 1:
                raise Broken(f"the store is {record.age} minutes old after {self.now:.0f} s")

    def _check_updowns(self) -> None:
        """What lives has its own sum, what died has none."""
        for (client, tab), found in self.states().items():
            if not tab.startswith("updown"):
                continue
            handler: Any = self.lookup.get("UpDown")
            if any(one.name == client and one.is_alive and not one.producer._port.is_open for one in self.clients):
                continue  # it has no ring, and records nothing more that would make one: nobody can know
            for where, content in found:
                value = project(handler, content)
                wanted = sum(one.net for one in self.clients if one.name == client and one.is_alive)
                if abs(value - wanted) > 1e-6:
                    raise Broken(f"{client}'s {tab} is {value} in {where}; the process that lives added {wanted}")


def project(handler: Any, content: bytes) -> float:
    """The value of an UpDown's State."""
    state = handler.load(keys.unframe(content).dump)
    return float(handler.project(state, 0.0)["value"] or 0.0)
