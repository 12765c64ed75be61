"""The store that an Agent sends to is learned once, and another is taken only where it says that it succeeds that one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.forward import _reason
from taba.agent.pin import PinFile, Store, StoreUnknown, read_store
from taba.batch import MAX_STORE_ID
from taba.bounds import MAX_BUCKETS
from taba.caps import Caps
from taba.damage import is_sealed


class Pins(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(tempfile.mkdtemp()) / "a.store"

    def test_the_first_store_is_taken_and_known_after_a_restart(self) -> None:
        pin = PinFile(self.path)
        self.assertIsNone(pin.store)
        self.assertTrue(pin.meets(Store("one", 8)))
        self.assertEqual(PinFile(self.path).store, Store("one", 8))

    def test_another_store_is_not_taken_unless_it_succeeds_the_one_that_is_known(self) -> None:
        pin = PinFile(self.path)
        pin.meets(Store("one", 8))
        for other in (Store("two", 8), Store("two", 8, ("three",))):
            self.assertFalse(pin.meets(other))
            self.assertEqual(PinFile(self.path).store, Store("one", 8))
        self.assertTrue(pin.meets(Store("two", 16, ("zero", "one"))))
        self.assertEqual(PinFile(self.path).store, Store("two", 16))
        self.assertFalse(pin.meets(Store("one", 8)))

    def test_caps_are_kept_with_the_store_and_survive_another_number_of_buckets(self) -> None:
        caps = Caps(7, 70, 3)
        pin = PinFile(self.path)
        pin.keep(caps)  # of no store yet
        self.assertEqual((pin.caps, self.path.exists()), (Caps(), False))
        pin.meets(Store("one", 8))
        self.assertEqual(PinFile(self.path).caps, Caps())
        pin.keep(caps)
        self.assertEqual((pin.caps, PinFile(self.path).caps, PinFile(self.path).store), (caps, caps, Store("one", 8)))
        pin.meets(Store("one", 16))
        self.assertEqual((PinFile(self.path).caps, PinFile(self.path).store), (caps, Store("one", 16)))

    def test_caps_that_nobody_understands_do_not_unpin_the_store(self) -> None:
        for caps in (None, 7, {}, {"client_tabs": -1}, {"client_tabs": "many", "agent_tabs": 1, "new_tabs": 1}):
            self.path.write_text(json.dumps({"id": "one", "buckets": 8, "caps": caps}))
            pin = PinFile(self.path)
            self.assertEqual((pin.store, pin.caps), (Store("one", 8), Caps()))
            self.assertFalse(pin.meets(Store("two", 8)))

    def test_where_a_file_tells_of_no_store_none_is_taken_until_a_person_removes_it(self) -> None:
        for content in (b"", b"8", b"{}", b'{"id": "x", "buckets": 0}', b"\xff", b"[" * 10_000):
            self.path.write_bytes(content)
            pin = PinFile(self.path)
            self.assertIsNone(pin.store, content[:20])
            for _ in range(2):  # nor after a restart
                self.assertFalse(pin.meets(Store("one", 8)))
                self.assertTrue(pin.is_held)
                self.assertIn("(one…) is the one, remove that file", str(pin.problem))
                pin = PinFile(self.path)
            self.path.unlink()
            self.assertTrue(pin.meets(Store("two", 8)))
            self.assertEqual((pin.is_held, pin.problem, PinFile(self.path).store), (False, None, Store("two", 8)))

    def test_where_it_cannot_be_read_that_is_said_and_not_that_it_is_damaged(self) -> None:
        self.path.mkdir()
        pin = PinFile(self.path)
        for found in ("is the one", "(one…) is the one"):
            self.assertIn("cannot be read (Is a directory)", str(pin.problem))
            self.assertIn(found, str(pin.problem))
            self.assertFalse(pin.meets(Store("one", 8)))
        self.path.rmdir()
        self.assertTrue(pin.meets(Store("one", 8)))

    def test_whichever_byte_is_damaged_the_store_is_known_and_the_file_is_kept(self) -> None:
        PinFile(self.path).meets(Store("one", 8))
        content = self.path.read_bytes()
        for place in range(len(content)):
            self.path.write_bytes(content[:place] + bytes([content[place] ^ 0x51]) + content[place + 1 :])
            pin = PinFile(self.path)
            self.assertEqual((pin.store, pin.is_held, pin.meets(Store("two", 8))), (Store("one", 8), False, False), place)
            if pin.problem is not None:
                self.assertIn("nothing of it is lost; it is kept as", pin.problem)
            self.assertIsNone(PinFile(self.path).problem)
            for aside in self.path.parent.glob("*.damaged-*"):
                aside.unlink()

    def test_a_file_of_the_version_before_is_read_and_written_anew(self) -> None:
        self.path.write_text(json.dumps({"id": "one", "buckets": 8, "caps": Caps(7, 70, 3)._asdict(), "batch_version": 4}))
        for _ in range(2):
            pin = PinFile(self.path)
            self.assertEqual((pin.store, pin.caps, pin.version, pin.problem), (Store("one", 8), Caps(7, 70, 3), 4, None))
        self.assertTrue(is_sealed(self.path.read_bytes()))

    def test_a_server_that_has_not_reached_its_store_says_so_and_not_nonsense(self) -> None:
        for id in (None, "4f2a"):
            with self.assertRaises(StoreUnknown) as raised:
                read_store({"id": id, "buckets": None})
            self.assertIn("has not reached its store yet", _reason(raised.exception))
        with self.assertRaises(ValueError) as other:
            read_store({"id": "4f2a"})
        self.assertIn("is no Server's answer", _reason(other.exception))

    def test_what_tells_of_no_store_is_refused(self) -> None:
        self.assertEqual(read_store({"id": "x" * MAX_STORE_ID, "buckets": MAX_BUCKETS, "age": 5}), Store("x" * MAX_STORE_ID, MAX_BUCKETS))
        for told in (None, 8, {"buckets": 8}, {"id": "x", "buckets": MAX_BUCKETS + 1}, {"id": "x" * (MAX_STORE_ID + 1), "buckets": 8}):
            self.assertRaises(ValueError, read_store, told)
        for succeeds in (7, "one", [7]):
            self.assertRaises(ValueError, read_store, {"id": "x", "buckets": 8, "succeeds": succeeds})
