"""prometheus_client's MultiProcessCollector without files: of a program's processes on this host it shows what a Server has of them.

1. The Agent is asked to drain, and waited for as long as MOST_SECONDS, so that what was recorded before a scrape is in it; how old the rest
   may be is shown with it, as AGE.
2. Shown are the metrics that this process has declared, of the Clients that are named as it is, whatever their slots: other programs and
   other hosts have collectors of their own. TABA_COMPAT_CLIENTS, a regular expression, names others.
3. A Server that does not answer fails the scrape: nothing that is not so is shown.
4. All questions of a scrape together take no longer than it may, `seconds` or TABA_COMPAT_SECONDS: then it shows the metrics that are
   whole by then, and LEFT_OUT, how many are not. Where that is all of them it fails.
5. Where there is a directory of their files (a `path`, PROMETHEUS_MULTIPROC_DIR) it is theirs, and reads them.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from time import monotonic, sleep
from typing import Any, NamedTuple, TypeVar

from taba import names
from taba.client import identity
from taba.client.process import producer
from taba.client.producer import read_settings

CLIENTS = "TABA_COMPAT_CLIENTS"  # which Clients are shown, where it is not those that are named as this one is
AGE = "taba_compat_age_seconds"
LEFT_OUT = "taba_compat_left_out"
SECONDS = "TABA_COMPAT_SECONDS"
DEFAULT_SECONDS = 8.0  # of a scrape, for all its questions: Prometheus waits for ten
AGENT_SHARE = 0.25  # of them, for the Agent to answer: a Server is asked without it, too
MOST_SECONDS = 1.0  # for what was recorded before a scrape to come to a Server
FIRST_PAUSE = 0.01  # seconds between two looks whether it has; doubled each time
TIMEOUT = 5.0  # of each question, at the most
SOME_NAMES = 50  # in one question: an address stays short
DIRECTORIES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")  # where their files are
MAX_DECLARED = 10_000  # metrics whose names are kept
SHOWN = ("counter", "gauge", "summary", "histogram")  # Info and Enum are not theirs in several processes, either

Labels = tuple[tuple[str, str], ...]
T = TypeVar("T")


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

        def __init__(self, registry: Any, path: str | None = None, *, seconds: float | None = None):
            self._asks = not has_files(path)
            self._seconds = seconds_of(seconds, os.environ)
            if not self._asks:
                super().__init__(registry, path)
            elif registry:
                registry.register(self)

        def describe(self) -> Iterable[Any]:
            """Nothing: a registry that asks for names when a collector is registered is to ask nobody."""
            return ()

        def collect(self) -> Iterable[Any]:
            """The metrics as they are now. Raises QueryError."""
            return _metrics(self._seconds) if self._asks else super().collect()

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


def seconds_of(given: float | None, environ: Mapping[str, str]) -> float:
    """The seconds that a scrape may take. Raises ValueError with a sentence."""
    text = environ.get(SECONDS, "") if given is None else given
    if text == "":
        return DEFAULT_SECONDS
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{SECONDS if given is None else 'seconds'}: {text!r:.100}: takes a number of seconds above 0, such as 8")
    return seconds


class Over(Exception):
    """The time of a scrape is over."""


class Within:
    """The seconds that all questions of a scrape take together, from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = monotonic):
        self._end, self._clock = clock() + seconds, clock

    @property
    def left(self) -> float:
        """Of these seconds."""
        return max(0.0, self._end - self._clock())

    def ask(self, query: Any, asking: Callable[[], T]) -> T:
        """What `asking` asks of `query`. Raises Over where there is no time, or was none; QueryError as ever."""
        from taba.query import QueryError

        query.timeout = min(TIMEOUT, self.left)
        if not query.timeout:
            raise Over
        try:
            return asking()
        except QueryError:
            if not self.left:
                raise Over from None
            raise


def clients() -> str:
    """A regular expression of the Clients that are shown."""
    settings = producer.settings or read_settings(None, os.environ)
    return os.environ.get(CLIENTS) or identity.pattern(settings.client, os.environ)


def drained(
    agent: Any, clock: Callable[[], float] = monotonic, pause: Callable[[float], None] = sleep, most: float = MOST_SECONDS
) -> float:
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
            if not answer["batches"] or age < gone or gone + wait > most:
                return age
            pause(wait)
            wait *= 2
    except (QueryError, KeyError, TypeError, ValueError, OverflowError):  # nobody, or another version: shown as an age that nobody knows
        return math.inf


def _metrics(seconds: float) -> Iterator[Any]:
    from prometheus_client.metrics_core import Metric

    from taba.query import Query, ServerUnavailable

    environ, within = os.environ, Within(seconds)
    agent = Query(environ.get("TABA_AGENT_URL") or "http://127.0.0.1:8279", role="Agent", timeout=min(TIMEOUT, AGENT_SHARE * seconds))
    age = drained(agent, most=min(MOST_SECONDS, AGENT_SHARE * seconds))
    query = Query(environ.get("TABA_SERVER", "").split(",")[0] or "http://127.0.0.1:8280", timeout=TIMEOUT)
    declared, pattern = dict(_declared), clients()
    found, left_out = _samples(query, declared, pattern, within)
    if left_out and len(left_out) == len(declared):
        raise ServerUnavailable(
            f"{query.url} told none of {len(declared)} metrics in the {seconds:g} s of {SECONDS}: see whether it is slow"
        )
    for name in sorted(found):
        metric = Metric(name, declared[name].help, declared[name].kind)
        for sample, labels, value in found[name]:
            metric.add_sample(sample, dict(labels), value)
        yield metric
    shown = Metric(AGE, "Seconds of which something may be missing at the end; +Inf: the Agent does not answer.", "gauge")
    shown.add_sample(AGE, {}, age)
    yield shown
    shown = Metric(LEFT_OUT, f"Metrics that a Server did not tell in time ({SECONDS}), and that are not shown.", "gauge")
    shown.add_sample(LEFT_OUT, {}, len(left_out))
    yield shown


Samples = list[tuple[str, Labels, float]]


def _samples(query: Any, declared: Mapping[str, Declared], pattern: str, within: Within) -> tuple[dict[str, Samples], set[str]]:
    """By metric its samples, of the Clients that match; and the metrics for which there was no time."""
    from taba.query import ServerUnavailable

    read = sorted(name for name, metric in declared.items() if metric.kind != "histogram")
    read += [bucket_name(name) for name in sorted(declared) if declared[name].kind == "histogram"]
    tabs: dict[str, dict[str, Any]] = {}
    left_out: set[str] = set()
    living: set[str] = set()
    rest = list(read)

    def some() -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = query.projections(name=rest[:SOME_NAMES], client_match=pattern)
        return found

    try:
        if any(metric.kind == "gauge" and metric.mode.startswith("live") for metric in declared.values()):
            living = set(within.ask(query, lambda: query.alive(client_match=pattern)))
        while rest:
            tabs.update(within.ask(query, some))
            del rest[:SOME_NAMES]
    except Over:
        left_out = {name if name in declared else metric_name(name) for name in rest}
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
        if metric.kind == "histogram" and name not in left_out:
            try:
                found[name] += _histogram(query, name, metric.bounds, pattern, counted.get(name, {}), within)
            except Over:
                left_out.add(name)
    return {name: samples for name, samples in found.items() if samples and name not in left_out}, left_out


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


def _histogram(
    query: Any, name: str, bounds: tuple[float, ...], pattern: str, counted: Mapping[Labels, Mapping[float, float]], within: Within
) -> Samples:
    """A Histogram's samples: its buckets as they were counted, or as the sketches tell them."""
    from prometheus_client.utils import floatToGoString

    from taba.query import Question

    parts = "|".join(f"{name}_{part}" for part in ("bucket", "count", "sum"))
    parameters = [("query", f"{{__name__=~{json.dumps(parts)},client=~{json.dumps(pattern)}}}")]
    parameters += [("le", floatToGoString(bound)) for bound in bounds if bound != math.inf]
    question = Question("/api/v1/query", tuple(parameters), dict, lambda content: content["data"]["result"])
    answer: Any = within.ask(query, lambda: query.ask(question))
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
