"""What applications embed: record Events from any process, at a cost that it does not feel.

    from taba import client

    bids = client.counter("bids_won")
    bids.inc()

Tabs are made once and kept. Recording makes no system call, takes no lock that another process can hold, waits for none, and never raises
because of what it is given or because Taba is absent: what cannot be recorded is dropped and counted (`stats()`). The first record makes
this process's ring in shared memory; a forked child makes its own. No thread and no process is started.

No path of a record runs foreign code, logs, imports or writes to a descriptor; the exceptions are what a value itself says of its
number (`__index__`, `__float__`), and what you gave to a Gauge's set_function(). Where no shared memory can be had, start() or the making
of a Tab warns, once, and stats() tells the `problem`.

With the C accelerator (`stats()["accelerated"]`) a record costs some 20 ns; without it the same is done in pure Python. Events without a
time carry the coarse clock where that is sound (`stats()["clock"]`, up to a few milliseconds old), except those of Gauge, ExpiryGauge,
Buffer and your own Types; TABA_CLOCK=exact or coarse says otherwise.

Interpreters
with a GIL of their own each have a ring of their own. A build without the GIL, while it runs without, uses the pure-Python ring with its
lock, one ring for all threads. TABA_PURE=1 in the environment asks for the pure-Python ring everywhere.

Standard library only.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from taba import names
from taba.client import process as _process

if TYPE_CHECKING:
    from taba.client import testing
    from taba.client.pure import Counter, Gauge, Percentile, Tab, UpDown

__all__ = ["counter", "gauge", "histogram", "percentile", "start", "stats", "stop", "tab", "testing", "updown"]


def start(client: str | None = None) -> None:
    """Record under this client id; optional, and may be called again with another.

    `client` takes A-Z a-z 0-9 _ . / : @ + - and the placeholders {host} {program} {slot} {env:NAME}; None stands for TABA_CLIENT_ID, or
    `{host}:{program}/{slot}`. Raises ValueError for a wrong id or a wrong TABA_… variable. Makes no ring yet.
    """
    _process.producer.start(client, os.environ)


def stop() -> None:
    """Leave the ring to the Agent, which drains it. What is recorded from now on until start() is dropped and counted as `stopped`."""
    _process.producer.stop()


def stats() -> dict[str, Any]:
    """What this process recorded and dropped, and with what: see the keys."""
    return _process.producer.stats()


def tab(name: str, type: str, labels: Mapping[str, str] | None = None, *, unit: str = "", description: str = "") -> Tab:
    """The Tab of this name, labels and Type; the same object each time.

    Raises ValueError for names that break the rules, and where this process has a Tab of this name with another Type.

    `name` is a base name, or with its labels the canonical text. `unit` and `description` travel once, and the later ones stand.
    """
    if labels is None and isinstance(name, str) and "{" in name:
        names.parse_name(name)
    else:
        name = names.canonical_name(name, labels)
    names.check_type(type)
    names.check_unit(unit)
    names.check_description(description)
    if _process.producer.settings is None:
        _process.producer.start(None, os.environ)  # a wrong environment is an error here, where it can be seen, not at a record
    made: Tab = _process.producer.tab(name, type, unit, description)
    return made


def counter(name: str, labels: Mapping[str, str] | None = None, *, unit: str = "", description: str = "") -> Counter:
    """A Tab of the Type CounterGroup: `inc(n=1)`, `with tab.count_exceptions(): …`."""
    return tab(name, "CounterGroup", labels, unit=unit, description=description)  # type: ignore[return-value]


def percentile(name: str, labels: Mapping[str, str] | None = None, *, unit: str = "", description: str = "") -> Percentile:
    """A Tab of the Type PercentileGroup: `observe(value)`, `with tab.time(): …`."""
    return tab(name, "PercentileGroup", labels, unit=unit, description=description)  # type: ignore[return-value]


histogram = percentile


def gauge(name: str, labels: Mapping[str, str] | None = None, *, unit: str = "", description: str = "") -> Gauge:
    """A Tab of the Type Gauge: `set(value)`, `inc(n=1)`, `dec(n=1)`, `set_function(function)`."""
    return tab(name, "Gauge", labels, unit=unit, description=description)  # type: ignore[return-value]


def updown(name: str, labels: Mapping[str, str] | None = None, *, unit: str = "", description: str = "") -> UpDown:
    """A Tab of the Type UpDown: `inc(n=1)`, `dec(n=1)`, `with tab.track(): …`. What a process added is gone within 3 s of its death."""
    return tab(name, "UpDown", labels, unit=unit, description=description)  # type: ignore[return-value]


if not TYPE_CHECKING:  # a type checker would take any name for one of this module's

    def __getattr__(name):
        if name == "testing":  # only tests pay for it
            import importlib

            return importlib.import_module("taba.client.testing")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@atexit.register
def _free_slot() -> None:
    _process.producer.end()
