"""The corpus, and a short run of each target: `./run fuzz` goes on from there."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import decode_batch
from tests.fuzz import driven
from tests.fuzz.__main__ import corpus_of, told
from tests.fuzz.driver import CORPUS_BYTES, CORPUS_FILES, Found, fuzz, mutate, smaller
from tests.fuzz.targets import TARGETS
from tests.fuzz.written import Written, patches_of

SHORT = 3000  # inputs of a target that costs as little as most do


class Corpus(SynchronousTestCase):
    def test_each_target_bears_what_is_kept_and_what_is_right(self) -> None:
        for name, target in TARGETS.items():
            for content in corpus_of(name)[: None if target.slowness < 100 else 8]:
                target.take(content)

    def test_what_is_kept_is_small(self) -> None:
        for name, target in TARGETS.items():
            kept = corpus_of(name)[: -len(target.seeds())]
            self.assertLessEqual(len(kept), CORPUS_FILES)
            self.assertLessEqual(max(map(len, kept), default=0), CORPUS_BYTES, name)


class Driver(SynchronousTestCase):
    def test_what_a_target_does_not_bear_is_found_and_made_small(self) -> None:
        def take(content: bytes) -> None:
            if len(content) > 3 and 0xC1 in content[:4]:
                raise KeyError(content)

        with self.assertRaises(Found) as raised:
            for _ in fuzz(take, [b"abcd"], random.Random(1)):
                pass
        self.assertEqual(len(smaller(take, raised.exception.content)), 4)

    def test_what_reaches_lines_that_nothing_reached_is_worth_keeping(self) -> None:
        def take(content: bytes) -> None:
            try:
                decode_batch(content)
            except Exception:
                return

        steps = fuzz(take, [b""], random.Random(1))
        self.assertTrue(any(next(steps) is not None for _ in range(2000)))

    def test_one_of_some_that_are_taken_at_once_is_found(self) -> None:
        def take(content: bytes) -> None:
            if content.startswith(b"ab"):
                raise KeyError(content)

        def together(contents: Sequence[bytes]) -> None:
            for content in contents:
                take(content)

        taken = count()
        with self.assertRaises(Found) as raised:
            for _ in fuzz(take, [b"a"], random.Random(1), lambda *_: b"abc" if next(taken) == 1000 else b"a", (together, 8)):
                pass
        self.assertEqual(raised.exception.content, b"abc")

    def test_what_is_written_over_lies_where_something_is(self) -> None:
        written = Written(lambda: bytes(100) + b"here" + bytes(60_000), [7], head=1)
        chance, content, places = random.Random(1), b"", set()
        for _ in range(200):
            content = written.mutate(content, b"", chance)
            places |= {place for place, _ in patches_of(content[1:], 65_536)}
        self.assertEqual(places, {7, 100, 101, 102, 103})

    def test_all_follows_from_the_seed(self) -> None:
        def made(seed: int) -> list[bytes]:
            chance = random.Random(seed)
            return [mutate(b"some bytes", b"others", chance) for _ in range(50)]

        self.assertEqual(made(1), made(1))
        self.assertNotEqual(made(1), made(2))


@pytest.mark.real
class Short(SynchronousTestCase):
    def test_some_thousand_inputs_of_each_target_are_borne(self) -> None:
        for name, target in TARGETS.items():
            steps = fuzz(target.take, corpus_of(name), random.Random(1), target.mutate, target.together)
            for _ in range(len(corpus_of(name)) + SHORT // target.slowness):
                next(steps)

    def test_atheris_drives_a_target(self) -> None:
        if not driven.is_there():
            self.skipTest("needs atheris, which has no wheel for every Python and machine: pip install atheris")
        with tempfile.TemporaryDirectory() as directory:
            taken, bad, said = driven.drive("value", 3, directory)
            self.assertIsNone(bad, said)
            self.assertGreater(taken, 100)
            self.assertTrue(any(Path(directory).iterdir()))


class Counting(SynchronousTestCase):
    def test_inputs_add_up_over_runs(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "inputs.json"
            self.assertEqual([told(path, "a", 5), told(path, "b", 1), told(path, "a", 2), told(path, "a", 0)], [0, 0, 5, 7])
