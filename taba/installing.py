"""How Taba is installed: what hints, errors and pages say of it, said here once."""

from __future__ import annotations

DISTRIBUTION = "taba-metrics"  # the package index knows another project as `taba`; the import and the command are `taba` all the same
IS_PUBLISHED = False  # until it is, the index has nothing to give: what is installed comes from a clone


def install_command(*extras: str) -> str:
    """The command that installs Taba with `extras`; until Taba is published, one that is given in the folder of a clone."""
    source = DISTRIBUTION if IS_PUBLISHED else "."
    return f"pip install '{source}[{','.join(extras)}]'" if extras else f"pip install {source}"


def install_hint(*extras: str) -> str:
    """`install_command`, and where it is given: the end of a sentence about what is missing."""
    return install_command(*extras) + ("" if IS_PUBLISHED else ", in a clone of Taba")
