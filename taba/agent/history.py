"""How many events were in batches that are known no more: asked when a store lost batches that nobody has any longer.

Two files of records beside the spool, the newer of which grows; full, it takes the older one's place. They are written before the
bytes of a batch go and not synced: a killed Agent finds them again, and after a power cut the rings and the outbox are gone as well.
Each record has its checksum: one that is damaged is none, and as little is known of its batch as of one that is too long ago.
"""

from __future__ import annotations

import os
import struct
from binascii import crc_hqx
from collections.abc import Iterable
from typing import Any

import numpy as np

from taba.agent.database import is_full
from taba.agent.locks import private
from taba.batch import BatchId
from taba.bounds import MiB

MAX_HISTORY_BYTES = 8 * MiB  # of each file: 262,144 batches, two minutes and more of a busy Agent's
_RECORD = struct.Struct("<16sQHHI")  # stream, number, bucket, the checksum of all else, events
_CHECK = slice(26, 28)
_DTYPE = np.dtype([("first", "<u8"), ("second", "<u8"), ("number", "<u8"), ("bucket", "<u2"), ("check", "<u2"), ("events", "<u4")])
_STREAM = struct.Struct("<QQ")


class History:
    """The history in the files `path` and `path`.old. Raises OSError where they cannot be opened or written, but not at first where the
    disk is full: what is noted is written once it has room."""

    def __init__(self, path: str, most: int = MAX_HISTORY_BYTES):
        self.path = path
        self._most = most
        self._fd = -1
        try:
            self._fd = self._open()
        except OSError as error:
            if not is_full(error):
                raise
        self._noted: list[bytes] = []
        self._records: Any = None  # of both files, once somebody asked; until the next ones are written

    def note(self, id: BatchId, events: int) -> None:
        """Remember that this batch had so many events that are not counted elsewhere. Written by `flush`."""
        record = _RECORD.pack(id.stream, id.number, id.bucket, 0, min(events, 2**32 - 1))
        self._noted.append(record[: _CHECK.start] + _check(record).to_bytes(2, "little") + record[_CHECK.stop :])

    def flush(self) -> None:
        """Write what was noted; where that raises OSError, it is tried again with the next."""
        if not self._noted:
            return
        content, self._records = b"".join(self._noted), None
        if self._fd < 0:
            self._fd = self._open()
        if os.fstat(self._fd).st_size + len(content) > self._most:
            os.replace(self.path, self.path + ".old")
            os.close(self._fd)
            self._fd = -1
            self._fd = self._open()
        written = os.write(self._fd, content)
        if written < len(content):  # a full disk took a part: of records whole ones only
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise OSError(28, os.strerror(28), self.path)
        self._noted.clear()

    def find(self, stream: bytes, bucket: int, numbers: Iterable[int]) -> dict[int, int]:
        """The events of those of these batches that were noted."""
        wanted = list(numbers)
        records = self._read()
        first, second = _STREAM.unpack(stream)
        here = records[(records["second"] == second) & (records["first"] == first) & (records["bucket"] == bucket)]
        here = here[np.isin(here["number"], np.array(wanted, "<u8"))]
        found = {int(record["number"]): int(record["events"]) for record in here if _is_whole(record)}
        return {number: found[number] for number in wanted if number in found}

    def last(self, streams: Iterable[bytes]) -> dict[tuple[bytes, int], int]:
        """Of each bucket of these streams, the highest number that was noted."""
        records, found = self._read(), dict[tuple[bytes, int], int]()
        for stream in streams:
            first, second = _STREAM.unpack(stream)
            here = records[(records["second"] == second) & (records["first"] == first)]
            for bucket in np.unique(here["bucket"]).tolist():
                its = here[here["bucket"] == bucket]
                highest = (int(its["number"][place]) for place in np.argsort(its["number"])[::-1] if _is_whole(its[place]))
                if (number := next(highest, 0)) > 0:
                    found[stream, bucket] = number
        return found

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _read(self) -> Any:
        """All that was noted, written or not."""
        if self._records is None:
            self._records = np.concatenate([_read(self.path + ".old"), _read(self.path)])
        return np.concatenate([self._records, np.frombuffer(b"".join(self._noted), _DTYPE)]) if self._noted else self._records

    def _open(self) -> int:
        fd = private(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        size = os.fstat(fd).st_size
        if size % _RECORD.size:  # a kill came within a write
            os.ftruncate(fd, size // _RECORD.size * _RECORD.size)
        return fd


def _check(record: bytes) -> int:
    """Of sixteen bits: whichever byte is another, it is another, too."""
    return crc_hqx(record[_CHECK.stop :], crc_hqx(record[: _CHECK.start], 0xFFFF))


def _is_whole(record: Any) -> bool:
    """Whether this record, of the array, is what was written."""
    return bool(_check(record.tobytes()) == int(record["check"]))


def _read(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return np.empty(0, _DTYPE)
    return np.frombuffer(content[: len(content) // _RECORD.size * _RECORD.size], _DTYPE)
