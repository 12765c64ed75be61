"""Which store each Server of this host served last: `stores.json` in the state directory. Standard library only.

A store is known by its id, never by its address: another one behind the same address is not served unasked. A host that
keeps no state directory has no pin, and serves what it finds first.

The file is a line with a checksum, twice (`damage`): with another byte in its name, a Server would have no pin and serve any store.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from taba.damage import is_sealed, keep_aside, seal, unseal
from taba.directories import make_directory
from taba.errors import ConfigurationError

FILE_NAME = "stores.json"
MOST_PINS = 100  # Servers of one host that are remembered; the one that was written longest ago goes first
MAX_FILE_BYTES = 128 * 1024


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
            content = json.loads(_text_of(file.read(MAX_FILE_BYTES)))
        return {listen: Pin(str(store), str(url)) for listen, (store, url) in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        takes = f"takes a file that says which stores were served, as a Server writes it; remove it to serve what is there now ({error})"
        raise ConfigurationError("state directory", str(path), takes) from None


def mend_pins(directory: Path) -> str | None:
    """Write the file anew where one of its two lines is damaged, and keep the damaged one aside. A sentence where that was so.

    Raises ConfigurationError as `read_pins`, OSError where it cannot be written.
    """
    path = directory / FILE_NAME
    try:
        content = path.read_bytes()
    except OSError:
        return None  # there is none, or who reads it says so
    if not is_sealed(content) or not unseal(content).damaged:
        return None
    pins = read_pins(directory)
    kept = keep_aside(str(path))
    _write(directory, pins)
    return f"{path}, which says which stores were served, was damaged, and nothing of it is lost; {kept}; look at its disk"


def _text_of(content: bytes) -> str:
    """What the file says. Raises ValueError where neither of its lines is whole."""
    if not is_sealed(content):
        return content.decode()  # of a version before
    texts = unseal(content).texts
    if not texts:
        raise ValueError("it is damaged")
    return texts[-1]


def write_pin(directory: Path, listen: str, pin: Pin) -> None:
    """Remember `pin` for the Server that listens at `listen`. Raises OSError where that cannot be."""
    make_directory(directory)
    _write(directory, {**{one: known for one, known in read_pins(directory).items() if one != listen}, listen: pin})


def _write(directory: Path, pins: dict[str, Pin]) -> None:
    written = directory / f"{FILE_NAME}.{os.getpid()}"
    try:
        with open(written, "wb", opener=_own) as file:
            file.write(seal(json.dumps(dict(list(pins.items())[-MOST_PINS:]))))
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
