"""Becomes the embedded store's process: `python -I -S launch.py DIRECTORY PARENT WAIT_SECONDS BINARY ARGUMENT…`.

Run by path, never imported by Taba; standard library only. Before it turns into the store, it takes the directory's
lock and asks for the parent's death to be its own: both then belong to the store's process for life, whatever becomes
of the Server that started it. So there are never two stores on one directory, and none outlives its Server.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time

LOCK_NAME = "store.lock"
DIRECTORY_TAKEN = 75  # exit codes that EmbeddedStore understands
CANNOT_START = 76
POLL_SECONDS = 0.02
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    directory, parent, wait_seconds, binary = arguments[:4]
    # the order matters: a parent that died before the request is noticed by the look at who the parent is now
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        return CANNOT_START
    os.setsid()  # Ctrl-C is for the Server, which then stops its store in order
    os.umask(0o077)
    os.chdir(directory)  # also keeps the socket's path short
    lock = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + float(wait_seconds)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                return DIRECTORY_TAKEN
            time.sleep(POLL_SECONDS)
    os.set_inheritable(lock, True)
    os.execv(binary, [binary, *arguments[4:]])


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except OSError as error:
        print(f"the embedded store cannot start: {error}", flush=True)
        code = CANNOT_START
    sys.exit(code)
