"""The rules for names: Tabs, labels, Types, Clients, Agents; and the bucket of a Tab.

1. A Tab's canonical text, `name` or `name{key="value",…}` with sorted keys, is its name in every place.
2. What breaks a rule raises ValueError with a sentence that says the rule, when the name is made.
3. `taba.` and `_` at the start of a Tab's name or a client id are Taba's own.

Standard library only: applications import this module.
"""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Mapping
from itertools import islice

MAX_LABELS = 16  # a Tab is one series; more labels than this are a sign of data in the name
MAX_LABEL_KEY = 64  # characters; keys are written by programmers
MAX_LABEL_VALUE = 200  # characters, before escaping; a longer value is cut, and told apart by a digest of the whole
LABEL_DIGEST_BYTES = 6  # of a cut value; two of a million values of one beginning are alike with a chance of one in 500
# 200 for the base, and for each label its key, =, two quotes, a comma, and 200 characters of 4 bytes in UTF-8
MAX_NAME_BYTES = 200 + 2 + MAX_LABELS * (MAX_LABEL_KEY + 4 + 4 * MAX_LABEL_VALUE)

MAX_UNIT = 64  # characters: `bytes per second` is long for one
MAX_DESCRIPTION = 400  # characters: a sentence or two, once in each ring's directory

ALIVE_TAB, ALIVE_TYPE = "taba.alive", "ExpiryGauge"  # which processes live; recorded by Agents
PROCESS_TAB, PROCESS_TYPE = "taba.process", "Gauge"  # since when, how many, and what they dropped
STARTS_TAB, STARTS_TYPE = "taba.starts", "Cardinality"  # the ids of their rings
PROBLEMS_TAB, PROBLEMS_TYPE = "taba.problems", "ExpiryGauge"  # the Agents' own
OWN_TABS = (ALIVE_TAB, PROBLEMS_TAB, PROCESS_TAB, STARTS_TAB)  # Taba's own, which nobody else can record

RETIRED_CLIENT = "_retired"  # the Client into which the States of vanished Clients are merged
OVERFLOW_CLIENT = "_overflow"  # the Client under which an Agent sums up what it has too many Clients for

_BASE = re.compile(r"[A-Za-z0-9_./:@+~%-]{1,200}")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_CLIENT = re.compile(r"[A-Za-z0-9_./:@+-]{1,200}")
_AGENT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')
_PLAIN_KEY = "(?!__|le=|quantile=)[A-Za-z_][A-Za-z0-9_]{0,63}"
_PLAIN_LABEL = rf'{_PLAIN_KEY}="[^"\\\n\0\ud800-\udfff]{{0,200}}"'
_PLAIN = re.compile(rf"(?!taba\.|_)[A-Za-z0-9_./:@+~%-]{{1,200}}(?:\{{({_PLAIN_LABEL}(?:,{_PLAIN_LABEL}){{0,15}})\}})?")
_PLAIN_KEYS = re.compile('([A-Za-z0-9_]+)="[^"]*"')
_TAKEN_KEYS = ("le", "quantile")  # Prometheus gives these a meaning of its own, as it does all keys that begin with __
_TO_ESCAPE = re.compile(r'[\\"\n]')
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}
_UNESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def check_base(name: str) -> str:
    """`name`, if it may be a Tab's name without labels; else ValueError."""
    if not isinstance(name, str) or not _BASE.fullmatch(name):
        raise ValueError(f"Tab name {name!r:.210}: takes 1 to 200 characters of A-Z a-z 0-9 _ . / : @ + ~ % -")
    if name.startswith(("taba.", "_")):
        raise ValueError(f"Tab name {name!r:.210}: 'taba.' and '_' at the start are reserved")
    return name


def check_type(type: str) -> str:
    """`type`, if it may be a Type; else ValueError. Whether a Handler of that Type exists is the Server's business."""
    if not isinstance(type, str) or not _TYPE.fullmatch(type):
        raise ValueError(f"Type {type!r:.210}: takes a letter and up to 63 more letters, digits or _")
    return type


def check_client(client: str) -> str:
    """`client`, if it may be a client id; else ValueError."""
    if not isinstance(client, str):
        raise ValueError("client id: takes a text")
    if not _CLIENT.fullmatch(client):
        raise ValueError(f"client id {client!r:.210}: takes 1 to 200 characters of A-Z a-z 0-9 _ . / : @ + -")
    if client.startswith(("taba.", "_")):
        raise ValueError(f"client id {client!r:.210}: 'taba.' and '_' at the start are reserved")
    return client


def check_sender(client: str) -> str:
    """`client`, if it may be a client id in a batch; else ValueError."""
    return client if client == OVERFLOW_CLIENT else check_client(client)


def check_agent(agent: str) -> str:
    """`agent`, if it may be an Agent's name; else ValueError."""
    if not isinstance(agent, str) or not _AGENT.fullmatch(agent):
        raise ValueError(f"Agent name {agent!r:.210}: takes 1 to 64 characters of A-Z a-z 0-9 _ -")
    return agent


def check_unit(unit: str) -> str:
    """`unit`, if it may be a Tab's unit ("" for none); else ValueError."""
    if not isinstance(unit, str) or len(unit) > MAX_UNIT or not unit.isprintable():
        raise ValueError(f"unit {unit!r:.100}: takes a text of at most {MAX_UNIT} printable characters, such as seconds or bytes")
    return unit


def check_description(description: str) -> str:
    """`description`, if it may be a Tab's ("" for none); else ValueError."""
    if not isinstance(description, str) or len(description) > MAX_DESCRIPTION or "\0" in description:
        raise ValueError(f"description {description!r:.100}: takes a text of at most {MAX_DESCRIPTION} characters without NUL")
    try:
        description.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"description {description!r:.100}: {error.reason}") from None
    return description


def canonical_name(base: str, labels: Mapping[str, str] | None = None) -> str:
    """The canonical text of a Tab: `base`, or `base{key="value",…}` with sorted keys and escaped values.

    Label values are escaped as in Prometheus' text exposition format: backslash, double quote, line feed. One of more than
    MAX_LABEL_VALUE characters is cut, see `cut_value`. Raises ValueError for a base, key or value that breaks the rules.
    """
    check_base(base)
    if labels is not None and type(labels) is not dict and not isinstance(labels, Mapping):
        raise ValueError(f"Tab name {base!r:.210}: labels {labels!r:.100}: takes a mapping of texts, such as {{'exchange': 'adx'}}")
    if not labels:
        return base
    if len(labels) > MAX_LABELS:
        raise ValueError(f"Tab name {base!r:.210}: takes at most {MAX_LABELS} labels, not {len(labels)}")
    return base + "{" + ",".join(f'{key}="{_escape(base, key, labels[key])}"' for key in sorted(labels, key=str)) + "}"


def parse_name(text: str) -> tuple[str, dict[str, str]]:
    """(base, labels) of a canonical text. Raises ValueError where `canonical_name` would not have written it."""
    base, brace, rest = text.partition("{")
    labels: dict[str, str] = {}
    if brace:
        position, end = 0, len(rest) - 1
        while True:
            match = _LABEL.match(rest, position, end)
            if match is None:
                raise ValueError(f'Tab name {text!r:.210}: labels are written {{key="value",…}}')
            key, value = match.groups()
            labels[key] = re.sub(r"\\.", lambda escape: _UNESCAPES[escape[0]], value)
            position = match.end()
            if position == end and rest[end] == "}":
                break
            if rest[position : position + 1] != ",":
                raise ValueError(f'Tab name {text!r:.210}: labels are written {{key="value",…}}')
            position += 1
    canonical = canonical_name(base, labels)
    if canonical != text:
        raise ValueError(f"Tab name {text!r:.210}: its canonical text is {canonical!r}")
    return base, labels


def is_plain(text: str) -> bool:
    """Whether this is a canonical text in which nothing is escaped, as nearly all are: a look that takes a tenth of `parse_name`, which
    decides of all others."""
    match = _PLAIN.fullmatch(text)
    if match is None:
        return False
    labels = match[1]
    if labels is None:
        return True
    keys = _PLAIN_KEYS.findall(labels)
    return len(keys) == 1 or all(map(operator.lt, keys, islice(keys, 1, None)))


def check_tab(text: str) -> str:
    """`text`, if it is a Tab's canonical text or a Tab of Taba's own; else ValueError."""
    if text not in OWN_TABS:
        if not isinstance(text, str):
            raise ValueError(f"Tab name {text!r:.210}: takes a text")
        parse_name(text)
    return text


def bucket_of(name: str | bytes, buckets: int) -> int:
    """The bucket (0 … buckets − 1) in which every key of the Tab `name` (canonical text) lives: of BLAKE2b, modulo `buckets`."""
    content = name.encode() if isinstance(name, str) else name
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") % buckets


def cut_value(value: str) -> str:
    """A label value of at most MAX_LABEL_VALUE characters: `value`, or its beginning, `…` and a digest of the whole."""
    if len(value) <= MAX_LABEL_VALUE:
        return value
    digest = hashlib.blake2b(value.encode(), digest_size=LABEL_DIGEST_BYTES).hexdigest()
    return f"{value[: MAX_LABEL_VALUE - 1 - len(digest)]}…{digest}"


def _escape(base: str, key: str, value: str) -> str:
    if not isinstance(key, str) or len(key) > MAX_LABEL_KEY or not _KEY.fullmatch(key):
        raise ValueError(
            f"Tab name {base!r:.210}: label key {key!r:.200}: takes letters, 0-9 and _, not a digit first, at most {MAX_LABEL_KEY}"
        )
    if key.startswith("__") or key in _TAKEN_KEYS:
        raise ValueError(
            f"Tab name {base!r:.210}: label key {key!r:.210}: {', '.join(_TAKEN_KEYS)} and what begins with __ are Prometheus' own"
        )
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"Tab name {base!r:.210}: label {key}: takes a text without NUL")  # NUL separates a Tab from its Client
    try:
        value = cut_value(value)
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"Tab name {base!r:.210}: label {key}: {error.reason}") from None
    return _TO_ESCAPE.sub(lambda match: _ESCAPES[match[0]], value) if _TO_ESCAPE.search(value) else value


HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}/?")
"""An address as people write it, which stands for that of HTTP."""


def is_glob(text: str) -> bool:
    """Whether this stands for whatever looks like it: no name or id has a star or a question mark before any labels."""
    return any(wild in text.partition("{")[0] for wild in "*?")
