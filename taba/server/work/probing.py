"""Finds Handlers without trusting what it imports: a child process imports it first, and what hangs or crashes there is left out.

`find_safely` is for the start of a Server, before its reactor runs: it blocks. Where nothing but Taba's own is installed it costs nothing.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping

from taba.directories import python_of
from taba.handlers.lookup import Lookup, find_handlers, has_foreign

IMPORT_SECONDS = 10.0  # for one plugin or entry point; the first of them imports numpy, say
MAX_EXCLUDED = 20  # plugins that are left out; with more, none but Taba's own would be safe to wait for
START, DONE = "start", ""  # what a child says that is at no place


def find_safely(environ: Mapping[str, str] | None = None) -> Lookup:
    """The Lookup of everything that can be imported; what cannot is in its `problems`."""
    excluded: dict[str, str] = {}
    while has_foreign() and len(excluded) < MAX_EXCLUDED:
        plugin, reason = _probe(excluded, environ)
        if plugin in (DONE, START):
            break
        excluded[plugin] = reason
    return find_handlers(excluded)


def _probe(excluded: Mapping[str, str], environ: Mapping[str, str] | None) -> tuple[str, str]:
    """The place at which the child hung or crashed, and which of them; DONE where it came to the end."""
    arguments = python_of("taba.server.work.probing", str(os.getpid()), json.dumps(dict(excluded)))
    # what a plugin prints is not kept here: it may be without end, and is printed again where the plugin is imported for good
    quiet = subprocess.DEVNULL
    with subprocess.Popen(arguments, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, env=environ) as child:
        assert child.stdout is not None
        said, place = b"", START
        deadline = time.monotonic() + IMPORT_SECONDS
        while True:
            ready, _, _ = select.select([child.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                child.kill()
                return place, f"did not end within {IMPORT_SECONDS:.0f} s"
            chunk = os.read(child.stdout.fileno(), 65_536)
            if not chunk:
                try:
                    code = child.wait(max(deadline - time.monotonic(), 0))
                except subprocess.TimeoutExpired:  # it has closed what it would say more by, and goes on
                    child.kill()
                    return place, f"did not end within {IMPORT_SECONDS:.0f} s"
                return place, f"ended the process that imported it ({'signal' if code < 0 else 'exit code'} {abs(code)})"
            said += chunk
            *lines, said = said.split(b"\n")
            for line in lines:
                place = json.loads(line)
                deadline = time.monotonic() + IMPORT_SECONDS
            if place == DONE:
                child.kill()  # what a plugin has started must not keep it
                return DONE, ""


def main(parent: int, excluded: Mapping[str, str]) -> None:
    """Run as the child of `parent`: find Handlers, and say before each place what it is."""
    import resource

    from taba.server.tether import die_with
    from taba.server.work.boxing import MAX_MEMORY_BYTES

    die_with(parent)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    out = os.dup(1)
    os.dup2(2, 1)  # what plugins print is no answer

    def say(place: str) -> None:
        os.write(out, json.dumps(place).encode() + b"\n")

    find_handlers(excluded, say)
    say(DONE)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
