"""One dead letter is folded again, or given up, and no other: by two at once, too, and while others come and go."""

from __future__ import annotations

from typing import Any

from taba.server import keys, service
from taba.server.ask import letters
from taba.server.fold.deadletters import letter_id, read_letter_id
from taba.server.keep import retrying
from taba.shard import Writes

from ..running import asynchronous, encoded, reactor, together
from ..samples import Sum, Words, column, lookup_of
from .cases import A, KeepingCase

BUCKET = 3  # A's


class OneLetter(KeepingCase):
    async def act(self, server: service.Server, method: str, id: str) -> tuple[int, Any]:
        answer = await self.ask(server, f"/v1/dead-letters?id={id}", method)
        return answer.status, answer.json

    async def ids(self, server: service.Server) -> dict[str, str]:
        """By value the ids of letters of one event."""
        return {str(letter.get("value")): letter["id"] for letter in await self.get(server, "/v1/dead-letters")}

    async def dead(self, server: service.Server) -> tuple[dict[str, int], dict[str, int]]:
        """Events by reason that are dead letters, and those that were given up, as the bucket counts them."""
        [pairs] = await server.router.read(BUCKET, [(b"HGETALL", keys.counts(BUCKET))])
        counts = {name.decode(): int(count) for name, count in zip(pairs[::2], pairs[1::2], strict=True) if int(count)}
        reasons = {name[len("dead:") :]: count for name, count in counts.items() if name.startswith("dead:")}
        return reasons, {"discarded": counts[keys.DISCARDED.decode()]} if keys.DISCARDED.decode() in counts else {}

    async def lost(self, *values: str) -> service.Server:
        """A Server that knows a Type which it did not know when these came, each a letter."""
        self.patch(service, "find_safely", lambda: lookup_of(Sum()))
        before = await self.start()
        for place, value in enumerate(values, start=1):
            await self.send(before, encoded(1, 3, place, [column(A, "Words", [value])]))
        self.patch(service, "find_safely", lambda: lookup_of(Sum(), Words()))
        return await self.start()

    @asynchronous
    async def test_it_is_folded_again_alone_wherever_it_stands(self) -> None:
        self.patch(letters, "LOT_LETTERS", 2)  # it is looked for in lots
        server = await self.lost(*"abcdefg")
        for value, left in (("d", 6), ("a", 5), ("g", 4)):
            self.assertEqual(await self.act(server, "POST", (await self.ids(server))[value]), (200, {"folded": 1, "left": 0}))
            self.assertEqual((await self.dead(server))[0], {"unknown_type": left})
        self.assertEqual((await self.get(server, f"/v1/aggregates?name={A}"))[A], {"words": ["d", "a", "g"]})
        self.assertEqual(set(await self.ids(server)), set("bcef"))

    @asynchronous
    async def test_what_still_cannot_be_folded_stays_for_the_reason_that_holds_now(self) -> None:
        server = await self.lost("bad", "good")
        id = (await self.ids(server))["bad"]
        self.assertEqual(await self.act(server, "POST", id), (200, {"folded": 0, "left": 1}))
        self.assertEqual((await self.dead(server))[0], {"handler_error": 1, "unknown_type": 1})
        status, said = await self.act(server, "POST", id)  # it is another letter now
        self.assertEqual((status, said["error"]), (404, "unknown_letter"))
        self.assertEqual(await self.act(server, "POST", (await self.ids(server))["bad"]), (200, {"folded": 0, "left": 1}))

    @asynchronous
    async def test_it_is_given_up_alone_and_counted(self) -> None:
        server = await self.lost(*"abc")
        id = (await self.ids(server))["b"]
        self.assertEqual(await self.act(server, "DELETE", id), (200, {"events": 1}))
        self.assertEqual(await self.dead(server), ({"unknown_type": 2}, {"discarded": 1}))
        self.assertEqual(set(await self.ids(server)), set("ac"))
        self.assertEqual((await self.act(server, "DELETE", id))[0], 404)

    @asynchronous
    async def test_one_that_this_version_does_not_read_is_given_up_and_not_folded(self) -> None:
        server = await self.lost("a")
        for content in (b"strange", b"\xc1"):
            await server.router.transact(BUCKET, [], lambda _, it=content: Writes([(b"LPUSH", keys.dead_letters(BUCKET), it)]))  # type: ignore[misc]
            id = str(letter_id(BUCKET, content))
            self.assertEqual((await self.act(server, "POST", id))[0], 200)
            self.assertEqual(await self.act(server, "DELETE", id), (200, {"events": 0}))
        self.assertEqual(set(await self.ids(server)), {"a"})

    @asynchronous
    async def test_of_two_who_act_on_it_at_once_one_does_and_each_event_counts_once(self) -> None:
        server = await self.lost(*"abcdef")
        other = await self.start()
        ids = await self.ids(server)

        async def act(method: str, of: service.Server, value: str) -> None:
            status = 503  # that is to try again: on a busy machine a child takes its time
            for _ in range(20):
                if status == 503:
                    status, _ = await self.act(of, method, ids[value])
            self.assertIn(status, (200, 404))

        await together([act(method, of, value) for value in "abcd" for of in (server, other) for method in ("POST", "DELETE")])
        dead, dropped = await self.dead(server)
        self.assertEqual(dead, {"unknown_type": 2})
        self.assertEqual(set(await self.ids(server)), set("ef"))
        words = (await self.get(server, f"/v1/aggregates?name={A}")).get(A, {}).get("words", [])
        self.assertEqual(len(words) + dropped.get("discarded", 0), 4)

    @asynchronous
    async def test_where_another_stands_by_then_it_is_looked_for_again(self) -> None:
        server = await self.lost(*"abc")
        id = read_letter_id((await self.ids(server))["c"], 16)
        oldest = read_letter_id((await self.ids(server))["a"], 16)
        looked, found = letters.place_of, []

        async def looking(router: Any, wanted: Any) -> int | None:
            place = await looked(router, wanted)
            found.append(place)
            if len(found) == 1:  # it is gone before what was found is acted on
                await server_discards(oldest)
            return place

        retry = retrying.Retry(server.router, server.bench, server.now, server.age, reactor)
        discard = server.jobs.kinds["discard"].work
        server_discards = discard.one  # type: ignore[attr-defined]
        self.patch(retrying, "place_of", looking)
        outcome = await retry.one(id)
        assert outcome is not None
        self.assertEqual((found, outcome.folded), ([2, 1], 1))
        self.assertEqual(set(await self.ids(server)), {"b"})

    @asynchronous
    async def test_what_is_no_id_is_refused_and_a_stranger_is_not_there(self) -> None:
        server = await self.lost("a")
        digest = "0" * 16
        for id in ("", "1", "x-" + digest, "16-" + digest, "-1-" + digest, "1-" + digest[1:], "1-" + digest + "0", "1-" + "G" * 16):
            for method in ("POST", "DELETE"):
                self.assertEqual((await self.act(server, method, id))[0], 400, id)
        self.assertEqual((await self.act(server, "DELETE", f"15-{digest}"))[0], 404)
        self.assertEqual((await self.ask(server, "/v1/dead-letters", "DELETE")).status, 400)
