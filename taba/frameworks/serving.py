"""What is recorded of requests, whichever framework serves them: what the middlewares of this folder share.

1. A label is a route's template, a known method, a status, a class of exceptions: never a path, nor anything else that a stranger chooses.
2. Of routes and of classes of exceptions so many have a name, and what comes beyond has one together.
3. What a request costs is a look into one dictionary, and a handful of records: `taba.client.metering`, in C where that was built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from taba import client
from taba.client.metering import text_or_none
from taba.client.process import PORTS

if TYPE_CHECKING:
    from taba.client.metering import Meter
    from taba.client.pure import Counter, Percentile

MAX_ROUTES = 500  # that have a name of their own; a large application has some hundred
MAX_KINDS = 100  # of exceptions, likewise
MAX_STATUSES = 200  # lines, with their texts, by which these are found at once; an application has a dozen
MAX_SERIES = 5_000  # routes by method and status that are kept at hand; others are looked up
OTHER = "(other)"  # what comes beyond
UNMATCHED = "(unmatched)"  # no route took it
METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"))
NO_STATUS = 0  # it ended without a response
GONE = 499  # the client went away before there was a response
FAILURES = (Exception, KeyboardInterrupt, SystemExit)  # of an application's own; other exceptions are how event loops give something up
FAILED = 500  # what a server answers where the application raised instead


def shown(text: str) -> str:
    """`text` as a label takes it: what an application names its routes and classes is not what raises in its requests."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


class Series(NamedTuple):
    """Where requests of one method, route and status are recorded."""

    requests: Counter
    seconds: Percentile
    received: Percentile
    sent: Percentile


class Names:
    """At most so many texts, and OTHER for what comes beyond."""

    def __init__(self, most: int):
        self._most = most
        self._known: dict[str, str] = {}

    def of(self, text: str) -> str:
        """`text`, if it is one of them."""
        known = self._known.get(text)
        if known is None:
            known = OTHER if len(self._known) >= self._most else self._known.setdefault(text, shown(text))
        return known


class Serving:
    """The Tabs of requests: `http_requests` and its neighbours; another `name` takes the place of `http`."""

    def __init__(self, name: str = "http"):
        self._requests = client.counter(f"{name}_requests", description="requests served, by method, route and status")
        self._seconds = client.percentile(f"{name}_request_seconds", description="from a request's arrival to its response's last byte")
        self._received = client.percentile(f"{name}_request_bytes", description="bodies of requests that have one")
        self._sent = client.percentile(f"{name}_response_bytes", description="bodies of responses")
        self._exceptions = client.counter(f"{name}_exceptions", description="exceptions that no handler made a response of its own of")
        self._aborted = client.counter(f"{name}_aborted", description="responses of which the client did not wait for the end")
        in_flight = client.updown(f"{name}_requests_in_flight", description="requests that are being served")
        self._routes, self._kinds, self._statuses = Names(MAX_ROUTES), Names(MAX_KINDS), Names(MAX_STATUSES)
        self.meter: Meter = PORTS.Meter(in_flight, self.made, self.fail)
        self.begin, self.end = self.meter.begin, self.meter.end

    def abort(self, route: str | None) -> None:
        """The client did not wait for the end."""
        self._aborted.labels(route=self._route(route)).inc()

    def fail(self, route: str | None, error: BaseException) -> None:
        """The application raised this."""
        self._exceptions.labels(route=self._route(route), exception=self._kinds.of(type(error).__name__)).inc()

    def asked(self, route: Callable[..., str | None], *of: Any) -> str | None:
        """What a route's function tells; what it raises, or tells that is no text, is counted, and is none of the application's."""
        try:
            return text_or_none(route(*of))
        except Exception as error:
            self.fail(None, error)
            return None

    def _route(self, route: str | None) -> str:
        return UNMATCHED if route is None else self._routes.of(route) or "/"

    def made(self, method: str, route: str | None, status: int | str) -> Series:
        """The Series that are not `known` yet; `status` as a number, or the line that begins with it."""
        labels = {"method": method if method in METHODS else OTHER, "route": self._route(route)}
        number = status if isinstance(status, int) else status_of(status)
        series = Series(
            self._requests.labels(**labels, status=number if 100 <= number <= 599 else NO_STATUS),
            self._seconds.labels(**labels),
            self._received.labels(**labels),
            self._sent.labels(**labels),
        )
        is_named = labels["method"] == method and labels["route"] != OTHER and self._statuses.of(f"{status}") != OTHER
        if is_named and len(self.meter.series) < MAX_SERIES:  # what a stranger chooses takes no place
            self.meter.series[method, route, status] = series
        return series


def status_of(text: Any) -> int:
    """The number in a status line such as "200 OK"; NO_STATUS where there is none."""
    try:
        return int(text[:3])
    except (TypeError, ValueError):
        return NO_STATUS
