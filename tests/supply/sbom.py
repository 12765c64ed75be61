"""A bill of materials as CycloneDX JSON, of what is installed here for an extra of Taba."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement

from taba.installing import DISTRIBUTION

SPEC_VERSION = "1.5"
# what lies in the package as its makers published it: no distribution tells of it
VENDORED: list[dict[str, Any]] = [
    {
        "type": "library",
        "name": "uplot",
        "version": "1.6.32",
        "purl": "pkg:npm/uplot@1.6.32",
        "hashes": [{"alg": "SHA-256", "content": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"}],
        "licenses": [{"license": {"name": "MIT"}}],
    }
]


def canonical(name: str) -> str:
    """A distribution's name as package URLs have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(extra: str) -> dict[str, Distribution | None]:
    """What Taba with this extra needs, and what that needs in turn, by canonical name; None where it is not installed."""
    found: dict[str, Distribution | None] = {}
    waiting, seen = [(canonical(DISTRIBUTION), extra)], set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            found[name] = None
        for text in (one.requires or ()) if (one := found[name]) is not None else ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                waiting += [(canonical(requirement.name), of) for of in ("", *requirement.extras)]
    return found


def bill(parts: Iterable[Distribution], version: str) -> dict[str, Any]:
    """The bill of these distributions."""
    components = [
        {
            "type": "library",
            "name": canonical(part.metadata["Name"]),
            "version": part.version,
            "purl": f"pkg:pypi/{canonical(part.metadata['Name'])}@{part.version}",
            **_licence(part),
        }
        for part in parts
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": DISTRIBUTION, "version": version, "purl": f"pkg:pypi/{DISTRIBUTION}@{version}"}
        },
        "components": sorted([*components, *VENDORED], key=lambda one: one["name"]),
    }


def _licence(part: Distribution) -> dict[str, Any]:
    metadata: Any = part.metadata
    said = metadata.get("License-Expression") or metadata.get("License") or ""
    return {"licenses": [{"license": {"name": said.splitlines()[0][:200]}}]} if said.strip() else {}
