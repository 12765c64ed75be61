"""The main job with real processes, for whatever is done to them meanwhile: what was recorded is what is answered, to the last event."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from taba.query import ServerUnavailable
from tests.patience import PATIENCE_SECONDS, until

from ..services import BUCKETS, ROOT, USUAL_BUCKETS, Services
from .recorder import TABS, name_of, type_of

REMEMBERED = "folded and dead_letters are"  # begins what a Server says where counts are not what its store has now
TYPE_OF = {name_of(tab): type_of(tab) for tab in range(TABS)}


def figures(type: str, shown: Any) -> list[float]:
    """[count, total] as a Projection or Aggregate of `type` shows them; an UpDown has no count."""
    if type == "CounterGroup":
        return [shown["pct"]["count"], shown["pct"]["total"]]
    if type == "PercentileGroup":
        return [shown["1d"]["count"], shown["1d"]["total"]]
    if type == "UpDown":
        return [shown["value"]]
    return [shown["count"], shown["total"]]


def expected(type: str, count: int, total: int) -> list[float]:
    """What processes that have ended leave: what they had added to an UpDown is gone with them."""
    return [0] if type == "UpDown" else [count, total]


# as fast as the Agent reads, however fast the machine is, and however small a ring is had: three quarters of its byte ring wait at the most
TEXTS = """
import json, sys, time
from taba import client, ring
client.start(sys.argv[1])
texts = client.tab("texts", type="Noop")
for number in range(int(sys.argv[2])):
    texts.record("x" * 2000)
    if number == 0:
        most = ring.layout(client.stats()["ring_bytes"]).byte_ring_bytes * 3 // 4 // 2003
    while number + 1 - client._process.producer._segment.words[ring.TAIL_OFFSET // 8] > most:
        time.sleep(0.001)
stats = client.stats()
print(json.dumps([stats["recorded"], stats["dropped"]]))
"""


class Job(TestCase):
    """Records with many processes, and compares what is answered with what each of them says that it recorded."""

    timeout = 400
    tabs = TABS
    buckets = USUAL_BUCKETS

    def setUp(self) -> None:
        self.services = Services(self.buckets)
        self.addCleanup(self.services.stop)
        self.reports = self.services.directory / "reports"
        self.reports.mkdir()
        self.starts = 0  # of recorders, eight processes each
        self.services.environ["TABA_RING_BYTES"] = str(8 << 20)  # 262,144 records: nothing is dropped while the Agent is away

    def run_recorders(self, events: int, pause: float = 0.0) -> None:
        """`start_recorders`, and wait for their end."""
        self.end_recorders(self.start_recorders(events, pause))

    def end_recorders(self, recorders: list[subprocess.Popen[bytes]]) -> None:
        for recorder in recorders:
            self.assertEqual(recorder.wait(PATIENCE_SECONDS), 0)

    def start_recorders(self, events: int, pause: float, file: Path | None = None) -> list[subprocess.Popen[bytes]]:
        """Eight processes of four threads: two alone, and two that fork two more each, after they recorded; the end waits for `file`."""
        self.starts += 1
        recorders = []
        for processes in (1, 1, 3, 3):
            arguments = [
                str(self.reports),
                str(processes),
                str(events * processes // 8),
                str(self.tabs),
                str(pause),
                *([str(file)] if file else []),
            ]
            process = subprocess.Popen([sys.executable, "-m", "tests.faults.recorder", *arguments], cwd=ROOT, env=self.services.environ)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            recorders.append(process)
        return recorders

    def record_texts(self, client: str, events: int) -> None:
        """One process that records so many texts of 2,000 bytes, none of which is dropped."""
        done = self.services.run("-c", TEXTS, client, str(events), timeout=PATIENCE_SECONDS)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(json.loads(done.stdout), [events, 0])

    def recorded(self) -> dict[str, dict[str, list[int]]]:
        """{client: {tab: [count, total]}} as the recording processes say; a slot that is free again is the same Client."""
        recorded: dict[str, dict[str, list[int]]] = {}
        reports = [json.loads(path.read_text()) for path in self.reports.iterdir()]
        self.assertEqual(len(reports), 8 * self.starts)
        for report in reports:
            self.assertEqual(report["dropped"], 0)
            tabs = recorded.setdefault(report["client"], {})
            for tab, figures in report["tabs"].items():
                tabs[tab] = [kept + more for kept, more in zip(tabs.get(tab, [0, 0]), figures, strict=True)]
        return recorded

    def wait_for(self, events: int) -> dict[str, Any]:
        """Server's status once so many events are folded; fails, with what Agent and Server say, once no more of them come."""
        found = -1
        while True:
            status = self._wait_for_more(found, events)
            found = status["folded"]
            if found >= events:
                return status

    def _wait_for_more(self, folded: int, events: int) -> dict[str, Any]:
        def more() -> dict[str, Any] | None:
            status = self.known()
            return status if status is not None and status["folded"] > folded else None

        status: dict[str, Any] = until(more, lambda: f"of {events} events {folded} came, and no more do: {self.story()}")
        return status

    def known(self) -> dict[str, Any] | None:
        """Server's status where its counts are the store's; None where they are remembered, as while a store that was killed loads."""
        status: dict[str, Any] = self.services.query.status()
        return None if any(problem.startswith(REMEMBERED) for problem in status["problems"]) else status

    def counted(self) -> dict[str, Any]:
        """Server's status once its counts are the store's. They may be a second old: of one that went back, ask once that was said."""
        status: dict[str, Any] = until(self.known, lambda: f"the store does not say what it has: {self.story()}")
        return status

    def folded(self) -> int:
        """How many events the store has, by its own word."""
        return int(self.counted()["folded"])

    def assert_exact(self, events: int, posted: int = 0) -> None:
        """All that the recorders recorded is there, once they have ended; beside what else was `posted`."""
        status = self.wait_for(events + posted)
        self.assertEqual(status["folded"], events + posted, self.story())
        self.wait_until_healed()
        self.assertEqual(status["dead_letters"], 0)
        recorded = self.recorded()
        self.assertEqual(sum(count for tabs in recorded.values() for count, _ in tabs.values()), events)
        projections = self.services.query.projections(match="job.*")
        shown = {
            client: {tab: figures(TYPE_OF[tab], projections[tab][client]) for tab in projections if client in projections[tab]}
            for client in recorded
        }
        wanted = {client: {tab: expected(TYPE_OF[tab], *of_tab) for tab, of_tab in tabs.items()} for client, tabs in recorded.items()}
        self.assertEqual(shown, wanted)
        aggregates = self.services.query.aggregates(match="job.*")
        for tab in map(name_of, range(self.tabs)):
            sums = [sum(tabs.get(tab, [0, 0])[part] for tabs in recorded.values()) for part in (0, 1)]
            self.assertEqual(figures(TYPE_OF[tab], aggregates[tab]), expected(TYPE_OF[tab], *sums), tab)

    def wait_until_healed(self) -> None:
        """What processes added to an UpDown that have ended goes."""
        until(lambda: not self.unhealed(), lambda: f"what processes added that have ended stays: {self.unhealed()}\n{self.story()}")

    def unhealed(self) -> str:
        """The UpDowns that are not 0, with their Clients, or why nobody answers."""
        try:
            aggregates = self.services.query.aggregates(match="job.*")
            names = [tab for tab, shown in aggregates.items() if TYPE_OF[tab] == "UpDown" and shown["value"]]
            projections = self.services.query.projections(match="|".join(re.escape(name) for name in names[:10])) if names else {}
        except ServerUnavailable as error:
            return f"{error}"  # a failover that is not over
        return f"{len(names)} Tabs, such as {projections}" if names else ""

    def story(self) -> str:
        """What Agent and Server say of themselves, for a test that fails."""
        said = []
        for query in (self.services.agent_query, self.services.query):
            try:
                said.append(f"{query.role}: {json.dumps(query.status(), indent=1)}")
            except ServerUnavailable as error:
                said.append(f"{query.role}: {error}")
        return "\n".join(said)

    def until(self, condition: Callable[[], Any], what: str = "it did not come about") -> None:
        """Wait until `condition()` is true."""
        until(condition, lambda: f"{what}: {self.story()}")

    def problems(self, part: str) -> str:
        """The sentences of the `Server`'s or `Agent`'s problems, as one text."""
        query = self.services.agent_query if part == "Agent" else self.services.query
        return "\n".join(query.status()["problems"])

    def says_that_it_went_back(self) -> bool:
        """Whether the Server found that its store did."""
        return "the store went back in time" in self.problems("Server")

    def assert_rings_are_gone(self) -> None:
        """The Agent retires and unlinks the rings of the dead once they are drained."""
        until(lambda: not list(Path("/dev/shm").glob(f"taba.{self.services.agent}.*")), "rings of the dead are left")


class ShortJob(Job):
    """The same over fewer Tabs and buckets: of every Type that is recorded, with and without labels."""

    tabs = 60
    buckets = BUCKETS
