"""Programs of a world that speak HTTP with Taba: one posts events under keys, one asks for totals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, ClassVar, cast

from twisted.web.client import FileBodyProducer

from simulation.agent import Agent
from simulation.ground import Ground, Part
from simulation.network import Sender


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
