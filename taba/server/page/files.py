"""The page's own files: HTML, style and script as they lie in the package, for whoever asks.

1. They hold nothing of anybody: a browser has them before it shows a token.
2. The policy that goes with them lets a page load from this Server alone, run no script and apply no style that is not a file, and make no
   markup of text: whatever a Tab is called, it is shown.
3. What is served is what was there at the start.
"""

from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

from taba.calls import Answer, Call, HTTPError
from taba.routes import Parameter, Route
from taba.tokens import OPEN

INDEX = "index.html"
KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types taba",
    ]
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",  # an address has names of Tabs
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class File(NamedTuple):
    """One of them."""

    content: bytes
    kind: str


def read_files() -> dict[str, File]:
    """All of them by name."""
    folder = files("taba.server.page").joinpath("static")
    found = {}
    for path in folder.iterdir():
        kind = KINDS.get(path.name.rpartition(".")[2])
        if kind is not None:
            found[path.name] = File(path.read_bytes(), kind)
    return found


class PageFiles:
    """Serves them."""

    def __init__(self) -> None:
        self.files = read_files()

    def routes(self) -> list[Route]:
        """The definitions."""
        kinds = tuple(sorted({kind.partition(";")[0] for kind in KINDS.values()}))
        name = Parameter("file", "The name of one of the page's files.")
        return [
            Route("GET", "/", self.index, "the page that people open", OPEN, produces=("text/html",)),
            Route("GET", "/page/{file}", self.file, "one of the page's files", OPEN, (name,), produces=kinds),
        ]

    async def index(self, call: Call) -> Answer:
        """The page."""
        return self._answer(self.files[INDEX])

    async def file(self, call: Call) -> Answer:
        """One of its files."""
        found = self.files.get(call.values["file"])
        if found is None:
            raise HTTPError(404, "not_found", f"the page has no file {call.values['file'][:100]!r}")
        return self._answer(found)

    def _answer(self, found: File) -> Answer:
        return Answer(found.content, content_type=found.kind, headers=HEADERS)
