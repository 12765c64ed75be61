"""prometheus_client's MultiProcessCollector without files: of a program's processes on this host it shows what a Server has of them.

1. The Agent is asked to drain, and waited for as long as MOST_SECONDS, so that what was recorded before a scrape is in it; how old the rest
   may be is shown with it, as AGE.
2. Shown are the metrics that this process has declared, of the Clients that are named as it is, whatever their slots: other programs and
   other hosts have collectors of their own. TABA_COMPAT_CLIENTS, a regular expression, names others.
3. A Server that does not answer fails the scrape: nothing that is not so is shown.
4. Where there is a directory of their files (a `path`, PROMETHEUS_MULTIPROC_DIR) it is theirs, and reads them.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic, sleep
from typing import Any, NamedTuple

from taba import names
from taba.client import identity
from taba.client.process import producer
from taba.client.producer import read_settings

CLIENTS = "TABA_COMPAT_CLIENTS"  # which Clients are shown, where it is not those that are named as this one is
AGE = "taba_compat_age_seconds"
MOST_SECONDS = 1.0  # for what was recorded before a scrape to come to a Server
FIRST_PAUSE = 0.01  # seconds between two looks whether it has; doubled each time
TIMEOUT = 5.0  # of each question, within the 10 s of a scrape
SOME_NAMES = 50  # in one question: an address stays short
DIRECTORIES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")  # where their files are
MAX_DECLARED = 10_000  # metrics whose names are kept
SHOWN = ("counter", "gauge", "summary", "histogram")  # Info and Enum are not theirs in several processes, either

Labels = tuple[tuple[str, str], ...]


class Declared(NamedTuple):
    """What is known of a metric of this process."""

    kind: str
    help: str
    mode: str  # of a Gauge: which of the processes' values is shown
    bounds: tuple[float, ...]  # of a Histogram


_declared: dict[str, Declared] = {}


def declaring(init: Callable[..., None]) -> Callable[..., None]:
    """A metric's __init__ that also keeps what it declares."""

    @functools.wraps(init)
    def declare(self: Any, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        if not self._labelvalues and self._type in SHOWN and (len(_declared) < MAX_DECLARED or self._name in _declared):
            mode, bounds = getattr(self, "_multiprocess_mode", "all"), tuple(getattr(self, "_upper_bounds", ()))
            _declared[self._name] = Declared(self._type, self._documentation, mode, bounds)

    declare.is_recorded = True  # type: ignore[attr-defined]
    return declare


def replaced(theirs: type) -> type:
    """Their MultiProcessCollector as it is described above."""

    class MultiProcessCollector(theirs):  # type: ignore[misc]
        """Shows the sums over a program's processes: where they have files from those, else from a Server."""

        is_recorded = True

        def __init__(self, registry: Any, path: str | None = None):
            self._asks = not has_files(path)
            if not self._asks:
                super().__init__(registry, path)
            elif registry:
                registry.register(self)

        def describe(self) -> Iterable[Any]:
            """Nothing: a registry that asks for names when a collector is registered is to ask nobody."""
            return ()

        def collect(self) -> Iterable[Any]:
            """The metrics as they are now. Raises QueryError."""
            return _metrics() if self._asks else super().collect()

    return MultiProcessCollector


def forgetting(mark_process_dead: Callable[..., None]) -> Callable[..., None]:
    """Their mark_process_dead, which has nothing to do where there are no files: a Server knows who lives."""

    @functools.wraps(mark_process_dead)
    def forget(pid: int, path: str | None = None) -> None:
        if has_files(path):
            mark_process_dead(pid, path)

    return forget


def has_files(path: str | None) -> bool:
    """Whether processes write files of theirs, and where they are is known."""
    return path is not None or any(os.environ.get(name) for name in DIRECTORIES)


def clients() -> str:
    """A regular expression of the Clients that are shown."""
    settings = producer.settings or read_settings(None, os.environ)
    return os.environ.get(CLIENTS) or identity.pattern(settings.client, os.environ)


def drained(agent: Any, clock: Callable[[], float] = monotonic, pause: Callable[[float], None] = sleep) -> float:
    """Have the Agent drain. How many seconds old the oldest is that no Server had then; infinite where the Agent does not tell."""
    from taba.query import QueryError, Question

    began, wait = clock(), FIRST_PAUSE
    age = math.inf
    try:
        while True:
            answer = agent.ask(Question("/v1/drain", (), dict, dict, verb="POST"))
            age = math.inf if answer["age"] is None else float(answer["age"])
            gone = clock() - began
            # what waits was recorded after this began, or is given time to come to a Server
            if not answer["batches"] or age < gone or gone + wait > MOST_SECONDS:
                return age
            pause(wait)
            wait *= 2
    except (QueryError, KeyError, TypeError, ValueError, OverflowError):  # nobody, or another version: shown as an age that nobody knows
        return math.inf


def _metrics() -> Iterator[Any]:
    from prometheus_client.metrics_core import Metric

    from taba.query import Query

    environ = os.environ
    agent = Query(environ.get("TABA_AGENT_URL") or "http://127.0.0.1:8279", role="Agent", timeout=TIMEOUT)
    age = drained(agent)
    query = Query(environ.get("TABA_SERVER", "").split(",")[0] or "http://127.0.0.1:8280", timeout=TIMEOUT)
    declared, pattern = dict(_declared), clients()
    found = _samples(query, declared, pattern)
    for name in sorted(found):
        metric = Metric(name, declared[name].help, declared[name].kind)
        for sample, labels, value in found[name]:
            metric.add_sample(sample, dict(labels), value)
        yield metric
    shown = Metric(AGE, "Seconds of which something may be missing at the end; +Inf: the Agent does not answer.", "gauge")
    shown.add_sample(AGE, {}, age)
    yield shown


Samples = list[tuple[str, Labels, float]]


def _samples(query: Any, declared: Mapping[str, Declared], pattern: str) -> dict[str, Samples]:
    """By metric its samples, of the Clients that match."""
    from taba.query import ServerUnavailable

    read = sorted(name for name, metric in declared.items() if metric.kind != "histogram")
    read += [bucket_name(name) for name in sorted(declared) if declared[name].kind == "histogram"]
    tabs: dict[str, dict[str, Any]] = {}
    for start in range(0, len(read), SOME_NAMES):
        tabs.update(query.projections(name=read[start : start + SOME_NAMES], client_match=pattern))
    living: set[str] = set()
    if any(metric.kind == "gauge" and metric.mode.startswith("live") for metric in declared.values()):
        living = set(query.alive(client_match=pattern))
    found: dict[str, Samples] = defaultdict(list)
    counted: dict[str, dict[Labels, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))  # of Histograms, each bucket alone
    for tab, by_client in tabs.items():
        name, own = names.parse_name(tab)
        if isinstance(by_client.get("error"), str):  # which no Client's Projection is
            raise ServerUnavailable(f"{tab} cannot be told now: {by_client['error']}")
        bound = own.pop("bound", None) if name not in declared else None
        labels = tuple((key, value) for key, value in own.items() if value)
        metric = declared.get(name)
        if metric is None:
            if bound is not None and metric_name(name) in declared:
                counted[metric_name(name)][labels][float(bound)] = _sum(by_client, "count")
        elif metric.kind == "counter":
            found[name].append((f"{name}_total", labels, _sum(by_client, "total")))
        elif metric.kind == "summary":
            found[name] += [(f"{name}_{figure}", labels, _sum(by_client, word)) for figure, word in (("count", "count"), ("sum", "total"))]
        else:
            found[name] += [(name, labels + more, value) for more, value in levels(metric.mode, by_client, living)]
    for name, metric in declared.items():
        if metric.kind == "histogram":
            found[name] += _histogram(query, name, metric.bounds, pattern, counted.get(name, {}))
    return {name: samples for name, samples in found.items() if samples}


def bucket_name(name: str) -> str:
    """The Tabs that count the buckets of a Histogram, each alone, where they are asked for."""
    return f"{name}.bucket"


def metric_name(name: str) -> str:
    """The Histogram whose buckets these are."""
    return name.removesuffix(".bucket")


def _sum(by_client: Mapping[str, Any], figure: str) -> float:
    """Over all Clients, what was ever."""
    return math.fsum(shown["pct"][figure] or 0.0 for shown in by_client.values() if "pct" in shown)


def levels(mode: str, by_client: Mapping[str, Any], living: set[str]) -> list[tuple[Labels, float]]:
    """What of a Gauge's values is shown in a mode of theirs; where each is, its `pid` is the Client."""
    values = {
        client: (float(shown["value"]), shown["time"])
        for client, shown in by_client.items()
        if isinstance(shown.get("value"), (int, float)) and (not mode.startswith("live") or client in living)
    }
    if not values:
        return []
    numbers = [value for value, _ in values.values()]
    match mode.removeprefix("live"):
        case "min":
            return [((), min(numbers))]
        case "max":
            return [((), max(numbers))]
        case "sum":
            return [((), math.fsum(numbers))]
        case "mostrecent":
            return [((), max(values.values(), key=lambda one: one[1])[0])]
    return [((("pid", client),), value) for client, (value, _) in sorted(values.items())]


def _histogram(query: Any, name: str, bounds: tuple[float, ...], pattern: str, counted: Mapping[Labels, Mapping[float, float]]) -> Samples:
    """A Histogram's samples: its buckets as they were counted, or as the sketches tell them."""
    from prometheus_client.utils import floatToGoString

    from taba.query import Question

    parts = "|".join(f"{name}_{part}" for part in ("bucket", "count", "sum"))
    parameters = [("query", f"{{__name__=~{json.dumps(parts)},client=~{json.dumps(pattern)}}}")]
    parameters += [("le", floatToGoString(bound)) for bound in bounds if bound != math.inf]
    answer = query.ask(Question("/api/v1/query", tuple(parameters), dict, lambda content: content["data"]["result"]))
    sums: dict[tuple[str, Labels], float] = defaultdict(float)
    for one in answer:
        shown = dict(one["metric"])
        part, bound, _ = shown.pop("__name__"), shown.pop("le", None), shown.pop("client", None)
        if "exported_client" in shown:
            shown["client"] = shown.pop("exported_client")
        own: Labels = tuple(sorted(shown.items()))
        if part.endswith("_bucket"):
            if own in counted:
                continue
            own += (("le", floatToGoString(float(bound))),)
        sums[part, own] += float(one["value"][1])
    found = [(part, labels, value) for (part, labels), value in sums.items()]
    for labels, buckets in counted.items():
        total = 0.0
        for limit in bounds:
            total += buckets.get(limit, 0.0)
            found.append((f"{name}_bucket", (*labels, ("le", floatToGoString(limit))), total))
    return found
