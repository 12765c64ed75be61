"""`./run sbom`; and `./run audit`: 1 where something is known to be wrong, 2 where something could not be looked up."""

from __future__ import annotations

import sys
from pathlib import Path

from taba import __version__
from taba.installing import DISTRIBUTION
from tests.supply.audit import audit, sentences, shown
from tests.supply.sbom import bill, canonical, needed


def main(what: str, *arguments: str) -> int:
    found = needed("all")
    if what == "sbom":
        content = shown(bill([part for name, part in found.items() if part is not None and name != canonical(DISTRIBUTION)], __version__))
        if arguments:
            Path(arguments[0]).write_text(content, "utf-8")
        else:
            sys.stdout.write(content)
        return 0
    outcome = audit({name: None if part is None else part.version for name, part in found.items() if name != canonical(DISTRIBUTION)})
    for line in sentences(outcome):
        print(f"audit: {line}")
    return 1 if outcome.wrong else 2 if outcome.unknown else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
