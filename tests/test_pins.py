"""Which stores were served: remembered whatever one byte of the file becomes, and never guessed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from taba import pins
from taba.errors import ConfigurationError
from taba.pins import FILE_NAME, Pin, mend_pins, read_pins, write_pin

PINS = {"tcp:8280": Pin("4f2a", "redis://a:6379"), "tcp:8281": Pin("91cc", "redis://b:6379")}


class PinTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.path = self.directory / FILE_NAME

    def write(self) -> bytes:
        for listen, pin in PINS.items():
            write_pin(self.directory, listen, pin)
        return self.path.read_bytes()

    def test_whichever_byte_is_damaged_all_is_known_and_the_file_is_mended_and_kept(self) -> None:
        content = self.write()
        self.assertIsNone(mend_pins(self.directory))
        breaks = [place for place, byte in enumerate(content) if byte == 10]
        for place in (*range(0, len(content), 23), *breaks):  # each is synced
            damaged = content[:place] + bytes([content[place] ^ 0x51]) + content[place + 1 :]
            self.path.write_bytes(damaged)
            self.assertEqual(read_pins(self.directory), PINS, place)
            if (said := mend_pins(self.directory)) is not None:  # an empty line more or less is no damage
                self.assertIn("nothing of it is lost; it is kept as", said)
                [aside] = self.directory.glob("*.damaged-*")
                self.assertEqual(aside.read_bytes(), damaged)
                aside.unlink()
                self.assertEqual(self.path.read_bytes(), content)
            else:
                self.assertIn(b"\n", content[max(0, place - 1) : place + 2])

    def test_where_neither_line_is_whole_no_store_is_guessed(self) -> None:
        content = self.write()
        half = len(content) // 2
        for place in range(0, half - 2, 5):
            spoilt = bytearray(content)
            for byte in (place, half + place):
                spoilt[byte] ^= 0x51
            self.path.write_bytes(spoilt)
            with self.assertRaisesRegex(ConfigurationError, "remove it to serve what is there now"):
                read_pins(self.directory)
            with self.assertRaises(ConfigurationError):
                mend_pins(self.directory)
            self.assertEqual(self.path.read_bytes(), spoilt)

    def test_a_file_of_the_version_before_is_read_and_written_anew_with_the_next_pin(self) -> None:
        self.path.write_text(json.dumps(PINS))
        self.assertEqual(read_pins(self.directory), PINS)
        self.assertIsNone(mend_pins(self.directory))
        write_pin(self.directory, "tcp:1", Pin("7", "u"))
        self.assertEqual(read_pins(self.directory), {**PINS, "tcp:1": Pin("7", "u")})
        self.assertNotEqual(self.path.read_bytes()[:1], b"{")

    def test_of_too_many_the_oldest_go(self) -> None:
        self.patch(pins, "MOST_PINS", 3)
        for number in range(4):
            write_pin(self.directory, f"tcp:{number}", Pin("7" * 32, "redis://somewhere.example:6379"))
        self.assertEqual(list(read_pins(self.directory)), ["tcp:1", "tcp:2", "tcp:3"])
