"""P5, one bad part harms nobody else: it is isolated, counted and said, its bytes are kept, and the rest works on."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from taba.query import ServerUnavailable

from .job import Job

# fold raises, hangs, or ends the process, as the value says
BAD_HANDLER = """
import os, time
from taba.handlers import Handler

class Bad(Handler):
    "What a careless author writes."
    type = "Bad"
    def new_state(self): return 0
    def fold(self, state, events, now):
        for value in events.values:
            if value == "raise": raise RuntimeError("no")
            if value == "hang": time.sleep(3600)
            if value == "exit": os._exit(3)
        return state + len(events.values)
    def project(self, state, now): return {"count": state}
    def aggregate(self, projections): return {"count": sum(one["count"] for one in projections)}

bad = Bad()
"""


class OneBadPart(Job):
    def bad_handler(self) -> None:
        plugins = self.services.directory / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "acme_bad.py").write_text(BAD_HANDLER)

    def bad_rings(self) -> list[Path]:
        """Segments with this Agent's prefix that are no rings: empty, noise, a head that promises too much."""
        made = []
        for name, content in (("empty", b""), ("noise", os.urandom(100_000)), ("zeros", bytes(65_536))):
            path = Path(f"/dev/shm/taba.{self.services.agent}.{name}")
            path.write_bytes(content)
            self.addCleanup(path.unlink, missing_ok=True)
            made.append(path)
        return made

    def bad_batches(self) -> None:
        for body in (b"", os.urandom(1000), b"\xdc\xff\xff" * 10, b"\x93" * 5000):
            request = urllib.request.Request(f"{self.services.server_url}/v1/envelopes", body, {"Content-Type": "application/msgpack"})
            with self.assertRaises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=30)
            self.assertLess(caught.exception.code, 500)
            caught.exception.close()

    def post_bad(self, tab: str, value: str) -> None:
        """Post one event, under a key until it is taken: on a busy machine a child takes its time to start."""

        def is_taken() -> bool:
            try:
                return bool(self.services.query.post_events("bad/1", [{"tab": tab, "type": "Bad", "value": value}], key=tab)["accepted"])
            except ServerUnavailable:
                return False

        self.until(is_taken, f"{tab} is not taken")

    def test_bad_rings_batches_and_handlers_are_counted_and_said_and_the_job_beside_them_is_exact(self) -> None:
        self.bad_handler()
        self.bad_rings()
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(8_000, pause=0.0)
        self.bad_batches()
        for value in ("raise", "exit"):
            self.post_bad(f"bad_{value}", value)
        self.post_bad("bad_good", "good")
        self.end_recorders(recorders)
        self.until(lambda: (self.services.query.status()["folded"] or 0) >= 8_001)
        status = self.services.query.status()
        self.assertEqual((status["folded"], status["dead_letters"]), (8_001, 2))
        self.assertEqual(self.services.query.aggregate("bad_good"), {"count": 1})
        self.assertGreaterEqual(status["handlers"]["Bad"]["errors"], 1)
        agent = self.services.agent_query.status()
        self.assertEqual(agent["recorded"], 8_000)
        self.assertEqual(sum(count for tabs in self.recorded().values() for count, _ in tabs.values()), 8_000)
