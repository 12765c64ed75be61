"""What the client's tests share: one suite, run once with the pure-Python ring and once with the accelerator."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba import ring
from taba.client import pure
from taba.client.producer import Producer
from tests.client.reading import Event, Reader, read_all, rings
from tests.leftovers import agent_name
from tests.patience import PATIENCE_SECONDS

try:
    from taba.client import _accelerator  # type: ignore[attr-defined]  # built from C
except ImportError:
    _accelerator = None

accelerator: Any = _accelerator
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class ClientCase(SynchronousTestCase):
    """A producer of its own, for an Agent of its own name, whose segments are removed."""

    accelerated: bool

    def setUp(self) -> None:
        if self.accelerated and accelerator is None:
            raise SkipTest("the accelerator is not built: python setup.py build_ext --inplace")
        self.agent = agent_name()
        self.environment = {"TABA_AGENT": self.agent, "TABA_CLIENT_ID": "test/1"}
        self.addCleanup(self.remove_segments)

    def remove_segments(self) -> None:
        for name in rings(self.agent):
            os.unlink(os.path.join(ring.SHM_DIRECTORY, name))

    def producer(self, client: str | None = None, **environment: str) -> Producer:
        producer = Producer(accelerator if self.accelerated else pure)
        producer.start(client, {**self.environment, **environment})
        self.addCleanup(producer.stop)
        return producer

    def reader(self, producer: Producer) -> Reader:
        reader = Reader(producer.stats()["ring"])
        self.addCleanup(reader.close)
        return reader

    def events(self, **how: Any) -> list[Event]:
        return read_all(self.agent, **how)

    def run_python(self, code: str, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> str:
        """Run a program that records with taba.client; its standard output."""
        settings = {
            # a tracer of coverage would take part: such programs count frames, allocations, threads and what a signal interrupts
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            **self.environment,
            "PYTHONPATH": ROOT,
            "TABA_PURE": "" if self.accelerated else "1",
            **environment,
        }
        done = subprocess.run(
            [*prefix, sys.executable, "-c", textwrap.dedent(code), *arguments],
            env=settings,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout


def both(case: type[ClientCase]) -> None:
    """Make the two test cases of one: Pure… and Accelerated…. Under its own name nothing is left: that would run for no kind of ring."""
    module = sys.modules[case.__module__]
    for kind, accelerated in (("Pure", False), ("Accelerated", True)):
        name = kind + case.__name__
        setattr(module, name, type(name, (case,), {"accelerated": accelerated, "__module__": case.__module__}))
