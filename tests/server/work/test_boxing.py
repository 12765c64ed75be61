"""What a Server does where its kernel has nothing with which to keep a child from its memory."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import PATIENCE_SECONDS

# as a user that is not root: what it was before says the kernel whom it lets read the memory, afterwards it is nobody
CLOSES = """
import ctypes, os
from taba.server.work import boxing
as_root = boxing.close_memory() if os.geteuid() == 0 else False
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
    ctypes.CDLL(None).prctl(boxing.PR_SET_DUMPABLE, 1, 0, 0, 0)  # as after exec
def child_reaches_it():
    child = os.fork()
    if not child:
        os._exit(boxing._reaches_memory(os.getppid()))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
before = child_reaches_it()
print(as_root, before in (0, 1), boxing.close_memory(), child_reaches_it())
"""


class Closed(SynchronousTestCase):
    def test_no_process_of_its_user_reads_it_any_more_and_of_root_nothing_is_closed(self) -> None:
        told = subprocess.run([sys.executable, "-c", CLOSES], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        self.assertEqual(told.stdout.split(), ["False", "True", "True", "0"], told.stderr)
