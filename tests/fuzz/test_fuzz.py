"""The corpus, and a short run of each target: `./run fuzz` goes on from there."""

from __future__ import annotations

import random

import pytest
from twisted.trial.unittest import SynchronousTestCase

from taba.batch import decode_batch
from tests.fuzz.__main__ import corpus_of
from tests.fuzz.driver import CORPUS_BYTES, CORPUS_FILES, Found, fuzz, mutate, smaller
from tests.fuzz.targets import TARGETS

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
            steps = fuzz(target.take, corpus_of(name), random.Random(1))
            for _ in range(SHORT // target.slowness):
                next(steps)
