"""The history: what was noted is found again after a kill, within its bound."""

from __future__ import annotations

import os
import shutil
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.history import History
from taba.batch import BatchId

S, T = b"s" * 16, b"s" * 15 + b"\0"


class HistoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.path = os.path.join(directory, "a.history")

    def open(self, most: int = 1 << 20) -> History:
        history = History(self.path, most)
        self.addCleanup(history.close)
        return history

    def test_what_was_flushed_is_found_by_stream_bucket_and_number_and_the_last_word_counts(self) -> None:
        history = self.open()
        for stream, bucket, number, events in ((S, 1, 1, 10), (S, 1, 2, 20), (S, 2, 1, 30), (T, 1, 1, 40), (S, 1, 2, 0)):
            history.note(BatchId(stream, bucket, number), events)
        history.flush()
        history.note(BatchId(S, 1, 3), 50)
        again = self.open()
        self.assertEqual(again.find(S, 1, range(5)), {1: 10, 2: 0})
        self.assertEqual((again.find(S, 2, [1]), again.find(T, 1, [1, 2]), again.find(T, 2, [1])), ({1: 30}, {1: 40}, {}))
        self.assertEqual((history.find(S, 1, [2, 3]), history.last([S])), ({2: 0, 3: 50}, {(S, 1): 3, (S, 2): 1}))  # not yet written
        history.flush()
        self.assertEqual(self.open().find(S, 1, [3]), {3: 50})

    def test_two_files_of_the_bound_are_kept_and_the_newest_are_in_them(self) -> None:
        history = self.open(320)
        for number in range(25):
            history.note(BatchId(S, 1, number), number)
            history.flush()
        self.assertEqual(sorted(history.find(S, 1, range(25))), list(range(10, 25)))
        self.assertEqual([os.path.getsize(path) for path in (self.path, self.path + ".old")], [160, 320])

    def test_a_record_that_a_kill_cut_short_is_none_and_what_follows_is_whole(self) -> None:
        history = self.open()
        history.note(BatchId(S, 1, 1), 10)
        history.flush()
        with open(self.path, "ab") as file:
            file.write(b"x" * 17)
        again = self.open()
        again.note(BatchId(S, 1, 2), 20)
        again.flush()
        self.assertEqual(again.find(S, 1, [1, 2]), {1: 10, 2: 20})

    def test_whichever_byte_of_a_record_is_damaged_it_is_none_and_the_others_are_whole(self) -> None:
        history = self.open()
        whole = {1: 10, 2: 2**32 - 1, 300: 0}
        for number, events in whole.items():
            history.note(BatchId(S, 65_535, number), events)
        history.flush()
        with open(self.path, "rb") as file:
            content = file.read()
        for place in range(len(content)):
            with open(self.path, "wb") as file:
                file.write(content[:place] + bytes([content[place] ^ (0x01, 0x80, 0xFF)[place % 3]]) + content[place + 1 :])
            left = dict(pair for row, pair in enumerate(whole.items()) if row != place // 32)
            found = History(self.path)
            self.assertEqual((found.find(S, 65_535, range(1, 500)), found.last([S])), (left, {(S, 65_535): max(left)}), place)
            found.close()
