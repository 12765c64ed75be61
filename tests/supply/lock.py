"""What pip chose, with the hashes of what it chose: from its report to a file of requirements."""

from __future__ import annotations

import json
import sys
from typing import Any

HEAD = "# Made by ./run lock: what pip chose for ./run test here, each with the hash of its file.\n"


def locked(report: Any) -> str:
    """The text of a file for `pip install --require-hashes -r`. Raises ValueError for a part without a hash."""
    lines = []
    for part in report["install"]:
        download = part["download_info"]
        if "dir_info" in download:  # Taba itself
            continue
        hashes = download.get("archive_info", {}).get("hashes", {})
        name, version = part["metadata"]["name"], part["metadata"]["version"]
        if "sha256" not in hashes:
            raise ValueError(f"{name} {version}: pip tells no hash of it")
        lines.append(f"{name.lower()}=={version} --hash=sha256:{hashes['sha256']}\n")
    return HEAD + "".join(sorted(lines))


if __name__ == "__main__":
    sys.stdout.write(locked(json.load(sys.stdin)))
