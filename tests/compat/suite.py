"""prometheus_client's own tests, with its values recorded: `python -m tests.compat.suite [PYTEST ARGUMENTS]`.

They are in the source distribution of the version that is installed, which pip fetches. In each process of theirs `taba-run` is at work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from taba.compat.run import environment
from taba.ring import SHM_DIRECTORY
from tests.leftovers import agent_name

FETCH = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "prometheus_client"]


def main(arguments: list[str]) -> int:
    """Fetch and run them; their exit code."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, *FETCH, "--dest", directory, f"prometheus_client=={version('prometheus_client')}"], check=True)
        [archive] = Path(directory).glob("*.tar.gz")
        with tarfile.open(archive) as content:
            content.extractall(directory, [member for member in content.getmembers() if "/tests/" in member.name], filter="data")
        [tests] = Path(directory).glob("*/tests")
        tests.rename(Path(directory) / "tests")  # beside nothing: the package that is installed is the one that is tried
        agent = agent_name()  # there is none: nobody reads these rings
        environ = environment("prometheus", {**os.environ, "TABA_AGENT": agent, "PYTHONPATH": os.getcwd()})
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", *arguments]
        try:
            return subprocess.run(pytest, cwd=directory, env=environ).returncode
        finally:
            for ring in Path(SHM_DIRECTORY).glob(f"taba.{agent}.*"):
                ring.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
