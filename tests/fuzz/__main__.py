"""`./run fuzz`: takes as many inputs as there is time for, and says what a target did not bear."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import random
import sys
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tests.fuzz.driver import CORPUS_BYTES, CORPUS_FILES, Found, fuzz, smaller
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
SAY_SECONDS = 10.0


def corpus_of(name: str) -> list[bytes]:
    """What the repository keeps for a target, and what is right."""
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [*kept, *TARGETS[name].seeds()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all targets together (1)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="this one alone; repeatable")
    parser.add_argument("--seed", type=int, default=None, help="from which all follows (drawn)")
    parser.add_argument("--atheris", action="store_true", help="let atheris drive, where it is installed: one target, until Ctrl-C")
    parser.add_argument("--keep", action="store_true", help="write inputs that reach something new to the corpus")
    asked = parser.parse_args()
    names: list[str] = asked.target or list(TARGETS)
    if asked.atheris:
        return atheris(names[0], asked.minutes)
    seed = random.SystemRandom().getrandbits(32) if asked.seed is None else asked.seed
    print(f"seed {seed}; {asked.minutes:g} minutes for {', '.join(names)}", flush=True)
    whole = failed = 0
    for name in names:
        end = time.monotonic() + 60 * asked.minutes / len(names)
        said, count, kept = time.monotonic(), 0, []
        target = TARGETS[name]
        try:
            for found in fuzz(target.take, corpus_of(name), random.Random(seed)):
                count += 1
                if found is not None:
                    kept.append(found)
                if count % max(1, 256 // target.slowness) == 0:
                    now = time.monotonic()
                    if now >= end:
                        break
                    if now - said >= SAY_SECONDS:
                        said = now
                        print(f"  {name}: {count} inputs, {len(kept)} new ones", flush=True)
        except Found as bad:
            failed += 1
            content = smaller(target.take, bad.content)
            path = Path(f"fuzz-{name}-{blake2b(content, digest_size=4).hexdigest()}")
            path.write_bytes(content)
            print(f"{name}: {bad}: {content[:200]!r}, in {path}", flush=True)
        print(f"{name}: {count} inputs, {len(kept)} new ones", flush=True)
        whole += count
        if asked.keep:
            keep(name, kept)
    print(f"{whole} inputs; {failed} targets did not bear one")
    return 1 if failed else 0


def keep(name: str, found: list[bytes]) -> None:
    """Write the smallest of what was found to the corpus."""
    directory = CORPUS / name
    directory.mkdir(parents=True, exist_ok=True)
    room = CORPUS_FILES - len(list(directory.iterdir()))
    for content in sorted((one for one in found if len(one) <= CORPUS_BYTES), key=len)[: max(0, room)]:
        (directory / blake2b(content, digest_size=6).hexdigest()).write_bytes(content)


def atheris(name: str, minutes: float) -> int:
    """libFuzzer, by atheris; it ends the process itself."""
    if importlib.util.find_spec("atheris") is None:
        print("./run fuzz: --atheris: is not installed here; pip install atheris", file=sys.stderr)
        return 2
    library: Any = importlib.import_module("atheris")

    directory = CORPUS / name
    directory.mkdir(parents=True, exist_ok=True)
    library.instrument_all()
    library.Setup([sys.argv[0], f"-max_total_time={int(60 * minutes)}", os.fspath(directory)], TARGETS[name].take)
    library.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
