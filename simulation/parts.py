"""The parts of Taba as processes of a world: each is put together of Taba's own code, as its service does it, but for sockets and HTTP.

A part starts, is killed, and starts again on what it left; what it must not lose is in the machine's files or in the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, cast

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from twisted.web.client import FileBodyProducer
from twisted.web.http_headers import Headers

from simulation.clockwork import Killed, Process
from simulation.ground import Ground, Part
from simulation.names import AGENT, ENVIRONMENT, OUTBOX_BYTES, SPOOL_BYTES
from simulation.network import Asking, Sender
from simulation.store import StorePool
from taba.agent.edge import Edge, EdgeLot, States
from taba.agent.home import CannotOpen, Home
from taba.agent.http import Routes
from taba.agent.keeper import Keeper
from taba.agent.loop import LAST_DRAIN_FAILS, Loop, Surroundings
from taba.agent.problems import Space
from taba.batch import MAX_DUMP_BYTES
from taba.bounds import MiB
from taba.calls import Call, HTTPError
from taba.caps import Caps
from taba.client import pure
from taba.client.producer import Producer
from taba.errors import MalformedBatch, StoreUnavailable, TabaError
from taba.handlers.lookup import Lookup
from taba.server.aging import LOOK_SECONDS as AGE_SECONDS
from taba.server.aging import StoreAge
from taba.server.ask.answers import Unanswered
from taba.server.ask.filters import Filter
from taba.server.ask.query import Query
from taba.server.fold.envelopes import Envelopes
from taba.server.fold.ingest import Ingest
from taba.server.fold.posts import Posts
from taba.server.health import Health
from taba.server.http import Routes as ServerRoutes
from taba.server.keep.jobs import Jobs
from taba.server.keep.retrying import Retry
from taba.server.starts import Starts
from taba.server.status import Status
from taba.server.steady import SteadyClock
from taba.server.work.bench import Bench
from taba.server.work.folding import Folding, Work
from taba.server.work.sandbox import Sandbox
from taba.shard import Router
from taba.shard.moving.check import check
from taba.shard.moving.reshard import Reshard, current_shards
from taba.shard.servers.url import Address, StoreURL

FEWEST = 4  # events of a column that an Agent folds: Clients record few at a time here
UNFIT_SHARE = 0.01  # of what is recorded
NESTED_SHARE = 0.03  # comes as a list in a list of values, which stays packed until it is folded
SLIGHT_STEP_SECONDS = 3.0  # that the time of folds may go by at once
CONNECT_SECONDS = 10.0  # that a command takes to reach the store, or to undo what it did


class Client(Part):
    """An application: it records numbered events into the real ring."""

    def __init__(self, world: Ground, name: str, tabs: list[tuple[str, str]], rate: float):
        super().__init__(world, name)
        self.tabs, self.rate = tabs, rate
        self.next: dict[tuple[str, str], int] = dict.fromkeys(tabs, 1)
        self.recorded: dict[tuple[str, str], set[int]] = {tab: set() for tab in tabs}  # record returned, and dropped nothing
        self.doubtful: dict[tuple[str, str], set[int]] = {tab: set() for tab in tabs}  # a kill came within record
        self.dropped = self.vanished = 0  # events; of what went up or down, too, where there was no ring to hold it
        self.attempts = self.interrupted = 0
        self._under_way: tuple[tuple[str, str], int] | None = None  # an event whose record has not returned
        self.net = 0.0  # of this life, in its UpDown
        self.producer: Any = None
        self._made: dict[tuple[str, str], Any] = {}  # the Tabs of this life, as an application keeps them
        self._dropped_before = 0  # by the producer of this life

    @property
    def told(self) -> int:
        """Events that it dropped, and that a ring tells of."""
        return self.dropped - self.unknown

    @property
    def unknown(self) -> int:
        """Events that were dropped by processes that had no ring: they told nobody."""
        return self.vanished + (sum(self.producer._port._pending) if self.producer is not None else 0)

    def live(self) -> None:
        self.net, self._dropped_before = 0.0, 0
        self._made.clear()
        self.producer = Producer(ports=pure)
        self.producer.start(None, {**ENVIRONMENT, "TABA_CLIENT_ID": self.name})
        self._record_later()

    def _record_later(self) -> None:
        assert self.process is not None
        if not self.world.is_quiet:
            self.process.reactor.callLater(self.process.random.expovariate(self.rate), self._record)

    def _record(self) -> None:
        assert self.process is not None
        chance, tabs = self.process.random.random, self.tabs
        for _ in range((1, 1, 2, 5, 20)[int(5 * chance())]):
            place = len(tabs) * chance()
            self.record(tabs[int(place)], place % 1.0)
        self._record_later()

    def record(self, key: tuple[str, str], chance: float) -> None:
        """Record one event; `chance` (0 … 1) says of what kind it is."""
        type = key[1]
        number = self.next[key]
        self.next[key] = number + 1
        self.attempts += 1
        self._under_way = key, number
        value: Any
        if type == "UpDown":
            value = 1.0 if chance < 0.5 else -1.0
        elif chance < UNFIT_SHARE and type == "Census":
            value = {number}  # no set can be sent: a drop that the client counts
        elif chance > 1.0 - NESTED_SHARE and type == "Census":
            value = [float(number)]
        else:
            value = float(number)
        tab = self._made.get(key)
        if tab is None:
            tab = self._made[key] = self.producer.tab(*key)
        tab.record(value)
        # from here on it counts: the call has returned
        self._under_way = None
        before, self._dropped_before = self._dropped_before, sum(self.producer._port._totals)
        is_dropped = self._dropped_before > before
        self.dropped += is_dropped
        if type == "UpDown":
            self.net += value
        elif is_dropped:
            return
        self.recorded[key].add(number)

    def died(self) -> None:
        self.net = 0.0
        if self._under_way is not None:
            key, number = self._under_way
            self.doubtful[key].add(number)
            self.interrupted += 1
            self._under_way = None
        producer, self.producer = self.producer, None
        if producer is not None:
            self.vanished += sum(producer._port._pending)  # it had no ring: what it dropped nobody can know
            unmap(producer)
        super().died()


def unmap(producer: Any) -> None:
    """What the kernel does when a process ends: its mappings go, and with them the lock."""
    held, segment = producer._port._ring, producer._segment
    if held is not None and hasattr(held, "words"):
        held.release()
    if segment is not None:
        segment.words.release()
        segment.content.release()
        segment.memory.mapping.close()
    producer._port._ring = producer._segment = None


class Poster(Part):
    """A program that posts events under keys, and the same again until it is told that they were accepted; to Servers, or to an Agent.

    `holder` says which Agent that is now; None for one that posts to Servers.
    """

    tabs: ClassVar = [("posted1", "Census"), ("posted2", "Census"), ("posted3", "Census")]

    def __init__(self, world: Ground, name: str, holder: Callable[[], Agent | None] | None = None):
        super().__init__(world, name)
        self._holder = holder
        self.is_for_servers = holder is None
        self.next = dict.fromkeys(self.tabs, 1)
        self.recorded: dict[tuple[str, str], set[int]] = {tab: set() for tab in self.tabs}
        self.doubtful: dict[tuple[str, str], set[int]] = {tab: set() for tab in self.tabs}
        self.keys = self.accepted = self.under_way = 0

    def live(self) -> None:
        self.under_way = 0
        self._post_later()

    def _post_later(self) -> None:
        assert self.process is not None
        if not self.world.is_quiet:
            self.process.reactor.callLater(self.process.random.expovariate(0.4), self._begin)

    def _begin(self) -> None:
        self._post_later()
        self.keys += 1
        numbers: list[tuple[tuple[str, str], int]] = []
        assert self.process is not None
        random = self.process.random
        for _ in range(random.randint(1, 5)):
            tab = random.choice(self.tabs)
            numbers.append((tab, self.next[tab]))
            self.next[tab] += 1
        for tab, number in numbers:
            self.doubtful[tab].add(number)
        self.under_way += 1
        self._try(f"{self.name}-{self.keys}", self._body(numbers), numbers)

    def _body(self, numbers: list[tuple[tuple[str, str], int]]) -> dict[str, Any]:
        now = self.world.unix  # an old time would be a latency, which a Server names for a minute
        events = [{"tab": tab, "type": type, "value": number, "time": now} for (tab, type), number in numbers]
        return {"client": self.name, "events": events}

    def _try(self, key: str, body: dict[str, Any], numbers: list[tuple[tuple[str, str], int]]) -> None:
        process, world = self.process, self.world
        assert process is not None

        def answered(status: int) -> None:
            if status == 200:
                if not numbers:
                    return
                self.accepted += len(numbers)
                self.under_way -= 1
                for tab, number in numbers:
                    self.doubtful[tab].discard(number)
                    self.recorded[tab].add(number)
                if process.random.random() < 0.3:  # it did not hear that, say
                    self._try(key, body, [])
                elif process.random.random() < 0.3:  # and another request under a key of before is turned away, wherever its events lie
                    self._try(key, self._body([(tab, number + 500_000) for tab, number in numbers[:1]]), [])
            elif status == 422 and numbers:
                world.errors.append(f"{self.name}: a new key was refused as another request's")
            elif numbers:
                process.reactor.callLater(process.random.uniform(0.2, 2.0), self._try, key, body, numbers)

        world.fired["posted"] += 1
        if self._holder is None:
            url = process.random.choice(world.urls)
            content = FileBodyProducer(BytesIO(json.dumps(body).encode()))
            sending = Sender(world.network, process).request(b"POST", f"{url}/v1/events/{key}".encode(), None, content)
            sending.addTimeout(20.0, cast(Any, process.reactor))
            sending.addCallbacks(lambda response: answered(response.code), lambda failure: answered(503))
            return
        holder, said = self._holder(), [503]
        if holder is not None and holder.process is not None and holder.process.wakes <= world.now:
            world.run(holder.process, lambda: said.append(holder.post(json.dumps(body).encode(), key)))
        process.reactor.callLater(0.01, answered, said[-1])


class Agent(Part):
    """An Agent: the real loop, over a home of this machine."""

    def __init__(self, world: Ground, name: str, urls: list[str]):
        super().__init__(world, name)
        self.urls = urls
        self.ends = 0.0  # when it does, where it is a second one of its name
        self.loop: Loop | None = None
        self.problems: dict[str, str] = {}

    @property
    def keeper(self) -> Keeper | None:
        """Its keeper, once it has begun."""
        return self.loop.keeper if self.loop is not None else None

    def live(self) -> None:
        world, process = self.world, self.process
        assert process is not None
        machine = world.machine
        self.loop = None
        new_id = lambda: process.random.randbytes(16)  # noqa: E731
        try:
            home = Home(AGENT, machine.folder(machine.disk), SPOOL_BYTES, OUTBOX_BYTES, machine.shm, new_id)
        except CannotOpen as error:
            world.say(f"{process.name} cannot start: {f'{error}'.partition(':')[0]}")
            world.fired["a second Agent turned away" if "runs already" in f"{error}" else "an Agent could not start"] += 1
            world.kill(process)
            return
        sender = Sender(world.network, process)
        around = Surroundings(
            reactor=process.reactor,
            wall=process.wall,
            since_boot=world.since_boot,
            boot=world.boot,
            random=process.random,
            new_id=new_id,
            client=Asking(sender),
            kept=sender,
            shown=dict,
            host="host",
            shm=machine.shm,
            space=lambda: Space(64 * MiB, 128 * MiB),
        )
        edge = WatchedEdge(world)
        self.loop = Loop(home, self.urls, Path(machine.disk) / f"{AGENT}.store", around, self, edge=edge)
        self.loop.start()

    def end(self) -> None:
        """As SIGTERM ends it: it publishes what the rings hold. Runs as this Agent's process."""
        assert self.process is not None
        if self.loop is not None:
            self.loop.stop()
            try:
                self.loop.last_drain()
            except LAST_DRAIN_FAILS as error:
                self.world.fired[f"a last drain failed: {type(error).__name__}"] += 1
            self.loop.close()
        self.world.kill(self.process)

    # --- what its loop tells ---

    def renewed(self) -> None:
        """The outbox was made anew."""
        self.world.fired["an outbox was made anew"] += 1

    def failed(self, error: Exception, is_first: bool) -> None:
        """A step failed."""
        self.world.fired[f"a tick failed: {type(error).__name__}"] += 1
        self.world.say(f"{self.name}: a tick failed: {type(error).__name__}: {error}")
        self.world.unexpected(error, self.process)

    def looks(self, now: float) -> None:
        """Once a second."""
        assert self.loop is not None
        self.problems = self.loop.problems({})

    def ended(self, problem: str) -> None:
        """Another has its name."""
        assert self.process is not None
        self.world.say(f"{self.process.name} ends: another has its name")
        self.world.kill(self.process)

    def post(self, content: bytes, key: str) -> int:
        """The status with which `POST /v1/events` is answered. Runs as this Agent's process."""
        loop, process = self.loop, self.process
        if loop is None or process is None:
            return 503
        routes = Routes(loop.pump, loop.home.keys, dict, loop.clock, process.wall, loop.forwarder.pump)
        outcome: list[Any] = []
        ensureDeferred(routes.events(call_of(content, key))).addBoth(outcome.append)
        [answer] = outcome  # its routes wait for nothing
        if not isinstance(answer, Failure):
            return 200
        if answer.check(Killed):
            raise Killed
        if answer.check(HTTPError):
            return cast(HTTPError, answer.value).status
        self.world.fired[f"a post failed: {type(answer.value).__name__}"] += 1
        self.world.unexpected(cast(Any, answer.value), process)
        return 500


def router_of(world: Ground, process: Process, buckets: int | None, may_make: bool = True) -> Router:
    """A process's Router of the world's store."""
    stores = {store.name: store for store in world.stores}
    addresses = tuple(Address(host=name, port=6379) for name in list(stores)[: world.first_stores])

    def new_pool(address: Address) -> StorePool:
        return StorePool(process, address, stores[address.host])

    reactor: Any = process.reactor
    return Router(StoreURL(addresses), buckets, reactor, process.random, new_pool=new_pool, may_make=may_make)


class WatchedBench(Bench):
    """The real one, which counts the folds of States, and whose `now` is steady: only a step that others agree with is followed."""

    def __init__(self, world: Ground, process: Process, lookup: Lookup, sandbox: Any):
        super().__init__(lookup, sandbox)
        self._world, self._process = world, process
        self._offset: float | None = None  # of `now` from the monotonic clock
        self._may_begin = True  # it may find once that Servers have recorded a later time

    def folding(self, type: str, work: Work, now: float) -> Folding:
        self._world.folds += len(work.states)
        offset = now - self._process.seconds()
        before, self._offset = self._offset, offset
        if before is not None and abs(offset - before) > SLIGHT_STEP_SECONDS:
            if not (self._may_begin or self._world.agrees(now)):
                self._world.errors.append(f"{self._process.name}: the time of folds went by {offset - before:+.0f} s, and nobody agrees")
            self._may_begin = False
        return super().folding(type, work, now)


class WatchedEdge(Edge):
    """Folds columns of few events, too, and has its world know that it does."""

    def __init__(self, world: Ground):
        super().__init__({type: world.lookup.get(type) for type in world.lookup.edges}, FEWEST)
        self._world = world

    def fold(self, lot: EdgeLot, most: int = MAX_DUMP_BYTES) -> list[States]:
        found = super().fold(lot, most)
        self._world.fired["States folded at the edge"] += sum(len(states.columns) for states in found)
        return found


class Server(Part):
    """A Server: Router, fold cycles, marks, posts and questions, as its service wires them."""

    def __init__(self, world: Ground, name: str, url: str, buckets: int):
        super().__init__(world, name)
        self.url, self.buckets = url, buckets
        self.is_future = False  # it reads the next version of batches alone
        self.is_older = False  # from its next start on it merges nothing of what Agents fold
        self.lookup: Lookup = world.lookup
        self.problems: list[str] | None = None  # that its status said when it was asked last; None: it has not answered

    def live(self) -> None:
        world, process = self.world, self.process
        assert process is not None
        reactor: Any = process.reactor
        self.router = router_of(world, process, self.buckets)
        self.lookup = world.older_lookup if self.is_older else world.lookup
        sandbox = Sandbox(self.lookup, reactor, {})  # all Handlers here are Taba's own: no child is started
        bench = WatchedBench(world, process, self.lookup, sandbox)
        self.now = SteadyClock(process.wall, process.seconds)
        self.age = StoreAge(self.router, process.seconds, process.wall)
        self.ingest = Ingest(self.router, bench, reactor, self.now, self.age, world.bounds)
        self.posts = Posts(self.router, self.ingest, self.age, process.random.randbytes, reactor)
        served = lambda store: store == self.router.store_id  # noqa: E731
        self.envelopes = Envelopes(self.router, self.ingest, self.posts, process.random.randbytes, process.seconds, self.now.heard, served)
        self.query = Query(self.router, bench, reactor, self.now, sandbox.match, lambda: self.ingest.tab_changes)
        self.health = Health(self.router, reactor)
        self.jobs = Jobs(self.router, self.now, self.age, reactor)
        self.jobs.register("retry", Retry(self.router, bench, self.now, self.age, reactor, world.bounds, self.ingest.in_all))
        site: Any = Nowhere()
        about = self.now, 1, "memory:", reactor, self.health, self.jobs, Starts(None, 0), world.bounds, Caps(), lambda: site
        self.status = Status(self.router, self.lookup, self.ingest, self.envelopes, self.query, sandbox, self.age, *about)
        nobody: Any = None  # these routes are not asked here
        rooms = self.router, self.lookup, self.ingest, self.envelopes, self.posts, self.query
        self.routes = ServerRoutes(*rooms, nobody, nobody, nobody, nobody, nobody, nobody, nobody, self.now, self.age, ())
        ensureDeferred(self._connect()).addErrback(self._failed)

    def _failed(self, failure: Any) -> None:
        if self.is_alive and not failure.check(StoreUnavailable):
            self.world.unexpected(failure.value, self.process)

    async def _connect(self) -> None:
        process = self.process
        await self.router.connect()
        if process is None or not process.is_alive:
            return
        self._aging = LoopingCall(self._look)
        self._aging.clock = cast(IReactorTime, process.reactor)
        self._aging.start(AGE_SECONDS)
        self.health.start()
        self.world.network.listening[self.url] = (process, self.answer)

    def _look(self) -> Deferred[None]:
        return ensureDeferred(self._look_at_age())

    async def _look_at_age(self) -> None:
        try:
            await self.age.look()
            self.now.look(self.age.store_time, self.age.record and self.age.record.wall)
        except StoreUnavailable:
            self.world.fired["a look at the age failed"] += 1

    def died(self) -> None:
        self.world.network.listening.pop(self.url, None)
        super().died()

    def retry(self) -> None:
        """Somebody asks it to fold dead letters again."""
        if self.process is not None and self.url in self.world.network.listening:
            self.world.fired["asked for a retry"] += 1
            self.world.run(self.process, lambda: ensureDeferred(self.jobs.start("retry")).addErrback(self._failed))

    def ask_for_problems(self) -> None:
        """Have `problems` say what its status says now; as this Server's process, as soon as its store answers."""

        def told(status: dict[str, Any]) -> None:
            self.problems = list(status["problems"])

        self.problems = None
        if self.process is not None and self.url in self.world.network.listening:
            self.world.run(self.process, lambda: ensureDeferred(self.status.describe()).addCallbacks(told, self._failed))

    def answer(self, path: str, body: bytes) -> Deferred[tuple[int, dict[str, str], bytes]]:
        """What arrives by HTTP."""
        return ensureDeferred(self._answer(path, body))

    async def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        name, _, key = path.partition("/")
        call = call_of(body, key)
        try:
            if name == "envelopes":
                answer = await self.routes.envelopes(call)
                return 200, {name: value for name, value in answer.headers.items() if isinstance(value, str)}, answer.content
            if name == "status":
                handlers = {type: {"edge": edge} for type, edge in self.lookup.edges.items()}
                return 200, {}, json.dumps({"store": self.router.describe(), "handlers": handlers}).encode()
            if name == "servers":
                told = [{"url": url, "roles": [], "started": 0, "edges": self.world.edges_of(url)} for url in self.world.urls]
                return 200, {}, json.dumps(told).encode()
            if name == "count":
                return 200, {}, json.dumps(await self._count(key)).encode()
            if name == "events":
                return 200, {}, json.dumps((await self.routes.events(call)).content).encode()
        except HTTPError as error:
            return error.status, {}, error.detail.encode()
        except MalformedBatch as error:
            return 400, {}, f"{error}".encode()
        except StoreUnavailable as error:
            return 503, {}, f"{error}".encode()
        except Exception as error:  # to the sender it looks as if no answer came, which it survives
            self.world.unexpected(error, self.process)
            raise
        return 404, {}, b""

    async def _count(self, asked: str) -> dict[str, Any]:
        """What a question says of Censuses, by what it is a figure of: "aggregates/tab", "projections/tab" or "superaggregate/tab,tab".

        Nothing where there is none, or not of all Clients.
        """
        question, _, tabs = asked.partition("/")
        wanted = await self.query.ask(Filter(names=tuple(tabs.split(","))))
        if question == "projections":
            found = [projected async for projected in self.query.projections(wanted)]
            by_client = {f"{one.tab} of {client}": its for one in found for client, its in one.projections.items()}
            return {} if any(isinstance(its, Unanswered) for its in by_client.values()) else by_client
        if question == "superaggregate":
            total = await self.query.superaggregate(wanted)
            return {} if total is None or total.error is not None else {tabs: total.aggregate}
        return {tab: total.aggregate async for tab, total in self.query.aggregates(wanted) if total.error is None}


class Asker(Part):
    """Somebody who looks at totals, one question after the other, and must never see one fall. `tabs`: of which Type each is."""

    questions = ("aggregates", "projections", "superaggregate")

    def __init__(self, world: Ground, name: str, tabs: Mapping[str, str]):
        super().__init__(world, name)
        self.tabs = dict(tabs)
        self.asked = 0
        self.seen: dict[tuple[str, str], dict[str, int]] = {}  # by question and Tabs: how much there was of each figure

    def live(self) -> None:
        assert self.process is not None
        self.process.reactor.callLater(self.process.random.uniform(0.2, 1.5), self._ask)

    def _ask(self) -> None:
        process, world = self.process, self.world
        assert process is not None
        tab = process.random.choice(list(self.tabs))
        url = process.random.choice(world.urls)
        question = self.questions[self.asked % len(self.questions)]
        self.asked += 1
        if question == "superaggregate":
            tab = ",".join(other for other, type in self.tabs.items() if type == self.tabs[tab])
        asking = Sender(world.network, process).request(b"GET", f"{url}/v1/count/{question}/{tab}".encode())
        asking.addTimeout(20.0, cast(Any, process.reactor))
        asking.addCallbacks(lambda response: self._answered(question, tab, response), lambda failure: None)
        asking.addBoth(lambda _: self.live())

    def _answered(self, question: str, tabs: str, response: Any) -> None:
        if response.code != 200:
            return
        figures = json.loads(response.content)
        if not figures:
            return
        self.world.fired[f"asked for {question}"] += 1
        seen = self.seen.setdefault((question, tabs), {})
        for of, figure in figures.items():
            if figure["again"]:
                self.world.errors.append(f"{of}: {figure['again']} events were folded twice, {question} show")
        for of in dict.fromkeys((*seen, *figures)):  # whoever was in an answer is in all that follow
            before, count = seen.get(of, 0), figures[of]["count"] if of in figures else 0
            if count < before and not self.world.goes_back:
                self.world.errors.append(f"{of} fell from {before} to {count}, {question} show")
            seen[of] = count


class Mover(Part):
    """Somebody who moves buckets: `taba reshard` or `taba check`, as the command runs them, again where it was killed."""

    restart_seconds = (0.5, 15.0)

    def __init__(self, world: Ground, name: str):
        super().__init__(world, name)
        self.may_start = False  # until somebody calls the command
        self.aim: tuple[str, int] = ("rebalance", 0)
        self._work: Deferred[Any] | None = None
        self.is_done = False

    def call(self, aim: str, which: int) -> None:
        """Somebody calls the command; not while it runs already."""
        if self.process is None:
            self.aim, self.may_start, self.is_done = (aim, which), True, False
            self.start()

    def interrupt(self) -> None:
        """As Ctrl-C does. Runs as this process."""
        if self._work is not None:
            self._work.cancel()

    def live(self) -> None:
        process = self.process
        assert process is not None
        self._work = ensureDeferred(self._run(process))
        self._work.addErrback(self._failed)
        self._work.addBoth(lambda _: self._end(process))

    def _failed(self, failure: Any) -> None:
        if failure.check(TabaError, TimeoutError):  # the command says either in one line
            self.world.fired[f"{self.aim[0]} ended with {failure.type.__name__}"] += 1
            self.world.say(f"{self.name}: {self.aim[0]}: {failure.value}")
        elif not failure.check(CancelledError):
            self.world.unexpected(failure.value, self.process)

    def _end(self, process: Process) -> None:
        if process.is_alive:
            self.may_start = not self.is_done and self.world.is_quiet  # in the end it is repeated until it is done
            self.world.kill(process)

    def died(self) -> None:
        self._work = None
        if not self.world.is_quiet:
            self.may_start = self.may_start and self.world.random.random() < 0.7  # else nobody calls it again
        super().died()

    async def _run(self, process: Process) -> None:
        world, (aim, which) = self.world, self.aim
        router = router_of(world, process, None, may_make=False)
        reactor: Any = process.reactor
        connecting: Deferred[None] = ensureDeferred(router.connect())
        await connecting.addTimeout(CONNECT_SECONDS, reactor)
        if aim in ("check", "repair"):
            wrong = await check(await current_shards(router.atlas), reactor, aim == "repair", router.atlas.standing)
            world.fired["checked, and all was well" if not wrong else f"{aim}: something was wrong"] += 1
        else:
            work = Reshard(router.atlas, reactor)
            try:
                await self._reshard(work, router, aim, which)
            except CancelledError:
                undoing: Deferred[None] = ensureDeferred(work.give_up())
                try:
                    await undoing.addTimeout(CONNECT_SECONDS, reactor)
                    world.fired["a mover gave up, as it was told"] += 1
                except (TimeoutError, TabaError):
                    world.fired["a mover could not undo all"] += 1
                raise
            finally:
                world.fired["buckets moved"] += sum(moved.how == "moved" for moved in work.moved)
                world.fired["moves of others ended"] += sum(moved.how != "moved" for moved in work.moved)
                await work.close()
            if aim == "settle":
                await self._look_whether_all_is_well(router, reactor)
        self.is_done = True

    async def _reshard(self, work: Reshard, router: Router, aim: str, which: int) -> None:
        if aim == "add":
            stores = [store.name for store in self.world.stores]
            await work.add([Address(host=stores[which % len(stores)], port=6379)])
        elif aim == "drain":
            names = [shard.name for shard in router.map.shards]
            await work.drain(names[which % len(names)])
        elif aim == "abort":
            await work.abort()
        else:
            await work.rebalance()

    async def _look_whether_all_is_well(self, router: Router, reactor: Any) -> None:
        signs = router.atlas.standing
        wrong = await check(await current_shards(router.atlas), reactor, False, signs)
        if wrong and not self.world.goes_back:
            self.world.errors.append(f"after all moves have ended, check says: {[one.text for one in wrong]}")
        if wrong:
            self.world.fired["a person had to repair"] += 1
            await check(await current_shards(router.atlas), reactor, True, signs)
            wrong = await check(await current_shards(router.atlas), reactor, False, signs)
            if wrong:
                raise StoreUnavailable(f"repaired, and check says: {[one.text for one in wrong]}")


class Nowhere:
    """What a Server says of where it listens: here it does so nowhere."""

    def describe(self) -> dict[str, Any]:
        return {}

    def problems(self, unix_now: float) -> list[str]:
        return []


class Arrived:
    """A request that came, its channel and its site: what a `Call` asks of them. What is asked here is short, and takes no turns."""

    uri = b""
    args: ClassVar[dict[bytes, list[bytes]]] = {}
    poster = "this host"

    def __init__(self, content: bytes, key: str):
        self.content = BytesIO(content)
        self.requestHeaders = Headers({"idempotency-key": [key]} if key else None)
        self.channel = self.site = self.turns = self

    def getHeader(self, name: str) -> str | None:
        values = self.requestHeaders.getRawHeaders(name)
        return values[-1] if values else None

    def take_room(self, size: int) -> bool:
        """There is."""
        return True

    async def breathe(self) -> None:
        """Nobody waits."""


def call_of(content: bytes, key: str) -> Call:
    """The real call that a route gets."""
    return Call(cast(Any, Arrived(content, key)))
