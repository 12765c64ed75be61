"""The file that names what was sent of Tabs that heal, so that it can be taken back when memory and processes are gone.

1. A line is on the disk before anything of what it names is sent; a torn last line is none. Each stands twice, with its checksum.
2. (ring, Tab) is "sent" from its first sum on, "ended" once its end was published, and "gone" when that has arrived for good.
3. A stream is named from the first sum in it on, until it is over: what of it is still on its way is folded as long as it is open.
4. The file is written anew when most of it is history. It has room set aside, so that a disk that is full later, or at the next start,
   takes what a host must know that boots anew just then; what could not be written is tried again with whatever is to be written next,
   once a second at the least, and is not sent before.
5. While very many are ended and not gone, as where no Server takes anything for long, what begins is not named, and not sent.
6. A damaged file is kept aside and written anew, as at each start; `damage` says what it lost.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from taba.agent.database import is_full
from taba.agent.locks import private
from taba.batch import STREAM_BYTES
from taba.bounds import KiB
from taba.damage import is_sealed, keep_aside, seal, unseal

SENT, ENDED, GONE = "sent", "ended", "gone"  # an SentSum's
STREAM, OVER = "stream", "over"
MAX_STREAMS = 256  # that may be open; as many as an outbox's table names. Of more the oldest is left to Servers, which forget it in time
SPARE_BYTES = 512 * KiB  # that are set aside: for some 1,000 entries; before half of that is used, there is more, if the disk has it
MAX_ENDED = 32_768  # some 11 MB, and half a second when the file is written anew; of what is live, rings and their names are the bound
SPARE_LINES = 10_000  # some 4 MB of history that the file may have, and as many lines again as there are entries


class SentSum(NamedTuple):
    """A (ring, Tab) of which a sum was sent."""

    ring: str  # the ring's id, as hex
    segment: str
    client: str
    tab: str
    type: str


class Register:
    """The register at `path`. Raises OSError where it cannot be read, or written at first; later, or where the disk is full, `problem`
    says so, and it is tried again. What it does not `have` then is not to be sent."""

    def __init__(self, path: str):
        self.path = path
        self.live: set[SentSum] = set()
        self.ended: set[SentSum] = set()
        self.streams: dict[bytes, None] = {}  # in the order of their begin
        self._failure: str | None = None
        self.damage: str | None = None  # of the file that was here
        self._unwritten: set[SentSum | bytes] = set()  # what is begun, and the disk did not take
        self._file: Any = None
        self._lines = 0  # of the file, …
        self._used = self._room = 0  # … their bytes, and those that the disk has for it
        lines, damaged, lost = _read(path)
        for word, named in lines:
            self._know(word, named)
        if damaged:
            kept = keep_aside(path)
            stays = "what goes up and down may stay up after a restart of this host"
            what = f"some {lost} of its entries are lost: {stays}" if lost else "nothing of it is lost"
            self.damage = f"{path}, which names what goes up and down, was damaged; {what}; {kept}; look at its disk"
        try:
            self._begin()
        except OSError as error:
            if not is_full(error):
                raise
            if damaged:
                self._unwritten = {*self.live, *self.streams}
            if damaged or not self._go_on():
                self._failed(error)

    @property
    def is_full(self) -> bool:
        """Whether so much is ended and not gone that nothing more begins."""
        return len(self.ended) >= MAX_ENDED

    @property
    def problem(self) -> str | None:
        """What needs a person."""
        if self._failure is not None or not self.is_full:
            return self._failure
        return (
            f"{len(self.ended)} Tabs of processes that ended wait until Servers have that they did: what begins to go up and down in others"
            " is not sent before; see why Servers take nothing"
        )

    def knows(self, entry: SentSum) -> bool:
        """Whether this sum is begun, or ended, and not gone."""
        return entry in self.live or entry in self.ended

    def has(self, named: SentSum | bytes) -> bool:
        """Whether this sum, or this stream, is begun where nothing takes it away."""
        return named not in self._unwritten and (named in self.streams if isinstance(named, bytes) else named in self.live)

    def note(self, word: str, entries: Iterable[SentSum]) -> None:
        """Write that these were `sent`, `ended` or are `gone`; on disk when this returns, or a problem says why not."""
        self._note([(word, entry) for entry in entries if word != SENT or not self.is_full])

    def begin(self, stream: bytes) -> None:
        """Sums are about to be sent in this stream."""
        if stream not in self.streams:
            oldest = list(self.streams)[: max(0, len(self.streams) + 1 - MAX_STREAMS)]
            self._note([(STREAM, stream), *((OVER, other) for other in oldest)])

    def over(self, streams: Iterable[bytes]) -> None:
        """Nothing of these streams can be folded any more."""
        self._note([(OVER, stream) for stream in streams])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _know(self, word: str, named: SentSum | bytes) -> None:
        if isinstance(named, bytes):
            self.streams.pop(named, None)
            if word == STREAM:
                self.streams[named] = None
            return
        self.live.discard(named)
        self.ended.discard(named)
        if word != GONE:
            (self.live if word == SENT else self.ended).add(named)

    def _note(self, lines: list[tuple[str, SentSum | bytes]]) -> None:
        if not lines and self._failure is None:
            return
        for word, named in lines:
            self._know(word, named)
        try:
            known = len(self.live) + len(self.ended) + len(self.streams)
            if self._file is None or self._lines + len(lines) > SPARE_LINES + 2 * known:
                self._begin()  # with all that is known
            else:
                self._used += self._write(self._file, lines)
                self._lines += len(lines)
                if self._used + SPARE_BYTES // 2 > self._room:
                    self._set_aside(self._file)
            self._failure = None
            self._unwritten.clear()
        except OSError as error:
            self._unwritten.update(named for word, named in lines if word in (SENT, STREAM))
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.close()
        self._file = None
        self._failure = (
            f"{self.path}: {error.strerror}: what begins to go up and down is not sent before it is named there, so that a restart of this"
            " host takes it back; make room"
        )

    def _go_on(self) -> bool:
        """Go on in the file that is there, in what was set aside, since the disk takes no new one; False where that is not whole."""
        try:
            with open(self.path, "rb") as whole:
                content = whole.read()
            used = len(content.rstrip(b"\0"))
            if not (is_sealed(content) and content[:used].endswith(b"\n\n")):
                return False
            file = open(self.path, "r+b", opener=private)  # noqa: SIM115
        except OSError:
            return False
        self._used, self._room, self._lines = used, len(content), content.count(b"\n\n") // 2
        file.seek(self._used)
        self._file = file
        return True

    def _begin(self) -> None:
        """Write the file anew: what is gone is left out."""
        lines: list[tuple[str, SentSum | bytes]] = [(STREAM, stream) for stream in self.streams]
        lines += ((SENT, entry) for entry in self.live)
        lines += ((ENDED, entry) for entry in self.ended)
        fresh = open(self.path + ".new", "wb", opener=private)  # noqa: SIM115
        try:
            self._used, self._room = self._write(fresh, lines), 0
            self._set_aside(fresh)
            os.replace(self.path + ".new", self.path)
            _sync_directory(self.path)  # else a power cut may bring back the old file, without what is written from now on
        except OSError:
            fresh.close()
            raise
        self.close()
        self._file, self._lines = fresh, len(lines)

    def _set_aside(self, file: Any) -> None:
        # where there is no room, or none can be promised, a full disk takes no more, and that is said then
        with contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), self._used, SPARE_BYTES)
            self._room = self._used + SPARE_BYTES

    @staticmethod
    def _write(file: Any, lines: Iterable[tuple[str, SentSum | bytes]]) -> int:
        """Returns how many bytes they take."""
        fields = ((word, named.hex()) if isinstance(named, bytes) else (word, *named) for word, named in lines)
        content = b"".join(seal(json.dumps(line)) for line in fields)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return len(content)


def _sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(path: str) -> tuple[Iterator[tuple[str, SentSum | bytes]], int, int]:
    """What its lines say, how many were damaged, and how many entries are lost by that."""
    try:
        with open(path, "rb") as file:
            content = file.read().rstrip(b"\0")  # without what is set aside
    except FileNotFoundError:
        return iter(()), 0, 0
    if is_sealed(content):
        texts, damaged, lost = unseal(content)
        return _lines(texts), damaged, lost
    return _lines(content.split(b"\n")), 0, 0  # of a version before


def _lines(texts: Iterable[str | bytes]) -> Iterator[tuple[str, SentSum | bytes]]:
    for text in texts:
        try:
            word, *fields = json.loads(text)
            if not all(isinstance(field, str) for field in fields):
                continue
            if word in (SENT, ENDED, GONE) and len(fields) == len(SentSum._fields):
                bytes.fromhex(fields[0])
                yield word, SentSum(*fields)
            elif word in (STREAM, OVER) and len(fields) == 1 and len(stream := bytes.fromhex(fields[0])) == STREAM_BYTES:
                yield word, stream
        except (ValueError, TypeError, RecursionError):
            continue  # of a version before: torn by a kill, and nothing of it was sent; or no line of a register
