"""The desk of an input: the page of shared memory at which it works, and at which its Agent reads how it does.

1. What an input takes from a socket lies here from the moment that the kernel gives it: of one that is killed, the next one finds what was
   in its hand, and how much of that was recorded.
2. There are two sheets, used in turn. A sheet is cleared, then `ready` names it, then the kernel writes one packet behind the other to it:
   a killed input had something in its hand if `ready` is one more than `done`, and its sheet is not empty. One store (`length`) says how
   much of a sheet, and how many packets, are accounted for; what lies behind that is a packet of which nobody could say from where it came.
3. The counts are written to that of two rows which `done` does not name; one store of `done` then says both that the sheet is done
   with and that its counts hold.
4. One writes, others read, but for the counts of which the Agent has told, and for the notes that it settled, which are its own: nobody
   takes what is read here for more than figures and texts. Where words stand that nobody can have written, all begins anew, and is counted
   as given up.
5. Notes lie here until a Server has them, so that nobody's death loses one: a place is written, then one store says so; the Agent's store
   that gives it back comes when a Server has answered. One that is on its way when its Agent is killed is posted again.

Standard library only.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from array import array
from typing import NamedTuple

from taba.bounds import MAX_NOTE, MAX_TIME
from taba.ring import SHM_DIRECTORY

COUNTS = (
    "packets",
    "lines",
    "events",
    # what was not understood
    "bad_line",
    "bad_value",
    "bad_type",
    "bad_rate",
    "bad_time",
    "bad_name",
    "long_line",
    "not_utf8",
    # what was understood, and has no Tab
    "event",
    "service_check",
    "notes",
    # what is recorded otherwise than it came
    "tags_left_out",
    "names_changed",
    "gauges_from_zero",
    "parts_forgotten",
    # what was lost on the way, or nearly
    "cut",
    "unsure",
    "given_up",
    "kernel",
    "beyond_origins",
    "connections_refused",
    "notes_too_many",
    "notes_no_room",
)
"""What an input counts, in this order."""
PLACE = {name: place for place, name in enumerate(COUNTS)}
NOT_UNDERSTOOD = COUNTS[PLACE["bad_line"] : PLACE["event"]]

MAGIC = int.from_bytes(b"tabadsk3", "little")
MAX_COUNTS = 64
DATAGRAM_BYTES = 1 << 16  # the largest that UDP has
SHEET_BYTES = 2 * DATAGRAM_BYTES  # packets are added while there is room for the largest
MAX_PACKETS = 64  # of a sheet: they wait for each other, and a word has a bit for each
EXAMPLE_BYTES = 256  # its length in the first eight
_PAGE = 4096
MAX_NOTES = 64  # that wait for a Server: those of an hour in which there is none, at the rate at which they may come
_NOTE_BYTES = 2048  # of one: its time, its length, and MAX_NOTE characters of four bytes
_NOTES = _PAGE + 2 * SHEET_BYTES
_PACKETS = _NOTES + MAX_NOTES * _NOTE_BYTES  # of each packet in hand a word: where it ends, and the place of its origin's name
_ORIGINS, _ORIGIN_BYTES = _PACKETS + 8 * MAX_PACKETS, 64  # names, each with its length first
MAX_ORIGIN_NAMES = 56  # what the page has room for; with one more they are written anew
DESK_BYTES = _ORIGINS + MAX_ORIGIN_NAMES * _ORIGIN_BYTES

# words of the page
_MAGIC, _READY, _DONE, _PROGRESS, _LENGTH, _TRIES, _UNSURE, _GIVEN_UP = range(8)
_BELOW = 8  # bits: of `length`, the number of packets; of a packet's word, the place of a name
_APART = 32  # bits: of `progress`, the Events; above them, one more than the place of the packet of which they are, or 0: of all in hand
_ROWS = 16, 16 + MAX_COUNTS
_EXAMPLE = (16 + 2 * MAX_COUNTS) * 8
_SEEN = 16 + 2 * MAX_COUNTS + EXAMPLE_BYTES // 8  # the Agent's: the counts of which it has told
_WRITTEN = _SEEN + MAX_COUNTS  # notes, ever
_TAKEN, _REFUSED = _WRITTEN + 1, _WRITTEN + 2  # the Agent's: those that are settled, and those of them that no Server wants
_MOST = 1 << 62  # beyond all counts, so that one more fits its word
_EVENTS_OF = (1 << _APART) - 1
_MOST_PROGRESS = 2 * SHEET_BYTES + 2  # an Event takes more than a byte
_MOST_KILLS = 1 << 32

_ZEROS = memoryview(bytes(SHEET_BYTES))


class Held(NamedTuple):
    """What a killed input had in its hand, and how far it had come."""

    packets: list[tuple[bytes, bytes]]  # from where, and what
    given_up: int  # a bit for each that is to be passed over
    at: int  # the place of the packet of which the next is said; those before it are recorded
    begun: int  # so many of its Events, and of those behind it, were begun
    is_apart: bool  # an earlier one took them up one by one: where it was killed again and again, it is the packet `at` that does it
    unsure: int  # Events begun, and perhaps not recorded: one for each kill
    tries: int  # of earlier inputs to record the packet `at`


def desk_path(agent: str, address: str, directory: str = SHM_DIRECTORY) -> str:
    """Where the desk of an Agent's input at this address lies."""
    return os.path.join(directory, f"taba-input.{agent}.{hashlib.blake2b(address.encode(), digest_size=8).hexdigest()}")


def open_desk(path: str) -> int:
    """A descriptor of the desk there, which is made where there is none, or what is there is none. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & 0o177:
            raise PermissionError(1, "belongs to somebody else, or is open to others", path)
        if status.st_size != DESK_BYTES or os.pread(descriptor, 8, 0) != MAGIC.to_bytes(8, "little"):
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, DESK_BYTES)  # a full file system raises here, and kills nobody at the first write
            os.pwrite(descriptor, MAGIC.to_bytes(8, "little"), 0)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


class Desk:
    """A desk, mapped. `sheet()`, `hold()` once for each packet, `progress` and `done()` are the input's, in this order."""

    def __init__(self, descriptor: int):
        self._mapping = mmap.mmap(descriptor, DESK_BYTES)
        self._content = memoryview(self._mapping)
        self._words = self._content.cast("Q")
        self._sheets = tuple(self._content[_PAGE + place * SHEET_BYTES :][:SHEET_BYTES] for place in (0, 1))
        self._number = self._done = self._words[_DONE]
        self._rooms = tuple(sheet[:DATAGRAM_BYTES] for sheet in self._sheets)
        self._table = self._content[_PACKETS:_ORIGINS].cast("Q")
        self._origins: dict[bytes, int] = {}  # the places of the names that stand there
        self._packets = self._begin = 0  # in hand, and where the next one begins
        self._is_tried = True  # there may be what an input before left of its tries
        self._dirty = [SHEET_BYTES, SHEET_BYTES]
        self._rows: tuple[memoryview, ...] = ()  # those of the counts, once it is known how many there are
        # 2i + 1: Event i of all that is in hand is begun; 2i + 2: it is recorded. From `apart()` on: of those of one packet
        self.progress = self._words[_PROGRESS : _PROGRESS + 1]

    def close(self) -> None:
        """Unmap it."""
        for view in (self.progress, *self._rows, self._table, *self._rooms, *self._sheets, self._words, self._content):
            view.release()
        self._mapping.close()

    # --- the input's, and its Agent's while there is none ---

    def mend(self) -> bool:
        """Begin anew where what stands here is nothing that an input wrote; whether that was so."""
        words = self._words
        done, ready = words[_DONE], words[_READY]
        if (
            done < _MOST
            and ready - done in (0, 1)
            and words[_PROGRESS] >> _APART <= MAX_PACKETS + 1
            and words[_PROGRESS] & _EVENTS_OF <= _MOST_PROGRESS
            and max(words[_TRIES], words[_UNSURE]) < _MOST_KILLS
            and max(words[_ROWS[0] : _ROWS[1] + MAX_COUNTS]) < _MOST
            and words[_REFUSED] <= words[_TAKEN] <= words[_WRITTEN] < _MOST
            and words[_WRITTEN] - words[_TAKEN] <= MAX_NOTES
        ):
            return False
        self._content[8:_PAGE] = bytes(_PAGE - 8)
        self._number = self._done = 0
        self._origins.clear()
        self._dirty = [SHEET_BYTES, SHEET_BYTES]
        words[_ROWS[0] + PLACE["given_up"]] = 1
        return True

    # --- the input's ---

    def held(self) -> Held | None:
        """What an input before had in its hand when it was killed; counts one more try."""
        words = self._words
        done = words[_DONE]
        if words[_READY] != done + 1:
            return None
        packets = self._packets_of(self._sheets[(done + 1) & 1])
        if not packets:
            return None
        self._number, self._dirty[(done + 1) & 1] = done + 1, SHEET_BYTES
        tries = words[_TRIES]
        words[_TRIES] = tries + 1
        if words[_PROGRESS] & 1:
            words[_UNSURE] += 1
            words[_PROGRESS] += 1
        apart, begun = words[_PROGRESS] >> _APART, (words[_PROGRESS] & _EVENTS_OF) // 2
        return Held(packets, words[_GIVEN_UP], max(0, apart - 1), begun, apart > 0, words[_UNSURE], tries)

    def _packets_of(self, sheet: memoryview) -> list[tuple[bytes, bytes]]:
        """From where each packet of this sheet came, and what it says."""
        length, number = self._words[_LENGTH] >> _BELOW, self._words[_LENGTH] & ((1 << _BELOW) - 1)
        found, begin = [], 0
        for word in self._table[: min(number, MAX_PACKETS)]:
            end = min(word >> _BELOW, length, SHEET_BYTES)
            place = word & ((1 << _BELOW) - 1)
            origin = self._bytes(_ORIGINS + place * _ORIGIN_BYTES, _ORIGIN_BYTES) if place < MAX_ORIGIN_NAMES else b""
            found.append((origin, bytes(sheet[begin:end])))
            begin = end + 1
        last = bytes(sheet[begin : begin + DATAGRAM_BYTES]).rstrip(b"\0")  # the input was killed before it could say how much there is
        if len(last) == DATAGRAM_BYTES:  # it was longer
            last = last[: last.rfind(b"\n") + 1]
        if last and len(found) < MAX_PACKETS:
            found.append((b"", last))
        return found

    def apart(self, place: int, begun: int, is_next: bool) -> int:
        """From now on the packet there is recorded, by itself, but for so many Events; the progress that says so.

        `is_next`: this input is the first that tries to.
        """
        if is_next:
            self._words[_TRIES] = 1
        self._words[_PROGRESS] = at = ((place + 1) << _APART) + 2 * begun
        return at

    def give_up(self, place: int) -> None:
        """No input reads the packet there any more."""
        self._words[_GIVEN_UP] |= 1 << place
        self.apart(place + 1, 0, is_next=True)

    def sheet(self) -> memoryview:
        """The room for a first packet, on an empty sheet: the kernel may write there."""
        number = self._number = self._done + 1
        words, place = self._words, number & 1
        sheet, dirty = self._sheets[place], self._dirty[place]
        if dirty:
            sheet[:dirty] = _ZEROS[:dirty]
            self._dirty[place] = 0
        words[_LENGTH] = words[_PROGRESS] = 0
        if self._is_tried:
            words[_TRIES] = words[_UNSURE] = words[_GIVEN_UP] = 0
            self._is_tried = False
        words[_READY] = number
        self._packets = self._begin = 0
        if len(self._origins) == MAX_ORIGIN_NAMES:
            self._origins.clear()
        return self._rooms[place]

    def hold(self, length: int, origin: bytes) -> memoryview | None:
        """The kernel wrote so much, from there. The room for one more packet, or None where this was the last one."""
        number, begin, names = self._packets, self._begin, self._origins
        end, sheet = begin + length, self._sheets[self._number & 1]
        place = names.get(origin)
        if place is None:
            place = names[origin] = len(names)
            self._put(_ORIGINS + place * _ORIGIN_BYTES, _ORIGIN_BYTES, origin)
        if number:
            sheet[begin - 1] = 10  # the end of the last packet's last line
        self._table[number] = end << _BELOW | place
        self._packets = number = number + 1
        self._words[_LENGTH] = end << _BELOW | number
        self._begin = begin = end + 1
        if number == MAX_PACKETS or begin > SHEET_BYTES - DATAGRAM_BYTES or len(names) == MAX_ORIGIN_NAMES:
            return None
        return sheet[begin : begin + DATAGRAM_BYTES]

    def cut(self) -> int:
        """What the kernel wrote last was longer than there is room, and its last line has no end here: the length without that."""
        room = self._sheets[self._number & 1][self._begin : self._begin + DATAGRAM_BYTES]
        length = bytes(room).rfind(b"\n") + 1
        room[length:] = _ZEROS[length : len(room)]
        return length

    def taken(self, begin: int, end: int) -> bytes:
        """What was held of the sheet, from here to there: packets are parted by the end of a line."""
        return self._sheets[self._number & 1][begin:end].tobytes()

    def done(self, counts: array[int]) -> None:
        """All of it is recorded, and these are all counts from now on."""
        rows = self._rows
        if not rows:
            rows = self._rows = tuple(self._words[row : row + len(counts)] for row in _ROWS)
        number = self._number
        place = number & 1
        rows[place][:] = counts
        if self._begin > self._dirty[place]:
            self._dirty[place] = min(self._begin, SHEET_BYTES)
        self._words[_DONE] = self._done = number

    def count(self, counts: array[int]) -> None:
        """These are all counts from now on; there is nothing in hand."""
        self.sheet()
        self.done(counts)

    def show(self, example: bytes) -> None:
        """An example of what was not understood."""
        self._put(_EXAMPLE, EXAMPLE_BYTES, example)

    def note(self, text: str, time: float) -> bool:
        """Lay a note down for a Server; False where as many wait as may."""
        words = self._words
        written = words[_WRITTEN]
        if written - words[_TAKEN] >= MAX_NOTES:
            return False
        place = _NOTES + written % MAX_NOTES * _NOTE_BYTES
        self._put(place + 8, _NOTE_BYTES - 8, text[:MAX_NOTE].encode(errors="replace"))
        self._content[place : place + 8].cast("d")[0] = time
        words[_WRITTEN] = written + 1
        return True

    # --- its Agent's ---

    def next_note(self) -> tuple[str, float] | None:
        """The text and the time of the note that waits for longest."""
        if not self.notes_waiting:
            return None
        place = _NOTES + self._words[_TAKEN] % MAX_NOTES * _NOTE_BYTES
        time = self._content[place : place + 8].cast("d")[0]
        return self._bytes(place + 8, _NOTE_BYTES - 8).decode(errors="replace"), time if 0 <= time <= MAX_TIME else 0.0

    def settle_note(self, is_refused: bool) -> None:
        """A Server has it, or says that it wants none such."""
        if self.notes_waiting:
            self._words[_TAKEN] += 1
            self._words[_REFUSED] += is_refused

    @property
    def notes_waiting(self) -> int:
        """How many notes no Server has yet."""
        waiting = self._words[_WRITTEN] - self._words[_TAKEN]
        return waiting if 0 <= waiting <= MAX_NOTES else 0  # else it is nothing that an input wrote, and will be mended

    @property
    def notes_settled(self) -> tuple[int, int]:
        """How many a Server has, and how many were refused."""
        return self._words[_TAKEN] - self._words[_REFUSED], self._words[_REFUSED]

    # --- whoever reads ---

    def counts(self, number: int) -> list[int]:
        """The first so many counts, as of one moment."""
        for _ in range(3):  # two packets later the row is another's
            done = self._words[_DONE]
            row = _ROWS[done & 1]
            found = list(self._words[row : row + number])
            if self._words[_DONE] - done < 2:
                break
        return found

    def seen(self, number: int) -> list[int]:
        """The first so many counts as an Agent told of them last."""
        return list(self._words[_SEEN : _SEEN + number])

    def see(self, counts: list[int]) -> None:
        """The Agent has told of these: to the next one they are nothing new."""
        self._words[_SEEN : _SEEN + len(counts)] = memoryview(array("Q", counts))

    @property
    def packets(self) -> int:
        """How often something was done with since there is a desk: it grows once an input works at it, and each second then."""
        return self._words[_DONE]

    @property
    def example(self) -> bytes:
        """The example that was shown last."""
        return self._bytes(_EXAMPLE, EXAMPLE_BYTES)

    def _put(self, begin: int, size: int, content: bytes) -> None:
        content = content[: size - 8]
        self._words[begin // 8] = len(content)
        self._content[begin + 8 : begin + 8 + len(content)] = content

    def _bytes(self, begin: int, size: int) -> bytes:
        return bytes(self._content[begin + 8 : begin + 8 + min(self._words[begin // 8], size - 8)])
