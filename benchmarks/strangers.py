"""What requests of the worst shapes cost a Server: how long each holds its loop, and how much memory it takes. And what rings with very
many Tabs cost an Agent (`benchmarks.flood`), and what a small question waits beside many large ones of another (`benchmarks.beside_many`).

The figure is the longest turn of the loop, in processor time, so that it says about the same on a busy machine. Each shape is posted or
asked for several times at once, as whoever means harm would. Whatever is answered is right here, but for 500.
"""

from __future__ import annotations

import http.client
import json
import struct
import threading
import time
import zlib
from contextlib import closing
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import msgpack

from benchmarks import beside_many, budgets, flood
from benchmarks.cold import spread
from benchmarks.holding import CODE, Held
from benchmarks.rows import Figure, Row
from benchmarks.sending import Streams, send
from benchmarks.services import ASK_SECONDS, START_SECONDS, Effort, Services, pid_of, running
from taba.batch import BATCH_VERSION, CONTENT_TYPE, MAX_LIST_BYTES, MAX_LIST_VALUES, Column, SentBatch, encode_batch, encode_envelope
from taba.bounds import MAX_BATCH_COLUMNS, MAX_ENVELOPE_BATCHES, MAX_ENVELOPE_BYTES, MAX_VALUE_BYTES, KiB
from taba.calls import MAX_BODY_BYTES, MAX_JSON_BYTES
from taba.events import MAX_POSTED_EVENTS
from taba.query import Query
from taba.server.ask.query import MAX_DETAILED
from taba.server.notes import MAX_NOTES
from taba.server.page.boards import MAX_PINNED, MAX_TITLE

BIG, LONG_TEXTS = "benchmark.big", 5000
FORM = "application/x-www-form-urlencoded"
CLIENTS = 3  # of a Tab, at the most
AT_ONCE = 3  # of each request: their pieces must not come to one
STREAM, NONCE, TIME = bytes(16), bytes(8), struct.pack("<d", 1.7e9)
BEFORE = 15 * KiB  # of an address: what a request's line takes


class Shape(NamedTuple):
    """One request; a body is deflated. `answer`: the status without which the shape is none, because what it is about is refused before."""

    name: str
    method: str
    path: str
    body: bytes = b""
    kind: str = CONTENT_TYPE
    answer: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


def run(effort: Effort) -> list[Row]:
    tabs = effort.pick(500, 20_000)
    services: Services
    with running(server=False) as services:
        path = services.directory / "longest"
        Held.make(path)
        services.before = CODE.format(path=str(path))
        services.start_server()
        send(services.server_url, Streams().envelopes(spread(tabs, 2, 1.7e9)))
        _fill(services.query, effort.pick(100, MAX_NOTES))
        held = Held(path, pid_of(services, "server"))
        path = services.directory / "longest of the Agent"
        Held.make(path)
        services.before = CODE.format(path=str(path))
        services.start_agent()
        services.before = ""
        of_agent = Held(path, pid_of(services, "agent"))
        _wait_for_buckets(services.agent_url)
        for warm in ("/v1/names", "/v1/aggregates", "/metrics", "/api/v1/query?query=1"):
            _ask(services.server_url, Shape("", "GET", warm))
        found = [_cost(services.server_url, held, shape) for shape in shapes(effort.is_quick)]
        found += [_cost(services.agent_url, of_agent, shape) for shape in shapes_of_agent()]
    most = max(found, key=lambda cost: cost.taken)
    return [
        *flood.rows(effort),
        *beside_many.rows(effort),
        *(Row(cost.shape.name, Figure.of([cost.longest]), "ms", budgets.WAIT, note=cost.note) for cost in found),
        Row("memory beside the largest body, the most of all", Figure.of([most.taken]), "×", budgets.STRANGERS_TAKE, note=most.shape.name),
    ]


def _wait_for_buckets(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while Query(url).status()["buckets"] is None:
        if time.monotonic() > deadline:
            raise RuntimeError("no Server told the Agent of its buckets")
        time.sleep(0.05)


def _fill(query: Query, notes: int) -> None:
    """Have what is asked for below at its largest: States of texts, dead letters with long ones, notes, boards."""
    texts = [f"{number:06d}" + "x" * 1000 for number in range(LONG_TEXTS)]
    for client in (f"bad/{number}" for number in range(CLIENTS)):
        for type in ("Buffer", "TopK", "Cardinality", "Nowhere"):
            query.post_events(client, [{"tab": f"{BIG}.{type}", "type": type, "value": text} for text in texts])
    for number in range(notes):
        query.note(f"{number}" + "n" * 400)


class Cost(NamedTuple):
    """What AT_ONCE requests of a shape cost: the longest turn in milliseconds, and the memory of each beside the largest body."""

    shape: Shape
    longest: float
    taken: float
    note: str


def _cost(url: str, held: Held, shape: Shape) -> Cost:
    before = held.begin()
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(_ask(url, shape))) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(statuses) < AT_ONCE or 500 in statuses or shape.answer not in (None, *statuses):
        raise RuntimeError(f"{shape.name}: {statuses}")
    taken = max(0, held.peak() - before) / AT_ONCE / MAX_BODY_BYTES
    answers = ", ".join(map(str, sorted(set(statuses))))
    return Cost(shape, held.longest(), taken, f"{shape.method} {shape.path[:40]}: {answers}; {taken:.2f} × the largest body of memory")


def _ask(url: str, shape: Shape) -> int:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=ASK_SECONDS)) as connection:
        headers = dict(shape.headers) | ({"Content-Type": shape.kind, "Content-Encoding": "deflate"} if shape.body else {})
        connection.request(shape.method, shape.path, zlib.compress(shape.body, 1) if shape.body else None, headers)
        answer = connection.getresponse()
        while answer.read(1 << 20):
            pass
        return answer.status


# --- shapes ---


def shapes(is_quick: bool = False) -> list[Shape]:
    """The worst that is known of each kind; a quick run takes an eighth of each."""
    most = MAX_ENVELOPE_BYTES // 8 if is_quick else MAX_ENVELOPE_BYTES - KiB
    return [*_envelopes(most), *_events(most), *_forms(), *_questions()]


def _envelopes(most: int) -> list[Shape]:
    many = max(1, most // (300 * KiB))
    lists: list[object] = [[[]] * (MAX_VALUE_BYTES - 8)] * (MAX_LIST_BYTES // MAX_VALUE_BYTES)
    maps: list[object] = [{n: [] for n in range(5000)}] * (MAX_LIST_BYTES // (4 * 5000 + KiB))
    texts = ["\U0001f600" * (MAX_VALUE_BYTES // 4 - 4)] * (MAX_LIST_BYTES // MAX_VALUE_BYTES - 1)
    nones: list[None] = [None] * MAX_LIST_VALUES
    columns = [Column("a", f"t{n}", "T", TIME, TIME) for n in range(MAX_BATCH_COLUMNS)]
    wide = [Column("a", f"t{n}", "T", TIME * 60, TIME * 60) for n in range(MAX_BATCH_COLUMNS)]
    labels = ",".join(f'k{n:02}="{"é" * 200}"' for n in range(16))
    named = [Column("a", f"t{n}{{{labels}}}", "T", TIME, TIME) for n in range(120)]

    def batches(what: str, columns: list[Column], count: int = many) -> Shape:
        content = encode_batch(STREAM, 5, 1, columns)
        return _envelope(what, [content] * min(count, max(1, most // (len(content) + 100))))

    def column(values: list[object]) -> list[Column]:
        return [Column("a", "t", "Buffer", TIME * len(values), values)]

    bomb = b"\xdd" + (most - 200).to_bytes(4, "big") + b"\x90" * (most - 200)
    return [
        Shape("an envelope that is lists in a list", "POST", "/v1/envelopes", bomb),
        batches("values that are lists in lists", column([*lists])),
        batches("values that are maps", column([*maps])),
        batches("values that are texts beyond Latin", column([*texts])),
        batches("values that are nothing", column([*nones])),
        batches("columns of one event", columns),
        batches("columns of 60 events", wide),
        batches("columns whose names have all the labels", named),
        _envelope("batches of one column", [encode_batch(STREAM, 5, n + 1, columns[:1]) for n in range(MAX_ENVELOPE_BATCHES)]),
        _envelope("columns that are none", [_bad_columns()] * many),
        _envelope("batches that are none", [b"\x91" * 900_000] * max(1, most // 1_000_000)),
    ]


def _bad_columns() -> bytes:
    bad = b"\x95\xa1T\xdd\x00\x00\xff\xff" + b"\x90" * 200
    columns = [1, bad] * MAX_BATCH_COLUMNS
    packed: bytes = msgpack.packb([BATCH_VERSION, STREAM, 5, 1, columns, b""])
    return packed


def _envelope(what: str, batches: list[bytes]) -> Shape:
    entries = [SentBatch(content, place, NONCE) for place, content in enumerate(batches)]
    return Shape(what, "POST", "/v1/envelopes", encode_envelope("bad", "bad", 1.7e9, None, entries))


def _events(most: int) -> list[Shape]:
    head, tail = b'{"client": "bad", "events": [', b"]}"

    def listed(what: str, event: bytes, count: int = MAX_POSTED_EVENTS) -> Shape:
        body = head + b",".join([event] * min(count, most // (len(event) + 1))) + tail
        return Shape(what, "POST", "/v1/events", body, "application/json")

    def event(value: bytes, tab: bytes = b"t") -> bytes:
        return b'{"tab": "%b", "type": "Buffer", "value": %b}' % (tab, value)

    apart = [b'{"tab": "%b.apart", "type": "Cardinality", "value": %d.5}' % (BIG.encode(), n) for n in range(MAX_POSTED_EVENTS)]
    large = 250 * KiB
    return [
        listed("JSON: small events", event(b"1")),
        Shape("JSON: numbers that are told apart", "POST", "/v1/events", head + b",".join(apart) + tail, "application/json", 200),
        listed("JSON: lists in lists", event(b"[" + b"[]," * 5000 + b"1]")),
        listed("JSON: nested deep", event(b"[" * 5000 + b"]" * 5000)),
        listed("JSON: objects of many keys", event(b"{" + b",".join(b'"%x":0' % n for n in range(3000)) + b"}")),
        listed("JSON: huge keys", event(b'{"' + b"k" * large + b'": 1}')),
        listed("JSON: whole numbers of many digits", event(b"9" * large)),
        listed("JSON: whole numbers of 4,000 digits", event(b"[" + b",".join([b"9" * 4000] * 60) + b"]")),
        listed("JSON: fractions of many digits", event(b"0." + b"9" * large)),
        listed("JSON: texts of escapes", event(b'"' + b"\\ud83d\\ude00" * (large // 12) + b'"')),
        listed("JSON: texts beyond Latin", event(b'"' + "\U0001f600".encode() * (large // 4) + b'"')),
        listed("JSON: a label of many characters", event(b"1")[:-1] + b', "labels": {"k": "' + b"v" * large + b'"}}'),
        listed("JSON: events that are none", b"0", most),
        Shape("JSON: space", "POST", "/v1/events", head + b" " * most, "application/json"),
        Shape("JSON: a note", "POST", "/v1/notes", json.dumps({"text": [[]] * 10_000}).encode(), "application/json"),
    ]


def _forms() -> list[Shape]:
    labels = ",".join(f'k{n:02}="{"é" * 200}"' for n in range(16))
    tabs = [f"t{n}{{{labels}}}" for n in range(MAX_PINNED)]
    tabs = tabs[: (MAX_JSON_BYTES - KiB) // (len(json.dumps(tabs[0], ensure_ascii=False).encode()) + 4)]
    board = json.dumps({"title": "t" * MAX_TITLE, "tabs": tabs}, ensure_ascii=False).encode()
    deep = (MAX_JSON_BYTES - KiB) // 2
    many = "&".join(f"match[]=n{n}" for n in range(900))
    return [
        Shape("a form: a login of many fields", "POST", "/login", b"&".join(b"token%d=x" % n for n in range(20_000)), FORM),
        Shape("a form: a login of a long one", "POST", "/login", b"token=" + b"%41" * 80_000, FORM),
        Shape("a form: PromQL of many selectors", "POST", "/api/v1/series", many.encode(), FORM),
        Shape("a form: PromQL of escapes", "POST", "/api/v1/query", b"query=" + b"%F0%9F%98%80" * 20_000, FORM),
        Shape("a form: PromQL of escapes between letters", "POST", "/api/v1/query", b"query=" + b"%C3%A9\xc3\xa9" * 32_000, FORM),
        Shape("a form: PromQL of signs that are no escapes", "POST", "/api/v1/query", b"query=" + b"%zz" * 87_000, FORM),
        *_headers(),
        Shape("a board of the longest names", "PUT", "/v1/boards/bad", board, "application/json", 200),
        Shape("a board nested deep", "PUT", "/v1/boards/bad", b'{"tabs": ' + b"[" * deep + b"]" * deep + b"}", "application/json", 400),
        Shape("all dead letters tried again", "POST", "/v1/retry"),
        Shape("all dead letters given up, tried first", "POST", "/v1/discard?dry_run=1"),
    ]


def _headers() -> list[Shape]:
    """Headers at their bound, of what a reader of them may do again from each place."""
    parts = ((" ", "spaces"), (",", "commas"), ("a= ", "names"), ("a;q=1,", "ranges"), ('"a\\', "quotes"))
    of = ("Accept", "Accept-Encoding", "Cookie", "Authorization", "Idempotency-Key", "If-None-Match")
    return [
        Shape(f"a header: {name} of {what}", "GET", "/v1/clients", headers=((name, "x" + part * (BEFORE // len(part)) + "x"),))
        for name in of
        for part, what in parts
    ]


def shapes_of_agent() -> list[Shape]:
    """What an Agent takes that costs it more than what a program of its host sends."""
    small = b",".join([b'{"tab": "t", "type": "TotalsCounter", "value": 1}'] * MAX_POSTED_EVENTS)
    posted = b'{"client": "bad", "events": [' + small + b"]}"
    return [
        Shape("an Agent: its rings drained", "POST", "/v1/drain", answer=200),
        Shape("an Agent: small events posted", "POST", "/v1/events", posted, "application/json", 200),
    ]


def _questions() -> list[Shape]:
    def ask(what: str, path: str, **parameters: str) -> Shape:
        return Shape(what, "GET", path + "?" + "&".join(f"{name}={quote(value)}" for name, value in parameters.items()))

    many = BEFORE // 3  # characters: quoted, each takes three
    exact = "&".join(f"name=n{n}" for n in range(BEFORE // 11))
    return [
        ask("match: backtracking", "/v1/projections", match="(.*)*(.*)*(.*)*x"),
        ask("match: all names", "/v1/types", match=".*"),
        ask("match: a long one", "/v1/names", match="(a|b)" * 180),
        ask("client_match: all Clients", "/v1/projections", client_match=".*", limit="1000"),
        ask("label: one that nothing has", "/v1/aggregates", label="k:v"),
        Shape("name: very many of them", "GET", f"/v1/aggregates?{exact}"),
        ask("all Aggregates", "/v1/aggregates"),
        ask("by: labels", "/v1/aggregates", by="k"),
        ask("PromQL: nested deep", "/api/v1/query", query="(" * (many // 2 - 1) + "1" + ")" * (many // 2 - 1)),
        ask("PromQL: a long sum", "/api/v1/query", query="1" + "+1" * (BEFORE // 4 - 1)),
        ask("PromQL: signs", "/api/v1/query", query="-" * (BEFORE - 10) + "1"),
        ask("PromQL: all there is", "/api/v1/query", query='{__name__=~".+"}'),
        ask("PromQL: a range", "/api/v1/query_range", query='sum({__name__=~".+"})', start="0", end="1700000000", step="200000"),
        ask("PromQL: a pattern", "/api/v1/query", query='{__name__=~"(.*)*(.*)*(.*)*x"}'),
        ask("series of all", "/api/v1/series", **{"match[]": '{__name__=~".+"}'}),
        ask("label values: all names", "/api/v1/label/__name__/values"),
        ask("label values: all Clients", "/api/v1/label/client/values"),
        ask("labels of all", "/api/v1/labels"),
        ask("metadata of all", "/api/v1/metadata"),
        ask("dead letters with long texts", "/v1/dead-letters", limit="10000"),
        ask("States of many long texts", "/v1/projections", name=f"{BIG}*"),
        ask("Aggregates of many long texts", "/v1/aggregates", name=f"{BIG}*"),
        ask("slots of all", "/v1/slots", limit=str(MAX_DETAILED // CLIENTS))._replace(answer=200),
        ask("overview of many rows", "/v1/overview", limit="1000"),
        ask("overview by a figure", "/v1/overview", sort="p99", limit="1000"),
        ask("who holds most, of all", "/v1/who", limit="1000"),
        ask("all notes", "/v1/notes"),
        ask("all boards", "/v1/boards"),
        Shape("a scrape", "GET", "/metrics"),
        ask("a scrape of all Tabs", "/metrics", match=".*"),
    ]
