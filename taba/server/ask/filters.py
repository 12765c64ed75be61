"""Which Tabs and Clients a query is about. Pure; regular expressions are compiled and matched elsewhere: both can take for ever.

`name` and `client` are exact and any of several; `match` and `client_match` are regular expressions that match the whole text;
`label` (key:value) must all hold. What several filters say must all be true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from taba import names
from taba.names import cut_value

MAX_PATTERN = 1000  # characters of a regular expression; who needs more has a list of names
MAX_FILTERS = 1000  # of one kind in one query


class Filter(NamedTuple):
    """What a query asks for. Empty: everything."""

    names: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    match: str | None = None
    client_match: str | None = None
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def is_about_own(self) -> bool:
        """Whether Tabs of Taba's own are meant, too: they are there for whoever names them."""
        return bool(self.names) or (self.match or "").startswith("taba")

    @property
    def is_about_clients(self) -> bool:
        """Whether not every Client of a Tab is meant."""
        return bool(self.clients) or self.client_match is not None


def make_filter(
    names: Sequence[str] = (),
    clients: Sequence[str] = (),
    match: str | None = None,
    client_match: str | None = None,
    labels: Sequence[str] = (),
) -> Filter:
    """A Filter from the parameters of a query. Raises ValueError for what they do not take."""
    for parameter, values in (("name", names), ("client", clients), ("label", labels)):
        if len(values) > MAX_FILTERS:
            raise ValueError(f"{parameter}= stands {len(values)} times; at most {MAX_FILTERS}")
    pairs = []
    for label in labels:
        key, colon, value = label.partition(":")
        if not colon or not key:
            raise ValueError(f"label={label[:100]!r}: takes key:value")
        try:
            pairs.append((key, cut_value(value)))  # as it was when it was recorded
        except UnicodeEncodeError:
            raise ValueError(f"label={label[:100]!r}: no text") from None
    for parameter, pattern in (("match", match), ("client_match", client_match)):
        if pattern is not None and len(pattern) > MAX_PATTERN:
            raise ValueError(f"{parameter}=: takes at most {MAX_PATTERN} characters, not {len(pattern)}")
    return Filter(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(clients)), match, client_match, tuple(pairs))


def labels_of(tab: str) -> tuple[str, dict[str, str]]:
    """(base, labels) of a canonical name; what is kept under another name counts as having no labels."""
    if "{" not in tab:
        return tab, {}
    try:
        return names.parse_name(tab)
    except ValueError:
        return tab, {}


def has_labels(wanted: Sequence[tuple[str, str]]) -> Callable[[str], bool]:
    """Whether a Tab has every one of these labels, as a function that parses each name once, however many are wanted."""
    pairs = dict(wanted)
    if len(pairs) > names.MAX_LABELS or any(pairs[key] != value for key, value in wanted):
        return lambda tab: False  # no Tab has so many labels, or two values of one

    def has(tab: str) -> bool:
        if "{" not in tab:
            return False
        labels = labels_of(tab)[1]
        return all(labels.get(key) == value for key, value in pairs.items())

    return has


def group_name(tab: str, by: Sequence[str]) -> str:
    """The name of the group to which a Tab belongs: its base name with only the labels in `by` that it has."""
    base, labels = labels_of(tab)
    try:
        return names.canonical_name(base, {key: labels[key] for key in by if key in labels})
    except ValueError:
        return tab
