"""How an Agent holds its inputs: sockets, restarts, and what it says of them."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from array import array
from random import Random
from typing import Any

from twisted.internet import defer
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from taba.agent.inputs import DIES_AGAIN, HANGS_SECONDS, LAST_RESTART_SECONDS, LOSSES, STEADY_SECONDS, Input, Inputs, bound
from taba.agent.lanes import Backoff
from taba.agent.noting import PATIENCE_SECONDS, Noting
from taba.agent.options import Options
from taba.agent.problems import LOSS_SHOWN_SECONDS
from taba.desk import COUNTS, NOT_UNDERSTOOD, PLACE, Desk, desk_path, open_desk
from taba.errors import NoVerdicts
from taba.receiving import receiving
from tests.processes import free_port


class FakeProcess:
    """A process that does what the test says."""

    def __init__(self, pid: int):
        self.pid, self.is_told_to_end, self.signals = pid, False, []

    signals: list[str]

    def closeStdin(self) -> None:
        self.is_told_to_end = True

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)


class FakeReactor(Clock):
    """A clock that starts no real process."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[FakeProcess] = []
        self.is_out_of_processes = False

    def spawnProcess(self, protocol: Any, *arguments: Any, **keywords: Any) -> FakeProcess:
        if self.is_out_of_processes:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.started.append(FakeProcess(1000 + len(self.started)))
        return self.started[-1]


KILLED = Failure(ProcessTerminated(signal=9))
DONE = Failure(ProcessDone(0))


class AnInput(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.makedirs(self.directory)
        self.reactor = FakeReactor()

    def input(self, text: str = "") -> Input:
        address = receiving(text or f"udp:{free_port()}")
        one = Input(self.reactor, "statsd", address, "x", self.directory, {}, Random(1))
        one.start()
        self.addCleanup(self.stop, one)
        return one

    def stop(self, one: Input) -> None:
        if one._socket is not None:
            done = one.stop()
            if one._process is not None:
                one.processEnded(DONE)
            self.successResultOf(done)

    def count(self, one: Input, **counts: int) -> None:
        """Its process counts so much."""
        descriptor = open_desk(desk_path("x", one.address.text, self.directory))
        self.addCleanup(os.close, descriptor)
        desk = Desk(descriptor)
        desk.show(b"rubbish")
        desk.count(array("Q", [counts.get(name, 0) for name in COUNTS]))

    def test_what_dies_is_started_again_after_growing_pauses_and_what_lives_long_begins_anew(self) -> None:
        one = self.input()
        for failures in range(1, 12):
            one.processEnded(KILLED)
            self.assertEqual(one.state, "starting")
            self.reactor.advance(LAST_RESTART_SECONDS)
            self.assertEqual((len(self.reactor.started), one.restarts), (1 + failures, failures))
        self.count(one)
        self.assertEqual(one.state, "receiving")
        self.reactor.advance(STEADY_SECONDS)
        one.processEnded(KILLED)
        self.reactor.advance(1.0)
        self.assertEqual(len(self.reactor.started), 13)

    def test_what_a_process_that_died_wrote_anywhere_is_nothing_that_the_next_one_is_measured_by(self) -> None:
        one = self.input()
        self.count(one)
        self.assertEqual(one.state, "receiving")
        assert one._desk is not None
        one._desk._words[2] = 1 << 63
        one.processEnded(KILLED)
        self.reactor.advance(LAST_RESTART_SECONDS)
        self.assertEqual((one.state, one.counts()["given_up"]), ("starting", 1))
        self.count(one)
        self.assertEqual(one.state, "receiving")

    def test_what_dies_again_and_again_is_a_problem_with_what_it_said_last(self) -> None:
        one = self.input()
        for _ in range(DIES_AGAIN):
            self.assertEqual(one.look(0.0), {})
            one.errReceived(b"Traceback\nBoom: at last\n")
            one.processEnded(KILLED)
            self.reactor.advance(LAST_RESTART_SECONDS)
        (sentence,) = one.look(self.reactor.seconds()).values()
        self.assertIn("failed 3 times in a row", sentence)
        self.assertIn("Boom: at last", sentence)
        self.assertEqual(one.look(self.reactor.seconds() + STEADY_SECONDS), {})

    def test_what_is_taken_is_a_problem_until_it_is_free(self) -> None:
        port = free_port()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind(("127.0.0.1", port))
            one = self.input(f"udp:{port}")
            self.assertEqual(one.state, "unbound")
            (sentence,) = one.look(0.0).values()
            self.assertIn("Address already in use", sentence)
        self.reactor.advance(LAST_RESTART_SECONDS)
        self.assertEqual((one.state, one.look(0.0)), ("starting", {}))

    def test_where_no_process_can_be_started_it_is_tried_again_and_is_a_problem(self) -> None:
        self.reactor.is_out_of_processes = True
        one = self.input()
        for _ in range(DIES_AGAIN):
            self.reactor.advance(LAST_RESTART_SECONDS)
        (sentence,) = one.look(self.reactor.seconds()).values()
        self.assertIn("cannot be started: Resource temporarily unavailable", sentence)
        self.assertEqual((one.state, one.describe()["pid"], one.restarts), ("starting", None, 0))
        self.reactor.is_out_of_processes = False
        self.reactor.advance(LAST_RESTART_SECONDS)
        self.assertEqual(len(self.reactor.started), 1)

    def test_an_end_while_no_process_can_be_started_starts_none(self) -> None:
        self.reactor.is_out_of_processes = True
        one = self.input()
        self.successResultOf(one.stop())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_a_desk_at_which_an_earlier_agents_input_still_works_is_left_to_it(self) -> None:
        address = receiving(f"tcp:{free_port()}")
        earlier = open_desk(desk_path("x", address.text, self.directory))
        fcntl.flock(earlier, fcntl.LOCK_EX)
        one = self.input(address.text)
        self.assertEqual((one.state, self.reactor.started), ("unbound", []))
        self.assertIn("still being recorded", *one.look(0.0).values())
        os.close(earlier)
        self.reactor.advance(LAST_RESTART_SECONDS)
        self.assertEqual((one.state, len(self.reactor.started)), ("starting", 1))

    def test_a_desk_that_cannot_be_had_is_told_with_its_path(self) -> None:
        address = receiving(f"udp:{free_port()}")
        path = desk_path("x", address.text, self.directory)
        os.mkdir(path)
        one = self.input(address.text)
        self.assertIn(f"{path}: Is a directory", *one.look(0.0).values())

    def test_an_end_waits_for_its_process_and_no_longer_than_it_takes(self) -> None:
        one = self.input()
        done = one.stop()
        self.assertNoResult(done)
        self.assertTrue(self.reactor.started[0].is_told_to_end)
        self.reactor.advance(1000.0)
        self.assertEqual(self.reactor.started[0].signals, ["KILL"])
        one.processEnded(KILLED)
        self.successResultOf(done)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(len(os.listdir(self.directory)), 1)  # what a killed one had in its hand is the next Agent's

    def test_what_ends_as_it_should_leaves_nothing_behind(self) -> None:
        one = self.input()
        done = one.stop()
        one.processEnded(DONE)
        self.successResultOf(done)
        self.assertEqual(os.listdir(self.directory), [])
        self.assertEqual(one.counts(), dict.fromkeys(COUNTS, 0))

    def test_notes_that_no_server_has_yet_are_left_for_the_next_agent(self) -> None:
        one = self.input()
        self.assertEqual((one.next_note(), one.notes()), (None, {"waiting": 0, "posted": 0, "refused": 0}))
        descriptor = open_desk(desk_path("x", one.address.text, self.directory))
        self.addCleanup(os.close, descriptor)
        for text in ("a", "b", "c"):
            Desk(descriptor).note(text, 17.0)
        for is_refused in (False, True):
            one.settle_note(is_refused)
        self.assertEqual((one.next_note(), one.describe()["notes"]), (("c", 17.0), {"waiting": 1, "posted": 1, "refused": 1}))
        done = one.stop()
        one.processEnded(DONE)
        self.successResultOf(done)
        self.assertEqual((one.next_note(), one.notes()["waiting"]), (None, 0))
        one.settle_note(False)
        another = self.input(one.address.text)
        self.assertEqual(another.next_note(), ("c", 17.0))
        another.settle_note(False)
        self.stop(another)
        self.assertEqual(os.listdir(self.directory), [])

    def test_all_of_an_agents_inputs_post_by_one_and_tell_what_waits(self) -> None:
        made: list[Noting] = []

        def noting(inputs: list[Input]) -> Noting:
            async def post(text: str, time: float) -> bool:
                raise NoVerdicts("nobody")

            made.append(Noting(inputs, post, self.reactor.seconds, Backoff(Random(1))))
            return made[0]

        one = self.input()
        assert one._desk is not None
        one._desk.note("a", 1.0)
        inputs = Inputs([one], noting)
        inputs.tick()
        self.reactor.advance(PATIENCE_SECONDS)
        self.assertIn("notes of inputs wait (1)", inputs.look(self.reactor.seconds())["notes"])
        stopped = defer.ensureDeferred(inputs.stop())
        one.processEnded(DONE)
        self.successResultOf(stopped)
        self.assertEqual(made[0]._not_before, float("inf"))

    def test_an_end_between_two_processes_starts_none(self) -> None:
        one = self.input()
        one.processEnded(KILLED)
        self.successResultOf(one.stop())
        self.reactor.advance(100.0)
        self.assertEqual(len(self.reactor.started), 1)

    def test_what_is_lost_or_not_understood_is_told_for_an_hour_with_its_count(self) -> None:
        for reason in (*LOSSES, *NOT_UNDERSTOOD):
            one = self.input()
            self.count(one, **{reason: 7})
            (sentence,) = one.look(10.0).values()
            self.assertIn("7 ", sentence)
            self.assertEqual("rubbish" in sentence, reason in NOT_UNDERSTOOD)
            for later, told in ((10.0, 1), (11.0, 0)):
                self.count(one, **{reason: 7})
                self.assertEqual(len(one.look(later + LOSS_SHOWN_SECONDS)), told)

    def test_what_an_earlier_agent_told_of_is_nothing_new_and_what_came_since_is(self) -> None:
        address = f"udp:{free_port()}"
        for counts, told in (({"kernel": 7}, 1), ({"kernel": 7}, 0), ({"kernel": 8}, 1)):
            one = self.input(address)
            self.count(one, **counts)
            self.assertEqual(len(one.look(10.0)), told)
            self.reactor.advance(0)
            one.abandon()  # as a kill leaves it: the desk stays

    def test_one_that_gives_no_sign_is_shown_as_hanging_until_it_gives_one(self) -> None:
        one = self.input()
        for begins in (0.0, 100.0):
            self.assertEqual(one.look(begins), {})
            self.assertEqual(one.look(begins + 2 * HANGS_SECONDS), {})  # it did not begin: it is starting
            self.count(one)
            self.reactor.rightNow = begins + 30.0
            self.assertEqual((one.look(begins + 30.0), one.state), ({}, "receiving"))
            self.reactor.rightNow = begins + 29.9 + HANGS_SECONDS
            self.assertEqual((one.look(self.reactor.seconds()), one.state), ({}, "receiving"))
            self.reactor.rightNow = begins + 30.0 + HANGS_SECONDS
            (sentence,) = one.look(self.reactor.seconds()).values()
            self.assertIn(f"kill -9 {1000 + one.restarts}", sentence)
            self.assertEqual(one.state, "hanging")
            self.count(one)
            self.assertEqual((one.look(self.reactor.seconds()), one.state), ({}, "receiving"))
            one.processEnded(KILLED)
            self.reactor.advance(LAST_RESTART_SECONDS)
            self.assertEqual(one.state, "starting")

    def test_a_desk_of_garbage_keeps_nothing_from_being_received(self) -> None:
        address = receiving(f"udp:{free_port()}")
        descriptor = open_desk(desk_path("x", address.text, self.directory))
        self.addCleanup(os.close, descriptor)
        os.pwrite(descriptor, b"\xff" * 4000, 8)
        one = self.input(address.text)
        self.assertEqual(one.state, "starting")
        self.assertEqual({name: count for name, count in one.counts().items() if count}, {"given_up": 1})

    def test_an_agent_that_cannot_start_leaves_nothing_but_what_an_earlier_one_had_in_hand(self) -> None:
        address = receiving(f"udp:{free_port()}")
        for is_used in (False, True):
            one = Input(self.reactor, "statsd", address, "x", self.directory, {}, Random(1))
            self.assertTrue(one.open())
            if is_used:
                self.count(one)
            one.abandon()
            self.assertEqual(len(os.listdir(self.directory)), is_used)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind((address.place, address.port))  # it is free
        self.assertEqual(self.reactor.started, [])

    def test_what_others_reach_is_a_problem_as_long_as_it_is_so(self) -> None:
        one = self.input(f"udp:{free_port()}:interface=0.0.0.0")
        (sentence,) = one.look(0.0).values()
        self.assertIn("--insecure", sentence)

    def test_a_status_shows_state_and_counts(self) -> None:
        one = self.input()
        self.count(one, lines=5, kernel=2)
        shown = one.describe()
        self.assertEqual((shown["state"], shown["pid"], shown["counts"]["lines"], shown["restarts"]), ("receiving", 1000, 5, 0))
        self.assertEqual((shown["kind"], shown["address"], shown["example"]), ("statsd", one.address.text, "rubbish"))
        self.assertEqual(PLACE["packets"], 0)


class Sockets(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.makedirs(self.directory)
        self.path = os.path.join(os.path.abspath(self.directory), "s")
        if len(self.path) > 90:  # the kernel takes no longer ones
            self.path = f"/tmp/taba-test-{os.getpid()}.s"

    def test_a_file_that_a_killed_one_left_is_replaced_and_one_that_is_in_use_is_not(self) -> None:
        address = receiving(f"unix:{self.path}:mode=0660")
        first, _ = bound(address)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o660)
        self.assertRaises(OSError, bound, address)
        first.close()
        second, file = bound(address)
        self.addCleanup(os.unlink, self.path)
        self.addCleanup(second.close)
        self.assertEqual(file, (os.stat(self.path).st_dev, os.stat(self.path).st_ino))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(self.path)
            sender.send(b"x")
        self.assertEqual(second.recv(10), b"x")

    def test_nobody_else_reaches_it_before_it_has_its_mode_whatever_the_umask(self) -> None:
        modes: list[int] = []
        chmod = os.chmod

        def seen(path: str, mode: int) -> None:
            modes.append(stat.S_IMODE(os.stat(path).st_mode))
            chmod(path, mode)

        self.patch(os, "chmod", seen)
        self.addCleanup(os.umask, os.umask(0))
        made, _ = bound(receiving(f"unix:{self.path}:mode=0660"))
        self.addCleanup(os.unlink, self.path)
        made.close()
        self.assertEqual((modes, os.umask(0)), ([0o600], 0))

    def test_a_file_that_is_no_socket_stays(self) -> None:
        with open(self.path, "w") as file:
            file.write("mine")
        self.addCleanup(os.unlink, self.path)
        self.assertRaises(OSError, bound, receiving(f"unix:{self.path}"))
        with open(self.path) as file:
            self.assertEqual(file.read(), "mine")


class TheOption(SynchronousTestCase):
    def line(self, *arguments: str, **environ: str) -> str:
        return str(self.assertRaises(SystemExit, Options({"STATE_DIRECTORY": self.mktemp(), **environ}).parseOptions, list(arguments)))

    def test_it_may_be_repeated_and_come_from_the_environment(self) -> None:
        options = Options({"TABA_AGENT_STATSD": "udp:8125, unix:/run/x.sock", "XDG_STATE_HOME": "/tmp"})
        options.parseOptions([])
        self.assertEqual([one.kind for one in options["statsd"]], ["udp", "unix"])
        options = Options({"XDG_STATE_HOME": "/tmp"})
        options.parseOptions(["--statsd", "udp:1", "--statsd", "tcp:2"])
        self.assertEqual([one.port for one in options["statsd"]], [1, 2])

    def test_what_it_does_not_take_is_one_line(self) -> None:
        for text in ("8125", "udp:x", "unix:x", "udp:1:interface=x"):
            line = self.line("--statsd", text)
            self.assertTrue(line.startswith(f"taba-agent: --statsd: {text!r}: takes udp:PORT"), line)
        self.assertIn("TABA_AGENT_STATSD: 'no'", self.line(TABA_AGENT_STATSD="no"))

    def test_off_loopback_it_takes_insecure(self) -> None:
        line = self.line("--statsd", "udp:8125:interface=0.0.0.0")
        self.assertIn("--insecure", line)
        self.assertEqual(line.count("\n"), 0)
        options = Options({"XDG_STATE_HOME": "/tmp"})
        options.parseOptions(["--insecure", "--statsd", "udp:8125:interface=0.0.0.0"])
        self.assertFalse(options["statsd"][0].is_local)
