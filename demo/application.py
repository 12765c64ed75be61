"""The web application that is watched: a WSGI application under gunicorn, with the index made before the fork.

/search?q=WORDS     files that have all the words         400 without words
/module/NAME        the source of a module                404 for one that is not pure Python, or not there
/outline/NUMBER     the functions of an indexed file      500 for one that is not Python: nobody thought of it
/words              words worth asking for
"""

from __future__ import annotations

import ast
import importlib.util
import json
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

from demo.corpus import Corpus, as_json, installation_files
from taba import client

Start = Callable[[str, list[tuple[str, str]]], Any]

client.start("web/{slot}")
requests = client.counter("web.requests", description="requests that were answered")
errors = client.counter("web.errors", description="answers other than 200; some are wanted")
busy = client.updown("web.requests_in_flight")
hits = client.percentile("web.hits")
last_error = client.gauge("web.last_error")
seconds = {
    route: client.percentile("web.seconds", labels={"route": route}, unit="seconds", description="until the answer is made")
    for route in ("search", "module", "outline", "words", "other")
}


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status = status


def _make_corpus() -> Corpus:
    # recorded in gunicorn's parent, before it forks: the workers' rings are their own nevertheless
    begun = time.perf_counter()
    corpus = Corpus(installation_files())
    client.gauge("web.index_seconds").set(round(time.perf_counter() - begun, 3))
    client.gauge("web.index_files").set(len(corpus.files))
    return corpus


corpus = _make_corpus()


def application(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    """One request. Everything that is known of it outside goes through Taba."""
    route = environ["PATH_INFO"].strip("/").partition("/")[0]
    busy.inc()
    begun = time.perf_counter()
    try:
        status, content = "200 OK", answer(route, environ)
    except Refused as refused:
        status, content = refused.status, {"error": str(refused)}
    except Exception as error:
        status, content = "500 Internal Server Error", {"error": f"{type(error).__name__}: {error}"}
    seconds.get(route, seconds["other"]).observe(time.perf_counter() - begun)
    requests.inc()
    if not status.startswith("200"):
        errors.inc()
        last_error.set(f"{status[:3]} {content['error']}"[:100])
    busy.dec()
    body = json.dumps(content).encode()
    start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def answer(route: str, environ: dict[str, Any]) -> Any:
    """What a route gives. Raises Refused, or whatever goes wrong."""
    rest = environ["PATH_INFO"].strip("/").partition("/")[2]
    if route == "search":
        try:
            found = corpus.search(parse_qs(environ.get("QUERY_STRING", "")).get("q", [""])[0])
        except ValueError as error:
            raise Refused("400 Bad Request", str(error)) from None
        hits.observe(len(found))
        return as_json(found)
    if route == "module":
        spec = importlib.util.find_spec(rest) if rest.isidentifier() else None
        if spec is None or not (spec.origin or "").endswith(".py"):
            raise Refused("404 Not Found", f"no source of {rest[:50]!r}")
        with open(spec.origin, errors="replace") as source:  # type: ignore[arg-type]
            return source.read(65_536)
    if route == "outline":
        path = corpus.files[int(rest)]
        tree = ast.parse(path.read_text())
        return [node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    if route == "words":
        return {"words": corpus.words(6)[:2000], "files": len(corpus.files)}
    raise Refused("404 Not Found", f"nothing at /{route[:50]}")
