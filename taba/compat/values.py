"""prometheus_client's values, each of whose changes is also a record.

1. Whatever class the installed prometheus_client has chosen for its values stays what holds them: its API, its registries and what it
   exposes are its own, in one process and in its multiprocess mode.
2. A change is recorded after theirs was made, as soon as it is one of the fleet's: `set` of a counter, as its `reset()` has it, is not.
3. Nothing raises because of Taba: what can be no Tab is theirs alone, and is told once by the logger `taba.compat`.

| metric | Tab | Event |
| --- | --- | --- |
| Counter | CounterGroup | the amount |
| Summary | CounterGroup | the value |
| Histogram | PercentileGroup; with TABA_COMPAT_BUCKETS=exact a CounterGroup for each `le`, too (if no label is `bound`) | the value; 1 |
| Gauge | Gauge | the process's value after the change |
| Info, Enum | Gauge | the text |
"""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

from taba import client
from taba.client.process import PORTS
from taba.compat.collecting import bucket_name, declaring, forgetting, replaced

EXACT_BUCKETS = "TABA_COMPAT_BUCKETS"  # exact: what falls into each bucket is counted, too
_told: set[str] = set()
MAX_TOLD = 1000  # names of which it was told that they are no Tabs
_locked: weakref.WeakSet[Any] = weakref.WeakSet()  # values with a lock that a child may be forked under: one that another thread holds


def _after_fork() -> None:
    for value in list(_locked):
        value._unlock()


os.register_at_fork(after_in_child=_after_fork)


def install(values: Any, metrics: Any = None, multiprocess: Any = None) -> None:
    """Have the module `prometheus_client.values` make values of ours from now on, Info and Enum of `metrics` record, and what
    `multiprocess` collects come from a Server."""
    if not getattr(values.ValueClass, "is_recorded", False):
        values.ValueClass = recorded(values.ValueClass)
    for kind, method, text_of in (("Info", "info", _info_text), ("Enum", "state", str)):
        found = getattr(metrics, kind, None)
        if found is not None and not hasattr(getattr(found, method), "is_recorded"):
            setattr(found, method, _telling(getattr(found, method), text_of))
    wrapper = getattr(metrics, "MetricWrapperBase", None)
    if wrapper is not None and not hasattr(wrapper.__init__, "is_recorded"):
        wrapper.__init__ = declaring(wrapper.__init__)
    if multiprocess is not None and not hasattr(multiprocess.MultiProcessCollector, "is_recorded"):
        multiprocess.MultiProcessCollector = replaced(multiprocess.MultiProcessCollector)
        multiprocess.mark_process_dead = forgetting(multiprocess.mark_process_dead)


def recorded(base: type) -> type:
    """The class of `base`'s values that are recorded, too."""
    exact = os.environ.get(EXACT_BUCKETS, "") == "exact"

    amounts, levels = (_plain if _is_plain(base) else _any)(base)

    def made(
        typ: str, metric_name: str, name: str, labelnames: Sequence[str], labelvalues: Sequence[str], help_text: str, **more: Any
    ) -> Any:
        labels = dict(zip(labelnames, labelvalues, strict=True))
        tab: Any = None
        if name.endswith("_created"):
            pass
        elif typ == "gauge":
            tab = _tab(metric_name, "Gauge", labels, help_text)
        elif typ == "counter" or (typ == "summary" and name == f"{metric_name}_sum"):
            tab = _tab(metric_name, "CounterGroup", labels, help_text)
        elif typ in ("histogram", "gaugehistogram") and name == f"{metric_name}_sum":
            tab = _tab(metric_name, "PercentileGroup", labels, help_text)
        elif exact and name == f"{metric_name}_bucket" and "bound" not in labels:  # of one that has this label the sketch tells
            bound = labels.pop("le")  # Prometheus' own
            tab = _tab(bucket_name(metric_name), "CounterGroup", {**labels, "bound": bound}, help_text)
        kind = base if tab is None else levels if typ == "gauge" else amounts
        value = kind(typ, metric_name, name, labelnames, labelvalues, help_text, **more)
        if tab is not None:
            value._bind(tab)
        return value

    class Made(base):  # type: ignore[misc]
        """What `values.ValueClass` is: calling it makes whichever value it takes."""

        is_recorded = True

        def __new__(cls, *arguments: Any, **more: Any) -> Any:
            return made(*arguments, **more)

    Made.__name__ = Made.__qualname__ = base.__name__
    return Made


def _is_plain(base: Any) -> bool:
    """Whether a value is a number under a lock, as in one process; looked at, since both are private."""
    if getattr(base, "_multiprocess", True):
        return False
    one = base("counter", "one", "one_total", (), (), "")
    return getattr(one, "_value", None) == 0.0 and hasattr(getattr(one, "_lock", None), "__enter__")


def _plain(base: Any) -> tuple[type, type]:
    """Values whose number and lock are used themselves: another call would cost as much as a record."""

    class Unlocked(base):  # type: ignore[misc]
        """A value whose lock is free in a forked child."""

        def __init__(self, *arguments: Any, **more: Any):
            super().__init__(*arguments, **more)
            _locked.add(self)

        def _unlock(self) -> None:
            self._lock = Lock()

    class Amounts(Unlocked):
        """A value whose increments are recorded."""

        def _bind(self, tab: Any) -> None:
            self._record = tab.record

        def inc(self, amount: float) -> None:
            with self._lock:
                self._value += amount
            self._record(+amount)  # True is one more

    class Totals(Unlocked):
        """The same in one call of the C accelerator's, which has the number: no step of it lets another thread in."""

        _total: Any = None

        def _bind(self, tab: Any) -> None:
            self._total = PORTS.Total(tab)
            self.inc = self._total.inc

        @property
        def _value(self) -> float:
            value: float = self._total.value
            return value

        @_value.setter
        def _value(self, value: float) -> None:
            if self._total is not None:  # else it is just made, and 0
                self._total.value = value

    class Levels(Unlocked):
        """A value of which each change is recorded as what it is then: the last record is of the last change."""

        def _bind(self, tab: Any) -> None:
            self._record = tab.record

        def inc(self, amount: float) -> None:
            with self._lock:
                self._value += amount
                self._record(self._value)

        def set(self, value: float, timestamp: float | None = None) -> None:
            with self._lock:
                self._value = value
                self._record(value)

    return Totals if hasattr(PORTS, "Total") else Amounts, Levels


def _any(base: Any) -> tuple[type, type]:
    """The same of values that nothing is known of."""

    class Amounts(base):  # type: ignore[misc]
        """As above."""

        def _bind(self, tab: Any) -> None:
            self._record = tab.record

        def inc(self, amount: float) -> None:
            super().inc(amount)
            self._record(+amount)

    class Levels(base):  # type: ignore[misc]
        """As above."""

        def __init__(self, *arguments: Any, **more: Any):
            super().__init__(*arguments, **more)
            self._unlock()
            _locked.add(self)

        def _unlock(self) -> None:
            self._order = Lock()

        def _bind(self, tab: Any) -> None:
            self._record = tab.record

        def inc(self, amount: float) -> None:
            with self._order:
                super().inc(amount)
                self._record(self.get())

        def set(self, value: float, timestamp: float | None = None) -> None:
            with self._order:
                super().set(value, timestamp=timestamp)
                self._record(self.get())

    return Amounts, Levels


def _telling(method: Callable[..., Any], text_of: Callable[[Any], str]) -> Callable[..., Any]:
    @functools.wraps(method)
    def telling(self: Any, *arguments: Any, **named: Any) -> Any:
        result = method(self, *arguments, **named)  # theirs says what it takes, and under which name
        (value,) = (*arguments, *named.values())
        labels = dict(zip(self._labelnames, self._labelvalues, strict=False))
        tab = _tab(self._name, "Gauge", labels, self._documentation)
        if tab is not None:
            tab.record(text_of(value))
        return result

    telling.is_recorded = True  # type: ignore[attr-defined]
    return telling


def _info_text(value: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value[key]}" for key in sorted(value, key=str))


def _tab(name: str, type: str, labels: Mapping[str, str], description: str) -> Any:
    """The Tab; None where there can be none of that name, labels and Type."""
    try:
        return client.tab(name, type, labels, description=description if len(description) <= 400 and "\0" not in description else "")
    except ValueError as error:
        if name not in _told and len(_told) < MAX_TOLD:
            _told.add(name)
            logging.getLogger("taba.compat").warning("%s is not recorded: %s", name, error)
        return None
