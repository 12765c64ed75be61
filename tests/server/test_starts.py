"""How often workers were started is counted by themselves, and read by all, also after the parent has become a daemon."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from taba.server.starts import Starts


class Counts(SynchronousTestCase):
    def test_each_worker_counts_and_all_read(self) -> None:
        parent = Starts.make(2)
        self.addCleanup(parent.close)
        for number in (1, 0, 1, 1):
            worker = Starts.join(parent.path, number)
            self.addCleanup(worker.close)
        self.assertEqual((parent.again(), worker.again()), ([0, 2], [0, 2]))

    def test_a_parent_that_forks_before_it_starts_workers_is_found(self) -> None:
        parent = Starts.make(1)
        self.addCleanup(parent.close)
        child = os.fork()  # as a daemon does: the process that made the counts ends
        if not child:
            code = 1
            try:
                worker = Starts.join(parent.path, 0)
                code = 0 if parent.path.startswith(f"/proc/{os.getpid()}/") and worker.again() == [0] else 2
            finally:
                os._exit(code)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(parent._count(0), 1)
