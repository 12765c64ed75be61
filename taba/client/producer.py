"""The producer of this process: when a ring is made, left, and made again. What happens on each record is the Port's.

1. No ring before the first record: a parent that only preloads makes none.
2. A forked child drops its parent's ring and slot at once, and makes its own at its first record.
3. A ring is left when it is retired, when its name leads elsewhere, or when a hole has filled it; never because an Agent is slow.
4. What cannot be had (shared memory, a slot) is asked for again once a second, and costs no more than a counted drop meanwhile. It is
   told by stats(), and warned of by the next start() or making of a Tab: a record runs no foreign code, of which logging is full.
5. What a signal handler asks for while a ring is being made (stop, start, fork) holds as soon as the making ends: `_wishes` counts them,
   and a ring that was made for an earlier wish is left at once.
6. What set_function() is given is called from a record of this process, once a second at most, before that record takes its place and
   while no lock of Taba's is held: the one code of the application's that a record runs.
"""

from __future__ import annotations

import logging
import os
import sys
import weakref
from _thread import RLock
from collections.abc import Callable, Mapping
from time import monotonic
from time import time as now
from typing import Any, NamedTuple, TypeVar

from taba import ring
from taba.bounds import DEFAULT_RING_BYTES, DEFAULT_SHM_BYTES, MAX_RING_BYTES, MIN_RING_BYTES, size_of
from taba.client import identity, pure
from taba.client.harmless import WAIT_SECONDS, acquire_within, is_foreign
from taba.client.port import DUE, NO_PLACE, REASON
from taba.client.segment import Segment, close_what_was_being_made, make_segment
from taba.names import canonical_name, check_agent, check_client, parse_name

TRY_EVERY = 1.0  # seconds between two tries to make a ring
HOLE_AFTER = 0.9  # seconds for which a record is not committed that the tail waits for: no thread pauses there for so long
# Tabs remembered, so that the same call gives the same Tab; more than fit into the directory of a ring of 4 MiB. Beyond it a
# call gives a new Tab each time, and the directory's own bound drops what it records.
MAX_REMEMBERED = 100_000
CAPTURED = "captured"  # the Client of what a test captures
MAX_FUNCTIONS = 1_000  # that set_function() takes: one record a second calls all of them
MAX_GROUP = 2**32 - 1  # the one number that no group has: "leave it as it is"

# The coarse clock lies up to a few milliseconds behind: no matter where values are added up, but the last of some values is told by
# its time. Those Types, and such as are not Taba's, carry the exact one.
COARSE_TYPES = frozenset(
    ("CounterGroup", "TotalsCounter", "PercentileGroup", "PercentileCounter", "UpDown", "Cumulative", "Cardinality", "TopK", "Noop")
)
HEALING_TYPES = frozenset(("UpDown",))
CLOCKS = ("coarse", "exact")

_Checked = TypeVar("_Checked")


class Settings(NamedTuple):
    """What start() and the environment say."""

    client: str  # with placeholders
    agent: str
    ring_bytes: int
    shm_bytes: int
    group: int | None
    clock: str  # of CLOCKS, or "" for what is sound here


def read_settings(client: str | None, environment: Mapping[str, str]) -> Settings:
    """The settings for `client` (None: the environment's or the default). Raises ValueError, naming what is wrong."""
    template = client
    if template is not None:
        identity.expand(template, environment, lambda: 0)
    elif given := environment.get("TABA_CLIENT_ID"):
        template = given
        _naming("TABA_CLIENT_ID", lambda: identity.expand(given, environment, lambda: 0))
    else:
        template = identity.DEFAULT_CLIENT  # valid whatever host and program are called
    clock = environment.get("TABA_CLOCK") or ""
    if clock and clock not in CLOCKS:
        raise ValueError(f"TABA_CLOCK: {clock!r}: takes exact or coarse")
    agent = environment.get("TABA_AGENT") or "default"
    _naming("TABA_AGENT", lambda: check_agent(agent))
    group = environment.get("TABA_RING_GROUP")
    return Settings(
        template,
        agent,
        _number(environment, "TABA_RING_BYTES", DEFAULT_RING_BYTES, MIN_RING_BYTES, MAX_RING_BYTES),
        _number(environment, "TABA_SHM_BYTES", DEFAULT_SHM_BYTES, 0, 1 << 50),
        _naming("TABA_RING_GROUP", lambda: group_of(group)) if group else None,
        clock,
    )


def _naming(variable: str, check: Callable[[], _Checked]) -> _Checked:
    """`check`, whose ValueError then names the variable of the environment that is at fault."""
    try:
        return check()
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None


def _number(environment: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = environment.get(name)
    if not text:
        return default
    size = size_of(text)
    if size is not None and least <= size <= most:
        return size
    raise ValueError(f"{name}: {text!r}: takes a number of bytes from {least} to {most}, or such as 64M")


def group_of(text: str) -> int:
    """The number of a group, by its name or number. Raises ValueError for none."""
    import grp  # rarely asked for

    try:
        if text.isascii() and text.isdigit() and int(text) < MAX_GROUP:
            return int(text)  # it need not have a name here: in a container hardly any has
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ValueError(f"{text!r}: there is no such group") from None


def _call(method: Callable[[], None] | None) -> None:
    if method is not None:
        method()


def _is_of_a_signal(error: BaseException) -> bool:
    """Whether a signal handler raised this, which ran while something else was called: it is meant for whoever runs the thread."""
    signal = sys.modules.get("signal")  # whoever set a handler imported it
    if signal is None:
        return False
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers if callable(handler)} - {None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def label_text(key: str, value: Any) -> str:
    """A label's value as text: bool and int are taken too. Raises ValueError for others."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if not isinstance(value, str):
        raise ValueError(f"label {key}: {value!r:.100}: takes a text, an int or a bool")
    return value


class Producer:
    """What one interpreter records with. `ports` is the module that has the Port and the Tabs: `pure` or the accelerator."""

    def __init__(self, ports: Any = pure):
        self._ports = ports
        self._make = getattr(ports, "Mapping", None)  # the accelerator's keeps no descriptor
        self.is_accelerated = ports is not pure
        self._is_coarse_sound = bool(getattr(ports, "IS_COARSE_SOUND", False))
        self._port = ports.Port(self.attend, self.labelled, self.follow)
        self._kinds = {
            "CounterGroup": ports.Counter,
            "TotalsCounter": ports.Counter,
            "PercentileGroup": ports.Percentile,
            "PercentileCounter": ports.Percentile,
            "Gauge": ports.Gauge,
            "UpDown": ports.UpDown,
        }
        self._tabs: dict[tuple[str, str], Any] = {}
        self._types: dict[str, str] = {}  # by name, of those that may have one alone
        self._healing: list[Any] = []  # of these, the Tabs that heal
        self._meanings: dict[str, tuple[str, str]] = {}  # unit and description, of Tabs that have them
        self._functions: dict[Any, Callable[[], Any]] = {}  # what set_function() was given, by Gauge
        self._function_problem: str | None = None  # which of them raised last, and what
        self.settings: Settings | None = None
        self._divert: Callable[[Any], Segment] | None = None
        self._stopped = False
        self._wishes = 0
        self._segment: Segment | None = None
        self._slot: identity.Slot | None = None
        self._start_afresh()
        hook = weakref.WeakMethod(self.forget_parent)  # a hook cannot be taken back
        os.register_at_fork(after_in_child=lambda: _call(hook()))

    def _start_afresh(self) -> None:
        self._client: str | None = None
        self._last_client: str | None = None
        self._lock = getattr(self._port, "lock", None) or RLock()
        self._attending = False
        self._reading = RLock()
        self._directory_count = 0
        self._directory_used = 0
        self._next_try = 0.0
        self._trouble: str | None = None  # why no ring could be made, until one is
        self._told: str | None = None  # of it, what was warned of
        self._hole: tuple[int, float] | None = None  # the tail that was seen to stand before an uncommitted record, and since when
        self._wishes += 1

    # --- what the application asks for

    def start(self, client: str | None, environment: Mapping[str, str]) -> None:
        """Record under this client id from now on. Raises ValueError; then everything stays as it was."""
        settings = read_settings(client, environment)
        self._notice_fork()
        with self._lock:
            if settings != self.settings or self._stopped:
                self._wish()
            self.settings, self._stopped = settings, False
            self._next_try = 0.0
            if self._trouble is None and not self._port.is_open and self._divert is None:
                self._trouble = self._foresee(settings)
        self._warn()

    def stop(self) -> None:
        """Leave the ring to its Agent and free the slot; what is recorded before the next start() is a counted drop."""
        self._notice_fork()
        with self._lock:
            self._stopped = True
            self._wish()
            self.end()

    def forget(self, most: int) -> bool:
        """After stop(), of a producer that nobody records with again: free so many of its Tabs. True once that was all: it is no more.

        For whoever has very many: at once, and found by the collector, 100,000 take a fifth of a second.
        """
        for _ in range(min(most, len(self._tabs))):
            self._tabs.popitem()
        if self._tabs:
            return False
        vars(self).clear()  # it and its Port lead to each other
        return True

    def divert(self, make: Callable[[Any], Segment] | None, afresh: bool = False) -> Callable[[Any], Segment] | None:
        """Record from now on into what `make` makes, instead of a ring for an Agent; None: as ever. Returns what it was before. For tests.

        `afresh`: counts, sums and Gauges of this process begin anew. `make` is given what maps (a descriptor, so many bytes), or None.
        """
        self._notice_fork()
        with self._lock:
            before, self._divert = self._divert, make
            self._wish()
            if afresh:
                self._port.reset()
                self._start_afresh()
        return before

    def remembered(self) -> dict[Any, float]:
        """What each Tab keeps that goes up and down: a sum, or the last number; where that is not 0."""
        kept = [(tab, getattr(tab, "net", 0.0)) for tab in list(self._tabs.values())]
        return {tab: net for tab, net in kept if net}

    def _wish(self) -> None:
        """What is recorded from now on belongs in another ring, or in none."""
        self._wishes += 1
        self._obey()

    def _obey(self) -> None:
        """Leave the ring that was made for an earlier wish; where a signal handler asks while one is made, who makes it does."""
        wishes = -1
        while self._wishes != wishes and not self._attending:  # signal handlers wish at any moment
            wishes = self._wishes
            self._attending = True
            try:
                self._leave()
            finally:
                self._attending = False

    def end(self) -> None:
        """At the end of the interpreter: free the slot. The ring stays: what runs later may still record, and the Agent sees the death."""
        self._notice_fork()
        with self._lock:
            slot, self._slot = self._slot, None
            if slot is not None:
                slot.let_go()

    def tab(self, name: str, type: str, unit: str = "", description: str = "", may_conflict: bool = False) -> Any:
        """The Tab of this canonical name and Type: the same object each time. Unit and description hold from now on, if given.

        Raises ValueError where this process has a Tab of that name and another Type; `may_conflict` is for whoever records what others
        chose: then a Server has the one that came later as dead letters, and says so.
        """
        key = (name, type)
        tab = self._tabs.get(key)
        if not may_conflict:
            known = self._types.get(name)
            if known is None:  # beyond so many nobody is told
                known = self._types.setdefault(name, type) if len(self._types) < MAX_REMEMBERED else type
            if known != type:
                raise ValueError(f"Tab name {name!r:.210}: is of Type {known} in this process, and no Tab is of two: not also of {type}")
        if tab is None:
            clock = self.settings.clock if self.settings is not None else ""
            is_coarse = type in COARSE_TYPES and (clock == "coarse" or (clock == "" and self._is_coarse_sound))
            made = tab = self._kinds.get(type, self._ports.Tab)(self._port, name, type, is_coarse, type in HEALING_TYPES)
            if len(self._tabs) < MAX_REMEMBERED:
                tab = self._tabs.setdefault(key, tab)  # one step: another thread may have been first
                if tab is made and tab.is_healing:
                    self._healing.append(tab)
        if (unit or description) and (name in self._meanings or len(self._meanings) < MAX_REMEMBERED):
            before = self._meanings.get(name, ("", ""))
            meaning = self._meanings[name] = (unit or before[0], description or before[1])
            if meaning != before:
                self._say_anew(tab)
        if self._trouble is not None:
            self._warn()
        return tab

    def labelled(self, tab: Any, labels: Mapping[str, Any]) -> Any:
        """The Tab of this Tab's name and Type, with these labels too. Raises ValueError for labels that break the rules."""
        base, own = parse_name(tab.name)
        name = canonical_name(base, {**own, **{key: label_text(key, value) for key, value in labels.items()}})
        return self.tab(name, tab.type, *self._meanings.get(tab.name, ("", "")))

    def follow(self, gauge: Any, function: Callable[[], Any] | None) -> None:
        """Have a Gauge follow what `function` returns: now, and once a second from what this process records. None: no more.

        Raises TypeError for what cannot be called, ValueError for one more than MAX_FUNCTIONS. What the function raises is counted.
        """
        if function is not None and not callable(function):
            raise TypeError(f"set_function: {function!r:.100}: takes a function without arguments, or None")
        functions = self._functions  # each line below is one step of it: no lock, for a signal handler may come by
        if function is None:
            functions.pop(gauge, None)
        elif gauge in functions or len(functions) < MAX_FUNCTIONS:
            functions[gauge] = function
        else:
            raise ValueError(f"set_function: {gauge.name!r:.210} is one more than the {MAX_FUNCTIONS} functions that a process may have")
        self._port.read_often(bool(functions))
        if function is not None:
            self._read(gauge, function)

    def read_functions(self) -> None:
        """Have each Gauge that follows a function say what it returns; not while that is being done."""
        reading = self._reading  # a child that one of the functions forks has another
        if reading._is_owned():  # type: ignore[attr-defined]
            return
        try:  # before it is taken: a signal handler's exception right behind that leaves it free
            if reading.acquire(False):
                for gauge, function in list(self._functions.items()):
                    self._read(gauge, function)
        finally:
            try:  # noqa: SIM105  # no call before the release, at which a signal handler could raise
                reading.release()
            except RuntimeError:
                pass  # it was not to be had

    def _read(self, gauge: Any, function: Callable[[], Any]) -> None:
        try:
            value = function()
        except Exception as error:
            if _is_of_a_signal(error):
                raise
            self._function_problem = f"{gauge.name}: {type(error).__name__}"
            self._port.count(REASON["function_raised"])
            return
        gauge.set(value)

    def stats(self) -> dict[str, Any]:
        """What this process recorded and dropped since it began (a forked child: since the fork)."""
        self._notice_fork()
        by_reason = {ring.DROP_REASONS[place]: count for place, count in enumerate(self._port.totals()) if count}
        segment, settings = self._segment, self.settings
        if segment is not None and not segment.where.records:
            segment = None  # it only counts
        clock = settings.clock if settings is not None else ""
        return {
            "recorded": self._port.recorded,
            "dropped": sum(by_reason.values()),
            "dropped_by_reason": by_reason,
            "ring_bytes": segment.where.size if segment is not None else 0,
            "ring": segment.name if segment is not None else None,
            "accelerated": self.is_accelerated,
            "clock": (clock or ("coarse" if self._is_coarse_sound else "exact")) if self.is_accelerated else "exact",
            "client": self._client_id(),
            "agent": settings.agent if settings is not None else os.environ.get("TABA_AGENT") or "default",
            "tabs": self._directory_count if segment is not None else 0,
            "problem": self._trouble,
            "functions": len(self._functions),
            "function_problem": self._function_problem,
        }

    def _client_id(self) -> str:
        """The client id with which this process records, or would. A slot that it has is taken now, as by the first record."""
        if self._divert is not None:
            return CAPTURED
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

    def _foresee(self, settings: Settings) -> str | None:
        """Why the first record will not find shared memory, as far as can be seen without taking any."""
        try:
            status = os.statvfs(ring.SHM_DIRECTORY)
        except OSError as error:
            return f"{ring.SHM_DIRECTORY}: {error.strerror}"
        if not os.access(ring.SHM_DIRECTORY, os.W_OK | os.X_OK, effective_ids=True):
            return f"{ring.SHM_DIRECTORY}: may not be written by user {os.geteuid()}"
        if status.f_blocks and status.f_bavail * status.f_frsize < MIN_RING_BYTES:
            return f"{ring.SHM_DIRECTORY} is full: a ring takes at least {MIN_RING_BYTES} bytes"
        return None

    def _warn(self) -> None:
        """Warn, once, of what keeps this process from recording: where foreign code may run, and no lock is held."""
        trouble = self._trouble
        if trouble is not None and self._told is None and not self._attending:
            self._told = trouble
            logging.getLogger("taba.client").warning("Taba records nothing: no ring can be made: %s", trouble)

    # --- what the Port asks for

    def attend(self, tab: Any, why: int) -> int | None:
        """Do what is rare, for a record that found no room. None: try again. Else the reason for the drop."""
        self._notice_fork()  # before the lock: a thread that held it is not in this process
        if why == DUE:
            self.read_functions()
            return None
        held = self._lock._is_owned()  # type: ignore[union-attr]
        try:
            if not (held or acquire_within(self._lock, WAIT_SECONDS)):
                return REASON["reentrant"]
            if self._attending:  # a signal handler, or a finalizer, within the lines below
                return REASON["reentrant"]
            wishes = self._wishes  # before the line below: who wishes between the two obeys himself, and it is obeyed again
            self._attending = True
            try:
                return self._attend(tab, why)
            except Exception as error:
                if is_foreign(error):
                    raise
                if isinstance(error, (MemoryError, RecursionError)):
                    return REASON["exhausted"]  # and the next record, which may stand on a higher step, tries again
                return self._fail(f"{type(error).__name__}: {error}")
            finally:
                self._attending = False  # before the look: who wishes between the two obeys himself
                if self._wishes != wishes:
                    self._obey()
        finally:
            if not held:
                try:  # noqa: SIM105  # no call before the release, at which a signal handler could raise
                    self._lock.release()
                except RuntimeError:
                    pass  # it was not to be had

    def _attend(self, tab: Any, why: int) -> int | None:
        port = self._port
        if port.has(tab) and why != NO_PLACE:
            if not self._must_leave(why):
                return why if why >= 0 else None
            self._leave()
        if not port.is_open:
            if self._stopped:
                return REASON["stopped"]
            reason = self._make_ring()
            if reason is not None:
                return reason
            for healing in list(self._healing):  # what earlier rings held is held by this one from its beginning
                if healing.net and not port.has(healing):
                    self._enter(healing)
        if not port.has(tab):
            self._enter(tab)
        return None

    def _must_leave(self, why: int) -> bool:
        segment = self._segment
        assert segment is not None
        words, where = segment.words, segment.where
        tail = words[ring.TAIL_OFFSET // 8]
        lost = max(0, self._port.position - tail)
        if words[ring.RETIRED_OFFSET // 8] or (why >= 0 and not segment.is_named()):
            self._leave()
            self._port.count(REASON["unknown"], lost)  # counted in the next ring: nobody reads this one's header
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

    def _make_ring(self) -> int | None:
        """None: there is a ring. Else the reason for the drop."""
        if monotonic() < self._next_try:
            return REASON["no_ring"]
        wishes, settings = self._wishes, self.settings
        if self._divert is not None:
            self._client = CAPTURED
            self._record_into(self._divert(self._make))
            return None
        if settings is None:  # only start(), which reads the environment and says what is wrong with it, makes them
            return REASON["stopped"]
        before = self._segment  # one that only counts, if there is one; its Agent, and nobody else, may have removed it
        may_count = before is None or bool(before.words[ring.RETIRED_OFFSET // 8]) or not before.is_named()
        try:
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
                may_count=may_count,
            )
        except (OSError, ValueError) as error:
            if is_foreign(error):
                raise
            return self._fail(str(error))
        if self._wishes != wishes:  # a signal handler stopped, started anew, or forked, and this is the child
            segment.discard()
            return REASON["reentrant"]
        if self._segment is not None:  # one that only counted
            self._port.close()
            self._segment.let_go()
        self._record_into(segment)
        if not segment.where.records:
            return self._fail(f"no room for a ring in {ring.SHM_DIRECTORY} or in TABA_SHM_BYTES ({settings.shm_bytes})")
        return None

    def _record_into(self, segment: Segment) -> None:
        self._segment = segment
        segment.memory.own()  # from here on `forget_parent` finds it
        self._directory_count = self._directory_used = 0
        self._port.open(segment.memory.mapping, segment.counts)
        if segment.where.records:
            self._next_try = 0.0
            self._trouble = self._told = None

    def _fail(self, trouble: str) -> int:
        self._trouble = trouble
        self._next_try = monotonic() + TRY_EVERY
        return REASON["no_ring"]

    def _take_slot(self) -> int:
        if self._slot is None:
            self._slot = identity.Slot()
            self._slot.own()
        return self._slot.number

    def _enter(self, tab: Any) -> None:
        """Give the Tab its place in the directory, or refuse it one."""
        segment = self._segment
        assert segment is not None
        entry = self._entry(tab)
        id, begin = self._directory_count, self._directory_used
        if begin + len(entry) > segment.where.directory_bytes or id >= ring.MAX_TABS:
            self._port.refuse(tab)
            return
        # remembered before it is published: a signal handler's exception between these lines wastes an entry at most, and a published one
        # never changes
        self._directory_count, self._directory_used = id + 1, begin + len(entry)
        self._port.enter(tab, id, entry, begin, tab.is_healing)

    def _entry(self, tab: Any) -> bytes:
        return ring.encode_entry(tab.type, tab.name, *self._meanings.get(tab.name, ("", "")), tab.is_healing)

    def _say_anew(self, tab: Any) -> None:
        """Give a Tab that has its place already another one, whose entry has what is said of it by now.

        One that heals stays where it is, for its cell does, and says it in the next ring; so does any once half of the directory is used.
        """
        self._notice_fork()
        if tab.is_healing or not self._port.has(tab):
            return  # no lock for what is new
        with self._lock:
            if self._attending:
                return
            wishes, self._attending = self._wishes, True  # a signal handler within these lines places no Tab, and ends no ring
            try:
                segment = self._segment
                if segment is None or not segment.where.records or not self._port.has(tab):
                    return
                if self._directory_used + len(self._entry(tab)) <= segment.where.directory_bytes // 2:
                    self._enter(tab)
            finally:
                self._attending = False
                if self._wishes != wishes:
                    self._obey()

    # --- forks

    def _notice_fork(self) -> None:
        """In a child that C code forked, where no hook ran: as the hook."""
        if self._port.is_forked():
            self.forget_parent()

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
