"""The real gunicorn, uvicorn and Celery: what their processes record is in their rings."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba import ring
from taba.names import parse_name
from tests.client.cases import ROOT
from tests.client.reading import Event, Reader, rings
from tests.leftovers import agent_name
from tests.patience import PATIENCE_SECONDS

RECYCLED_AFTER = 25  # requests, by which a worker gives its place to another
LIMIT = ("--limit-max-requests", str(RECYCLED_AFTER))
WAIT_SECONDS = 60.0  # for what takes a second or two: ends a test that hangs

WEB = """
from taba.frameworks import vitals
from taba.frameworks.{kind} import Middleware
vitals.watch()

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({{"type": message["type"] + ".complete"}})
            if message["type"] == "lifespan.shutdown":
                return
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"ok"}})

application = Middleware({kind}, route=lambda *of: "/page")
"""
COUNTED = """
from prometheus_client import Counter
hits = Counter("page_hits", "what came", ["route"])

def application(environ, start_response):
    hits.labels("/page").inc()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""
JOBS = """
import os, time, uuid
from celery import Celery
from kombu.transport.filesystem import Channel
from kombu.utils.json import dumps
from taba.frameworks.celery import instrument

def put(self, queue, payload, **kwargs):
    # as the transport does it, but whole at once: its own file is there empty for a moment, and a worker that reads it then ends
    part = os.path.join({folder!r}, uuid.uuid4().hex)
    with open(part, "w") as file:
        file.write(dumps(payload))
    os.rename(part, f"{{part[:-32]}}{{int(time.monotonic() * 1000)}}_{{part[-32:]}}.{{queue}}.msg")

Channel._put = put

app = Celery("jobs", broker="filesystem://")
app.conf.update(
    broker_transport_options={{"data_folder_in": {folder!r}, "data_folder_out": {folder!r}, "control_folder": {control!r},
        "polling_interval": 0.05}},
    worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True,
)
instrument()

@app.task
def add(a, b):
    return a + b

@app.task
def fail():
    raise KeyError("secret")

@app.task(bind=True, max_retries=2, default_retry_delay=0)
def again(self):
    if self.request.retries < 2:
        raise self.retry()
"""


@pytest.mark.real
class Processes(SynchronousTestCase):
    def setUp(self) -> None:
        self.agent = agent_name()
        self.folder = Path(tempfile.mkdtemp())
        self.read: list[Event] = []
        self.addCleanup(self.remove)

    def remove(self) -> None:
        for name in rings(self.agent):
            os.unlink(os.path.join(ring.SHM_DIRECTORY, name))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        path = f"{self.folder}:{ROOT}"
        environ = {**os.environ, "TABA_AGENT": self.agent, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "C_FORCE_ROOT": "1"}
        log = (self.folder / "log").open("ab")
        process = subprocess.Popen([sys.executable, "-m", *arguments], cwd=self.folder, env=environ, stdout=log, stderr=log)
        log.close()
        self.addCleanup(process.wait, WAIT_SECONDS)
        self.addCleanup(process.kill)
        return process

    def wait_for(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (found := what()):
            if time.monotonic() > deadline:
                self.fail(f"not within {WAIT_SECONDS} s: {(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.05)
        return found

    def events(self) -> list[Event]:
        for name in rings(self.agent):
            with contextlib.suppress(ring.MalformedRing):  # one that is just being made: read the next time, and the others now
                reader = Reader(name)
                try:
                    self.read += reader.drain()
                finally:
                    reader.close()
        return self.read

    def values(self, name: str, **labels: str) -> list[Any]:
        found = []
        for event in self.events():
            base, own = parse_name(event.tab)
            if base == name and labels.items() <= own.items():
                found.append(event.value)
        return found

    def get(self, port: int) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=PATIENCE_SECONDS) as answer:
            content: bytes = answer.read()
            return content

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_SECONDS)

    def port(self, word: str) -> int:
        """The port of which the log says that it listens there."""

        def found() -> int:
            for line in (self.folder / "log").read_text().splitlines():
                if word in line and "127.0.0.1:" in line:
                    return int(line.split("127.0.0.1:")[1].split()[0].rstrip("()"))
            return 0

        port: int = self.wait_for(found)
        return port

    def worker(self, pid: int) -> int:
        """One of the processes that serve under this one."""
        for child in psutil.Process(pid).children():
            if "resource_tracker" not in " ".join(child.cmdline()):
                return int(child.pid)
        raise AssertionError(f"{pid} has no worker")

    def test_gunicorns_workers_tell_their_share_age_backlog_and_ends(self) -> None:
        (self.folder / "web.py").write_text(WEB.format(kind="wsgi"))
        (self.folder / "conf.py").write_text("from taba.frameworks.gunicorn import *\n")
        command = ["gunicorn", "--config", "conf.py", "--bind", "127.0.0.1:0", "--workers", "2", "--timeout", "2", "--no-control-socket"]
        command += ["--max-requests", str(RECYCLED_AFTER)]
        process = self.start(*command, "web:application")
        port = self.port("Listening at")
        self.wait_for(lambda: len(self.values("gunicorn_worker_starts")) == 2)
        for _ in range(10):
            self.assertEqual(self.get(port), b"ok")
        self.wait_for(lambda: len(self.values("http_requests", route="/page", status="200")) == 10)
        # an idle worker's heartbeat is enough
        self.wait_for(lambda: len(self.values("gunicorn_worker_busy_ratio")) >= 4 and max(self.values("gunicorn_worker_age_seconds")) >= 1)
        self.assertEqual(set(self.values("gunicorn_backlog")), {0.0})
        self.assertGreater(min(self.values("process_resident_bytes")), 1 << 20)
        os.kill(self.worker(process.pid), signal.SIGKILL)
        self.wait_for(lambda: len(self.values("gunicorn_worker_starts")) == 3)
        self.wait_for(lambda: self.values("gunicorn_worker_exits", reason="ended"))
        # and one that is recycled: what it recorded stays, and the one in its place is told of
        sent = 10
        while len(self.values("gunicorn_worker_starts")) == 3:
            self.assertEqual(self.get(port), b"ok")
            sent += 1
            self.assertLessEqual(sent, 10 + 3 * RECYCLED_AFTER)  # both workers have served their number before
        self.wait_for(lambda: len(self.values("gunicorn_worker_exits", reason="ended")) >= 2)
        self.assertEqual(self.get(port), b"ok")
        self.wait_for(lambda: len(self.values("http_requests", route="/page", status="200")) == sent + 1)
        self.end(process)
        self.assertEqual(sum(self.values("http_requests_in_flight")), 0)

    def test_gunicorns_workers_that_count_with_prometheus_client_are_recorded_as_they_are(self) -> None:
        (self.folder / "web.py").write_text(COUNTED)
        run = ("taba.compat.run", "--compat", "prometheus", sys.executable, "-m", "gunicorn")
        process = self.start(*run, "--bind", "127.0.0.1:0", "--workers", "2", "--no-control-socket", "web:application")
        port = self.port("Listening at")
        for _ in range(10):
            self.assertEqual(self.get(port), b"ok")
        self.wait_for(lambda: sum(self.values("page_hits", route="/page")) == 10)
        before = self.worker(process.pid)
        os.kill(before, signal.SIGKILL)
        self.wait_for(lambda: len(psutil.Process(process.pid).children()) == 2 and not psutil.pid_exists(before))
        for _ in range(10):
            self.assertEqual(self.get(port), b"ok")
        self.wait_for(lambda: sum(self.values("page_hits", route="/page")) == 20)
        self.end(process)

    def test_uvicorns_workers_tell_their_lag_connections_and_backlog(self) -> None:
        (self.folder / "web.py").write_text(WEB.format(kind="asgi"))
        process = self.start("taba.frameworks.uvicorn", "web:application", "--port", "0", "--workers", "2", *LIMIT)
        port = self.port("running on")
        self.wait_for(lambda: len(self.values("uvicorn_worker_starts")) == 2)
        for _ in range(5):
            self.assertEqual(self.get(port), b"ok")
        self.wait_for(lambda: len(self.values("http_requests", route="/page", status="200")) == 5)
        self.wait_for(lambda: max(self.values("uvicorn_worker_age_seconds")) >= 1 and len(self.values("uvicorn_loop_lag_seconds")) > 10)
        self.assertEqual(set(self.values("uvicorn_backlog")), {0.0})
        self.assertTrue(self.values("uvicorn_connections") and self.values("uvicorn_tasks"))
        self.assertTrue(all(0 <= ratio <= 1 for ratio in self.values("uvicorn_worker_busy_ratio")))
        # one that is killed, and in turn what takes its place once it has served its number
        os.kill(self.worker(process.pid), signal.SIGKILL)
        self.wait_for(lambda: len(self.values("uvicorn_worker_starts")) == 3)
        sent = 5
        while len(self.values("uvicorn_worker_starts")) == 3:
            try:
                self.assertEqual(self.get(port), b"ok")
                sent += 1
            except OSError:  # the socket is everybody's, and who ends resets what it had not served
                pass
            self.assertLessEqual(sent, 5 + 3 * RECYCLED_AFTER)
        self.wait_for(lambda: len(self.values("http_requests", route="/page", status="200")) >= sent)
        self.end(process)
        self.assertEqual(sum(self.values("http_requests_in_flight")), 0)

    def test_celerys_processes_tell_tasks_by_state_with_wait_and_retries(self) -> None:
        queue, control = self.folder / "queue", self.folder / "control"
        queue.mkdir()
        control.mkdir()
        (self.folder / "jobs.py").write_text(JOBS.format(folder=str(queue), control=str(control)))
        command = ["celery", "-A", "jobs", "worker", "--concurrency", "2", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        worker = self.start(*command)
        (self.folder / "send.py").write_text(
            "import jobs\nfor _ in range(5): jobs.add.delay(1, 2)\n"
            "jobs.fail.delay()\njobs.again.delay()\njobs.add.apply_async((1, 2), countdown=0.1)\n"
        )
        self.assertEqual(self.start("send").wait(WAIT_SECONDS), 0)
        self.wait_for(lambda: len(self.values("celery_tasks", task="jobs.add", state="SUCCESS")) == 6)
        self.wait_for(lambda: self.values("celery_tasks", task="jobs.fail", state="FAILURE"))
        self.wait_for(lambda: self.values("celery_tasks", task="jobs.again", state="SUCCESS"))
        self.assertEqual(len(self.values("celery_tasks", task="jobs.again", state="RETRY")), 2)
        self.assertEqual(len(self.values("celery_task_retries", task="jobs.again")), 2)
        self.assertEqual(len(self.values("celery_task_exceptions", task="jobs.fail", exception="KeyError")), 1)
        self.assertEqual(len(self.values("celery_tasks_published")), 8 + 2)
        self.assertEqual(len(self.values("celery_task_wait_seconds")), 10)
        self.assertEqual(len(self.values("celery_task_seconds")), 10)
        self.end(worker)
        self.assertEqual(sum(self.values("celery_tasks_in_flight")), 0)
