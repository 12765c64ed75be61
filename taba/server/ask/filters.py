"""Which Tabs and Clients a query is about. Pure; regular expressions are compiled and matched elsewhere: both can take for ever.

`name` and `client` are any of several: a name that is there, exactly; a base name, which means its Tabs with labels as well; or a glob,
in which `*` stands for any text and `?` for one character. `match` and `client_match` are regular expressions that match the whole text;
`label` (key:value) must all hold. What several filters say must all be true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from taba import names
from taba.bounds import MAX_PATTERN
from taba.names import cut_value
from taba.tokens import UNBOUND, Scope

MAX_FILTERS = 1000  # of one kind in one query
MAX_GLOBS = 20  # of one kind in one query: each is tried on every name


class Filter(NamedTuple):
    """What a query asks for. Empty: everything. Globs stand apart from names and clients that hold as they are; any of both counts."""

    names: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    globs: tuple[str, ...] = ()
    client_globs: tuple[str, ...] = ()
    match: str | None = None
    client_match: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    scope: Scope = UNBOUND  # what whoever asks may see

    @property
    def is_about_own(self) -> bool:
        """Whether Tabs of Taba's own are meant, too: they are there for whoever names them."""
        return bool(self.names) or any(text.startswith("taba") for text in (self.match or "", *self.globs))

    @property
    def is_about_clients(self) -> bool:
        """Whether not every Client of a Tab is meant."""
        return bool(self.clients or self.client_globs or self.scope.clients) or self.client_match is not None

    @property
    def is_of_exact_names(self) -> bool:
        """Whether each Tab that may be meant is named in full: no base name, no glob, not all there are."""
        return bool(self.names) and not self.globs and all("{" in name for name in self.names)

    def of_tabs(self) -> Filter:
        """The same without what it says about Clients."""
        return self._replace(clients=(), client_globs=(), client_match=None, scope=self.scope._replace(clients=()))


def make_filter(
    names: Sequence[str] = (),
    clients: Sequence[str] = (),
    match: str | None = None,
    client_match: str | None = None,
    labels: Sequence[str] = (),
    scope: Scope = UNBOUND,
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
    exact, globs = _apart("name", names)
    exact_clients, client_globs = _apart("client", clients)
    return Filter(exact, exact_clients, globs, client_globs, match, client_match, tuple(pairs), scope)


def _apart(parameter: str, values: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what holds as it is, globs): no name has a star or a question mark before its labels."""
    globs = tuple(value for value in dict.fromkeys(values) if names.is_glob(value))
    if len(globs) > MAX_GLOBS:
        raise ValueError(f"{parameter}= has {len(globs)} globs; at most {MAX_GLOBS}")
    if sum(map(len, globs)) > MAX_PATTERN:
        raise ValueError(f"{parameter}=: globs take at most {MAX_PATTERN} characters together")
    return tuple(value for value in dict.fromkeys(values) if value not in globs), globs


def pattern_of(globs: Sequence[str]) -> str:
    """The regular expression that matches whole what any of `globs` does."""
    wild = {"*": ".*", "?": "."}
    return "|".join(re.sub(r"\*+|.", lambda part: wild.get(part[0][0]) or re.escape(part[0]), glob, flags=re.DOTALL) for glob in globs)


def base_of(tab: str) -> str:
    """The name without labels."""
    return tab.partition("{")[0]


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
