"""Full-text search over the sources and documentation that this Python installation brings: the demo's real work."""

from __future__ import annotations

import math
import re
import sys
import sysconfig
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_FILES = 1200  # indexed within a few seconds on one slow core
MAX_CORPUS_BYTES = 12 * 1024 * 1024
MAX_FILE_BYTES = 256 * 1024
MAX_HITS = 10

_WORD = re.compile(r"[A-Za-z_][A-Za-z_]{2,30}")


class Hit(NamedTuple):
    """One file that has all the words, and a line of it."""

    path: str
    score: float
    line: str


class Corpus:
    """An index word → files. Made once, in the parent; the forked workers share its memory."""

    def __init__(self, files: list[Path]):
        self.files: list[Path] = []
        self.places: dict[str, array[int]] = {}  # word → pairs of (file, occurrences)
        for path in files:
            words = Counter(word.lower() for word in _WORD.findall(path.read_text(errors="replace")))
            for word, count in words.items():
                self.places.setdefault(word, array("I")).extend((len(self.files), count))
            self.files.append(path)

    def search(self, question: str) -> list[Hit]:
        """The best files that have every word of `question`. Raises ValueError for a question without a word."""
        words = [word.lower() for word in _WORD.findall(question)]
        if not words:
            raise ValueError("no word of three letters or more")
        scores: dict[int, float] | None = None
        for word in words:
            places = self.places.get(word, array("I"))
            weight = math.log(1 + len(self.files) / (1 + len(places) / 2))
            found = {places[i]: weight * (1 + math.log(places[i + 1])) for i in range(0, len(places), 2)}
            scores = found if scores is None else {file: scores[file] + found[file] for file in scores.keys() & found.keys()}
        best = sorted((scores or {}).items(), key=lambda item: (-item[1], item[0]))[:MAX_HITS]
        return [Hit(str(self.files[file]), round(score, 3), _line_with(self.files[file], words[0])) for file, score in best]

    def words(self, length: int) -> list[str]:
        """Words of at least `length` letters that are in several files, for who wants to ask."""
        return [word for word, places in self.places.items() if len(word) >= length and len(places) >= 6]


def installation_files() -> list[Path]:
    """The files of this installation that are worth searching, the same ones each time, within the bounds."""
    files, size = [], 0
    for path in _candidates():
        try:
            bytes_of = path.stat().st_size
        except OSError:
            continue
        if 0 < bytes_of <= MAX_FILE_BYTES:
            files.append(path)
            size += bytes_of
            if len(files) >= MAX_FILES or size >= MAX_CORPUS_BYTES:
                break
    return files


def _candidates() -> Iterator[Path]:
    seen: set[Path] = set()
    prefix = Path(sys.base_prefix)
    for root, pattern in (
        (prefix / "share" / "doc", "**/*.rst"),
        (prefix / "share" / "doc", "**/*.txt"),
        (Path(sysconfig.get_path("purelib")), "**/*.txt"),
        (Path(sysconfig.get_path("purelib")), "**/*.rst"),
        (Path(sysconfig.get_path("stdlib")), "*.py"),
        (Path(sysconfig.get_path("stdlib")), "[a-z]*/*.py"),
        (Path(sysconfig.get_path("purelib")), "*/*.py"),
    ):
        for path in sorted(root.glob(pattern))[: MAX_FILES // 2]:
            if path not in seen:
                seen.add(path)
                yield path


def _line_with(path: Path, word: str) -> str:
    with path.open(errors="replace") as lines:
        return next((line.strip()[:200] for line in lines if word in line.lower()), "")


def as_json(hits: list[Hit]) -> list[dict[str, Any]]:
    """Hits as an answer shows them."""
    return [hit._asdict() for hit in hits]
