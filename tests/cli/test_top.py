"""`taba top`: what keys do, how it looks, and the whole of it on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.cli.top import MAX_FILTER, MAX_PROBLEMS, SORTS, Asker, Screen, Seen, Wanted, drops_of, keys_of
from tests.patience import PATIENCE_SECONDS
from tests.services import Services

HEIGHT = 20
ROOM = Screen.room(HEIGHT)


def rows(count: int) -> Seen:
    lines: list[dict[str, Any]] = [{"name": f"t{number}", "rate": 1.0, "1h": 3, "clients": 2} for number in range(count)]
    return Seen(Wanted("moves", "", 0, ROOM), lines)


class Keys(SynchronousTestCase):
    def test_bytes_are_keys(self) -> None:
        self.assertEqual(list(keys_of(b"q\x1b[A\x1b[6~\x1b\r\x7f")), ["q", "up", "page down", "back", "enter", "delete"])
        self.assertEqual(list(keys_of("ü→".encode())), ["ü", "→"])
        self.assertEqual(list(keys_of(b"\x1b[1;5Cq\x1b[")), ["q"])
        self.assertEqual(list(keys_of(b"\xff")), ["\ufffd"])

    def press(self, screen: Screen, seen: Seen, *keys: str) -> None:
        for key in keys:
            screen.press(key, seen, HEIGHT)

    def test_rows_are_chosen_and_scrolled_and_never_beyond_the_last(self) -> None:
        screen, full = Screen(), rows(ROOM)
        self.press(screen, full, "up", "down", "j", "k")
        self.assertEqual((screen.offset, screen.place), (0, 1))
        self.press(screen, full, *["down"] * ROOM)
        self.assertEqual((screen.offset, screen.place), (2, ROOM - 1))
        self.press(screen, full, "page down")
        self.assertEqual((screen.offset, screen.place), (ROOM + 2, ROOM - 1))
        self.press(screen, rows(3), "down", "down", "down")  # fewer than fit: those are the last
        self.assertEqual(screen.offset + screen.place, ROOM + 2 + 2)
        self.press(screen, full, "first")
        self.assertEqual((screen.offset, screen.place), (0, 0))
        self.press(screen, rows(0), "down", "enter")
        self.assertEqual((screen.place, screen.tab), (0, None))

    def test_sort_filter_and_drill(self) -> None:
        screen, seen = Screen(), rows(3)
        self.press(screen, seen, "s")
        self.assertEqual(screen.sort, SORTS[1])
        self.press(screen, seen, "S", "S")
        self.assertEqual(screen.sort, SORTS[-1])
        self.press(screen, seen, "/", "a", "q", "b", "delete", "enter")
        self.assertEqual((screen.match, screen.typed, screen.is_over), ("aq", None, False))
        self.press(screen, seen, "/", "x", "back")
        self.assertEqual((screen.match, screen.typed), ("aq", None))
        self.press(screen, seen, "/", *["x"] * (MAX_FILTER + 1), "enter")
        self.assertEqual(len(screen.match), MAX_FILTER)
        self.press(screen, seen, "back", "down", "enter")
        self.assertEqual((screen.match, screen.wanted(HEIGHT)), ("", Wanted(SORTS[-1], "", 0, ROOM, "t1")))
        self.press(screen, seen, "q")
        self.assertEqual((screen.tab, screen.is_over), (None, False))
        self.press(screen, seen, "q")
        self.assertTrue(screen.is_over)


class Looks(SynchronousTestCase):
    def draw(self, screen: Screen, seen: Seen, width: int = 79, height: int = HEIGHT, is_ascii: bool = False) -> list[str]:
        lines = screen.draw(seen, "http://x", "12:00:00", width, height, is_ascii).plain.split("\n")
        self.assertLessEqual(len(lines), height)
        self.assertLessEqual(max(map(len, lines)), width)
        return lines

    def test_it_fills_the_screen_and_no_more(self) -> None:
        for width, height in ((79, 20), (200, 60), (20, 5), (1, 1)):
            for seen in (Seen(), rows(3), rows(500), rows(3)._replace(problems=("p" * 300,) * 9, drops="d")):
                screen = Screen()
                self.assertEqual(len(self.draw(screen, seen, width, height)), height)

    def test_problems_and_drops_are_told(self) -> None:
        seen = rows(2)._replace(drops=drops_of({"dropped_by_reason": {"ring_full": 1200, "x": 0}}, {}), problems=("a", "b", "c", "d"))
        text = "\n".join(self.draw(Screen(), seen))
        self.assertIn("dropped or dead: ring_full 1,200", text)
        self.assertIn(f"{4 - MAX_PROBLEMS + 1} more problems", text)
        self.assertIn("! gone", "\n".join(self.draw(Screen(), seen._replace(error="gone\x1b[2J"))))
        self.assertNotIn("\x1b", "\n".join(self.draw(Screen(), seen._replace(error="gone\x1b[2J"))))

    def test_the_clients_of_a_tab(self) -> None:
        screen = Screen()
        screen.tab = "render_seconds"
        who = {
            "path": "1h.p99",
            "unit": "seconds",
            "clients": 2,
            "skew": 1.5,
            "greatest": [{"client": "web/1", "value": 0.0012, "share": 0.75}, {"client": "ü" * 100, "value": None, "share": None}],
        }
        text = "\n".join(self.draw(screen, Seen(Wanted("moves", "", 0, ROOM, screen.tab), who=who)))
        self.assertRegex(text, r"web/1 +1\.2 ms +75\.0% █████")
        self.assertTrue("█" not in "\n".join(self.draw(screen, Seen(Wanted("moves", "", 0, ROOM, screen.tab), who=who), is_ascii=True)))
        self.assertNotIn("web/1", "\n".join(self.draw(screen, Seen(Wanted("moves", "", 0, ROOM, "other"), who=who))))


class Asks(SynchronousTestCase):
    def test_what_several_answers_leave_out_is_said_once(self) -> None:
        left_out: list[str] = []

        class Server:
            def overview(self, **_: Any) -> list[dict[str, Any]]:
                left_out.extend(["1 of 2 buckets is away", "another", "1 of 2 buckets is away"])
                return []

            def status(self) -> dict[str, Any]:
                return {}

        asker = Asker(Server(), Server(), False, Wanted("moves", "", 0, ROOM), -1, left_out)  # type: ignore[arg-type]
        self.addCleanup(os.close, asker._woken)
        self.addCleanup(os.close, asker._wake)
        self.assertRaises(OSError, asker.run)  # nobody is there to be told of the first answer
        self.assertEqual(asker.seen.problems, ("1 of 2 buckets is away", "another"))


class OnATerminal(SynchronousTestCase):
    def test_it_shows_what_moves_and_leaves_the_terminal_as_it_was(self) -> None:
        services = Services()
        self.addCleanup(services.stop)
        services.start_server()
        events: list[Any] = [{"tab": name, "type": "CounterGroup", "value": 1} for name in ("hits", "hits", "misses")]
        services.query.post_events("web/1", events)
        services.query.post_events("web/2", [{"tab": "odd", "type": "NoSuchType", "value": 1}])
        main, terminal = pty.openpty()
        self.addCleanup(os.close, main)
        self.addCleanup(os.close, terminal)
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        before = termios.tcgetattr(terminal)
        environ = {key: value for key, value in services.environ.items() if key not in ("COLUMNS", "LINES")}
        process = subprocess.Popen(
            [sys.executable, "-m", "taba.cli.main", "top"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**environ, "TERM": "xterm"},
        )
        self.addCleanup(process.wait, 30)
        self.addCleanup(process.kill)
        shown = b""

        def until(pattern: str) -> None:
            nonlocal shown
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace")), re.DOTALL):
                self.assertLess(time.monotonic(), deadline, shown[-3000:])
                self.assertIsNone(process.poll(), shown[-3000:])
                if select.select([main], [], [], 1.0)[0]:
                    shown += os.read(main, 65536)

        until(r"hits .*misses .*dropped or dead: unknown_type 1")
        shown = b""
        os.write(main, b"\r")
        until("hits.*1h.count: 1 Client,.*web/1 .*100.0%")
        shown = b""
        os.write(main, b"\x1b")
        until("NAME")
        shown = b""
        os.write(main, b"/mis\r")
        until("with mis.*misses")
        shown = b""
        ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        process.send_signal(signal.SIGWINCH)
        until("MAX.*TREND")
        services.kill_server()
        shown = b""
        until("! no Server answers")
        os.write(main, b"q")
        self.assertEqual(process.wait(30), 0)
        self.assertEqual(termios.tcgetattr(terminal)[3], before[3])

    def test_elsewhere_it_says_what_it_takes(self) -> None:
        done = subprocess.run([sys.executable, "-m", "taba.cli.main", "top"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn("takes a terminal", done.stderr)
