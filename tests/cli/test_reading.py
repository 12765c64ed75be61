from __future__ import annotations

import os
import signal
import threading

from twisted.trial.unittest import SynchronousTestCase

from taba.cli.reading import MAX_LINE_BYTES, read_lines
from taba.interrupted import Interrupted


class Reading(SynchronousTestCase):
    def setUp(self) -> None:
        self.input, self.output = os.pipe()
        self.addCleanup(os.close, self.input)

    def lines(self, content: bytes) -> list[tuple[int, str]]:
        def write() -> None:
            with open(self.output, "wb") as output:
                output.write(content)

        thread = threading.Thread(target=write)
        thread.start()
        with Interrupted() as interrupted:
            found = [line for lines in read_lines(self.input, interrupted, 1.0) for line in lines]
        thread.join()
        return found

    def test_lines_are_numbered_and_the_last_needs_no_end(self) -> None:
        self.assertEqual(self.lines(b"a 1\n\nb 2"), [(1, "a 1"), (2, ""), (3, "b 2")])

    def test_bytes_that_are_no_text_harm_nobody_else(self) -> None:
        self.assertEqual(self.lines(b"\xff\xfe\nb 2\n")[1], (2, "b 2"))

    def test_a_line_without_an_end_takes_bounded_memory_and_the_next_is_read(self) -> None:
        found = self.lines(b"x" * (MAX_LINE_BYTES * 3) + b"\nb 2\n")
        self.assertEqual([(number, min(len(text), 10)) for number, text in found], [(1, 10), (2, 3)])
        self.assertLessEqual(max(len(text) for _, text in found), MAX_LINE_BYTES + 1)

    def test_a_signal_ends_the_input_and_the_handlers_come_back(self) -> None:
        self.addCleanup(os.close, self.output)
        before = signal.getsignal(signal.SIGTERM)
        with Interrupted() as interrupted:
            os.write(self.output, b"a 1\nhalf")
            reading = read_lines(self.input, interrupted, 60.0)
            self.assertEqual(next(reading), [(1, "a 1")])
            os.kill(os.getpid(), signal.SIGTERM)
            self.assertEqual(list(reading), [])
            self.assertEqual(interrupted.number, signal.SIGTERM)
        self.assertIs(signal.getsignal(signal.SIGTERM), before)

    def test_silence_is_told(self) -> None:
        self.addCleanup(os.close, self.output)
        with Interrupted() as interrupted:
            self.assertEqual(next(read_lines(self.input, interrupted, 0.01)), [])
