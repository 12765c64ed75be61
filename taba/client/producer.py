"""The producer of this process: when a ring is made, left, and made again. What happens on each record is the Port's.

1. No ring before the first record: a parent that only preloads makes none.
2. A forked child drops its parent's ring and slot at once, and makes its own at its first record.
3. A ring is left when it is retired, when its name leads elsewhere, or when a hole has filled it; never because an Agent is slow.
4. What cannot be had (shared memory, a slot) is asked for again once a second, and costs no more than a counted drop meanwhile.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from time import monotonic
from time import time as now
from typing import Any, NamedTuple

from taba import ring
from taba.bounds import DEFAULT_RING_BYTES, DEFAULT_SHM_BYTES, MAX_RING_BYTES, MIN_RING_BYTES
from taba.client import identity, pure
from taba.client.segment import Segment, close_what_was_being_made, make_segment
from taba.names import check_agent, check_client

TRY_EVERY = 1.0  # seconds between two tries to make a ring
HOLE_AFTER = 0.9  # seconds for which a record is not committed that the tail waits for: no thread pauses there for so long
# Tabs remembered, so that the same call gives the same Tab; more than fit into the directory of a ring of 4 MiB. Beyond it a
# call gives a new Tab each time, and the directory's own bound drops what it records.
MAX_REMEMBERED = 100_000
MAX_GROUP = 2**32 - 1  # the one number that no group has: "leave it as it is"

_REASON = pure._REASON


class Settings(NamedTuple):
    """What start() and the environment say."""

    client: str  # with placeholders
    agent: str
    ring_bytes: int
    shm_bytes: int
    group: int | None


def read_settings(client: str | None, environment: Mapping[str, str]) -> Settings:
    """The settings for `client` (None: the environment's or the default). Raises ValueError, naming what is wrong."""
    template = client
    if template is None:
        template = environment.get("TABA_CLIENT_ID") or identity.DEFAULT_CLIENT
        _naming("TABA_CLIENT_ID", lambda: identity.expand(template, environment, lambda: 0))
    else:
        identity.expand(template, environment, lambda: 0)
    agent = environment.get("TABA_AGENT") or "default"
    _naming("TABA_AGENT", lambda: check_agent(agent))
    group = environment.get("TABA_RING_GROUP")
    return Settings(
        template,
        agent,
        _number(environment, "TABA_RING_BYTES", DEFAULT_RING_BYTES, MIN_RING_BYTES, MAX_RING_BYTES),
        _number(environment, "TABA_SHM_BYTES", DEFAULT_SHM_BYTES, 0, 1 << 50),
        _group(group) if group else None,
    )


def _naming(variable: str, check: Callable[[], object]) -> None:
    """`check`, whose ValueError then names the variable of the environment that is at fault."""
    try:
        check()
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None


def _number(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environment.get(name)
    if not text:
        return default
    if text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most:
        return int(text)
    raise ValueError(f"{name}: {text!r}: takes a number of bytes from {least} to {most}")


def _group(text: str) -> int:
    import grp  # rarely asked for

    try:
        if text.isascii() and text.isdigit() and int(text) < MAX_GROUP:
            return int(text)  # it need not have a name here: in a container hardly any has
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"TABA_RING_GROUP: {text!r}: there is no such group") from None


def _call(method: Callable[[], None] | None) -> None:
    if method is not None:
        method()


class Producer:
    """What one interpreter records with. `ports` is the module that has the Port and the Tabs: `pure` or the accelerator."""

    def __init__(self, ports: Any = pure):
        self._ports = ports
        self._make = getattr(ports, "Mapping", None)  # the accelerator's keeps no descriptor
        self.is_accelerated = ports is not pure
        self._port = ports.Port(self.attend)
        self._kinds = {
            "CounterGroup": ports.Counter,
            "TotalsCounter": ports.Counter,
            "PercentileGroup": ports.Percentile,
            "PercentileCounter": ports.Percentile,
            "Gauge": ports.Gauge,
            "UpDown": ports.UpDown,
        }
        self._tabs: dict[tuple[str, str], Any] = {}
        self.settings: Settings | None = None
        self._stopped = False
        self._warned = False
        self._segment: Segment | None = None
        self._slot: identity.Slot | None = None
        self._start_afresh()
        hook = weakref.WeakMethod(self.forget_parent)  # a hook cannot be taken back
        os.register_at_fork(after_in_child=lambda: _call(hook()))

    def _start_afresh(self) -> None:
        self._client: str | None = None
        self._last_client: str | None = None
        self._lock = getattr(self._port, "lock", None) or threading.RLock()
        self._attending = False
        self._directory_count = 0
        self._directory_used = 0
        self._next_try = 0.0
        self._hole: tuple[int, float] | None = None  # the tail that was seen to stand before an uncommitted record, and since when

    # --- what the application asks for

    def start(self, client: str | None, environment: Mapping[str, str]) -> None:
        """Record under this client id from now on. Raises ValueError; then everything stays as it was."""
        settings = read_settings(client, environment)
        with self._lock:
            if settings != self.settings:
                self._leave()
            self.settings, self._stopped = settings, False
            self._next_try = 0.0

    def stop(self) -> None:
        """Leave the ring to its Agent and free the slot; what is recorded before the next start() is a counted drop."""
        with self._lock:
            self._stopped = True
            self._leave()
            self.end()

    def end(self) -> None:
        """At the end of the interpreter: free the slot. The ring stays: what runs later may still record, and the Agent sees the death."""
        with self._lock:
            slot, self._slot = self._slot, None
            if slot is not None:
                slot.let_go()

    def tab(self, name: str, type: str) -> Any:
        """The Tab of this canonical name and Type: the same object each time."""
        tab = self._tabs.get((name, type))
        if tab is None:
            tab = self._kinds.get(type, self._ports.Tab)(self._port, name, type)
            if len(self._tabs) < MAX_REMEMBERED:
                tab = self._tabs.setdefault((name, type), tab)  # one step: another thread may have been first
        return tab

    def stats(self) -> dict[str, Any]:
        """What this process recorded and dropped since it began (a forked child: since the fork)."""
        by_reason = {ring.DROP_REASONS[place]: count for place, count in enumerate(self._port.totals()) if count}
        segment, settings = self._segment, self.settings
        return {
            "recorded": self._port.recorded,
            "dropped": sum(by_reason.values()),
            "dropped_by_reason": by_reason,
            "ring_bytes": segment.where.size if segment is not None else 0,
            "ring": segment.name if segment is not None else None,
            "accelerated": self.is_accelerated,
            "client": self._client_id(),
            "agent": settings.agent if settings is not None else os.environ.get("TABA_AGENT") or "default",
            "tabs": self._directory_count if segment is not None else 0,
        }

    def _client_id(self) -> str:
        """The client id with which this process records, or would. A slot that it has is taken now, as by the first record."""
        with self._lock:
            if self._client is None and not self._attending:
                template = identity.DEFAULT_CLIENT
                try:
                    template = (self.settings or read_settings(None, os.environ)).client
                    if self._stopped:
                        return self._last_client or template
                    self._client = identity.expand(template, os.environ, self._take_slot)
                except (OSError, ValueError):
                    return template  # no slot, or a wrong environment: nothing is recorded under any id, and start() or a Tab says why
            return self._client or self._last_client or identity.DEFAULT_CLIENT

    # --- what the Port asks for

    def attend(self, tab: Any, why: int) -> bool:
        """Do what is rare, for a record that found no room. True: try again. False: dropped, and counted here."""
        with self._lock:
            if self._attending:  # a signal handler, or a finalizer, within the lines below
                self._port.count(_REASON["reentrant"])
                return False
            self._attending = True
            try:
                return self._attend(tab, why)
            finally:
                self._attending = False

    def _attend(self, tab: Any, why: int) -> bool:
        port = self._port
        if port.is_forked():
            self.forget_parent()
            self._attending = True
        if port.has(tab) and why != pure.NO_PLACE:
            if not self._must_leave(why):
                if why >= 0:
                    port.count(why)
                return why < 0
            self._leave()
        if not port.is_open:
            if self._stopped:
                port.count(_REASON["stopped"])
                return False
            if not self._make_ring():
                port.count(_REASON["no_ring"])
                return False
        if not port.has(tab):
            port.place(tab, self._enter(tab))
        return True

    def _must_leave(self, why: int) -> bool:
        segment = self._segment
        assert segment is not None
        words, where = segment.words, segment.where
        tail = words[ring.TAIL_OFFSET // 8]
        lost = max(0, self._port.position - tail)
        if words[ring.RETIRED_OFFSET // 8] or (why >= 0 and not segment.is_named()):
            self._leave()
            self._port.count(_REASON["unknown"], lost)  # counted in the next ring: nobody reads this one's header
            return True
        slot = tail & (where.records - 1)
        commit = words[where.record_offset // 8 + ring.RECORD_WORDS * slot + 2]
        if ring.split_commit(commit).lap == ring.lap_of(tail, where.records) or not lost:
            self._hole = None
            return False
        # not committed: a thread is just writing it, or nobody ever will. A look a second later knows.
        if self._hole is None or self._hole[0] != tail:
            self._hole = (tail, monotonic())
        return monotonic() - self._hole[1] >= HOLE_AFTER

    def _leave(self) -> None:
        self._port.close()
        segment, self._segment = self._segment, None
        self._hole = None
        self._last_client, self._client = self._client or self._last_client, None
        if segment is not None:
            segment.let_go()

    def _make_ring(self) -> bool:
        if monotonic() < self._next_try:
            return False
        self._next_try = monotonic() + TRY_EVERY
        try:
            settings = self.settings
            if settings is None:
                settings = self.settings = read_settings(None, os.environ)
            client = self._client = check_client(identity.expand(settings.client, os.environ, self._take_slot))
            segment = make_segment(
                settings.agent,
                client,
                flags=ring.ACCELERATED if self.is_accelerated else 0,
                ring_bytes=settings.ring_bytes,
                shm_bytes=settings.shm_bytes,
                group=settings.group,
                now=now(),
                make=self._make,
            )
        except (OSError, ValueError) as error:
            self._warn(error)
            return False
        where = segment.where
        self._segment = segment
        self._directory_count = self._directory_used = 0
        self._port.open(
            segment.memory.mapping, where.record_offset, where.records, where.byte_ring_offset, where.byte_ring_bytes, where.max_value_bytes
        )
        self._next_try = 0.0
        return True

    def _take_slot(self) -> int:
        if self._slot is None:
            self._slot = identity.Slot()
        return self._slot.number

    def _enter(self, tab: Any) -> int | None:
        """The Tab's id in the directory; None where there is no room."""
        segment = self._segment
        assert segment is not None
        entry = ring.encode_entry(tab.type, tab.name)
        used = self._directory_used + len(entry)
        if used > segment.where.directory_bytes or self._directory_count >= ring.MAX_TABS:
            return None
        begin = ring.HEADER_BYTES + self._directory_used
        segment.content[begin : begin + len(entry)] = entry
        # remembered before they are published: a signal handler's exception between two of these lines wastes an entry at most,
        # and a published one never changes
        id, self._directory_count, self._directory_used = self._directory_count, self._directory_count + 1, used
        segment.words[ring.DIRECTORY_USED_OFFSET // 8] = used
        with self._lock:  # orders the stores above before the one below, where the processor does not
            segment.words[ring.DIRECTORY_COUNT_OFFSET // 8] = id + 1
        return id

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        import logging  # only who has no shared memory pays for it; and unlike a warning it is never an exception

        logging.getLogger("taba.client").warning("Taba records nothing: no ring could be made: %s", error)

    # --- forks

    def forget_parent(self) -> None:
        """In a forked child: drop the parent's ring, slot and counts, and never touch a lock. The Tabs stay."""
        close_what_was_being_made()
        segment, self._segment = self._segment, None
        slot, self._slot = self._slot, None
        self._port.reset()
        self._start_afresh()
        if segment is not None:
            segment.unmap_in_child()
        if slot is not None:
            slot.unmap_in_child()
