"""The page's scripts, whose types stand in comments, are right as TypeScript reads them."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.needs import needs_program
from tests.patience import PATIENCE_SECONDS
from tests.sources import ROOT

TYPESCRIPT = "typescript@5.9.3"  # the very one that they were written with


@pytest.mark.real
class Types(SynchronousTestCase):
    def test_no_script_of_the_page_has_a_wrong_type(self) -> None:
        needs_program("node")
        needs_program("npm")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        # nothing of the package is run while it is installed
        install = ["npm", "install", "--prefix", directory.name, "--ignore-scripts", "--no-audit", "--no-fund", TYPESCRIPT]
        had = subprocess.run(install, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        if had.returncode:
            raise SkipTest(f"needs {TYPESCRIPT} from npm: {had.stderr.strip()[-300:]}")
        compiler = Path(directory.name) / "node_modules" / "typescript" / "bin" / "tsc"
        done = subprocess.run(
            ["node", str(compiler), "-p", str(ROOT / "taba" / "server" / "page" / "tsconfig.json")],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
