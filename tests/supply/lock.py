"""What is locked, `.ci/locked.txt` and `deploy/locked.txt` as `./run lock` writes them, beside what setup.cfg asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from typing import NamedTuple

from packaging.requirements import Requirement

from taba.installing import DISTRIBUTION
from tests.supply.sbom import canonical

FILES = {"test": ".ci/locked.txt", "all": "deploy/locked.txt"}  # by extra
# where Taba runs, as markers have it
PLACES = [
    {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.9",
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    for minor in range(10, 15)
    for machine in ("x86_64", "aarch64")
]


class Part(NamedTuple):
    """One version of a distribution, and the hashes of its files."""

    requirement: Requirement
    version: str
    hashes: tuple[str, ...]

    def is_for(self, place: Mapping[str, str]) -> bool:
        """Whether it is installed there; where something is not said of the place, here."""
        return self.requirement.marker is None or self.requirement.marker.evaluate(dict(place))


def parts_of(text: str) -> list[Part]:
    """What a file of requirements with hashes has. Raises InvalidRequirement for a line that is none."""
    lines = (line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#"))
    found = []
    for line in lines:
        asked, *hashes = line.split("--hash=")
        requirement = Requirement(asked.strip())
        [version] = requirement.specifier
        found.append(Part(requirement, version.version if version.operator == "==" else "", tuple(hash.strip() for hash in hashes)))
    return found


def asked_for(setup: str, extra: str) -> Iterator[Requirement]:
    """What an extra of setup.cfg asks for, with what extras that it names do."""
    parser = ConfigParser()
    parser.read_string(setup)
    for line in parser["options.extras_require"][extra].split("\n"):
        if line.strip():
            found = Requirement(line)
            if canonical(found.name) == canonical(DISTRIBUTION):
                for other in sorted(found.extras):
                    yield from asked_for(setup, other)
            else:
                yield found


def missing(asked: Requirement, locked: list[Part], place: Mapping[str, str]) -> str:
    """What of this is not locked for a place; "" where all is."""
    if asked.marker is not None and not asked.marker.evaluate(dict(place)):
        return ""
    found = [part for part in locked if canonical(part.requirement.name) == canonical(asked.name) and part.is_for(place)]
    if not found:
        return f"{asked}: is not locked"
    wrong = [part.version for part in found if not asked.specifier.contains(part.version, prereleases=True)]
    return f"{asked}: {asked.name} {', '.join(wrong)} is locked" if wrong else ""
