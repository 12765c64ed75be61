"""Logging in with a token, and out: the token comes in the header that programs send, and goes back as a cookie (`taba.cookies`).

So whoever tries is counted, slowed and refused as every other stranger is (`taba.guard`), and no page of others can send such a header.
"""

from __future__ import annotations

from typing import Any

from taba import cookies
from taba.calls import Answer, Call, HTTPError
from taba.guard import Guard
from taba.routes import JSON, Route
from taba.tokens import ANY, OPEN


class Login:
    """The routes of it."""

    def __init__(self, guard: Guard):
        self._guard = guard

    def routes(self) -> list[Route]:
        """The definitions."""
        answer = '{"tokens", "kind", "bound"}: whether tokens are asked for, what yours is for, and what it is bound to'
        return [
            Route("GET", "/login", self.who, answer, ANY, produces=(JSON,)),
            Route("POST", "/login", self.login, answer + "; a browser shows it from now on", ANY, produces=(JSON,)),
            Route("POST", "/logout", self.logout, '{"kind": null}; a browser shows no token any more', OPEN, produces=(JSON,)),
        ]

    async def who(self, call: Call) -> Answer:
        """Who asks."""
        return Answer(self._described(call))

    async def login(self, call: Call) -> Answer:
        """Have the browser show the token of the Authorization header as a cookie."""
        if not self._guard.has_tokens:
            return Answer(self._described(call))  # nothing is asked for: nothing is kept
        scheme, _, token = (call.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            raise HTTPError(400, "bad_request", "takes the token in the header Authorization: Bearer taba_…")
        cookie = cookies.cookie_of(token.strip(), call.is_over_tls or cookies.is_safe_origin(call.header("origin")))
        return Answer(self._described(call), headers={"set-cookie": cookie})

    async def logout(self, call: Call) -> Answer:
        """Have the browser forget it."""
        return Answer({"kind": None}, headers={"set-cookie": cookies.no_cookies()})

    def _described(self, call: Call) -> dict[str, Any]:
        scope = call.grant.scope
        return {"tokens": self._guard.has_tokens, "kind": call.grant.kind, "bound": scope.sentence() if scope.is_bound else None}
