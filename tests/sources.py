"""The sources alone, as a clone has them: for tests that build, install or run what somebody else would get. Needs no git."""

from __future__ import annotations

import shutil
from pathlib import Path

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
