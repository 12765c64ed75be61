"""Many processes beside one another in little shared memory: what does not fit is counted where it outlives its process."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from taba import ring
from taba.agent.locks import claim_slots
from taba.bounds import KiB, MiB
from taba.client import segment
from taba.client.segment import LEAST_COUNTING_BYTES
from tests.client.cases import ROOT, ClientCase, both
from tests.client.reading import Reader, rings
from tests.needs import needs_mounts
from tests.patience import PATIENCE_SECONDS

# forks children one after the other, each of which records one event and goes; then tells what the segments hold
FORKS = """
import json, os, sys
from taba import client, ring
from tests.client.reading import Reader, rings
client.start("many/{slot}")
c, u = client.counter("c"), client.updown("u")
alive = []
for number in range(int(sys.argv[1])):
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        c.inc(); u.inc()
        os.write(ready[1], b"x")
        os.close(go[1])
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    alive.append((child, go))
sizes = sum(os.stat(f"/dev/shm/{name}").st_size for name in rings(os.environ["TABA_AGENT"]))
for child, go in alive:
    os.close(go[0]); os.close(go[1])
for child, go in alive:
    assert os.waitpid(child, 0)[1] == 0
events, drops, held = 0, {}, 0
for name in rings(os.environ["TABA_AGENT"]):
    reader = Reader(name)
    held += reader.is_held()
    for reason, count in reader.header.drops.items():
        drops[reason] = drops.get(reason, 0) + count
    events += len(reader.drain(release=False))
    reader.close()
print(json.dumps([events, drops, held, sizes]))
"""


@both
class SmallMemoryTests(ClientCase):
    def forks(self, count: int, size: int | None = None, **environment: str) -> Any:
        settings = {
            **os.environ,
            **self.environment,
            "TABA_CLIENT_ID": "",
            "PYTHONPATH": ROOT,
            "TABA_PURE": "" if self.accelerated else "1",
            **environment,
        }
        command = [sys.executable, "-c", textwrap.dedent(FORKS), str(count)]
        if size is not None:
            alone = needs_mounts()
            mount = f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"'
            command = [*alone, "sh", "-c", mount, "sh", *command]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_twenty_processes_in_a_bound_of_4_mib_lose_nothing(self) -> None:
        events, drops, held, sizes = self.forks(20, TABA_SHM_BYTES=str(4 * MiB))
        self.assertEqual((events, drops, held), (40, {}, 0))
        self.assertLessEqual(sizes, 4 * MiB)

    @pytest.mark.real
    def test_eighty_processes_in_it_account_for_every_event(self) -> None:
        events, drops, _, sizes = self.forks(80, TABA_SHM_BYTES=str(4 * MiB))
        self.assertEqual(events + drops["no_ring"], 160)
        self.assertGreater(events, 40)
        self.assertLessEqual(sizes, 4 * MiB)

    @pytest.mark.real
    def test_of_two_hundred_and_fifty_in_it_too_and_in_less_than_a_ring_takes(self) -> None:
        for bound in (4 * MiB, MiB, 64 * KiB, 0):
            events, drops, held, sizes = self.forks(250, TABA_SHM_BYTES=str(bound))
            self.assertEqual((events + drops["no_ring"], held), (500, 0))
            self.assertLessEqual(sizes, bound + LEAST_COUNTING_BYTES)
            self.remove_segments()

    def test_a_process_without_a_ring_stays_in_its_place_and_the_next_one_adds_to_what_it_counted(self) -> None:
        for life in range(3):
            producer = self.producer(TABA_SHM_BYTES="0")
            tab = producer.tab("c", "CounterGroup")
            for _ in range(3):
                tab.inc()
                producer._next_try = 0.0
            (name,) = rings(self.agent)
            reader = Reader(name)
            self.assertEqual((reader.header.drops, claim_slots(reader.descriptor)), ({"no_ring": 3 * (life + 1)}, False))
            reader.close()
            self.assertEqual(producer.stats()["dropped_by_reason"], {"no_ring": 3})
            producer.stop()

    def test_a_segment_is_shared_by_as_many_as_it_has_places_and_the_next_one_makes_another(self) -> None:
        producers = []
        for _ in range(ring.SLOTS + 1):
            producers.append(self.producer(TABA_SHM_BYTES="0"))
            producers[-1].tab("c", "CounterGroup").inc()
            self.assertEqual(len(rings(self.agent)), 1 if len(producers) <= ring.SLOTS else 2)
        places = [producer._segment for producer in producers[: ring.SLOTS]]
        self.assertEqual(len({place.counts for place in places if place is not None}), ring.SLOTS)

    def test_where_all_places_are_taken_the_next_one_tells_so_where_the_agent_reads(self) -> None:
        self.patch(segment, "LEAST_COUNTING_BYTES", ring.COUNTING_BYTES)
        producers = []
        for _ in range(ring.SLOTS + 1):
            producers.append(self.producer(TABA_SHM_BYTES="0"))
            producers[-1].tab("c", "CounterGroup").inc()
            word = Path(ring.SHM_DIRECTORY, rings(self.agent)[0]).read_bytes()[ring.NO_PLACE_OFFSET :][:8]
            self.assertEqual(any(word), len(producers) > ring.SLOTS)
        self.assertEqual(producers[-1].stats()["dropped"], 1)
        self.assertIn("TABA_SHM_BYTES (0)", producers[-1].stats()["problem"])
        producers[0].stop()
        producers[-1]._next_try = 0.0
        producers[-1].tab("c", "CounterGroup").inc()  # there is a place: what was dropped before counts as well
        reader = Reader(rings(self.agent)[0])
        self.addCleanup(reader.close)
        self.assertEqual(reader.header.drops, {"no_ring": ring.SLOTS + 2})

    def test_a_segment_that_cannot_be_joined_costs_its_place_and_no_count(self) -> None:
        first = self.producer(TABA_SHM_BYTES="0")
        first.tab("c", "CounterGroup").inc()
        (name,) = rings(self.agent)
        failures = (
            ("fcntl.fcntl", PermissionError(errno.EPERM, "not permitted")),  # as a kernel, or a file system, that has no such locks
            ("fcntl.fcntl", OSError(errno.ENOLCK, "no locks available")),
            ("os.pread", PermissionError(errno.EACCES, "permission denied")),
            ("os.open", PermissionError(errno.EACCES, "permission denied")),  # another user's
        )
        for place, (function, error) in enumerate(failures, start=2):
            module, called = function.split(".")
            real = getattr(sys.modules[module], called)

            def fails(target: Any, *arguments: Any, real: Any = real, error: Any = error, name: Any = name) -> Any:
                path = target if isinstance(target, str) else os.readlink(f"/proc/self/fd/{target}")
                if path.endswith(name):
                    raise error
                return real(target, *arguments)

            producer = self.producer(TABA_SHM_BYTES="0")
            tab = producer.tab("c", "CounterGroup")
            with mock.patch(function, fails), mock.patch.object(segment, "is_foreign", lambda error: False):
                tab.inc()
            found = rings(self.agent)
            self.assertEqual((len(found), producer.stats()["dropped_by_reason"]), (2, {"no_ring": 1}), function)
            self.assertIn("no room for a ring", producer.stats()["problem"])
            self.assertEqual(sum(self.drops(one) for one in found), place)
            producer.stop()

    def drops(self, name: str) -> int:
        reader = Reader(name)
        try:
            return sum(reader.header.drops.values())
        finally:
            reader.close()

    def test_no_place_is_taken_in_a_segment_that_its_agent_is_about_to_remove(self) -> None:
        first = self.producer(TABA_SHM_BYTES="0")
        first.tab("c", "CounterGroup").inc()
        (name,) = rings(self.agent)
        first.stop()
        agent = os.open(os.path.join(ring.SHM_DIRECTORY, name), os.O_RDWR)
        self.addCleanup(os.close, agent)
        self.assertTrue(claim_slots(agent))
        second = self.producer(TABA_SHM_BYTES="0")
        second.tab("c", "CounterGroup").inc()
        self.assertEqual(len(rings(self.agent)), 2)
        self.assertEqual(second.stats()["problem"].split(" in ")[0], "no room for a ring")
        second.stop()
        os.unlink(os.path.join(ring.SHM_DIRECTORY, name))
        third = self.producer(TABA_SHM_BYTES="0")  # a retired one is not joined, either
        (name,) = rings(self.agent)
        with open(os.path.join(ring.SHM_DIRECTORY, name), "r+b") as file:
            file.seek(ring.RETIRED_OFFSET)
            file.write(b"\1")
        third.tab("c", "CounterGroup").inc()
        self.assertEqual(len(rings(self.agent)), 2)

    def test_in_a_container_of_64_mib_eighty_processes_at_once_lose_nothing(self) -> None:
        events, drops, held, sizes = self.forks(80, size=64 * MiB)
        self.assertEqual((events, drops, held), (160, {}, 0))
        self.assertLessEqual(sizes, 64 * MiB)

    @pytest.mark.real
    def test_and_of_two_hundred_every_event_is_accounted_for(self) -> None:
        events, drops, _, _ = self.forks(200, size=64 * MiB)
        self.assertEqual(events + drops["no_ring"], 400)

    def test_in_2_mib_every_event_is_accounted_for(self) -> None:
        events, drops, _, _ = self.forks(30, size=2 * MiB)
        self.assertEqual(events + drops.get("no_ring", 0), 60)
        self.assertGreater(events, 20)

    def test_where_no_ring_fits_every_drop_is_counted_beyond_the_death_of_its_process(self) -> None:
        events, drops, _, _ = self.forks(5, size=60 * KiB)
        self.assertEqual((events, drops), (0, {"no_ring": 10}))
