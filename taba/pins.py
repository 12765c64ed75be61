"""Which store each Server of this host served last: `stores.json` in the state directory. Standard library only.

A store is known by its id, never by its address: another one behind the same address is not served unasked. A host that
keeps no state directory has no pin, and serves what it finds first.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from taba.directories import make_directory
from taba.errors import ConfigurationError

FILE_NAME = "stores.json"
MOST_PINS = 100  # Servers of one host that are remembered; the one that was written longest ago goes first
MAX_FILE_BYTES = 64 * 1024


class Pin(NamedTuple):
    """The id of a store, and the address where it was served."""

    store: str
    url: str


def read_pins(directory: Path) -> dict[str, Pin]:
    """Where a Server listens → what it served. Raises ConfigurationError for a file that cannot be read: as if there were none, any store
    would be taken for the right one."""
    path = directory / FILE_NAME
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(MAX_FILE_BYTES))
        return {listen: Pin(str(store), str(url)) for listen, (store, url) in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        takes = f"takes a file that says which stores were served, as a Server writes it; remove it to serve what is there now ({error})"
        raise ConfigurationError("state directory", str(path), takes) from None


def write_pin(directory: Path, listen: str, pin: Pin) -> None:
    """Remember `pin` for the Server that listens at `listen`. Raises OSError where that cannot be."""
    make_directory(directory)
    pins = {**{one: known for one, known in read_pins(directory).items() if one != listen}, listen: pin}
    written = directory / f"{FILE_NAME}.{os.getpid()}"
    try:
        with open(written, "w", encoding="utf-8", opener=_own) as file:
            json.dump(dict(list(pins.items())[-MOST_PINS:]), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, directory / FILE_NAME)
    except BaseException:
        with contextlib.suppress(OSError):
            written.unlink()
        raise


def _own(path: str, flags: int) -> int:
    """An `opener`: where stores are is nobody else's business."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
