"""`./run fuzz`: takes as many inputs as there is time for, and says what a target did not bear."""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import signal
import sys
import tempfile
import time
from hashlib import blake2b
from pathlib import Path
from types import FrameType

from tests.fuzz import driven
from tests.fuzz.driver import CORPUS_BYTES, CORPUS_FILES, Found, fuzz, smaller
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
SAY_SECONDS = 60.0
INPUTS = "inputs.json"  # beside what is kept for each target: how many each took so far
MOST_FOUND = 300  # of what was found before, to begin from: each is traced first
MORE_BYTES = 2**29  # of address space, than what is there before the first input
MOST_SECONDS = 20.0  # of processor time, for one input, or some at once


def corpus_of(name: str) -> list[bytes]:
    """What the repository keeps for a target, and what is right."""
    kept = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [*kept, *TARGETS[name].seeds()]


def minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:  # so no NaN
        raise ValueError(text)
    return number


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run fuzz", description=__doc__)
    parser.add_argument("--minutes", type=minutes, default=1.0, help="for all targets together (1)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="this one alone; repeatable")
    parser.add_argument("--seed", type=int, default=None, help="from which all follows that atheris does not drive (drawn)")
    parser.add_argument(
        "--without-atheris", action="store_true", help="where it is installed, it drives half of the time; with this, none of it"
    )
    parser.add_argument("--corpus", metavar="DIRECTORY", help="begin from what is there, too, and keep there what reaches something new")
    parser.add_argument("--keep", action="store_true", help="write the smallest of these to the repository's corpus, too")
    asked = parser.parse_args()
    names: list[str] = asked.target or list(TARGETS)
    seed = random.SystemRandom().getrandbits(32) if asked.seed is None else asked.seed
    with_atheris = driven.is_there() and not asked.without_atheris
    print(f"seed {seed}; {asked.minutes:g} minutes{', half by atheris,' if with_atheris else ''} for {', '.join(names)}", flush=True)
    bound_memory()
    whole = failed = 0
    with tempfile.TemporaryDirectory() as passing:
        for name in names:
            directory = Path(asked.corpus or passing) / name
            directory.mkdir(parents=True, exist_ok=True)
            share = 60 * asked.minutes / len(names)
            taken, bad = 0, None
            if with_atheris:
                share /= 2
                for content in corpus_of(name):
                    write(directory, content)
                taken, found, said = driven.drive(name, share, str(directory))
                bad = None if found is None else Found(found, RuntimeError(said[-2000:]))
            if bad is None:
                count, bad = own(name, share, seed, directory)
                taken += count
            if bad is not None:
                failed += 1
                content = smaller(TARGETS[name].take, bad.content)
                path = Path(f"fuzz-{name}-{blake2b(content, digest_size=4).hexdigest()}")
                path.write_bytes(content)
                print(f"{name}: {bad}: {content[:200]!r}, in {path}", flush=True)
            before = told(directory.parent / INPUTS, name, taken) if asked.corpus else 0
            kept = list(directory.iterdir())
            print(f"{name}: {taken} inputs{f', {before + taken} in all' if before else ''}, from {len(kept)} found so far", flush=True)
            whole += taken
            if asked.keep:
                keep(name, [path.read_bytes() for path in kept])
    print(f"{whole} inputs; {failed} targets did not bear one")
    return 1 if failed else 0


def own(name: str, seconds: float, seed: int, directory: Path) -> tuple[int, Found | None]:
    """Have a target take inputs of the driver here for so long: how many it took, and one that it did not bear."""
    end, said, count = time.monotonic() + seconds, time.monotonic(), 0
    target = TARGETS[name]
    found = [path.read_bytes() for path in sorted(directory.iterdir())]
    steps = fuzz(target.take, [*found[-MOST_FOUND:], *corpus_of(name)], random.Random(seed), target.mutate, target.together)
    try:
        for one in steps:
            count += 1
            signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
            if one is not None:
                write(directory, one)
            if count % max(1, 256 // target.slowness) == 0:
                now = time.monotonic()
                if now >= end:
                    break
                if now - said >= SAY_SECONDS:
                    said = now
                    print(f"  {name}: {count} inputs", flush=True)
    except Found as bad:
        return count, bad
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return count, None


def bound_memory() -> None:
    """Whatever takes more memory than it may, or never ends, is found as anything that raises."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE_BYTES, resource.RLIM_INFINITY))

    def hangs(_: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {MOST_SECONDS} s of processor time, at {frame and frame.f_code}")

    signal.signal(signal.SIGVTALRM, hangs)


def write(directory: Path, content: bytes) -> None:
    """Keep an input by its content."""
    (directory / blake2b(content, digest_size=6).hexdigest()).write_bytes(content)


def told(path: Path, name: str, taken: int) -> int:
    """How many inputs the target took before, by what is kept in `path`, where so many are added."""
    inputs = json.loads(path.read_text()) if path.exists() else {}
    before = int(inputs.get(name, 0))
    inputs[name] = before + taken
    path.write_text(json.dumps(inputs, indent=1))
    return before


def keep(name: str, found: list[bytes]) -> None:
    """Write the smallest of what was found to the corpus."""
    directory = CORPUS / name
    directory.mkdir(parents=True, exist_ok=True)
    room = CORPUS_FILES - len(list(directory.iterdir()))
    for content in sorted((one for one in found if len(one) <= CORPUS_BYTES), key=len)[: max(0, room)]:
        (directory / blake2b(content, digest_size=6).hexdigest()).write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
