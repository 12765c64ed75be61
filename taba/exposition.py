"""Families of samples as Prometheus scrapes them: its text format, or OpenMetrics 1.0, by prometheus_client; whichever who asks prefers.

A family is written whole, one after the other, so that others have their turns between two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from taba.errors import TabaError
from taba.installing import install_hint
from taba.series import COUNTER, GAUGE

UNKNOWN = "unknown"  # the kind of what its Handler calls neither counter nor gauge

PREFIX = "taba_"  # of all names of Taba's own but those of its process

_END = b"# EOF\n"  # of OpenMetrics; its text ends there


class NotInstalled(TabaError):
    """Exposition takes prometheus_client, which is not installed; says how."""


class Point(NamedTuple):
    """One sample: the whole name, labels and value."""

    name: str
    labels: Mapping[str, str]
    value: float


class Exposed(NamedTuple):
    """A family: its name (of a counter with `_total`), what it is, and its samples; `unit` is the word at the end of its name, or ""."""

    name: str
    kind: str
    help: str
    points: Sequence[Point]
    unit: str = ""


class Writer(NamedTuple):
    """Writes families in one format: `write` each, `end` after the last."""

    encode: Callable[[Exposed], bytes]
    end: bytes
    content_type: str

    def write(self, exposed: Exposed, is_more: bool = False) -> bytes:
        """A family; or, if it `is_more`, further points of the one that was written last."""
        content = self.encode(exposed)
        if not is_more:
            return content
        return b"\n".join(line for line in content.split(b"\n") if not line.startswith(b"#"))


def writer_for(accept: str) -> Writer:
    """What writes the format that an Accept header asks for. Raises NotInstalled."""
    try:
        from prometheus_client.exposition import choose_encoder
        from prometheus_client.metrics_core import Metric
    except ImportError as error:
        raise NotInstalled(f"/metrics takes the package prometheus_client: {install_hint('prometheus')} ({error})") from None
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        encode, content_type = choose_encoder("")

    def encode_one(exposed: Exposed) -> bytes:
        content: bytes = encode(_Families([_metric(Metric, exposed)]))
        return content.removesuffix(_END)

    return Writer(encode_one, _END if encode(_Families([])).endswith(_END) else b"", content_type)


class _Families:
    """What prometheus_client takes for a registry."""

    def __init__(self, metrics: Sequence[Any]):
        self._metrics = metrics

    def collect(self) -> Iterable[Any]:
        return self._metrics


def _metric(make: Any, exposed: Exposed) -> Any:
    name = exposed.name.removesuffix("_total") if exposed.kind == COUNTER else exposed.name
    unit = exposed.unit if exposed.unit and name.endswith("_" + exposed.unit) else ""
    metric = make(name, exposed.help, exposed.kind, unit)
    for point in exposed.points:
        metric.add_sample(point.name, dict(point.labels), point.value)
    return metric


def counter(name: str, help: str, values: Mapping[str, float] | float, label: str = "") -> Exposed:
    """A counter's family; its values by the one label that it has, or one alone."""
    return _one(name, COUNTER, help, values, label)


def gauge(name: str, help: str, values: Mapping[str, float] | float, label: str = "") -> Exposed:
    """A gauge's family, likewise."""
    return _one(name, GAUGE, help, values, label)


def _one(name: str, kind: str, help: str, values: Mapping[str, float] | float, label: str) -> Exposed:
    if isinstance(values, Mapping):
        return Exposed(name, kind, help, [Point(name, {label: key}, float(value)) for key, value in values.items()])
    return Exposed(name, kind, help, [Point(name, {}, float(values))])


OF_PROCESS = (
    "process_cpu_seconds",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)
"""The names of these, without _total."""


def is_tabas(name: str) -> bool:
    """Whether a plain name is one under which Servers and Agents tell of themselves, now or some day."""
    return name.startswith(PREFIX) or name.removesuffix("_total") in OF_PROCESS


def of_process() -> list[Exposed]:
    """What this process takes of the machine, as every Prometheus client tells it: processor, memory, descriptors. Raises NotInstalled."""
    try:
        from prometheus_client.process_collector import ProcessCollector
    except ImportError as error:
        raise NotInstalled(f"/metrics takes the package prometheus_client: {install_hint('prometheus')} ({error})") from None
    found = []
    for metric in ProcessCollector(registry=None).collect():
        points = [Point(sample.name, sample.labels, sample.value) for sample in metric.samples]
        name = metric.name + "_total" if metric.type == COUNTER else metric.name
        found.append(Exposed(name, metric.type, metric.documentation, points))
    return found
