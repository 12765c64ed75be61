"""What the names and tags of other protocols are called here.

1. What a name has of characters that Taba's have not becomes `_`; two names that differ in these alone become one.
2. What cannot be mended (nothing left, too long) is a ValueError; whoever asks counts it.
3. Values of one key are joined in order, so that the order of tags makes no Tab of its own.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from taba.names import MAX_LABEL_KEY, MAX_LABELS, canonical_name

MAX_NAME = 200  # characters, as for every Tab
_FOREIGN = re.compile(r"[^A-Za-z0-9_./:@+~%-]")
_FOREIGN_IN_KEY = re.compile(r"[^A-Za-z0-9_]")
_TAKEN = ("le", "quantile")
# names and keys that stay as they are: most
_PLAIN = re.compile(rf"(?!_|taba\.)[A-Za-z0-9_./:@+~%-]{{1,{MAX_NAME}}}").fullmatch
_PLAIN_KEY = re.compile(rf"(?!__|(?:le|quantile)\Z)[A-Za-z_][A-Za-z0-9_]{{0,{MAX_LABEL_KEY - 1}}}").fullmatch


class Named(NamedTuple):
    """A Tab's canonical name, how many tags it has no room for, and whether anything had to be changed."""

    name: str
    left_out: int
    is_changed: bool


def tab_name(name: str, tags: Collection[str], prefix: str) -> Named:
    """The Tab of a metric `name` with `tags`, each `key:value` or `key`. `prefix` stands before a name whose beginning is Taba's own.

    Raises ValueError where no name is left, or a longer one than Tabs have.
    """
    if not tags and _PLAIN(name):
        return Named(name, 0, False)
    base = name if _PLAIN(name) else _FOREIGN.sub("_", name)
    if base.startswith(("_", "taba.")):
        base = f"{prefix}.{base}"
    if not name or len(base) > MAX_NAME:
        raise ValueError(f"{name!r:.100}: takes 1 to {MAX_NAME} characters")
    values: dict[str, set[str]] = {}  # of a key that has more than one
    labels: dict[str, str] = {}
    is_changed, left_out = base != name, 0
    for tag in tags:
        given, colon, value = tag.partition(":")
        key = given if _PLAIN_KEY(given) else label_key(given)
        if not key:
            left_out += 1
            continue
        value = value if colon else "true"
        if "\0" in value:  # it separates a Tab from its Client
            value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
            is_changed = True
        is_changed = is_changed or key != given
        if labels.setdefault(key, value) != value:
            values.setdefault(key, {labels[key]}).add(value)
    if len(labels) > MAX_LABELS:
        for key in sorted(labels)[MAX_LABELS:]:
            left_out += len(values.pop(key, {labels.pop(key)}))
    for key, several in values.items():
        labels[key] = ",".join(sorted(several))
    return Named(canonical_name(base, labels), left_out, is_changed)


def label_key(key: str) -> str:
    """The label that a tag's key becomes; "" where nothing is left of it."""
    label = _FOREIGN_IN_KEY.sub("_", key)[:MAX_LABEL_KEY]
    if label[:1].isdigit():
        label = f"_{label}"[:MAX_LABEL_KEY]
    if label.startswith("__"):  # Prometheus' own
        label = label.lstrip("_") and f"_{label.lstrip('_')}"
        return f"_{label}"[:MAX_LABEL_KEY] if label[:1].isdigit() else label
    return f"{label}_" if label in _TAKEN else label
