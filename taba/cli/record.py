"""`taba record`: lines from standard input become events, through this host's Agent or, with --http, straight to a Server."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections import OrderedDict
from typing import Any, Protocol

import click

from taba import client, names, ring
from taba.bounds import MAX_EXACT_INT
from taba.cli.lines import DEFAULT_TYPE, TextLine, read_line
from taba.cli.reading import read_lines
from taba.cli.sharing import Number, query_of, server_option, shown
from taba.client import identity
from taba.interrupted import Interrupted
from taba.plural import many
from taba.query import Query, ServerUnavailable, questions
from taba.query.questions import Event

IDLE_SECONDS = 0.5  # after which what is held back is sent
MAX_POST = 1000  # events in one request
PATIENCE_SECONDS = 30.0  # for an Agent to read a full ring, or (--timeout) a Server to answer, before giving up
LAST_SECONDS = 3.0  # for an Agent to read the last events, before saying that none has
MAX_TABS = 10_000  # Tab objects kept; names may come from anywhere
MAX_COMPLAINTS = 20  # bad lines that are shown; all are counted


class Lost(click.ClickException):
    """Events cannot be handed on any more."""


class Sink(Protocol):
    """Where events go."""

    def take(self, line: TextLine) -> None:
        """Hand on one event, or keep it for a moment. Raises Lost."""

    def flush(self) -> None:
        """Hand on what was kept. Raises Lost."""

    def close(self) -> str | None:
        """Hand on the rest; what the user should know, if anything. Raises Lost."""


class RingSink:
    """Into the ring of this process: reads no more lines than the Agent makes room for, so that nothing is dropped."""

    def __init__(self, interrupted: Interrupted, client_id: str | None):
        self._interrupted = interrupted
        client.start(client_id)
        self._tabs: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._recorded = self._since = self._bytes_since = 0
        self._ring: int | None = None
        self._layout: ring.Layout | None = None

    def take(self, line: TextLine) -> None:
        key = (line.name, line.type)
        tab = self._tabs.get(key)
        if tab is None:
            tab = self._tabs[key] = client.tab(line.name, type=line.type)
            if len(self._tabs) > MAX_TABS:
                self._tabs.popitem(last=False)
        # three bytes a character is more than msgpack takes of anything whose repr this is
        size = 0 if isinstance(line.value, (int, float)) and abs(line.value) <= MAX_EXACT_INT else 9 + 3 * len(repr(line.value).encode())
        if self._layout and (8 * self._since >= 7 * self._layout.records or 2 * (self._bytes_since + size) >= self._layout.byte_ring_bytes):
            self._make_room()
        tab.record(line.value, line.time)
        self._recorded, self._since, self._bytes_since = self._recorded + 1, self._since + 1, self._bytes_since + size
        if self._recorded == 1:
            self._find_ring()

    def flush(self) -> None:
        pass  # a recorded event is where the Agent sees it

    def close(self) -> str | None:
        drops = client.stats()["dropped_by_reason"]
        drops = {reason: count for reason, count in drops.items() if count}
        if drops:
            raise Lost("dropped: " + ", ".join(f"{count} {reason}" for reason, count in drops.items()))
        if self._recorded and not self._is_read_within(LAST_SECONDS):
            return (
                f"no Agent has read the last events yet ({self._agent()}); they wait in shared memory until one does: twistd -n taba-agent"
                f"{'' if os.environ.get('TABA_AGENT', 'default') == 'default' else ' --agent ' + os.environ['TABA_AGENT']}"
            )
        return None

    def _make_room(self) -> None:
        if not self._is_read_within(PATIENCE_SECONDS):
            raise Lost(f"no Agent reads what is recorded ({self._agent()}); start one with: twistd -n taba-agent, or record with --http")
        self._since = self._bytes_since = 0

    def _agent(self) -> str:
        return f"TABA_AGENT is {os.environ.get('TABA_AGENT', 'default')!r}"

    def _tail(self) -> int:
        """How many events the Agent has taken; only this process writes that ring, so every one has one place in it."""
        assert self._ring is not None
        return int.from_bytes(os.pread(self._ring, 8, ring.TAIL_OFFSET), "little")

    def _is_read_within(self, seconds: float) -> bool:
        if self._ring is None:
            return True
        deadline = time.monotonic() + seconds
        while self._tail() < self._recorded:
            if time.monotonic() > deadline or (
                self._interrupted.number is not None and time.monotonic() > deadline - seconds + LAST_SECONDS
            ):
                return False
            time.sleep(0.01)
        return True

    def _find_ring(self) -> None:
        """The segment that the client library made for this process, to see how far it is read."""
        name = client.stats()["ring"]
        if name is None:
            return  # no shared memory: what is dropped is counted, and told at the end
        descriptor = os.open(os.path.join(ring.SHM_DIRECTORY, name), os.O_RDONLY | os.O_CLOEXEC)
        header = ring.parse_header(os.pread(descriptor, ring.HEADER_BYTES, 0), os.fstat(descriptor).st_size)
        self._ring, self._layout = descriptor, ring.layout(header.size)


class PostSink:
    """Straight to a Server: posts that may be repeated, because each carries a key."""

    def __init__(self, interrupted: Interrupted, query: Query, client_id: str, patience_seconds: float):
        self._interrupted, self._query, self._client, self._patience_seconds = interrupted, query, client_id, patience_seconds
        self._complained = False
        self._events: list[Event] = []

    def take(self, line: TextLine) -> None:
        # the time is that of reading, not that of the post
        time_of = time.time() if line.time is None else line.time
        self._events.append({"tab": line.name, "type": line.type, "value": line.value, "time": time_of})
        if len(self._events) >= MAX_POST:
            self.flush()

    def flush(self) -> None:
        events, self._events = self._events, []
        if not events:
            return
        key, deadline, pause = secrets.token_hex(16), time.monotonic() + self._patience_seconds, 0.2
        while True:
            try:
                rejected = self._query.post_events(self._client, events, key)["rejected"]
            except ServerUnavailable as error:
                if not self._complained and time.monotonic() + pause <= deadline:
                    self._complained = True
                    print(f"taba record: {error}; trying again for {self._patience_seconds:g} s", file=sys.stderr, flush=True)
                if time.monotonic() + pause > deadline or self._interrupted.wait(pause):
                    raise Lost(f"{many(len(events), 'event')} not sent: {error}") from None
                pause = min(2 * pause, 5.0)
                continue
            if rejected:
                raise Lost(
                    f"{many(len(rejected), 'event')} rejected, the first ({events[rejected[0]['index']]['tab']}): {rejected[0]['reason']}"
                )
            self._complained = False
            return

    def close(self) -> str | None:
        self.flush()
        return None


@click.command(
    "record",
    epilog="""\b
Lines:
  bids_won 1
  winning_bid_price{exchange="adx"} 12.5 PercentileGroup
  nightly_job "backup finished" Gauge 1763850000.5
\b
Examples:
  echo 'deploys 1' | taba record
  tail -F access.log | sed -uE 's/^(\\S+ ){9}(\\S+).*/bytes \\2/' | taba record
  vmstat -n 1 | sed -nuE 's/^( *[0-9]+){3} +([0-9]+).*/free \\2 Gauge/p' | taba record --client "$HOSTNAME/vmstat"
""",
)
@click.option("--type", "default_type", default=DEFAULT_TYPE, show_default=True, metavar="TYPE", help="Of lines that do not say.")
@click.option(
    "--client", "client_id", envvar="TABA_CLIENT_ID", show_envvar=True, metavar="ID", help="Who records.  [default: {host}:taba/{slot}]"
)
@click.option("--agent", envvar="TABA_AGENT", show_envvar=True, metavar="NAME", help="Which Agent of this host reads.  [default: default]")
@click.option("--http", "over_http", is_flag=True, help="Post to a Server instead; needs no Agent.")
@server_option("With --http: any one Server.")
@click.option(
    "--timeout",
    type=Number(0.01, 3600),
    default=PATIENCE_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="With --http: how long to try to reach a Server before giving up.",
)
@shown
@click.option("--json", "as_json", is_flag=True, help='At the end print {"recorded": n, "bad_lines": n}.')
@click.pass_context
def record(
    context: click.Context,
    default_type: str,
    client_id: str | None,
    agent: str | None,
    over_http: bool,
    server: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Record lines from standard input as events.

    A line is: name value [type] [time], separated by blanks. A name may have labels. A value is a number, or JSON if it begins with
    a double quote, { or [, or else a word. The time is in Unix seconds; without one it is now.

    Ends at the end of input, or at SIGINT or SIGTERM, and hands on all lines read until then. Bad lines are reported with their
    numbers and skipped; the exit status is 1 if there was one, or if events could not be handed on.
    """
    names.check_type(default_type)
    if agent is not None:
        os.environ["TABA_AGENT"] = names.check_agent(agent)
    recorded = bad = 0
    with Interrupted() as interrupted:
        sink: Sink
        if over_http:
            # no slot is held for a post: two that run at once are one Client unless they say otherwise
            expanded = identity.expand(client_id or identity.DEFAULT_CLIENT, os.environ, lambda: 0)
            sink = PostSink(interrupted, query_of(server, timeout=min(timeout, questions.DEFAULT_TIMEOUT)), expanded, timeout)
        else:
            sink = RingSink(interrupted, client_id)
        for lines in read_lines(sys.stdin.fileno(), interrupted, IDLE_SECONDS):
            for number, text in lines:
                try:
                    line = read_line(text, default_type)
                    if line is not None:
                        sink.take(line)
                except ValueError as error:  # of the line, or of its Tab: one name with two Types
                    bad += 1
                    _complain(number, error, bad)
                    continue
                recorded += line is not None
            if not lines:
                sink.flush()
        notice = sink.close()
    if notice:
        print(f"taba record: {notice}", file=sys.stderr)
    if bad:
        print(f"taba record: {many(recorded, 'event')} recorded, {many(bad, 'bad line')} skipped", file=sys.stderr)
    if as_json:
        print(f'{{"recorded": {recorded}, "bad_lines": {bad}}}')
    if bad:
        context.exit(1)


def _complain(number: int, error: ValueError, bad: int) -> None:
    if bad <= MAX_COMPLAINTS:
        print(f"taba record: line {number}: {' '.join(str(error).split())}", file=sys.stderr)
    elif bad == MAX_COMPLAINTS + 1:
        print("taba record: more bad lines are counted, not shown", file=sys.stderr)
