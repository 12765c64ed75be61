"""The producer of this process, and what it records with: the C accelerator where it was built and is sound, else pure Python."""

from __future__ import annotations

from typing import Any

from taba import parts
from taba.client import pure
from taba.client.producer import Producer


def ports() -> Any:
    """What Tabs and their Port are made of here."""
    return parts.find("taba.client._accelerator") or pure  # stats() and `taba status` say which


PORTS: Any = ports()
producer = Producer(PORTS)
