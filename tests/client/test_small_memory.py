"""Many processes beside one another in little shared memory: what does not fit is counted where it outlives its process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

from twisted.trial.unittest import SkipTest

from taba.bounds import KiB, MiB
from tests.client.cases import ROOT, both

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
class SmallMemoryTests:
    def forks(self, count, size=None, **environment):
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
            if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
                raise SkipTest("a shared memory of a size of its own takes `unshare -m`, which is not allowed here")
            mount = f'mount -t tmpfs -o size={size} none /dev/shm && exec "$@"'
            command = ["unshare", "-m", "sh", "-c", mount, "sh", *command]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_twenty_processes_in_a_bound_of_4_mib_lose_nothing(self):
        events, drops, held, sizes = self.forks(20, TABA_SHM_BYTES=str(4 * MiB))
        self.assertEqual((events, drops, held), (40, {}, 0))
        self.assertLessEqual(sizes, 4 * MiB)

    def test_eighty_processes_in_it_account_for_every_event(self):
        events, drops, _, sizes = self.forks(80, TABA_SHM_BYTES=str(4 * MiB))
        self.assertEqual(events + drops["no_ring"], 160)
        self.assertGreater(events, 40)
        self.assertLessEqual(sizes, 4 * MiB)

    def test_in_a_container_of_64_mib_eighty_processes_at_once_lose_nothing(self):
        events, drops, held, sizes = self.forks(80, size=64 * MiB)
        self.assertEqual((events, drops, held), (160, {}, 0))
        self.assertLessEqual(sizes, 64 * MiB)

    def test_and_of_two_hundred_every_event_is_accounted_for(self):
        events, drops, _, _ = self.forks(200, size=64 * MiB)
        self.assertEqual(events + drops["no_ring"], 400)

    def test_in_2_mib_every_event_is_accounted_for(self):
        events, drops, _, _ = self.forks(30, size=2 * MiB)
        self.assertEqual(events + drops.get("no_ring", 0), 60)
        self.assertGreater(events, 20)

    def test_where_no_ring_fits_every_drop_is_counted_beyond_the_death_of_its_process(self):
        events, drops, _, _ = self.forks(5, size=60 * KiB)
        self.assertEqual((events, drops), (0, {"no_ring": 10}))
