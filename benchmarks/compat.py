"""What prometheus_client's counters cost when they are recorded as well, beside themselves and beside their multiprocess mode."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from benchmarks import budgets
from benchmarks.rows import Beside, Figure, Row, interleave
from benchmarks.services import ROOT, Effort, Services, running

INCREMENTS = 20_000  # of one process: they fit a ring, whatever drains it
CODE = """
import sys, time
if sys.argv[1] == "recorded":
    import taba.compat.prometheus_client
from prometheus_client import Counter
counter = Counter("hits", "what came")
inc = counter.inc
for _ in range(1000):
    inc()
begun = time.process_time()
for _ in range({count}):
    inc()
print((time.process_time() - begun) / {count} * 1e9)
"""


def run(effort: Effort) -> list[Row]:
    services: Services
    with running(server=False) as services, tempfile.TemporaryDirectory() as directory:

        def cost(mode: str) -> float:
            environ = {**services.environ, "PYTHONPATH": str(ROOT)}
            environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
            if mode == "multiprocess":
                environ["PROMETHEUS_MULTIPROC_DIR"] = os.path.join(directory)
            code = CODE.format(count=INCREMENTS)
            return float(subprocess.run([sys.executable, "-c", code, mode], env=environ, capture_output=True, text=True, check=True).stdout)

        found = interleave({mode: lambda mode=mode: cost(mode) for mode in ("theirs", "recorded", "multiprocess")}, effort.pick(3, 15))  # type: ignore[misc]
    theirs, recorded, multiprocess = (found[mode] for mode in ("theirs", "recorded", "multiprocess"))
    beside = Beside("prometheus_client in one process", Figure.of(theirs))
    return [
        Row("Counter.inc(), recorded as well", Figure.of(recorded), "ns", peer=beside),
        Row("… beside theirs", Figure.of(ours / own for ours, own in zip(recorded, theirs, strict=True)), "×", budgets.COMPAT_INC),
        Row(
            "… as fast as their multiprocess mode",
            Figure.of(other / ours for ours, other in zip(recorded, multiprocess, strict=True)),
            "×",
            budgets.COMPAT_MULTIPROCESS,
        ),
    ]
