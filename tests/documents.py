"""Runs the examples of one document: `python -m tests.documents FILE`, beside a Server and an Agent (see test_docs).

Blocks marked `python` and `sh` run in the order in which they stand: Python ones in one namespace, shell ones with `sh -e`. Other
blocks (`text`) are for reading. After each block that may have recorded, the next waits until all of it is folded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from taba.query import Query

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KNOWN = {"python", "sh", "text", ""}
SETTLE_SECONDS = 20.0


class Block(NamedTuple):
    """One fenced block; `line` is that of its first line of code."""

    language: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    return [Block(match[1], match[2], text.count("\n", 0, match.start(2)) + 1) for match in BLOCK.finditer(text)]


def settle(server: Query, agent: Query) -> None:
    """Wait until what was recorded is folded: until the Agent has no batch left and two looks agree."""
    deadline, last = time.monotonic() + SETTLE_SECONDS, None
    while time.monotonic() < deadline:
        of_agent, of_server = agent.status(), server.status()
        seen = (of_agent["recorded"], of_agent["outbox"]["batches"], of_server["folded"], of_server["dead_letters"])
        if seen == last and not of_agent["outbox"]["batches"]:
            return
        last = seen
        time.sleep(1.2)  # longer than a scan for new rings, and than the counts of a status are kept


def run(path: Path, server_url: str, agent_url: str) -> None:
    """Run the document at `path`; raises for the first example that fails."""
    server, agent = Query(server_url), Query(agent_url, role="Agent")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(path.read_text()):
        code = block.code.replace("http://127.0.0.1:8280", server_url).replace("http://127.0.0.1:8279", agent_url)
        code = code.replace("8125", os.environ.get("STATSD_PORT", "8125"))
        place = f"{path.name}:{block.line}"
        if block.language == "python":
            # blank lines before it, so that a traceback has the document's own line numbers
            exec(compile("\n" * (block.line - 1) + code, str(path), "exec"), namespace)
        elif block.language == "sh":
            done = subprocess.run(["sh", "-e", "-c", code], text=True, capture_output=True)
            assert done.returncode == 0, f"{place}: {done.stderr}"
        else:
            assert block.language in KNOWN, f"{place}: {block.language!r}"
            continue
        settle(server, agent)


if __name__ == "__main__":
    run(Path(sys.argv[1]), os.environ["TABA_SERVER"], os.environ["TABA_AGENT_URL"])
