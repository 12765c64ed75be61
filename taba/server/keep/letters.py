"""One dead letter alone: folded again, or given up, by its id."""

from __future__ import annotations

from taba.calls import Answer, Call, HTTPError
from taba.plural import many
from taba.routes import Parameter, Route
from taba.server.fold.deadletters import LetterId, read_letter_id
from taba.server.keep.discarding import Discard
from taba.server.keep.retrying import Retry
from taba.server.router import IsRouter
from taba.server.work.sandbox import HandlerSlow
from taba.tokens import ADMIN

PATH = "/v1/dead-letters"
LETTER = Parameter("id", "The id of one dead letter, as GET tells it.", is_required=True)


class Letters:
    """The routes that change one of them; all together are the jobs' business."""

    def __init__(self, router: IsRouter, retry: Retry, discard: Discard):
        self._router, self._retry, self._discard = router, retry, discard

    def routes(self) -> list[Route]:
        """The definitions."""
        return [
            Route("POST", PATH, self.retry, '{"folded": n, "left": n}: one dead letter is folded again', ADMIN, (LETTER,)),
            Route("DELETE", PATH, self.discard, '{"events": n}: one dead letter is given up, for ever', ADMIN, (LETTER,)),
        ]

    async def retry(self, call: Call) -> Answer:
        """Fold one again."""
        try:
            outcome = await self._retry.one(self._id(call))
        except HandlerSlow as slow:
            raise HTTPError(503, "slow", str(slow)) from None
        if outcome is None:
            raise _gone(call)
        folded, left = outcome.folded, sum(outcome.dead.values())
        return Answer({"folded": folded, "left": left}, text=lambda: f"{many(folded, 'event')} folded, {left} still cannot be\n")

    async def discard(self, call: Call) -> Answer:
        """Give one up."""
        events = await self._discard.one(self._id(call))
        if events is None:
            raise _gone(call)
        return Answer({"events": events}, text=lambda: f"{many(events, 'event')} given up\n")

    def _id(self, call: Call) -> LetterId:
        try:
            return read_letter_id(call.values[LETTER.name], self._router.buckets)
        except ValueError as error:
            raise HTTPError(400, "bad_request", str(error)) from None


def _gone(call: Call) -> HTTPError:
    return HTTPError(404, "unknown_letter", f"there is no dead letter {call.values[LETTER.name]!r} any more")
