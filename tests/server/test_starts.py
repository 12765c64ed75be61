"""How often workers were started is counted by themselves, and read by all, also after the parent has become a daemon."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.server.starts import Starts


class Counts(SynchronousTestCase):
    def test_each_worker_counts_and_all_read(self) -> None:
        parent = Starts.make(2)
        self.addCleanup(parent.close)
        for number in (1, 0, 1, 1):
            worker = Starts.join(parent.path, number)
            self.addCleanup(worker.close)
        self.assertEqual((parent.again(), worker.again()), ([0, 2], [0, 2]))

    def test_whatever_keeps_a_worker_from_counting_costs_the_count_alone_and_is_told(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        empty = os.path.join(folder, "empty")
        with open(empty, "wb"):
            pass
        for path, reason in (
            ("/proc/0/fd/3", "No such file or directory"),
            (folder, "Is a directory"),
            ("/proc/self/fd/no", "No such file or directory"),
            (empty, "unpack requires a buffer"),
        ):
            worker = Starts.join(path, 1)
            self.assertEqual(worker.again(), [])
            self.assertIn(f"({path}: {reason}", str(worker.problem))
            worker.close()
        self.assertIsNone(Starts(None, 0).problem)

    def test_a_worker_of_another_user_than_its_parent_began_as_starts_and_is_told_what_it_cannot_count(self) -> None:
        if os.geteuid():
            raise SkipTest("to be another user takes root")
        parent = Starts.make(1)
        self.addCleanup(parent.close)
        child = os.fork()
        if not child:
            code = 1
            try:
                os.setresuid(65534, 65534, 65534)  # as twistd --uid does
                path = parent.path
                if worker := os.fork():
                    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
                else:
                    starts = Starts.join(path, 0)  # of a process that has changed its user
                    code = 0 if starts.again() == [] and "Permission denied" in str(starts.problem) else 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(parent.again(), [0])

    def test_a_parent_that_forks_before_it_starts_workers_is_found(self) -> None:
        parent = Starts.make(1)
        self.addCleanup(parent.close)
        child = os.fork()  # as a daemon does: the process that made the counts ends
        if not child:
            code = 1
            try:
                worker = Starts.join(parent.path, 0)
                code = 0 if parent.path.startswith(f"/proc/{os.getpid()}/") and worker.again() == [0] else 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(parent._count(0), 1)
