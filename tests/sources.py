"""The sources alone, as a clone has them: for tests that build, install or run what somebody else would get. Needs no git."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent
PARTS = ("taba", "twisted", "tests", "docs", "demo", "benchmarks", "simulation", "deploy", "newsfragments")
MADE_HERE = shutil.ignore_patterns("__pycache__", "*.py[co]", "*.so", "dropin.cache", "_trial_temp*", "*.egg-info")


def copy_sources(target: Path) -> Path:
    """Make `target` a folder with everything that belongs to Taba, and nothing that was built or installed."""
    target.mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.is_file() and path.name not in (".git", ".venv.lock", "twistd.pid"):
            shutil.copy2(path, target)
    for name in PARTS:
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, target / name, ignore=MADE_HERE)
    return target


def copy_parts(target: Path) -> None:
    """What was built of C here is there, too: where a compiler fails, or there is none, that is left as it is."""
    for path in (ROOT / "taba").rglob("*.so"):
        shutil.copy2(path, target / path.relative_to(ROOT))


def copy_types(target: Path) -> None:
    """What mypy knows here by now is known there, too: it compares what a file has, and not where it lies. It may be at work meanwhile."""
    for path in (ROOT / ".mypy_cache").rglob("*"):
        there = target / path.relative_to(ROOT)
        if path.suffix == ".db":
            there.parent.mkdir(parents=True, exist_ok=True)
            known = sqlite3.connect(f"file:{path}?mode=ro", timeout=PATIENCE_SECONDS, uri=True)
            with closing(known), closing(sqlite3.connect(there)) as copy:
                known.backup(copy)
