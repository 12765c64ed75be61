"""A child that is forked from this process, for tests of what such a child finds."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable

from tests.patience import PATIENCE_SECONDS


def forked(does: Callable[[], object]) -> int:
    """What a forked child that does this exits with: 0, 1 where it raises, and minus the alarm's number where it waits for ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # "multi-threaded": that is what is tested
        child = os.fork()
    if not child:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(PATIENCE_SECONDS))
            does()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
