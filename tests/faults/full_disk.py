"""A real full disk, to be run where the temporary directory is a small file system of its own: `python -m tests.faults.full_disk`.

Spool and embedded store lie on it. Prints what became of the events; ends with an error where a count is wrong or nothing was said.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.patience import until
from tests.services import Services

from .job import REMEMBERED

RECORD = """
import sys
from taba import client
client.start(sys.argv[1])
texts, bids = client.tab("texts", type="Noop"), client.counter("bids_won")
for number in range(int(sys.argv[2])):
    bids.inc()
    texts.record("x" * 1000)
stats = client.stats()
assert stats["dropped"] == 0, stats
"""


def fill(directory: Path) -> None:
    """Take all that is left of the disk."""
    with open(directory / "filler", "ab", buffering=0) as filler:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError:
                continue


def main() -> None:
    services = Services()
    agent = services.agent_query
    recorded = 0

    def record(client: str, events: int) -> None:
        nonlocal recorded
        done = services.run("-c", RECORD, client, str(events), TABA_RING_BYTES=str(32 << 20))
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        recorded += 2 * events

    try:
        services.start_server()
        services.start_agent("--outbox-bytes", str(4 << 20))
        record("web/1", 500)
        until(lambda: services.query.status()["folded"] == recorded, "what was recorded at first is not folded")
        fill(services.directory)
        for number in range(8):  # 12 MB: more than the outbox holds
            record(f"web/{2 + number}", 1500)
        told = until(lambda: [said for said in agent.status()["problems"] if "the spool" in said], "the Agent says nothing")
        print(told[0])
        said = until(lambda: services.query.status()["problems"], "the Server says nothing")
        print(said[0])
        os.unlink(services.directory / "filler")
        until(lambda: not [name for name in os.listdir("/dev/shm") if name.startswith(f"taba.{services.agent}.")], "rings are left")

        def books() -> dict[str, int] | None:
            ours, theirs = agent.status(), services.query.status()
            if REMEMBERED in str(theirs["problems"]):  # its store is on its way up
                return None
            assert ours["recorded"] <= recorded, ours
            if ours["recorded"] < recorded:  # the last of it was not drained yet
                return None
            dropped, lost = sum(ours["dropped_by_reason"].values()), theirs["folded"] + theirs["dead_letters"]
            assert set(ours["dropped_by_reason"]) <= {"spool_full"} and dropped + lost <= recorded, (ours, theirs)
            return {"recorded": recorded, "folded": lost, "dropped": dropped} if dropped + lost == recorded else None

        print(json.dumps(until(books, lambda: f"the books do not add up: {recorded}, {agent.status()}, {services.query.status()}")))
        record("web/1", 500)
        until(books, "what comes afterwards is not folded")
        until(lambda: "cannot be read or written" not in str(agent.status()["problems"]), "what is mended is still said")
    finally:
        services.stop()


if __name__ == "__main__":
    main()
