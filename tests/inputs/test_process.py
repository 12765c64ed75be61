"""An input at its sockets: what comes by datagrams and by connections is recorded, and what does not is counted."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.desk import COUNTS, DATAGRAM_BYTES, MAX_NOTES, MAX_PACKETS, PLACE, Desk, open_desk
from taba.inputs import process
from taba.inputs.notes import Allowance
from taba.inputs.origins import MAX_ORIGINS
from taba.inputs.process import Input
from taba.inputs.statsd import MAX_LINE_BYTES, Event, Reader
from taba.receiving import InputAddress, receiving
from tests.inputs.producers import NotedProducer


class Killed(Exception):
    """The process ends here."""


class Killing:
    """Makes producers that kill their process before an Event is recorded, or after that, `left` such moments from now; 0: none."""

    def __init__(self, events: list[tuple[str, str, Any]], left: int):
        self.events, self.left = events, left

    def __call__(self, origin: str) -> Any:
        return SimpleNamespace(tab=lambda name, *_, **__: SimpleNamespace(record=partial(self.record, origin, name)), stop=lambda: None)

    def record(self, origin: str, name: str, value: Any, time: float | None) -> None:
        self._moment()
        self.events.append((origin, name, value))
        self._moment()

    def _moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class AtASocket(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.makedirs(self.directory)
        self.events: list[tuple[str, str, Any]] = []
        self.life, self.agent = os.pipe()
        self.addCleanup(os.close, self.life)
        self.is_agent_alive = True
        self.sockets: list[socket.socket] = []
        self.addCleanup(self.close)

    def close(self) -> None:
        for one in self.sockets:
            one.close()
        if self.is_agent_alive:
            os.close(self.agent)

    def desk(self, name: str = "desk") -> Desk:
        descriptor = open_desk(os.path.join(self.directory, name))
        self.addCleanup(os.close, descriptor)
        return Desk(descriptor)

    def socket(self, family: int, kind: int) -> socket.socket:
        made = socket.socket(family, kind)
        self.sockets.append(made)
        return made

    def input(self, kind: str, kernel: int = 0, desk: str = "desk", producer: Callable[[str], Any] | None = None) -> tuple[Input, Any]:
        """An input, and where it is reached."""
        if kind == "unix":
            bound = self.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            bound.bind("")  # the kernel gives it an address
            address = InputAddress("unix", "/nowhere", 0, 0o600)
        else:
            bound = self.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
            bound.bind(("127.0.0.1", 0))
            if kind == "tcp":
                bound.listen(200)
            address = receiving(f"{kind}:{bound.getsockname()[1]}")
        where = bound.getsockname()
        return Input(address, bound, self.desk(desk), producer or (lambda origin: NotedProducer(origin, self.events)), kernel), where

    def end(self, one: Input) -> dict[str, int]:
        """The Agent ends: what the kernel has is recorded. The counts of the desk."""
        os.close(self.agent)
        self.is_agent_alive = False
        one.run(self.life)
        return {name: count for name, count in zip(COUNTS, self.desk().counts(len(COUNTS)), strict=True) if count}

    def test_what_the_kernel_has_when_the_agent_ends_is_recorded_and_nothing_more_is_let_in(self) -> None:
        one, where = self.input("udp")
        sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(where)
        for _ in range(20):
            sender.send(b"a:1|c\nb:2|c")
        counts = self.end(one)
        self.assertEqual(len(self.events), 40)
        self.assertEqual(counts, {"packets": 20, "lines": 40, "events": 40})
        sender.send(b"a:1|c")
        self.assertRaises(ConnectionRefusedError, sender.send, b"a:1|c")

    def test_so_it_is_with_a_unix_socket(self) -> None:
        one, where = self.input("unix")
        sender = self.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.connect(where)
        for _ in range(5):
            sender.send(b"a:1|c")
        self.assertEqual(self.end(one)["events"], 5)
        self.assertEqual({origin for origin, _, _ in self.events}, {"local"})
        self.assertRaises(OSError, sender.send, b"a:1|c")

    def test_connections_bring_lines_however_they_are_cut(self) -> None:
        one, where = self.input("tcp")
        senders = [self.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(2)]
        for sender in senders:
            sender.connect(where)
        while one._take_connections():
            pass
        connections = list(one._connections.values())
        for piece in (b"a:1|c\nb:", b"", b"2|c\n\n", b"c:3|c\r\nd:4", b"|c"):
            senders[0].sendall(piece)
            senders[1].sendall(b"e:5|c\n")
            for connection in connections:
                one._take_chunk(connection)
        for sender in senders:
            sender.close()
        self.end(one)
        self.assertEqual(
            [event[1:] for event in self.events if event[1] != "e"],
            [(name, value) for name, value in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True)],
        )
        self.assertEqual(sum(event[1] == "e" for event in self.events), 5)

    def test_a_line_without_end_is_passed_over_and_counted_once(self) -> None:
        one, where = self.input("tcp")
        sender = self.socket(socket.AF_INET, socket.SOCK_STREAM)
        sender.connect(where)
        one._take_connections()
        (connection,) = one._connections.values()
        for _ in range(4):
            sender.sendall(b"x" * MAX_LINE_BYTES)
            one._take_chunk(connection)
        self.assertLessEqual(len(connection.rest or b""), MAX_LINE_BYTES)
        sender.sendall(b"x\na:1|c\n")
        sender.close()
        counts = self.end(one)
        self.assertEqual((self.events, counts["long_line"]), ([("127.0.0.1", "a", 1.0)], 1))

    def test_of_too_many_connections_the_one_that_was_silent_for_longest_goes(self) -> None:
        self.patch(process, "MAX_CONNECTIONS", 3)
        one, where = self.input("tcp")
        for number in range(4):
            sender = self.socket(socket.AF_INET, socket.SOCK_STREAM)
            sender.connect(where)
            one._now = float(number)
            one._take_connections()
        self.assertEqual(len(one._connections), 3)
        self.assertEqual(min(connection.heard for connection in one._connections.values()), 1.0)
        self.assertEqual(self.end(one)["connections_refused"], 1)

    def test_an_address_with_many_connections_takes_no_place_of_anothers_however_it_drips(self) -> None:
        self.patch(process, "MAX_CONNECTIONS", 4)
        one, where = self.input("tcp")

        def connect(source: str, now: float) -> socket.socket:
            sender = self.socket(socket.AF_INET, socket.SOCK_STREAM)
            sender.bind((source, 0))
            sender.connect(where)
            one._now = now
            one._take_connections()
            return sender

        good = connect("127.0.0.3", 0.0)
        for number in range(1, 20):
            connect("127.0.0.2", float(number)).sendall(b"x")
            for connection in list(one._connections.values()):
                if connection.name == "127.0.0.2":
                    one._take_chunk(connection)
        self.assertEqual(sorted(connection.name for connection in one._connections.values()), ["127.0.0.2"] * 3 + ["127.0.0.3"])
        good.sendall(b"a:1|c\n")
        good.close()
        self.assertEqual((self.end(one)["connections_refused"], self.events), (16, [("127.0.0.3", "a", 1.0)]))

    def test_a_connection_that_is_reset_harms_no_other(self) -> None:
        one, where = self.input("tcp")
        good, bad = (self.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(2))
        for sender in (good, bad):
            sender.connect(where)
        while one._take_connections():
            pass
        good.sendall(b"a:1|c\n")
        bad.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        bad.close()
        good.close()
        self.assertEqual(self.end(one)["events"], 1)

    def test_between_two_looks_at_all_else_it_records_as_much_as_a_turn_has_room_for_and_takes_up_nothing_before_all_of_it_is(self) -> None:
        one, where = self.input("udp")
        sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(where)
        sizes, number = (4000, 500, 500, 500, 1), 0
        for lines in sizes:
            sender.send(b"\r\n".join(b"a:%05d|c" % number for number in range(number, number + lines)))
            number += lines
        turns, before = [], 0
        while True:
            taken, may_be_more = one._take_sheet()
            turns.append((taken, len(self.events) - before))
            before = len(self.events)
            if not may_be_more:
                break
        # the first one takes four turns and a rest that is less than half of one more; of the smaller ones two are more than one
        self.assertEqual(turns[0][0], 1)
        self.assertEqual([taken for taken, _ in turns[1:4]], [0, 0, 0])
        self.assertEqual(sum(taken for taken, _ in turns), len(sizes))
        self.assertLessEqual(max(10 * events for _, events in turns), process.TURN_BYTES * 3 // 2)
        self.assertEqual([value for _, _, value in self.events], [float(place) for place in range(number)])
        self.assertEqual(self.end(one), {"packets": len(sizes), "lines": number, "events": number})

    def test_what_takes_long_to_record_is_recorded_for_as_long_as_a_turn_is_and_a_piece_before_it_looks_at_all_else(self) -> None:
        one, where = self.input("udp")
        sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(where)
        for start in (0, 1000, 1500):  # one that is larger than a turn, and two that together are
            sender.send(b"\n".join(b"a:%05d|c" % number for number in range(start, start + (500 if start else 1000))))
        self.patch(process, "monotonic", lambda: len(self.events) / 1000)  # a record takes a millisecond
        turns, before, may_be_more = [], 0, True
        while may_be_more:
            _, may_be_more = one._take_sheet()
            turns.append(len(self.events) - before)
            before = len(self.events)
        piece = process.PIECE_BYTES * 3 // 2 // 9
        self.assertLessEqual(max(turns), round(process.TURN_SECONDS * 1000) + piece)
        self.assertEqual([value for _, _, value in self.events], [float(place) for place in range(2000)])
        self.assertEqual(self.end(one), {"packets": 3, "lines": 2000, "events": 2000})

    def test_a_line_that_is_longer_than_a_turn_is_refused_whole_and_those_around_it_are_recorded(self) -> None:
        one, where = self.input("udp")
        sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(where)
        sender.send(b"a:1|c\n" + b"x" * 3 * process.TURN_BYTES + b":1|c\nb:2|c\n" + b"y" * 2 * process.TURN_BYTES)
        counts = self.end(one)
        self.assertEqual([event[1:] for event in self.events], [("a", 1.0), ("b", 2.0)])
        self.assertEqual(counts, {"packets": 1, "lines": 4, "events": 2, "long_line": 2})

    def test_while_a_datagram_is_in_hand_it_looks_at_all_else_and_for_its_end_and_what_is_left_is_recorded(self) -> None:
        self.patch(process, "LOOK_SECONDS", 0.0)
        one, where = self.input("udp")
        sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(where)
        sender.send(b"a:1|c\n" * 10_000)
        sender.send(b"b:1|c")
        done: list[str] = []
        look, go_on = one._look, one._go_on

        def looked() -> None:
            done.append("look")
            look()

        def gone_on() -> None:
            done.append("piece")
            if done.count("piece") == 3:  # its Agent ends meanwhile
                os.close(self.agent)
                self.is_agent_alive = False
            go_on()

        self.patch(one, "_look", looked)
        self.patch(one, "_go_on", gone_on)
        one.run(self.life)
        self.assertEqual(done[:6], ["look", "piece"] * 3)
        self.assertEqual(len(self.events), 10_001)
        self.assertEqual(self.desk().counts(3), [2, 10_001, 10_001])

    def test_wherever_it_is_killed_within_a_large_datagram_each_event_is_recorded_once_or_unsure(self) -> None:
        self.patch(process, "TURN_BYTES", 32)
        content = b"\n".join(b"a:%d|c" % number for number in range(30))
        for first in (1, 7, 8, 20, 33, 59, 60):
            self.events.clear()
            one, where = self.input("udp", desk=f"desk{first}", producer=Killing(self.events, first))
            self.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(content, where)
            self.assertRaises(Killed, one._take_packets, 1000)
            one, _ = self.input("udp", desk=f"desk{first}")
            one.take_up()
            recorded = [value for _, _, value in self.events]
            unsure = self.desk(f"desk{first}").counts(len(COUNTS))[PLACE["unsure"]]
            self.assertEqual(recorded, sorted(set(recorded)))
            self.assertIn(30 - len(recorded), (0, unsure))

    def test_between_what_two_connections_have_sent_it_looks_at_all_else_and_for_its_end(self) -> None:
        self.patch(process, "LOOK_SECONDS", 0.0)
        one, where = self.input("tcp")
        senders = [self.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(5)]
        for sender in senders:
            sender.connect(where)
        while one._take_connections():
            pass
        for sender in senders:
            sender.sendall(b"a:1|c\n" * 1000)
        done: list[str] = []
        look, take = one._look, one._take_chunk

        def looked() -> None:
            done.append("look")
            look()

        def taken(connection: process.Connection) -> bool:
            done.append("chunk")
            if done.count("chunk") == 3:  # its Agent ends meanwhile
                os.close(self.agent)
                self.is_agent_alive = False
            return take(connection)

        self.patch(one, "_look", looked)
        self.patch(one, "_take_chunk", taken)
        one.run(self.life)
        self.assertEqual(done[:7], ["look", "chunk"] * 3 + ["look"])
        self.assertNotIn("look", done[7:])  # the end: what the kernel has
        self.assertEqual(len(self.events), 5000)

    def test_who_goes_on_sending_does_not_keep_one_from_its_end(self) -> None:
        self.patch(process, "CHUNK_BYTES", 64)
        one, where = self.input("tcp")
        sender = self.socket(socket.AF_INET, socket.SOCK_STREAM)
        sender.connect(where)
        one._take_connections()
        sender.sendall(b"a:1|c\n" * 100)
        more, taken = one._take_chunk, 0

        def take(connection: process.Connection) -> bool:
            nonlocal taken
            taken += 1
            self.assertLess(taken, 100)
            sender.sendall(b"a:1|c\n" * 20)
            return more(connection)

        self.patch(one, "_take_chunk", take)
        self.assertGreaterEqual(self.end(one)["events"], 100)
        late = self.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.assertRaises(ConnectionRefusedError, late.connect, where)

    def test_without_descriptors_it_waits_for_one_and_then_accepts(self) -> None:
        one, where = self.input("tcp")
        sender = self.socket(socket.AF_INET, socket.SOCK_STREAM)
        sender.connect(where)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        try:
            self.assertFalse(one._take_connections())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        self.assertEqual(one._poll.poll(0), [])  # a process that is told of it again at once does nothing else
        one._look()
        self.assertEqual([descriptor for descriptor, _ in one._poll.poll(0)], [self.sockets[0].fileno()])
        sender.sendall(b"a:1|c\n")
        sender.close()
        self.assertEqual(
            {name: count for name, count in self.end(one).items() if name != "lines"}, {"packets": 1, "events": 1, "connections_refused": 1}
        )

    def test_what_is_wrong_with_its_settings_ends_it_before_it_takes_anything(self) -> None:
        self.patch(os, "environ", {"TABA_RING_BYTES": "many"})
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self.addCleanup(signal.signal, name, signal.getsignal(name))
        self.patch(process, "Desk", None)
        error = self.assertRaises(ValueError, process.main, ["statsd", "udp:8125", "0"])
        self.assertIn("TABA_RING_BYTES", str(error))

    def test_what_finds_no_room_in_the_kernel_is_counted(self) -> None:
        one, where = self.input("udp", kernel=5)
        self.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect(where)
        for _ in range(100):
            sender.send(b"a:1|c|#k:" + b"v" * 1000)
        counts = self.end(one)
        self.assertGreater(counts["kernel"], 5)
        self.assertEqual(counts["events"] + counts["kernel"] - 5, 100)

    def test_a_datagram_that_is_too_long_is_recorded_to_its_last_whole_line(self) -> None:
        one, where = self.input("unix")
        self.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * DATAGRAM_BYTES)
        sender = self.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * DATAGRAM_BYTES)
        sender.connect(where)
        lines = b"a:1|c\n" * (DATAGRAM_BYTES // 6)
        sender.send(lines + b"b:123456789|c")
        counts = self.end(one)
        self.assertEqual((counts["cut"], counts["events"]), (1, DATAGRAM_BYTES // 6))

    def test_what_a_killed_one_had_in_its_hand_is_recorded_by_the_next(self) -> None:
        desk = self.desk()
        content = b"a:1|c\na:2|c\na:3|c"
        desk.sheet()[: len(content)] = content
        desk.hold(len(content), b"10.0.0.1")
        desk.progress[0] = 3  # the second one was begun
        one, _ = self.input("udp")
        one.take_up()
        self.assertEqual(self.events, [("10.0.0.1", "a", 3.0)])
        self.assertEqual(self.end(one), {"packets": 1, "lines": 3, "events": 3, "unsure": 1})

    def test_what_was_recorded_stands_once_though_the_next_one_knows_less_of_what_was_heard_before(self) -> None:
        before = b"_sc|disk|0\ng:1e308|g"
        for first in (b"_sc|disk|0", b"g:+1e308|g"):
            self.events.clear()
            content = first + b"\na:1|c\nb:2|c"
            killed, _ = self.input("udp")
            origin = killed._origins.place("10.0.0.1", killed._now).origin
            origin.reader.read(before)
            desk = self.desk()
            desk.sheet()[: len(content)] = content
            desk.hold(len(content), b"10.0.0.1")
            for number, (record, value, moment) in enumerate(origin.reader.read(content)[:2]):
                record(value, moment)
                desk.progress[0] = 2 * number + 2
            one, _ = self.input("udp")
            one.take_up()
            self.assertEqual(self.events, [("10.0.0.1", "a", 1.0), ("10.0.0.1", "b", 2.0)])
            one._look()

    def test_what_came_from_nobody_knows_where_is_recorded_with_others_and_is_no_origin_too_many(self) -> None:
        self.desk().sheet()[:5] = b"a:1|c"
        one, _ = self.input("udp")
        one.take_up()
        self.assertEqual(self.events, [("others", "a", 1.0)])
        self.assertEqual(self.end(one), {"packets": 1, "lines": 1, "events": 1})

    def test_of_what_is_in_hand_the_packet_that_kills_whoever_reads_it_is_given_up_and_no_other(self) -> None:
        def read(reader: Reader, content: bytes) -> list[Event]:
            if b"bad" in content:
                raise Killed
            return whole(reader, content)

        whole = Reader.read
        self.patch(Reader, "read", read)
        one, where = self.input("udp")
        sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for packet in (b"a:1|c\na:2|c", b"bad:3|c", b"a:4|c", b"bad:5|c", b"a:6|c"):
            sender.sendto(packet, where)
        self.assertRaises(Killed, one._take_packets, 5)
        kills = 0
        while True:
            one, _ = self.input("udp")
            try:
                one.take_up()
                break
            except Killed:
                kills += 1
        self.assertEqual((kills, [value for _, _, value in self.events]), (2 * process.MAX_TRIES, [1.0, 2.0, 4.0, 6.0]))
        self.assertEqual(self.end(one), {"packets": 3, "lines": 4, "events": 4, "given_up": 2})

    def test_packets_of_several_origins_are_recorded_in_order_each_under_its_own(self) -> None:
        one, where = self.input("udp")
        names = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
        senders = []
        for name in names:
            sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sender.bind((name, 0))
            senders.append((name, sender))
        expected = []
        for number in range(2 * MAX_PACKETS + 7):
            name, sender = senders[(number // 3) % 2 if number < 40 else number % 3]
            sender.sendto(b"a:%d|c" % number, where)
            expected.append((name, "a", float(number)))
            if number % 10 == 0:
                sender.sendto(b"", where)
        self.assertFalse(one._take_packets(1000))
        self.assertEqual(self.events, expected)
        packets = len(expected) + -(-len(expected) // 10)
        self.assertEqual(self.end(one), {"packets": packets, "lines": len(expected), "events": len(expected)})

    def test_wherever_it_is_killed_with_packets_of_several_in_its_hand_each_event_is_recorded_once_or_unsure(self) -> None:
        packets = (
            ("127.0.0.1", b"a:1|c\na:2|c"),
            ("127.0.0.2", b"b:3|c\ng:+4|g"),
            ("127.0.0.1", b"a:5|c"),
            ("127.0.0.1", b"a:6|c"),
        )
        expected = [("127.0.0.1", "a", 1.0), ("127.0.0.1", "a", 2.0), ("127.0.0.1", "a", 5.0), ("127.0.0.1", "a", 6.0)]
        expected += [("127.0.0.2", "b", 3.0), ("127.0.0.2", "g", 4.0)]
        for first in range(1, 2 * len(expected) + 2):
            for later in range(4):
                self.events.clear()
                producer = Killing(self.events, first)
                one, where = self.input("udp", desk=f"desk{first}.{later}", producer=producer)
                for source, content in packets:
                    sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    sender.bind((source, 0))
                    sender.sendto(content, where)
                kills = 0
                try:
                    one._take_packets(10)
                except Killed:
                    kills += 1
                while kills and one._desk._words[1] != one._desk._words[2]:
                    producer.left = later if kills < 4 else 0
                    one, _ = self.input("udp", desk=f"desk{first}.{later}", producer=producer)
                    try:
                        one.take_up()
                    except Killed:
                        kills += 1
                unsure = one._counts[PLACE["unsure"]]
                missing = sorted(set(expected) - set(self.events))
                self.assertEqual(sorted([*self.events, *missing]), sorted(expected), (first, later))
                self.assertTrue(len(missing) <= unsure <= kills and one._counts[:3].tolist() == [4, 6, 6], (first, later))

    def test_origins_beyond_the_bound_are_counted(self) -> None:
        one, where = self.input("udp")
        for number in range(MAX_ORIGINS):
            one._origins.place(f"10.0.0.{number}", one._now)
        sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.sendto(b"a:1|c", where)
        counts = self.end(one)
        self.assertEqual((self.events, counts["beyond_origins"]), ([("others", "a", 1.0)], 1))

    def test_events_and_checks_are_notes_as_many_as_may_be_and_the_rest_is_counted(self) -> None:
        one, where = self.input("udp")
        sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
        before = time.time()
        sender.sendto(b"_e{1,1}:a|b\n_sc|disk|2|d:17\na:1|c", where)
        one._take_packets(5)
        desk = self.desk()
        text, moment = desk.next_note() or ("", 0.0)
        self.assertEqual((text, before <= moment <= time.time()), ("a: b", True))
        desk.settle_note(is_refused=False)
        self.assertEqual((desk.next_note(), self.events), (("disk is critical", 17.0), [("127.0.0.1", "a", 1.0)]))
        self.patch(Allowance, "AT_ONCE", 1000)
        one._allowance = Allowance(one._now)
        for _ in range(MAX_NOTES):
            sender.sendto(b"_e{1,1}:a|b", where)
        one._take_packets(100)
        one._allowance._left = 0.0
        sender.sendto(b"_e{1,1}:a|b", where)
        counts = self.end(one)
        self.assertEqual((counts["notes"], counts["notes_no_room"], counts["notes_too_many"]), (MAX_NOTES + 1, 1, 1))
        self.assertEqual(
            (counts["event"], counts["service_check"], counts["events"], counts["lines"]), (MAX_NOTES + 2, 1, 1, MAX_NOTES + 4)
        )

    def test_counts_go_on_where_an_earlier_process_left_them(self) -> None:
        for expected in (1, 2):
            one, where = self.input("udp")
            sender = self.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sender.sendto(b"a:1|c", where)
            one._take_packets(5)
            one._look()
            self.assertEqual(self.desk().counts(3), [expected, expected, expected])
