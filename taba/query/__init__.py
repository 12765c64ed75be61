"""Reading Taba from programs: feedback loops, reports, tests.

`Query` is for plain code and needs nothing but Python; `AsyncQuery` has the same methods as coroutines, for code under
Twisted, and needs treq, which it imports only when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taba.query.errors import BadRequest, Forbidden, NotTaba, QueryError, ServerFailed, ServerUnavailable
from taba.query.plain import Query
from taba.query.questions import Event, Filters, Question

if TYPE_CHECKING:
    from taba.query.asynchronous import AsyncQuery

__all__ = [
    "AsyncQuery",
    "BadRequest",
    "Event",
    "Filters",
    "Forbidden",
    "NotTaba",
    "Query",
    "QueryError",
    "Question",
    "ServerFailed",
    "ServerUnavailable",
]


def __getattr__(name: str) -> Any:
    if name == "AsyncQuery":
        from taba.query.asynchronous import AsyncQuery

        return AsyncQuery
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
