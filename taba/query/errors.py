"""What asking may raise. Each message says what is wrong and what to do, in one line."""

from __future__ import annotations

from taba.errors import TabaError


class QueryError(TabaError):
    """The base of all that a Query raises."""


class ServerUnavailable(QueryError):
    """Nobody answers at that address, or who answers cannot do its work now; the same question may succeed later."""


class BadRequest(QueryError):
    """The question breaks a rule: a filter that is no regular expression, a parameter that is not there, Types that do not mix."""


class Forbidden(QueryError):
    """The Server does not answer this asker."""


class ServerFailed(QueryError):
    """The Server met an error of its own while it answered."""


class NotTaba(QueryError):
    """Something answers at that address, but not what a Taba of this version answers."""
