"""`taba top`: what moves, live on the whole screen.

What keys do and how it looks is pure; a thread asks, so that keys never wait for a Server.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from shutil import get_terminal_size
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from taba.bounds import MAX_ROWS
from taba.cli import show
from taba.cli.figures import head, knows_ascii_only, row
from taba.cli.sharing import SERVER, TIMEOUT, query_of
from taba.cli.units import scaled
from taba.plural import many
from taba.query import Query, QueryError, questions

EVERY_SECONDS = 1.0
STATUS_SECONDS = 5.0  # between two looks at problems and drops
SORTS = ("moves", "rate", "trend", "1m", "1h", "p50", "p99", "max", "clients", "value", "name")
MAX_PROBLEMS = 3  # lines at the bottom; taba status has them all
MAX_FILTER = 200  # characters
KEYS = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "first",
    b"\x1b[1~": "first",
    b"\x1b": "back",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "delete",
    b"\x08": "delete",
    b"\x03": "quit",
    b"\x04": "quit",
}


class Wanted(NamedTuple):
    """What is asked of the Server: rows, or the Clients of one Tab."""

    sort: str
    match: str
    offset: int
    limit: int
    tab: str | None = None


class Seen(NamedTuple):
    """What came back: `rows` of what was `wanted`, how all does, and why there is no answer."""

    wanted: Wanted | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    who: Mapping[str, Any] | None = None
    drops: str = ""
    problems: tuple[str, ...] = ()
    error: str = ""


class Screen:
    """What is shown, and what keys change about it. Pure."""

    def __init__(self) -> None:
        self.sort, self.match = SORTS[0], ""
        self.offset = self.place = 0  # the first row that is shown; the one that is chosen, from there
        self.tab: str | None = None
        self.typed: str | None = None  # a filter that is being typed
        self.is_over = False

    def wanted(self, height: int) -> Wanted:
        """What to ask for, for a screen of so many lines."""
        return Wanted(self.sort, self.match, self.offset, self.room(height), self.tab)

    @staticmethod
    def room(height: int) -> int:
        """How many rows there are on the screen."""
        return max(1, min(height - 4 - MAX_PROBLEMS, MAX_ROWS))

    def press(self, key: str, seen: Seen, height: int) -> None:
        """One key: a name of KEYS, or a character."""
        if key == "quit":
            self.is_over = True
        elif self.typed is not None:
            self._type(key)
        elif self.tab is not None:
            if key in ("back", "enter", "delete", "q"):
                self.tab = None
        elif key == "q":
            self.is_over = True
        elif key == "/":
            self.typed = self.match
        elif key in ("s", "S"):
            step = 1 if key == "s" else -1
            self.sort, self.offset, self.place = SORTS[(SORTS.index(self.sort) + step) % len(SORTS)], 0, 0
        elif key == "back":
            self.match, self.offset, self.place = "", 0, 0
        elif key == "enter":
            if self.place < len(seen.rows):
                self.tab = seen.rows[self.place]["name"]
        else:
            self._move(key, len(seen.rows), self.room(height))

    def _type(self, key: str) -> None:
        assert self.typed is not None
        if key == "enter":
            self.match, self.typed, self.offset, self.place = self.typed, None, 0, 0
        elif key == "back":
            self.typed = None
        elif key == "delete":
            self.typed = self.typed[:-1]
        elif len(key) == 1 and key.isprintable() and len(self.typed) < MAX_FILTER:
            self.typed += key

    def _move(self, key: str, rows: int, room: int) -> None:
        step = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -room, "page down": room, "first": -self.offset - self.place}.get(key, 0)
        at = max(0, self.offset + self.place + step)
        if rows < room:  # nothing comes after these
            at = min(at, self.offset + max(0, rows - 1))
        if not self.offset <= at < self.offset + room:
            self.offset = max(0, at - (room - 1) if at > self.offset else at)
        self.place = at - self.offset

    def draw(self, seen: Seen, where: str, clock: str, width: int, height: int, is_ascii: bool = False) -> Text:
        """The whole screen."""
        lines = [Text(f"taba top  {show.plain(where)}  {clock}", style="bold")]
        lines += self._of_tab(seen, width, is_ascii) if self.tab is not None else self._of_rows(seen, width, is_ascii)
        foot = [Text(seen.drops, style="bold red")] if seen.drops else []
        problems = seen.problems[:MAX_PROBLEMS]
        if len(seen.problems) > MAX_PROBLEMS:
            problems = (*problems[:-1], f"{len(seen.problems) - MAX_PROBLEMS + 1} more problems: taba status")
        foot += [Text(f"! {show.plain(problem)}", style="yellow") for problem in problems]
        if seen.error:
            foot = [Text(f"! {show.plain(seen.error)}", style="bold red")]
        room = max(1, height - len(foot) - 1)
        lines = [*lines[:room], *[Text("")] * (room - len(lines)), *foot, Text(self._help(), style="dim")]
        for line in lines:
            line.truncate(width, overflow="crop")
            line.no_wrap = True
        return Text("\n", no_wrap=True).join(lines[:height])

    def _of_rows(self, seen: Seen, width: int, is_ascii: bool) -> list[Text]:
        about = f"sorted by {self.sort}" + (f", with {show.plain(self.match)}" if self.match else "")
        lines = [Text(about, style="cyan"), Text(head(width), style="bold dim")]
        for place, line in enumerate(seen.rows):
            style = "red" if "error" in line else ""
            lines.append(Text(row(line, width, is_ascii), style="reverse" if place == self.place else style))
        if not seen.rows and seen.wanted is not None and not seen.error:
            lines.append(Text("nothing matches", style="dim"))
        return lines

    def _of_tab(self, seen: Seen, width: int, is_ascii: bool) -> list[Text]:
        lines = [Text(show.plain(self.tab or ""), style="bold cyan")]
        found = seen.who
        if found is None or seen.wanted is None or seen.wanted.tab != self.tab:
            return lines
        told = f"{found['path'] or 'no figure'}: {many(found['clients'], 'Client')}, skew {scaled(found['skew'])}"
        lines.append(Text(show.plain(told), style="dim"))
        if "error" in found:
            lines.append(Text(show.plain(found["error"]), style="red"))
        room = max(20, width - 30)
        for item in found["greatest"]:
            share = item["share"]
            bar = (("#" if is_ascii else "█") * round(10 * min(1.0, share))) if share is not None and share > 0 else ""
            value = show.number(show.figure((found["path"] or "").rpartition(".")[2], item["value"], found.get("unit")))
            text = f"{show.plain(item['client'])[:room].ljust(room)} {value:>12} {'-' if share is None else f'{100 * share:.1f}%':>6} {bar}"
            lines.append(Text(text))
        return lines

    def _help(self) -> str:
        if self.typed is not None:
            return f"/{show.plain(self.typed)}_   enter: show names with this, also * and ?   esc: leave it"
        if self.tab is not None:
            return "esc: back   q: back   ctrl-c: end"
        return "s: sort   /: filter   arrows: choose   enter: its Clients   esc: all   q: end"


def ask(query: Query, wanted: Wanted) -> Seen:
    """What the Server says to it. Raises QueryError."""
    if wanted.tab is not None:
        found = query.who(name=wanted.tab, limit=wanted.limit)
        gone: dict[str, Any] = {"path": None, "clients": 0, "skew": None, "greatest": [], "error": "there is no such Tab any more"}
        return Seen(wanted, who=found.get(wanted.tab, gone))
    text = wanted.match
    name = {"name": text if any(wild in text for wild in "*?") else f"*{text}*"} if text else {}
    return Seen(wanted, query.overview(sort=wanted.sort, limit=wanted.limit, offset=wanted.offset, **name))


def drops_of(*statuses: Mapping[str, Any]) -> str:
    """What was dropped or buried, in one line; "" where nothing was."""
    counts: dict[str, int] = {}
    for status in statuses:
        for reason, count in {**status.get("dropped_by_reason", {}), **status.get("dead_letters_by_reason", {})}.items():
            if isinstance(count, int) and count:
                counts[str(reason)] = counts.get(str(reason), 0) + count
    return "dropped or dead: " + ", ".join(f"{show.plain(reason)} {count:,}" for reason, count in counts.items()) if counts else ""


class Asker(threading.Thread):
    """Asks again and again for what is `wanted` now; each answer is `seen`, and said by a byte in the pipe."""

    def __init__(self, query: Query, agent: Query, is_agent_meant: bool, wanted: Wanted, tell: int, left_out: list[str]):
        super().__init__(daemon=True)
        self._left_out = left_out  # what `query` says is left out of an answer, which is not there for long
        self._query, self._agent, self._is_agent_meant, self._tell = query, agent, is_agent_meant, tell
        self.wanted, self.seen = wanted, Seen()
        self._woken, self._wake = os.pipe()

    def ask_at_once(self) -> None:
        """What is wanted changed."""
        os.write(self._wake, b".")

    def run(self) -> None:
        asked_status = -STATUS_SECONDS
        drops = ""
        problems: tuple[str, ...] = ()
        while True:
            wanted, began = self.wanted, time.monotonic()
            self._left_out.clear()
            try:
                seen = ask(self._query, wanted)
                if began - asked_status >= STATUS_SECONDS:
                    asked_status = began
                    drops, problems = self._status()
                self.seen = seen._replace(drops=drops, problems=(*dict.fromkeys(self._left_out), *problems))
            except (QueryError, ValueError) as error:
                self.seen = self.seen._replace(error=str(error))
            os.write(self._tell, b".")
            # not an Event, which waits by the wall clock where the C library has no other way
            if select.select([self._woken], [], [], max(0.0, EVERY_SECONDS - (time.monotonic() - began)))[0]:
                os.read(self._woken, 4096)

    def _status(self) -> tuple[str, tuple[str, ...]]:
        server, agent = self._query.status(), {}
        missing: tuple[str, ...] = ()
        try:
            agent = self._agent.status()
        except QueryError as error:
            missing = (str(error),) if self._is_agent_meant else ()
        return drops_of(server, agent), (*server.get("problems", ()), *agent.get("problems", ()), *missing)


def keys_of(content: bytes) -> Iterator[str]:
    """The keys that a terminal sent: names of KEYS, or characters."""
    while content:
        known = next((code for code in sorted(KEYS, key=len, reverse=True) if content.startswith(code)), None)
        if known == b"\x1b" and content[1:2] == b"[":  # a key of which nothing is known
            end = next((place for place, byte in enumerate(content[2:], start=3) if 0x40 <= byte <= 0x7E), len(content))
            content = content[end:]
        elif known is not None:
            yield KEYS[known]
            content = content[len(known) :]
        else:
            size = next((size for size in range(1, 5) if _is_text(content[:size])), 1)
            yield content[:size].decode(errors="replace")
            content = content[size:]


def _is_text(content: bytes) -> bool:
    try:
        return bool(content.decode())
    except UnicodeDecodeError:
        return False


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Keys come one by one, and unseen; the terminal is as it was afterwards."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@click.command("top", epilog="\b\nExamples:\n  taba top\n  taba top 'web.*' --sort p99")
@click.argument("name", required=False)
@click.option("--sort", type=click.Choice(SORTS), default=SORTS[0], show_default=True, help="What comes first.")
@click.option("--agent-url", envvar="TABA_AGENT_URL", show_envvar=True, metavar="URL", help="The Agent whose drops are shown.")
@SERVER
@TIMEOUT
def top(server: str, timeout: float, name: str | None, sort: str, agent_url: str | None) -> None:
    """What moves, live: rows of Tabs, a Tab's Clients, what is dropped and what is wrong.

    NAME is a part of names, or a glob. Keys stand at the bottom of the screen.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("takes a terminal; elsewhere taba agg --tsv gives rows")
    screen = Screen()
    screen.sort, screen.match = sort, name or ""
    left_out: list[str] = []
    query = query_of(server, timeout=timeout, away=left_out.append)
    agent = query_of(agent_url or questions.DEFAULT_AGENT, timeout=min(timeout, 1.0), role="Agent")
    run(screen, query, agent, agent_url is not None, left_out)


def run(screen: Screen, query: Query, agent: Query, is_agent_meant: bool, left_out: list[str]) -> None:
    """Show it until a key ends it. `left_out`: where `query` says what is left out of an answer."""
    typed, is_ascii = sys.stdin.fileno(), knows_ascii_only()
    told, tell = os.pipe()
    console = Console(highlight=False)
    asker = Asker(query, agent, is_agent_meant, screen.wanted(get_terminal_size().lines), tell, left_out)
    resized = signal.signal(signal.SIGWINCH, lambda *_: os.write(tell, b"w"))
    try:
        with _raw(typed), Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
            asker.start()
            while not screen.is_over:
                size = get_terminal_size()
                now = datetime.now().strftime("%H:%M:%S")
                live.update(screen.draw(asker.seen, query.url, now, size.columns, size.lines, is_ascii), refresh=True)
                ready, _, _ = select.select([typed, told], [], [])
                if told in ready:
                    os.read(told, 4096)
                if typed in ready:
                    content = os.read(typed, 1024)
                    for key in keys_of(content) if content else ("quit",):  # the terminal is gone
                        screen.press(key, asker.seen, size.lines)
                wanted = screen.wanted(size.lines)
                if wanted != asker.wanted:
                    asker.wanted = wanted
                    asker.ask_at_once()
    except KeyboardInterrupt:
        pass  # as good a way to end it as any
    finally:
        signal.signal(signal.SIGWINCH, resized)
