"""Attaches to the segments that the command line names, as any program would, and prints how each begins: a line of hexadecimal."""

import sys
from multiprocessing import resource_tracker, shared_memory
from unittest import mock

BEGINNING = 4096  # a ring's header


def attach(name: str) -> shared_memory.SharedMemory:
    """The segment of this name, and nobody who unlinks it afterwards."""
    if sys.version_info >= (3, 13):
        return shared_memory.SharedMemory(name, track=False)
    with mock.patch.object(resource_tracker, "register"):  # before 3.13 it would unlink what others made
        return shared_memory.SharedMemory(name)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        segment = attach(name)
        # no more is touched: what is read of a sparse file's holes takes memory, and there may be none (SIGBUS)
        print(bytes(segment.buf[:BEGINNING] if segment.buf is not None else b"").hex())
        segment.close()
