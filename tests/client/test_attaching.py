"""Segments are such as multiprocessing.shared_memory names and reads; and a stranger's are refused."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from array import array
from typing import Any
from unittest import mock

import pytest
from twisted.trial.unittest import SkipTest

from taba import ring
from taba.agent.segment import open_outbox
from taba.client import identity
from taba.client.producer import Producer
from taba.desk import DESK_BYTES, MAGIC, Desk, desk_path, open_desk
from tests.client.attach import attach
from tests.client.cases import ClientCase, both
from tests.client.reading import rings
from tests.patience import PATIENCE_SECONDS
from tests.pythons import pythons


def slot_of(producer: Producer) -> str:
    """The name of the segment that holds a producer's slot."""
    slot = producer._slot
    assert slot is not None
    return os.path.basename(slot._path(slot.number))


@both
class AttachingTests(ClientCase):
    def attached(self, name: str) -> Any:
        segment = attach(name)
        self.addCleanup(segment.close)
        return segment

    def desk(self) -> str:
        """The name of the segment at which an input works, and has one packet done."""
        path = desk_path(self.agent, "udp:8125")
        descriptor = open_desk(path)
        self.addCleanup(os.unlink, path)
        self.addCleanup(os.close, descriptor)
        desk = Desk(descriptor)
        self.addCleanup(desk.close)
        desk.count(array("Q", [1]))
        return os.path.basename(path)

    def test_rings_slots_outbox_and_desks_are_read_by_their_names_alone(self) -> None:
        producer = self.producer("{host}:{program}/{slot}")
        tab = producer.tab("c", "CounterGroup")
        for _ in range(5):
            tab.inc()
        segment = self.attached(producer.stats()["ring"])
        header = ring.parse_header(bytes(segment.buf[: ring.HEADER_BYTES]), segment.size)
        self.assertEqual((header.client, header.directory_count), (producer.stats()["client"], 1))
        where = ring.layout(header.size)
        commit = int.from_bytes(segment.buf[where.record_offset + 16 : where.record_offset + 24], "little")
        self.assertEqual(ring.split_commit(commit), (0, 0, 1))
        self.assertEqual(self.attached(slot_of(producer)).size, 1)
        outbox, held, _ = open_outbox(self.agent, lambda: os.urandom(16))
        self.addCleanup(held.remove)
        self.addCleanup(held.close)
        self.assertGreater(self.attached(os.path.basename(held.path)).size, outbox.capacity)
        desk = self.attached(self.desk())
        self.assertEqual((desk.size, struct.unpack_from("<3Q", desk.buf)), (DESK_BYTES, (MAGIC, 1, 1)))

    def test_a_segment_that_only_counts_is_read_too(self) -> None:
        producer = self.producer(TABA_SHM_BYTES=str(16 * ring.COUNTING_BYTES))
        producer.tab("c", "CounterGroup").inc()
        (name,) = rings(self.agent)
        segment = self.attached(name)
        self.assertEqual(ring.parse_header(bytes(segment.buf[: ring.HEADER_BYTES]), segment.size).drops, {"no_ring": 1})

    @pytest.mark.real  # a process of each
    def test_with_every_python_that_is_here_and_they_outlive_whoever_attached(self) -> None:
        producer = self.producer("{host}:{program}/{slot}")
        producer.tab("c", "CounterGroup").inc()
        _, held, _ = open_outbox(self.agent, lambda: os.urandom(16))
        self.addCleanup(held.remove)
        self.addCleanup(held.close)
        names = [producer.stats()["ring"], os.path.basename(held.path), slot_of(producer), self.desk()]
        script = os.path.join(os.path.dirname(__file__), "attach.py")
        found = pythons()
        self.assertIn("{}.{}".format(*sys.version_info), found)
        for version, python in found.items():
            done = subprocess.run([python, script, *names], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            self.assertEqual((done.stderr, done.returncode), ("", 0), version)
            of_ring, of_outbox, of_slot, of_desk = (bytes.fromhex(line) for line in done.stdout.splitlines())
            self.assertEqual(ring.parse_header(of_ring, self.attached(names[0]).size).client, producer.stats()["client"], version)
            self.assertEqual(of_outbox, bytes(self.attached(names[1]).buf[: len(of_outbox)]), version)
            self.assertEqual(len(of_slot), 1, version)
            self.assertEqual(of_desk[:8], MAGIC.to_bytes(8, "little"), version)


@both
class StrangerTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        if os.geteuid():
            raise SkipTest("needs root, to act as somebody else")
        patched = mock.patch.object(sys, "argv", [f"program-{self.agent}"])
        patched.start()
        self.addCleanup(patched.stop)

    def take(self, path: str, uid: int, mode: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.fchown(descriptor, uid, uid)
        os.fchmod(descriptor, mode)
        os.close(descriptor)
        self.addCleanup(os.unlink, path)

    def test_slots_are_a_users_own_and_those_of_strangers_are_passed_over(self) -> None:
        first = identity.Slot()
        self.addCleanup(first.let_go)
        status = os.stat(first._path(first.number))
        self.assertEqual((first.number, status.st_uid, status.st_mode & 0o777), (0, 0, 0o600))
        self.take(first._path(1), 65_534, 0o600)
        self.take(first._path(2), 0, 0o666)  # anybody could hold its lock
        os.symlink("/etc/passwd", first._path(3))
        self.addCleanup(os.unlink, first._path(3))
        os.mkfifo(first._path(4))
        self.addCleanup(os.unlink, first._path(4))
        second = identity.Slot()
        self.addCleanup(second.let_go)
        self.assertEqual(second.number, 5)
        os.seteuid(65_534)
        try:
            other = identity.Slot()
        finally:
            os.seteuid(0)
        self.addCleanup(other.let_go)
        self.assertEqual(other.number, 0)
        self.assertNotEqual(other._prefix, first._prefix)

    def test_where_strangers_took_all_numbers_the_error_names_them_and_the_cure(self) -> None:
        first = identity.Slot()
        path = first._path(0)
        first.let_go()
        self.take(path, 65_534, 0o600)
        with mock.patch.object(identity, "MAX_SLOTS", 1):
            error = self.assertRaises(OSError, identity.Slot)
        self.assertIn(f"{path} belongs to user 65534", str(error))
        self.assertIn("TABA_CLIENT_ID", str(error))
