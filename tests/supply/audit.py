"""Whether something is known to be wrong with what is installed, as OSV knows it; and what could not be looked up."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

URL = "https://api.osv.dev/v1/querybatch"
SECONDS = 10.0  # for the answer; where none comes, nobody waits for it
MAX_ANSWER_BYTES = 4_000_000


class Audit(NamedTuple):
    """`wrong`: by name and version, the ids of what is known; `unknown`: why something was not looked up, in sentences."""

    wrong: dict[str, list[str]]
    unknown: list[str]


def ask(body: bytes) -> bytes:
    """Ask OSV. Raises OSError."""
    request = urllib.request.Request(URL, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        content: bytes = answer.read(MAX_ANSWER_BYTES)
        return content


def audit(versions: Mapping[str, str | None], ask: Callable[[bytes], bytes] = ask) -> Audit:
    """Look up distributions by name and version; None: it is not installed."""
    missing = sorted(name for name, version in versions.items() if version is None)
    unknown = [f"not installed here, so not looked up: {', '.join(missing)}"] if missing else []
    known = [(name, version) for name, version in sorted(versions.items()) if version is not None]
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in known]
    try:
        results = json.loads(ask(json.dumps({"queries": queries}).encode()))["results"]
        found = [[one["id"] for one in result.get("vulns") or ()] for result in results]
        if len(found) != len(known):
            raise ValueError(f"{len(found)} answers to {len(known)} questions")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Audit({}, [*unknown, f"not looked up, {len(known)} distributions: {type(error).__name__}: {error}"[:300]])
    return Audit({f"{name} {version}": ids for (name, version), ids in zip(known, found, strict=True) if ids}, unknown)


def sentences(found: Audit) -> list[str]:
    """What there is to say, the worst first."""
    wrong = [f"{name}: {', '.join(ids[:10])}" for name, ids in sorted(found.wrong.items())]
    return [*wrong, *found.unknown] or ["nothing is known to be wrong"]


def shown(value: Any) -> str:
    """A bill for a file."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
