"""The ring's producer in pure Python: what the C accelerator does, in the same layout, without a compiler.

How a record is written whole or not at all, with threads and signals about:

1. A position is reserved by one step of an iterator over free positions, which is atomic under the GIL. It is the step of a `for` loop,
   not a call: between it and the commit nothing runs (neither another thread nor a signal handler) on CPython 3.11 and later.
2. The clock is read and the value prepared before the reservation.
3. The commit word is one aligned 8-byte store. x86-64 shows stores in order; elsewhere, and in a build without the GIL, every record
   passes through the lock instead of the fast path.
4. What is rare (a new chunk of positions, values in the byte ring, full rings) happens under a lock that the thread may hold already,
   because it is in a signal handler: then the event is dropped as `reentrant`, never waited for. For another thread it waits, but for no
   more than WAIT_SECONDS.
5. A Tab that heals sums what it records, under the lock always: the sum and the ring never disagree. What finds no room is owed: added to
   the Tab's cell in the directory. A new ring's cell begins with the sum.
6. Nothing raises because of Taba: no memory, no stack, and modules that are gone at the interpreter's end drop the event. What a signal
   handler raises is the application's, and passes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from time import time as now
from typing import Any

from taba.client.harmless import is_foreign
from taba.client.metering import Meter
from taba.client.numbers import BUILT_IN, as_float, as_number, as_sum
from taba.client.own_ring import NO_RING, NOTHING_FREE, OwnRing, as_mark
from taba.client.port import VALUE_TYPE, Port
from taba.client.timing import count_exceptions as _count_exceptions
from taba.client.timing import time as _time
from taba.client.timing import track as _track

__all__ = ["Counter", "Gauge", "Meter", "Percentile", "Port", "Tab", "UpDown"]

MAX_LABELLED = 10_000  # sets of labels that a Tab finds again by itself; others are looked up by name


class Tab:
    """A named series of any Type."""

    __slots__ = ("_labelled", "_mark", "_name", "_place", "_port", "_type")
    is_healing = False

    def __init__(self, port: Port, name: str, type: str, is_coarse: bool = False, is_healing: bool = False):
        # the pure ring's events always carry the exact clock: reading it costs little beside the rest
        self._port = port
        self._name = name
        self._type = type
        self._place: tuple[OwnRing, Any] = (NO_RING, 0)
        self._mark: tuple[Any, Any, float] = (None, None, 0.0)  # the commit word in this lap, at this place
        self._labelled: dict[Any, Tab] = {}

    @property
    def name(self) -> str:
        """The canonical name."""
        return self._name

    @property
    def type(self) -> str:
        """The Type."""
        return self._type

    def __repr__(self) -> str:
        return f"<Tab {self._type} {self._name}>"

    def labels(self, **labels: str | int | bool) -> Any:
        """The Tab of this name with these labels too; the same object each time."""
        key = (*labels.items(), *map(type, labels.values()))  # True is 1, and not the same text
        try:
            return self._labelled[key]
        except (KeyError, TypeError):  # TypeError: a value that cannot be a key, and no label either
            tab: Tab = self._port.label(self, labels)
            if len(self._labelled) < MAX_LABELLED:
                self._labelled[key] = tab
            return tab

    def record(self, value: Any, time: float | None = None) -> None:
        """Record one Event; time in Unix seconds, now if None. Never raises, waits for no process: what cannot be recorded is counted."""
        try:
            if time is None:
                seconds = now()
            else:
                given = self._port.time_of(time)
                if given is None:
                    return
                seconds = given
            if type(value) is not float:
                number = as_float(value)
                if number is None:
                    self._port.record_any(self, seconds, value)
                    return
                value = number
            place = self._place
            free, lap, times, values, marks, guard = place[0].chunk
            if guard[0]:
                of, at, mark = self._mark
                if of is not lap or at is not place:
                    mark = as_mark(lap | place[1])
                    self._mark = (lap, place, mark)
                    if not guard[0]:  # C code forked within that call, in a signal handler, and this is the child
                        free = NOTHING_FREE
                for index in free:
                    times[index] = seconds
                    values[index] = value
                    marks[index] = mark
                    return
            self._port.record(self, seconds, value)
        except (MemoryError, RecursionError):
            self._port.exhausted += 1
        except Exception as error:
            # at the interpreter's end modules are empty; before it, only what is not Taba's comes here
            if is_foreign is not None and is_foreign(error):
                raise
            self._port.exhausted += 1


_record = Tab.record


class Counter(Tab):
    """Counts."""

    __slots__ = ()

    def inc(self, n: Any = 1.0, time: float | None = None) -> None:
        """Count n."""
        try:
            self.record(n, time)
        except RecursionError:  # no stack for the call
            self._port.exhausted += 1

    count_exceptions = _count_exceptions


class Percentile(Tab):
    """Percentiles of values."""

    __slots__ = ()

    observe = Tab.record
    time = _time


class Gauge(Tab):
    """The last value. inc() and dec() go by the number that this process set last, 0 before the first.

    Where one thread sets while another changes it, either may be the last that is read; what the next change goes by is right.
    """

    __slots__ = ("_changes", "_is_changing", "_last", "_last_life")

    def __init__(self, port: Port, name: str, type: str, is_coarse: bool = False, is_healing: bool = False):
        super().__init__(port, name, type)
        self._changes: deque[float] = deque()
        self._is_changing = False
        self._last: Any = 0.0
        self._last_life = 0  # the process that set it

    @property
    def net(self) -> float:
        """The number that this process set last."""
        if self._last_life != self._port.life:
            return 0.0
        number = as_sum(self._last)
        return number if number is not None and math.isfinite(number) else 0.0

    def record(self, value: Any, time: float | None = None) -> None:
        """The value from now on. Never raises, waits for no process: what cannot be recorded is counted."""
        try:
            self._last, self._last_life = value, self._port.life
            _record(self, value, time)
        except RecursionError:
            self._port.exhausted += 1

    set = record

    def inc(self, n: Any = 1.0, time: float | None = None) -> None:
        """n more."""
        self._change(n, time, 1.0)

    def dec(self, n: Any = 1.0, time: float | None = None) -> None:
        """n less."""
        self._change(n, time, -1.0)

    def _change(self, n: Any, time: float | None, sign: float) -> None:
        try:
            number = as_sum(n)
            if number is None:
                self._port.count(VALUE_TYPE)
                return
            seconds = now() if time is None else self._port.time_of(time)
            if seconds is not None:
                self._port.change(self, sign * number, seconds)
        except (MemoryError, RecursionError):
            self._port.exhausted += 1
        except Exception as error:
            if is_foreign is not None and is_foreign(error):
                raise
            self._port.exhausted += 1

    def set_function(self, function: Callable[[], Any] | None) -> None:
        """What it returns is the value, read once a second while this process records; None for no function."""
        self._port.follow(self, function)


class UpDown(Tab):
    """A number that goes up and down, and heals: what this process added is gone when it dies."""

    __slots__ = ("_cell", "_net", "_net_life")
    is_healing = True

    def __init__(self, port: Port, name: str, type: str, is_coarse: bool = False, is_healing: bool = True):
        super().__init__(port, name, type)
        self._cell = 0  # in words, while `_place` is in the ring
        self._net = 0.0
        self._net_life = 0  # the process whose sum `_net` is

    @property
    def net(self) -> float:
        """The sum of what this process recorded."""
        return self._net if self._net_life == self._port.life else 0.0

    @property
    def born(self) -> float:
        """When this process was forked, in seconds of perf_counter(); 0 where it was not."""
        self._port.notice_fork()
        return self._port.born

    def add(self, value: float) -> None:
        """Add to the sum; the Port's lock is held."""
        self._net, self._net_life = self.net + value, self._port.life

    def record(self, value: Any, time: float | None = None) -> None:
        """Add one value; time in Unix seconds, now if None. Never raises, waits for no process: what cannot be recorded is counted."""
        try:
            port = self._port
            seconds = now() if time is None else port.time_of(time)
            if seconds is None:
                return
            number = as_float(value)
            if number is None:
                number = as_sum(value)
                if number is None:
                    port.record_any(self, seconds, value)
                    return
            port.record(self, seconds, number)
        except (MemoryError, RecursionError):
            self._port.exhausted += 1
        except Exception as error:
            if is_foreign is not None and is_foreign(error):
                raise
            self._port.exhausted += 1

    def inc(self, n: Any = 1.0, time: float | None = None) -> None:
        """n more."""
        try:
            self.record(n, time)
        except RecursionError:
            self._port.exhausted += 1

    def dec(self, n: Any = 1.0, time: float | None = None) -> None:
        """n fewer."""
        try:
            if isinstance(n, float):
                self.record(float.__neg__(n), time)
            elif isinstance(n, int) and n is not True and n is not False:
                self.record(int.__neg__(n), time)
            elif type(n) not in BUILT_IN and (number := as_number(n)) is not None:
                self.record(-number, time)
            else:
                self._port.count(VALUE_TYPE)
        except RecursionError:
            self._port.exhausted += 1

    track = _track
