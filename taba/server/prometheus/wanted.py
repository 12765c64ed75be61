"""Which series, Clients, bounds and values a selector's matchers mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from taba.bounds import MAX_PATTERN
from taba.series import BUCKET, FIGURES, bound_text, plain
from taba.server.ask.filters import Filter
from taba.server.ask.query import Query
from taba.server.prometheus.catalogue import Series
from taba.server.prometheus.syntax import EQUAL, MATCHES, UNEQUAL, UNMATCHED, Matcher
from taba.server.prometheus.vectors import NAME, Labels, Refused
from taba.turns import in_slices

SLICE_VALUES = 5000  # that are looked at between two looks at the time, a millisecond


class Wanted:
    """What matchers say of Clients, bounds and values, which no name tells."""

    def __init__(self, query: Query, matchers: Sequence[Matcher]):
        self._query, self._matchers = query, matchers
        about = [matcher for matcher in matchers if matcher.name == "client"]
        self._of_clients = [matcher for matcher in about if not (matcher.op == EQUAL and not matcher.value)]
        self.refuses_each = len(about) > len(self._of_clients)
        """client="" asks for what is no Client's."""
        self.is_about_clients = bool(self._of_clients)
        self.bounds: Sequence[float] = ()
        """Of the buckets that are meant."""
        self._verdicts: dict[str, bool] = {}
        exact = [matcher.value for matcher in self._of_clients if matcher.op == EQUAL]
        patterns = [matcher.value for matcher in self._of_clients if matcher.op == MATCHES and len(matcher.value) <= MAX_PATTERN]
        if exact:
            self.filter = Filter(clients=(exact[0],))
        elif patterns:
            self.filter = Filter(client_match=patterns[0])
        else:
            self.filter = Filter()

    async def clients(self, clients: Iterable[str]) -> Mapping[str, bool]:
        """Whether each Client is meant."""
        if not self.is_about_clients:
            return {}
        fresh = sorted({client for client in clients if client not in self._verdicts})
        verdicts = dict.fromkeys(fresh, not self.refuses_each)
        for matcher in self._of_clients:
            for client, is_meant in (await accepted(self._query, matcher, fresh)).items():
                verdicts[client] &= is_meant
        self._verdicts.update(verdicts)
        return self._verdicts

    async def look_at_bounds(self, bounds: Sequence[float]) -> None:
        """Leave out the buckets that are not meant. = and != compare numbers, for 1 and 1.0 are one bound."""
        for matcher in self._matchers:
            if matcher.name != "le":
                continue
            if matcher.op in (MATCHES, UNMATCHED):
                verdicts = await accepted(self._query, matcher, [bound_text(bound) for bound in bounds])
                bounds = [bound for bound in bounds if verdicts[bound_text(bound)]]
            else:
                bounds = [bound for bound in bounds if _is_bound(matcher.value, bound) == (matcher.op == EQUAL)]
        self.bounds = bounds


async def accepted(query: Query, matcher: Matcher, values: Sequence[str]) -> dict[str, bool]:
    """Whether a matcher accepts each of `values`."""
    found = set(await those(query, matcher, values))
    verdicts: dict[str, bool] = {}
    async for some in in_slices(values, SLICE_VALUES, query.turns.breathe):
        verdicts.update((value, value in found) for value in some)
    return verdicts


async def those(query: Query, matcher: Matcher, values: Sequence[str]) -> list[str]:
    """Those of `values` that a matcher accepts, in their order: there may be hundreds of thousands. Raises Refused and QueryRefused."""
    is_text = matcher.op in (EQUAL, UNEQUAL)
    if not is_text and len(matcher.value) > MAX_PATTERN:
        raise Refused(f"{matcher.name}{matcher.op}: takes at most {MAX_PATTERN} characters, not {len(matcher.value)}")
    matching = [matcher.value] if is_text else await query.match(matcher.value, values)
    if matcher.op == MATCHES:
        return matching
    known = set(matching)
    found: list[str] = []
    async for some in in_slices(values, SLICE_VALUES, query.turns.breathe):
        found += [value for value in some if (value in known) == (matcher.op == EQUAL)]
    return found


async def is_meant(query: Query, matchers: Sequence[Matcher], labels: Labels) -> bool:
    """Whether all accept a series' labels; what they say of Clients is `Wanted.clients`'."""
    for matcher in matchers:
        value = labels.get(matcher.name, "")
        if matcher.name == NAME and matcher.op == EQUAL:
            matcher = matcher._replace(value=plain(matcher.value))  # asked for as it is, shown plain
        if matcher.name != "client" and not (await accepted(query, matcher, [value]))[value]:
            return False
    return True


def gives(series: Series, label: str) -> bool:
    """Whether a series has a label that only States, or bounds, tell."""
    if not series.figure:
        return True
    return label in FIGURES[series.figure].labels and (label != "le" or series.part == BUCKET)


def may_be(series: Series, name: str) -> bool:
    """Whether a Tab that shows samples may have one of this name: what follows its own name is a suffix."""
    return name.startswith((series.name, plain(series.name)))


def _is_bound(text: str, bound: float) -> bool:
    try:
        return float(text) == bound
    except ValueError:
        return False
