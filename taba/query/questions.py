"""What can be asked, without I/O: a Question says what to send and how to read the answer.

1. Every question and every parameter is defined here once; `Query` and `AsyncQuery` only carry them.
2. What is not given is not sent, so that an older Server can answer what it knows.
3. Whatever comes back, `read_answer` gives the value that the question promises or raises a QueryError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import urlencode, urlsplit

from taba import names as rules
from taba.bounds import MiB
from taba.plural import many
from taba.query.errors import BadRequest, Forbidden, NotTaba, QueryError, ServerFailed, ServerUnavailable

MAX_ANSWER_BYTES = 256 * MiB  # read whole into memory; the projections of 300 Clients × 1,000 Tabs fit
DEFAULT_SERVER = "http://127.0.0.1:8280"
DEFAULT_AGENT = "http://127.0.0.1:8279"
DEFAULT_TIMEOUT = 10.0  # seconds for a whole answer
MAX_TIMEOUT = 1e6
JOB_KINDS = ("prune", "upgrade", "retry", "discard", "check")
_KEY = re.compile("[\x20-\x7e\xa0-\xff]{1,255}")

JSON, TEXT, LIVE = "application/json", "text/plain", "text/event-stream"
T = TypeVar("T")


class ClientFilters(TypedDict, total=False):
    """Which Clients a question is about; without any, all. `client`: ids or globs, one or several; `client_match`: see Filters."""

    client: str | Iterable[str]
    client_match: str


class Filters(ClientFilters, total=False):
    """Which Tabs and Clients a question is about; without any, all.

    `name`: one or several, in full; a base name, which means its Tabs with labels too; or globs of `*` and `?`. `client`: ids or globs.
    `match`, `client_match`: regular expressions that match the whole text. `label`: labels that a Tab must have, a mapping or texts
    `key:value`.
    """

    name: str | Iterable[str]
    match: str
    label: Mapping[str, str] | str | Iterable[str]


class PagedFilters(Filters, total=False):
    """Filters, and which part of the answer: at most `limit` names, those after `cursor`, the last name of the answer before."""

    limit: int
    cursor: str


class Event(TypedDict, total=False):
    """One event of `POST /v1/events`; `time` (Unix seconds) and `labels` may be left out."""

    tab: str
    type: str
    value: Any
    time: float
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Question(Generic[T]):
    """What to send, and how to read the answer: JSON of type `shape`, from which `take` gives the value."""

    path: str
    parameters: tuple[tuple[str, str], ...]
    shape: type
    take: Callable[[Any], T]
    accept: str = JSON
    body: bytes | None = None
    key: str | None = None  # the Idempotency-Key of a body
    verb: str | None = None  # the HTTP method, where it is neither GET nor, with a body, POST
    takes_partial: bool = False  # whether it may be answered from what can be reached alone

    def __post_init__(self) -> None:
        # what cannot be sent breaks a rule: it must not look as if nobody answered
        try:
            urlencode(self.parameters)
        except UnicodeEncodeError as error:
            raise BadRequest(f"{error.object!r:.210}: is no text ({error.reason})") from None
        if self.key is not None and not _KEY.fullmatch(self.key):
            raise BadRequest(f"Idempotency-Key {self.key!r:.300}: takes 1 to 255 characters, of Latin-1 and no control characters")

    @property
    def method(self) -> str:
        return self.verb or ("GET" if self.body is None else "POST")

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Accept": self.accept}
        if self.body is not None:
            headers["Content-Type"] = JSON
        if self.key is not None:
            headers["Idempotency-Key"] = self.key
        return headers

    def at(self, base: str) -> str:
        """The whole URL at the Server whose base URL is `base`."""
        return base + self.path + ("?" + urlencode(self.parameters) if self.parameters else "")

    def as_text(self) -> Question[str]:
        """The same question, answered as text for people: one Tab a line."""
        return Question(self.path, self.parameters, str, str, TEXT, takes_partial=self.takes_partial)

    def of_what_is_there(self) -> Question[T]:
        """The same question, answered from what can be reached, where that can be asked."""
        return replace(self, parameters=(*self.parameters, ("partial", "1"))) if self.takes_partial else self


def names(filters: Filters) -> Question[list[str]]:
    """The names of Tabs, sorted."""
    return Question("/v1/names", _parameters(filters), list, _same, takes_partial=True)


def clients(filters: Filters) -> Question[list[str]]:
    """The ids of Clients, sorted."""
    return Question("/v1/clients", _parameters(filters), list, _same, takes_partial=True)


def types(filters: Filters, detail: bool = False) -> Question[dict[str, Any]]:
    """name → Type; with `detail`, name → {"type", "unit", "description"}."""
    return Question("/v1/types", _parameters(filters) + _flag("detail", detail), dict, _same, takes_partial=True)


def alive(filters: ClientFilters) -> Question[list[str]]:
    """The ids of Clients of which a process lives, sorted."""
    return Question("/v1/projections", (("name", rules.ALIVE_TAB), *_parameters(filters)), dict, _living, takes_partial=True)


def _living(answer: Any) -> list[str]:
    shown = answer.get(rules.ALIVE_TAB, {})
    return sorted(client for client, projection in shown.items() if projection.get("value"))


def projections(filters: Filters, detail: bool = False) -> Question[dict[str, dict[str, Any]]]:
    """name → client → Projection."""
    return Question("/v1/projections", _parameters(filters) + _flag("detail", detail), dict, _same, takes_partial=True)


def aggregates(filters: Filters, by: str | Iterable[str] = (), detail: bool = False) -> Question[dict[str, Any]]:
    """name → Aggregate; with `by`, Tabs of one base name that agree in those labels are one."""
    parameters = _parameters(filters) + tuple(("by", label) for label in _many(by)) + _flag("detail", detail)
    return Question("/v1/aggregates", parameters, dict, _same, takes_partial=True)


def aggregate(name: str, labels: Mapping[str, str] | None, filters: ClientFilters, detail: bool = False) -> Question[Any]:
    """The Aggregate of one Tab, or None where nothing is known of it."""
    if labels is None:
        rules.check_tab(name)  # what can be no Tab's name is a mistake, not a Tab of which nothing is known
        canonical = name
    else:
        canonical = rules.canonical_name(name, labels)
    parameters = (("name", canonical), *_parameters(filters), *_flag("detail", detail))
    return Question("/v1/aggregates", parameters, dict, lambda answer: answer.get(canonical), takes_partial=True)


def superaggregate(filters: Filters, detail: bool = False) -> Question[dict[str, Any]]:
    """One Aggregate over all Tabs that match, which are of one Type; empty where none does."""
    return Question("/v1/superaggregate", _parameters(filters) + _flag("detail", detail), dict, _same, takes_partial=True)


def overview(filters: Filters, sort: str = "", limit: int | None = None, offset: int = 0) -> Question[list[dict[str, Any]]]:
    """Rows of what moves, a dictionary a Tab."""
    more: list[tuple[str, str]] = [("sort", sort)] if sort else []
    more += [("limit", str(limit))] if limit is not None else []
    more += [("offset", str(offset))] if offset else []
    return Question("/v1/overview", _parameters(filters) + tuple(more), list, _same, takes_partial=True)


def stream(filters: Filters) -> Question[dict[str, Any]]:
    """Aggregates as they change: not one answer but many."""
    return Question("/v1/stream", _parameters(filters), dict, _same, LIVE)


def who(filters: Filters, path: str | None = None, limit: int | None = None) -> Question[dict[str, Any]]:
    """name → which Clients hold the greatest and the least of a figure."""
    more = [("path", path)] if path is not None else []
    more += [("limit", str(limit))] if limit is not None else []
    return Question("/v1/who", _parameters(filters) + tuple(more), dict, _same, takes_partial=True)


def status() -> Question[dict[str, Any]]:
    """What a Server or an Agent says of itself."""
    return Question("/v1/status", (), dict, _same)


def latency(seconds: int | None = None) -> Question[dict[str, Any]]:
    """Seconds from record to visible: p50, p95, p99; of the last minute, or of the last `seconds`, 5 to 60."""
    return Question("/v1/latency", (("seconds", str(seconds)),) if seconds is not None else (), dict, _same)


def shards(detail: bool = False) -> Question[list[dict[str, Any]]]:
    """The shards of the store: name, url, buckets, keys, bytes, ops (per second); with `detail`, this Server's uses of each bucket."""
    return Question("/v1/shards", _flag("detail", detail), list, _same)


def servers(detail: bool = False) -> Question[list[dict[str, Any]]]:
    """All Servers of the store: url, roles, started; with `detail`, problems: a list of sentences, or null where a Server said nothing."""
    return Question("/v1/servers", _flag("detail", detail), list, _same)


def dead_letters(limit: int | None = None) -> Question[list[dict[str, Any]]]:
    """The events that could not be folded and are kept, newest first; `limit` of them at the most."""
    return Question("/v1/dead-letters", () if limit is None else (("limit", str(limit)),), list, _same)


def notes() -> Question[list[dict[str, Any]]]:
    """What was noted in the last day: time and text, the latest first."""
    return Question("/v1/notes", (), list, _same)


def note(text: str, time: float | None = None) -> Question[dict[str, Any]]:
    """Not a question but something to be kept for a day: what happened at `time`, or now. The answer is the note."""
    body = json.dumps({"text": text} if time is None else {"text": text, "time": time}, allow_nan=False).encode()
    return Question("/v1/notes", (), dict, _same, body=body)


def post_events(client: str, events: Sequence[Event], key: str | None = None) -> Question[dict[str, Any]]:
    """Not a question but its opposite: events of `client`. The answer is {"accepted": n, "rejected": [{"index", "reason"}, …]}."""
    rules.check_client(client)
    body = json.dumps({"client": client, "events": list(events)}, allow_nan=False).encode()
    return Question("/v1/events", (), dict, _same, body=body, key=key)


def delete_tabs(names: str | Iterable[str]) -> Question[dict[str, int]]:
    """Delete Tabs, by canonical name: how many `tabs` and `states` there were."""
    return Question("/v1/tabs", tuple(("name", name) for name in _many(names)), dict, _same, verb="DELETE")


def delete_clients(clients: str | Iterable[str]) -> Question[dict[str, int]]:
    """Delete Clients from every Tab: how many `clients` and `states` there were."""
    return Question("/v1/clients", tuple(("client", client) for client in _many(clients)), dict, _same, verb="DELETE")


def start_job(kind: str, dry_run: bool = False) -> Question[dict[str, Any]]:
    """Start maintenance (`prune`, `upgrade`, `retry`, `discard`, `check`), or join the job of its kind that runs: the job's record."""
    if kind not in JOB_KINDS:
        raise ValueError(f"{kind!r} is no kind of job; there are: {', '.join(JOB_KINDS)}")
    return Question(f"/v1/{kind}", _flag("dry_run", dry_run), dict, _same, verb="POST")


def jobs(id: str | None = None) -> Question[list[dict[str, Any]]]:
    """All jobs, newest first; with `id` that one alone, and what it found."""
    return Question("/v1/jobs", () if id is None else (("id", id),), list, _same)


def cancel_job(id: str) -> Question[dict[str, Any]]:
    """End a job at its next step: the job's record."""
    return Question("/v1/jobs", (("id", id),), dict, _same, verb="DELETE")


# --- answers ---

AWAY_HEADER = "Taba-Away"


def away(header: str | None) -> str | None:
    """What the header AWAY_HEADER of an answer says is left out of it, as a sentence; None where there is none."""
    if header is None:
        return None
    try:
        shards = json.loads(header)
        told = [f"buckets {said['buckets']} of shard {name} ({said['why']})" for name, said in shards.items() if name != "more"]
        told += [f"those of {many(shards['more'], 'more shard')}"] if "more" in shards else []
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        told = [header[:200]]
    return "left out is what is away: " + "; ".join(told)


START = {"Server": "start one with: twistd -n taba-server", "Agent": "start one with: twistd -n taba-agent"}


def read_answer(question: Question[T], base: str, role: str, status: int, content_type: str, body: bytes) -> T:
    """The value that the answer holds. Raises QueryError, always of a subclass that says whose fault it is."""
    if status not in (200, 202):
        raise refusal(base, role, status, body)
    if question.accept == TEXT and content_type.startswith(TEXT):
        return question.take(body.decode(errors="replace"))
    try:
        if not content_type.startswith(JSON):
            raise ValueError(content_type)
        content = json.loads(body)
        if question.accept == TEXT:  # an answer that has no rendering for people
            content = json.dumps(content, ensure_ascii=False) + "\n"
        if not isinstance(content, question.shape):
            raise ValueError(f"a {type(content).__name__}")
    except (ValueError, RecursionError):
        raise no_answer(question, base, role) from None
    return question.take(content)


def no_answer(question: Question[Any], base: str, role: str) -> NotTaba:
    """The error for an answer that is none to this question."""
    return NotTaba(
        f"what answers at {base} is no Taba {role} of this version ({question.path} is not what it should be); check the address"
    )


def no_longer_heard(base: str) -> ServerUnavailable:
    """The error for a Server that was listened to, ended its answer, and cannot be heard again."""
    return ServerUnavailable(f"the Server at {base} says nothing any more; {START['Server']}")


def unreachable(base: str, role: str, reason: object) -> ServerUnavailable:
    """The error for a connection that cannot be made or broke."""
    why = " ".join(str(reason).split())
    cure = START[role]
    said = why.lower()
    if base.startswith("https:") and ("ssl" in said or "tls" in said):
        cure = f"name the authority of its certificate with --cacert, or check whether its address is http:{base.partition(':')[2]}"
        if "has expired" in said:
            cure = "have its certificate renewed, and send it SIGHUP"
        elif "hostname mismatch" in said or "not valid for" in said:
            cure = "use the address that its certificate names"
        elif "wrong version" in said or "record layer" in said or "packet length" in said:
            cure = f"it speaks no TLS: check whether its address is http:{base.partition(':')[2]}"
    elif base.startswith("http:") and ("closed connection" in said or "closed the connection" in said or "connection lost" in said):
        cure = f"if it speaks TLS, its address is https:{base.partition(':')[2]}; else {START[role]}"
    return ServerUnavailable(f"no {role} answers at {base} ({why}); {cure}")


def no_http(base: str, role: str) -> NotTaba:
    """The error for a peer that answers with something else than HTTP."""
    return NotTaba(f"what answers at {base} is no Taba {role}: it does not speak HTTP; check the address")


def too_slow(base: str, role: str, seconds: float) -> ServerUnavailable:
    """The error for an answer that did not come whole in time."""
    return ServerUnavailable(
        f"the {role} at {base} did not answer within {seconds:g} s; ask for less, or wait longer with a larger timeout"
    )


def too_large(base: str, role: str) -> BadRequest:
    """The error for an answer beyond MAX_ANSWER_BYTES."""
    return BadRequest(f"the answer of the {role} at {base} is larger than {MAX_ANSWER_BYTES // MiB} MiB; ask for less, with filters")


def check_timeout(seconds: float) -> float:
    """`seconds`, if one can wait for so long; else ValueError."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= MAX_TIMEOUT:  # so no NaN
        raise ValueError(f"timeout {seconds!r}: takes seconds, more than 0 and at most {MAX_TIMEOUT:,.0f}")
    return seconds


def check_base(url: str, role: str = "Server") -> str:
    """`url` without a slash at the end, if it can be the base URL of a Server or Agent; else ValueError. `host:port` is one of http."""
    try:
        if not isinstance(url, str):
            raise ValueError(url)
        if rules.HOST_AND_PORT.fullmatch(url):
            url = f"http://{url}"
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    is_odd = port == 0 or parts.query or parts.fragment or parts.username is not None or url.split() != [url]
    if parts.scheme not in ("http", "https") or not parts.hostname or is_odd:
        example = {"Server": DEFAULT_SERVER, "Agent": DEFAULT_AGENT}[role]
        if parts.password:
            url = url.replace(f":{parts.password}@", ":…@")
        raise ValueError(f"{url!r} is no address of {'an' if role == 'Agent' else 'a'} {role}; it takes a URL such as {example}")
    return url.rstrip("/")


def refusal(base: str, role: str, status: int, body: bytes) -> QueryError:
    """The error for an answer of another status than 200."""
    error, detail = "", ""
    try:
        content = json.loads(body)
        error, detail = str(content["error"]), " ".join(str(content["detail"]).split())
    except (ValueError, KeyError, TypeError, RecursionError):
        detail = f"HTTP status {status}"  # a proxy's page, say: nothing in it is for this reader
    if status in (502, 503, 504) or status in (408, 429):
        return ServerUnavailable(f"the {role} at {base} cannot answer now: {detail}; try again later")
    if status in (401, 403):
        cure = "; give one with --token, or in TABA_TOKEN" if error in ("no_token", "unknown_token", "other_token") else ""
        return Forbidden(f"the {role} at {base} does not answer this asker: {detail}{cure}")
    if not error or (status == 404 and error != "unknown_job"):
        return NotTaba(f"what answers at {base} is no Taba {role} of this version ({detail}); check the address")
    if status >= 500:
        return ServerFailed(f"the {role} at {base} failed at this question: {detail}")
    return BadRequest(f"the {role} at {base} refuses: {detail}")


# --- parameters ---


FILTERS = ("name", "match", "label", "client", "client_match")
PAGES = ("limit", "cursor")


def _parameters(filters: Filters | ClientFilters) -> tuple[tuple[str, str], ...]:
    unknown = set(filters) - {*FILTERS, *PAGES}
    if unknown:
        raise TypeError(f"no filter {sorted(unknown)[0]!r}; there are: {', '.join((*FILTERS, *PAGES))}")
    parameters = []
    for key in (*FILTERS, *PAGES):
        value: Any = filters.get(key)
        if value is None:
            continue
        if isinstance(value, Mapping):
            value = [f"{label}:{text}" for label, text in value.items()]
        parameters += [(key, text) for text in _many(value)]
    return tuple(parameters)


def _many(value: int | str | Iterable[str]) -> list[str]:
    return [str(value)] if isinstance(value, (str, int, float)) else list(map(str, value))


def _flag(name: str, value: bool) -> tuple[tuple[str, str], ...]:
    return ((name, "1"),) if value else ()


def _same(answer: Any) -> Any:
    return answer
