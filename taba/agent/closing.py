"""Closing the files of rings: a large one that has no name any more gives its memory back to the host, which takes 15 ms for 64 MiB."""

from __future__ import annotations

import os
import threading

from taba.bounds import MiB

LARGE_BYTES = 4 * MiB  # a file of which is closed beside the loop: below, it takes a millisecond or less
MOST_CLOSING = 8  # at once, each by a thread; more are closed here and now

_closing: list[threading.Thread] = []


def close(fd: int, size: int) -> None:
    """Close the file of `size` bytes behind `fd`; nobody here uses it any more."""
    _closing[:] = [thread for thread in _closing if thread.is_alive()]
    if size <= LARGE_BYTES or len(_closing) >= MOST_CLOSING:
        os.close(fd)
        return
    thread = threading.Thread(target=os.close, args=(fd,))
    try:
        thread.start()
    except RuntimeError:  # there is no room for one more
        os.close(fd)
    else:
        _closing.append(thread)
