"""Dead letters that are tried again: each counts once."""

from __future__ import annotations

from taba.server import service
from taba.server.fold.deadletters import MAX_DEAD_LETTERS
from taba.server.keep import jobs, retrying

from ..running import asynchronous, encoded, reactor, together
from ..samples import Sum, Words, column, lookup_of
from .cases import A, B, C, KeepingCase


class Retrying(KeepingCase):
    @asynchronous
    async def test_dead_letters_are_folded_once_their_cause_is_gone_and_others_left(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        before = await self.start()
        columns = [column(A, "Words", ["a", "b"]), column(B, "Sum", [1.0]), column(B, "Words", ["c"]), column(C, "Nowhere", [1.0])]
        await self.send(before, encoded(1, 3, 1, columns), encoded(1, 3, 2, [column(A, "Words", ["d"]), column(B, "Sum", ["no", 2])]))
        status = await self.get(before, "/v1/status")
        self.assertEqual(status["dead_letters_by_reason"], {"bad_value": 1, "type_conflict": 1, "unknown_type": 4})
        self.assertEqual((status["folded"], status["types_missing"]), (2, ["Nowhere", "Words"]))
        unfolded = await self.get(before, "/v1/dead-letters")
        self.assertIn("0 events folded, 6 still", (await self.done(before, "/v1/retry"))["message"])
        self.assertEqual(await self.get(before, "/v1/dead-letters"), unfolded)
        self.patch(service, "find_safely", lambda: lookup_of(Sum(), Words()))
        after = await self.start()
        record = await self.done(after, "/v1/retry")
        self.assertIn("3 events folded, 3 still", record["message"])
        status = await self.get(after, "/v1/status")
        self.assertEqual(status["dead_letters_by_reason"], {"bad_value": 1, "type_conflict": 1, "unknown_type": 1})
        self.assertEqual((status["folded"], status["dead_letters"]), (5, 3))
        self.assertEqual((await self.get(after, f"/v1/aggregates?name={A}"))[A], {"words": ["a", "b", "d"]})
        left = await self.get(after, "/v1/dead-letters")
        times = {(letter["tab"], letter["type"], str(letter["value"])): letter["refused"] for letter in unfolded}
        self.assertEqual(sorted(letter["reason"] for letter in left), ["bad_value", "type_conflict", "unknown_type"])
        for letter in left:
            self.assertEqual(letter["refused"], times[letter["tab"], letter["type"], str(letter["value"])])
        await self.ask(after, f"/v1/tabs?name={B}", "DELETE")
        self.assertIn("1 event folded", (await self.done(after, "/v1/retry"))["message"])  # the newest of B's Types stands now

    @asynchronous
    async def test_every_letter_counts_once_while_more_come_and_two_servers_retry(self) -> None:
        self.patch(retrying, "LOT_LETTERS", 7)
        self.patch(service, "find_safely", lambda: lookup_of(Words()))
        servers = [await self.start(), await self.start()]
        columns = [column(A, "Sum", [1.0, 2.0], client=f"web/{n}") for n in range(100)]
        await self.send(servers[0], encoded(1, 3, 1, [*columns, column(B, "Words", ["a"]), column(B, "Sum", [5.0])]))
        self.patch(service, "find_safely", lambda: lookup_of(Words(), Sum()))
        servers = [await self.start(), await self.start()]
        applied = 0

        async def send() -> None:
            nonlocal applied
            while applied < 20:
                [verdict] = await self.send(servers[0], encoded(2, 3, applied + 1, [column(A, "Sum", [1.0]), column(B, "Sum", [9.0])]))
                applied += verdict.word == "applied"

        retries = [retrying.Retry(server.router, server.bench, server.now, server.age, reactor) for server in servers]
        await together([*[retry(jobs.Job("x", "retry", 0.0, False, reactor)) for retry in retries], send()])
        await self.done(servers[0], "/v1/retry")
        status = await self.get(servers[0], "/v1/status")
        self.assertEqual((status["folded"], status["dead_letters_by_reason"]), (1 + 200 + 20, {"type_conflict": 1 + 20}))
        self.assertEqual((await self.get(servers[0], f"/v1/aggregates?name={A}"))[A], {"count": 220, "total": 320})
        self.assertEqual(len(await self.get(servers[0], "/v1/dead-letters")), 21)

    @asynchronous
    async def test_what_still_cannot_be_folded_has_the_reason_that_holds_now(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        before = await self.start()
        await self.send(before, encoded(1, 3, 1, [column(A, "Words", ["bad", "bad"])]))
        [one, other] = await self.get(before, "/v1/dead-letters")
        self.assertEqual((one["reason"], other["reason"]), ("unknown_type", "unknown_type"))
        self.patch(service, "find_safely", lambda: lookup_of(Words()))
        after = await self.start()
        for _ in range(2):
            await self.done(after, "/v1/retry")
            letters = await self.get(after, "/v1/dead-letters")
            self.assertEqual([(letter["reason"], letter["refused"]) for letter in letters], [("handler_error", one["refused"])] * 2)
            self.assertIn("ValueError: bad (", letters[0]["detail"])
            status = await self.get(after, "/v1/status")
            self.assertEqual((status["dead_letters_by_reason"], status["dropped_by_reason"]), ({"handler_error": 2}, {}))

    @asynchronous
    async def test_a_letter_that_becomes_several_pushes_out_no_more_than_is_counted(self) -> None:
        self.patch(retrying, "MAX_DEAD_LETTERS", 3)
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        before = await self.start()
        columns = [column(A, "Words", ["bad"], client=f"web/{n}") for n in range(3)]
        await self.send(before, encoded(1, 3, 1, [*columns, column(B, "Words", [["bad"], "x", "bad"])]))
        self.patch(service, "find_safely", lambda: lookup_of(Words()))
        after = await self.start()
        await self.done(after, "/v1/retry")
        status = await self.get(after, "/v1/status")
        self.assertEqual(status["folded"] + status["dead_letters"] + sum(status["dropped_by_reason"].values()), 6)
        self.assertEqual(len(await self.get(after, "/v1/dead-letters")), status["dead_letters"])
        self.assertEqual((status["folded"], status["dead_letters"]), (2, 3))

    @asynchronous
    async def test_a_full_list_is_folded_whole(self) -> None:
        self.patch(service, "find_safely", lambda: lookup_of(Words()))
        before = await self.start()
        columns = [column(A, "Sum", [1.0], client=f"web/{n}") for n in range(MAX_DEAD_LETTERS)]
        await self.send(before, encoded(1, 3, 1, columns), encoded(1, 3, 2, [column(A, "Sum", [1.0])]))
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        after = await self.start()
        await self.done(after, "/v1/retry")
        status = await self.get(after, "/v1/status")
        self.assertEqual((status["folded"], status["dead_letters"]), (MAX_DEAD_LETTERS, 0))
        self.assertEqual(status["dropped_by_reason"], {"dead_letters_full": 1})
