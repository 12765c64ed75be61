"""An input's process: `python -m taba.inputs.process KIND ADDRESS KERNEL`. Started by an Agent, not by people.

1. Descriptor 3 is the socket, which the Agent holds as well: what the kernel has for this process outlives it. Descriptor 4 is the desk.
2. Whatever is recorded is in rings of this process, which outlive it, too. What it had in its hand when it was killed lies on the desk.
3. When its standard input ends, as its Agent wants it or has died in whatever way, nothing more is let in, what the kernel holds is
   recorded, and it ends.
4. It never waits for a ring: one that is full drops, and counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import select
import signal
import socket
import struct
import sys
import termios
from collections import Counter
from collections.abc import Callable
from time import monotonic
from time import time as unix_now
from typing import Any

from taba.bounds import MiB
from taba.client import process
from taba.client.identity import host
from taba.client.producer import Producer, read_settings
from taba.desk import COUNTS, DATAGRAM_BYTES, PLACE, Desk
from taba.inputs.notes import Allowance
from taba.inputs.origins import OTHERS, Origin, Origins, client_of
from taba.inputs.statsd import MAX_LINE_BYTES, Event
from taba.receiving import InputAddress, receiving

LIFE, SOCKET, DESK = 0, 3, 4  # descriptors
RING_BYTES = 4 * MiB  # unless TABA_RING_BYTES says otherwise: room for the Tabs of many processes
LOCAL = "local"  # the origin of what comes through a unix socket
TURN_BYTES = 8 << 10  # recorded between two looks at all else …
# … or as much as is recorded in so long, and a piece: a KiB of names that are all new takes 2 to 3 ms, of known ones 0.1
TURN_SECONDS = 0.01
PIECE_BYTES = 2 << 10  # recorded between two looks at the clock, or half as much again
TURN_TABS = 4000  # of those that are over, let go of between two looks: 1 ms
NEVER = 1_000_000_000  # young collections before a full one: of 100,000 Tabs it takes 0.2 s, and finds nothing
LAST_PACKETS = 1_000_000  # more than a kernel holds, when the end comes
LAST_CONNECTIONS = 1024  # more than wait to be accepted, when the end comes
LOOK_SECONDS = 1.0
MAX_TRIES = 3  # to record a packet that lay in a killed process's hand: whatever kills each of them is in it
MAX_CONNECTIONS = 256  # beyond that one of the address that has the most goes: who is silent for longest
CHUNK_BYTES = 2 * PIECE_BYTES  # of a connection at once
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # for one more descriptor
SO_MEMINFO, MEMINFO = 55, struct.Struct("9I")  # from asm-generic/socket.h; the last of the words is how many packets found no room


class Connection:
    """One TCP connection; `rest` is the beginning of a line whose end has not come, or None while a line that is too long goes by."""

    def __init__(self, channel: socket.socket, name: str, now: float):
        self.channel, self.name, self.heard = channel, name, now
        self.rest: bytes | None = b""


class Input:
    """Receives at one address. `record` is what is done with a packet's content; all else is when, and from where."""

    def __init__(self, address: InputAddress, channel: socket.socket, desk: Desk, producer: Callable[[str], Any], kernel: int):
        self._address, self._socket, self._desk, self._kernel = address, channel, desk, kernel
        self._origins = Origins(producer, self.note)
        self._counts = self._origins.readers.counts
        desk.mend()
        for place, count in enumerate(desk.counts(len(COUNTS))):
            self._counts[place] = count
        channel.setblocking(False)
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._connections: dict[int, Connection] = {}
        self._left: list[tuple[Origin, int, int]] = []  # of the sheet in hand: of whom what lies from there to there is, last ones first
        self._progress = 0  # of that sheet
        self._now = monotonic()
        self._next_look = 0.0
        self._allowance = Allowance(self._now)

    def note(self, text: str, time: float | None) -> None:
        """Lay a note down for the Agent, or count why not."""
        if not self._allowance.take(self._now):
            self._counts[PLACE["notes_too_many"]] += 1
        elif not self._desk.note(text, unix_now() if time is None else time):
            self._counts[PLACE["notes_no_room"]] += 1
        else:
            self._counts[PLACE["notes"]] += 1

    # --- what comes ---

    def take_up(self) -> None:
        """Record the rest of what an input before this one had in its hand when it was killed: one packet after the other.

        What is known of those that are recorded is learned again, since the killed one's counts are not kept.
        """
        held, desk, counts = self._desk.held(), self._desk, self._counts
        if held is None:
            return
        given_up, at, begun = held.given_up, held.at, held.begun
        if held.is_apart and held.tries >= MAX_TRIES and at < len(held.packets):
            desk.give_up(at)
            given_up, at, begun = given_up | 1 << at, at + 1, 0
        counts[PLACE["unsure"]] += held.unsure
        for place, (name, content) in enumerate(held.packets):
            if given_up >> place & 1:
                counts[PLACE["given_up"]] += 1
                continue
            if place >= at:
                progress = desk.apart(place, begun, place > at)
            counts[0] += 1
            origin, _, is_own = self._origins.place(name.decode("ascii", "replace") or OTHERS, self._now)
            found = origin.reader.read(content)
            if name and not is_own:  # else it was killed before it could say from where this came
                counts[PLACE["beyond_origins"]] += 1
            if place >= at:
                self._record(found[begun:], progress)
                begun = max(0, begun - len(found))
        self._done()

    def _record(self, found: list[Event], at: int) -> int:
        """Record these Events, the first of which is next after such progress. The progress then."""
        progress = self._desk.progress
        for record, value, time in found:
            progress[0] = at + 1
            record(value, time)
            at += 2
            progress[0] = at
        return at

    def _done(self) -> None:
        """All that is in hand is recorded."""
        readers, desk = self._origins.readers, self._desk
        desk.done(self._counts)
        if readers.example:
            desk.show(readers.example)
            readers.example = b""
        if readers.is_full:
            self._origins.renew()

    def _take_packets(self, most: int) -> bool:
        """Record up to so many datagrams, or some more; whether there may be more."""
        while most > 0:
            taken, may_be_more = self._take_sheet()
            most -= taken
            if not may_be_more:
                return False
        return True

    def _take_sheet(self) -> tuple[int, bool]:
        """Take up as many datagrams as there are, or as a sheet or a turn has room for, and record as much of them as is a turn's.

        How many, and whether there may be more. What is left of earlier ones comes first: until that is recorded, nothing is taken up.
        """
        if self._left:
            self._go_on()
            return 0, True
        desk, counts, hold = self._desk, self._counts, self._desk.hold
        receive, flag, is_local = self._socket.recvfrom_into, socket.MSG_TRUNC, self._address.kind == "unix"
        parts: list[tuple[Origin, int]] = []  # of whom what comes from there on is
        begin, taken, may_be_more, last, is_own = 0, 0, True, "", True
        room: memoryview | None = desk.sheet()
        while room is not None and begin < TURN_BYTES:
            try:
                length, sender = receive(room, DATAGRAM_BYTES, flag)
            except BlockingIOError:
                may_be_more = False
                break
            except OSError as error:  # what came of something that was sent to somebody: nothing is lost by it
                print(f"receiving at {self._address.text}: {error.strerror}", file=sys.stderr)
                may_be_more = False
                break
            source = LOCAL if is_local else sender[0]
            if source != last:
                origin, name, is_own = self._origins.place(source, self._now)
                last = source
                parts.append((origin, begin))
            if length > DATAGRAM_BYTES:
                counts[PLACE["cut"]] += 1
                length = desk.cut()
            room = hold(length, name)
            begin += length + 1
            taken += 1
            if not is_own:
                counts[PLACE["beyond_origins"]] += 1
        if taken:
            counts[0] += taken
            ends = [*(begin for _, begin in parts[1:]), begin]
            self._left = [(origin, begin, end) for (origin, begin), end in zip(parts, ends, strict=True)][::-1]
            self._progress = 0
            self._go_on()
        return taken, may_be_more or bool(self._left)

    def _go_on(self) -> None:
        """Record what is left of what is in hand, or as much as is a turn's, to the end of a line."""
        desk, left, room = self._desk, self._left, TURN_BYTES
        over = monotonic() + TURN_SECONDS
        while left and room > 0:
            origin, begin, end = left.pop()
            piece, most = desk.taken(begin, end - 1), min(room, PIECE_BYTES)
            if len(piece) > most + PIECE_BYTES // 2:
                cut = piece.rfind(b"\n", 0, most) + 1 or piece.find(b"\n", most) + 1  # a longer line is one of which nothing is recorded
                if cut:
                    left.append((origin, begin + cut, end))
                    piece = piece[: cut - 1]
            room -= len(piece)
            self._progress = self._record(origin.reader.read(piece), self._progress)
            if monotonic() >= over:
                break
        if not left:
            self._done()

    def _take_connections(self) -> bool:
        """Accept those that wait; whether there may be more."""
        try:
            channel, sender = self._socket.accept()
        except BlockingIOError:
            return False
        except OSError as error:  # it has gone, or there are no descriptors: a look later there may be
            self._counts[PLACE["connections_refused"]] += 1
            print(f"accepting at {self._address.text}: {error.strerror}", file=sys.stderr)
            if error.errno in NO_ROOM:
                self._poll.modify(self._socket, 0)  # it would be told of at once, again and again
            return False
        channel.setblocking(False)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._counts[PLACE["connections_refused"]] += 1
            self._hang_up(self._one_too_many())
        self._connections[channel.fileno()] = Connection(channel, sender[0], self._now)
        self._poll.register(channel, select.POLLIN)
        return True

    def _one_too_many(self) -> Connection:
        """Whoever goes where all places are taken: one address, however many connections it has, takes none of another's."""
        held = Counter(one.name for one in self._connections.values())
        most = max(held.values())
        return min((one for one in self._connections.values() if held[one.name] == most), key=lambda one: one.heard)

    def _take_chunk(self, connection: Connection) -> bool:
        """Record the lines that a connection has ready; whether there may be more."""
        try:
            chunk = connection.channel.recv(CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # it was reset: what lies before is recorded
            chunk = b""
        connection.heard = self._now
        is_over = not chunk
        lines, newline, rest = chunk.rpartition(b"\n")
        if connection.rest is None:  # the end of a line that was counted
            _, newline_of_it, lines = (lines + newline).partition(b"\n")
            if newline_of_it:
                connection.rest = rest
        elif newline or is_over:
            lines, connection.rest = connection.rest + (lines if newline else b""), rest
        else:
            lines, connection.rest = b"", connection.rest + rest
        if connection.rest is not None and len(connection.rest) > MAX_LINE_BYTES:
            self._counts[PLACE["long_line"]] += 1
            self._counts[PLACE["lines"]] += 1
            connection.rest = None
        if lines:
            origin, _, is_own = self._origins.place(connection.name, self._now)
            if not is_own:
                self._counts[PLACE["beyond_origins"]] += 1
            self._counts[0] += 1
            self._desk.sheet()
            self._record(origin.reader.read(lines), 0)
            self._done()
        if is_over:
            self._hang_up(connection)
        return not is_over

    def _hang_up(self, connection: Connection) -> None:
        del self._connections[connection.channel.fileno()]
        self._poll.unregister(connection.channel)
        connection.channel.close()

    # --- life ---

    def run(self, life: int = LIFE) -> None:
        """Receive until the other end of the pipe `life` is closed."""
        ending = select.poll()
        for poll in (self._poll, ending):
            poll.register(life, 0)  # its end is told unasked
        is_tcp = self._address.kind == "tcp"
        is_ending = False
        while not is_ending:
            if self._left:
                self._look_where_due()
                self._go_on()
                is_ending = bool(ending.poll(0))
                continue
            ready = self._poll.poll(1000 * LOOK_SECONDS)
            self._look_where_due()
            for place, (descriptor, _) in enumerate(ready):
                if place:  # what many have sent takes long together
                    self._look_where_due()
                    is_ending = is_ending or bool(ending.poll(0))
                if is_ending:
                    break  # what the others have sent is recorded at the end
                if descriptor == life:
                    is_ending = True
                elif descriptor in self._connections:
                    self._take_chunk(self._connections[descriptor])
                elif is_tcp:
                    self._take_connections()
                else:
                    self._take_sheet()
        self._end()

    def _look_where_due(self) -> None:
        self._now = monotonic()
        self._origins.let_go(TURN_TABS)
        if self._now >= self._next_look:
            self._next_look = self._now + LOOK_SECONDS
            self._look()

    def _look(self) -> None:
        """Count what found no room in the kernel, and accept again where there was none."""
        if self._address.kind == "tcp":
            self._poll.modify(self._socket, select.POLLIN)
        if self._address.kind == "udp":
            dropped = MEMINFO.unpack(self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size))[-1]
            self._counts[PLACE["kernel"]] = self._kernel + dropped
        if not self._left:
            self._desk.count(self._counts)

    def _end(self) -> None:
        """Let nothing more in, and record what the kernel has."""
        address = self._address
        if address.kind == "unix":
            self._socket.shutdown(socket.SHUT_RD)  # who sends is told
        elif address.kind == "udp":
            # to a peer that nobody is: the kernel tells all others that nobody listens here
            own = self._socket.getsockname()[0]
            nobody = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(own, own)
            with contextlib.suppress(OSError):  # then what comes until the end is recorded, and what comes after it is refused
                self._socket.connect((nobody, 1))
        if address.kind == "tcp":
            for _ in range(LAST_CONNECTIONS):
                if not self._take_connections():
                    break
            with contextlib.suppress(OSError):  # the Agent, which holds it as well, has done so
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            for connection in list(self._connections.values()):
                # what the kernel has now, since somebody who goes on sending would never let it end
                held = struct.unpack("i", fcntl.ioctl(connection.channel, termios.FIONREAD, bytes(4)))[0]
                for _ in range(held // CHUNK_BYTES + 2):  # the last one may be the end, or part of what came since
                    if not self._take_chunk(connection):
                        break
                if connection.channel.fileno() in self._connections:
                    self._hang_up(connection)
        else:
            self._take_packets(LAST_PACKETS)
            while self._left:
                self._go_on()
            self._look()
        self._desk.count(self._counts)


def main(arguments: list[str]) -> None:
    """Receive until the Agent ends, or says so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the Agent gets it, too, and ends this one
    # of whoever ends a whole group of processes: its Agent may be among them, and still holds the socket; the end of its pipe tells
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    kind, text, kernel = arguments
    if gc.get_threshold()[2]:  # else the collector is incremental, and looks at little at a time
        gc.set_threshold(*gc.get_threshold()[:2], NEVER)
    environ = {"TABA_RING_BYTES": str(RING_BYTES), **os.environ}
    environ.pop("TABA_RING_GROUP", None)  # of the Agent's option: these rings are its own user's
    environ.pop("TABA_CLIENT_ID", None)
    read_settings(client_of(host(), kind, OTHERS), environ)  # what is wrong with them ends this process before it takes anything
    ports: Any = process.ports()

    def producer(origin: str) -> Producer:
        made = Producer(ports)
        made.start(client_of(host(), kind, origin), environ)
        return made

    one = Input(receiving(text), socket.socket(fileno=SOCKET), Desk(DESK), producer, int(kernel))
    one.take_up()
    one.run()


if __name__ == "__main__":
    main(sys.argv[1:])
