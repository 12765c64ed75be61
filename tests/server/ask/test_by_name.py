"""By the name that one knows: a base name finds its labelled Tabs, a glob what it looks like; and what only dead letters know is there."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.matching import simple_matcher
from taba.names import bucket_of, canonical_name
from taba.server import service
from taba.server.ask import choosing, index
from taba.server.ask.filters import MAX_GLOBS, make_filter, pattern_of

from ..running import BUCKETS, ServerCase, asynchronous, together
from ..samples import Sum, Words, lookup_of

ADX, RUB = canonical_name("price", {"exchange": "adx"}), canonical_name("price", {"exchange": "rub", "dc": "eu"})
ROUTES = ("names", "types", "aggregates", "projections", "slots")


def event(tab: str, value: Any = 1, type: str = "TotalsCounter", **labels: str) -> dict[str, Any]:
    return {"tab": tab, "type": type, "value": value, "labels": labels}


class Lines(SynchronousTestCase):
    @given(st.lists(st.text("ab\n", max_size=3), min_size=1, max_size=5), st.text("ab\n", max_size=12))
    def test_a_text_of_several_lines_matches_as_pythons_own_engine_says(self, pieces: list[str], text: str) -> None:
        pattern = ".*".join(pieces)
        matches = simple_matcher(pattern)
        assert matches is not None
        self.assertEqual(matches(text), re.fullmatch(pattern, text) is not None, pattern)

    def test_such_a_text_takes_no_time_that_grows_with_its_pattern(self) -> None:
        matches = simple_matcher("a.*" * 150 + "\nb")
        assert matches is not None
        self.assertEqual([matches("a" * 199 + end) for end in ("\nc", "\nb")], [False, True])


class Globs(SynchronousTestCase):
    @given(st.text("ab*", min_size=1, max_size=6), st.text("ab", max_size=6))
    def test_a_star_is_any_text_and_all_else_is_itself(self, glob: str, text: str) -> None:
        def fits(glob: str, text: str) -> bool:
            if not glob:
                return not text
            if glob[0] == "*":
                return fits(glob[1:], text) or bool(text and fits(glob, text[1:]))
            return bool(text) and text[0] == glob[0] and fits(glob[1:], text[1:])

        matches = simple_matcher(pattern_of([glob]))
        assert matches is not None
        self.assertEqual(matches(text), fits(glob, text))

    def test_stars_in_labels_are_texts_and_globs_are_bounded(self) -> None:
        wanted = make_filter(['x{a="*"}', "y*", "z?", "y*"], ["web/*", "web/1"])
        self.assertEqual((wanted.names, wanted.globs), (('x{a="*"}',), ("y*", "z?")))
        self.assertEqual((wanted.clients, wanted.client_globs), (("web/1",), ("web/*",)))
        make_filter([f"{n}*" for n in range(MAX_GLOBS)])
        with self.assertRaisesRegex(ValueError, f"name= has {MAX_GLOBS + 1} globs; at most {MAX_GLOBS}"):
            make_filter([f"{n}*" for n in range(MAX_GLOBS + 1)])
        make_filter(["*" * choosing.SLICE_NAMES, "a" * 5000])
        with self.assertRaisesRegex(ValueError, "characters"):
            make_filter(["a" * 1000 + "*"])


class ByName(ServerCase):
    async def filled(self) -> Any:
        server = await self.start()
        events = [event("price", 1, exchange="adx"), event("price", 2, exchange="rub", dc="eu"), event("prices", 4), event("bids", 8)]
        for client in ("web/1", "web/2"):
            self.assertEqual((await self.post(server, events, client=client)).json["rejected"], [])
        return server

    async def found(self, server: Any, route: str, *names: str, **more: str) -> list[str]:
        answer = await self.get(server, f"/v1/{route}?" + urlencode([*(("name", name) for name in names), *more.items()]))
        return list(answer)

    @asynchronous
    async def test_a_base_name_finds_its_labelled_tabs_in_every_question(self) -> None:
        server = await self.filled()
        for route in ROUTES:
            self.assertEqual(await self.found(server, route, "price"), sorted([ADX, RUB]), route)
            self.assertEqual(await self.found(server, route, "price", "bids"), sorted(["bids", ADX, RUB]), route)
            self.assertEqual(await self.found(server, route, "price", label="dc:eu"), [RUB], route)
            self.assertEqual(await self.found(server, route, "price", client="nobody"), [], route)
            self.assertEqual(await self.found(server, route, ADX), [ADX], route)
            self.assertEqual(await self.found(server, route, "pric"), [], route)
        self.assertEqual((await self.get(server, "/v1/superaggregate?name=price"))["total"], 6)
        self.assertEqual(await self.get(server, "/v1/clients?name=price"), ["web/1", "web/2"])
        grouped = await self.get(server, "/v1/aggregates?name=price&by=exchange")
        self.assertEqual({name: one["total"] for name, one in grouped.items()}, {ADX: 2, 'price{exchange="rub"}': 4})

    @asynchronous
    async def test_globs_find_names_bases_and_clients(self) -> None:
        server = await self.filled()
        for glob, expected in {
            "pri*": [ADX, RUB, "prices"],
            "*ice": [ADX, RUB],
            "*": ["bids", ADX, RUB, "prices"],
            "p*s": ["prices"],
            "bid?": ["bids"],
            "pric?": [ADX, RUB],
            'p*{exchange="adx"}': [ADX],
            "nothing*": [],
        }.items():
            for route in ROUTES:
                self.assertEqual(await self.found(server, route, glob), sorted(expected), (route, glob))
        self.assertEqual(await self.found(server, "names", "b*", "*es", ADX), sorted(["bids", ADX, "prices"]))
        self.assertEqual(await self.get(server, "/v1/clients?client=*/2"), ["web/2"])
        self.assertEqual(list((await self.get(server, "/v1/projections?name=bids&client=web/?"))["bids"]), ["web/1", "web/2"])

    @asynchronous
    async def test_a_labelled_tab_is_found_by_its_base_name_as_soon_as_it_is_there_and_gone_when_it_is_deleted(self) -> None:
        server, other = await self.start(), await self.start()
        self.assertEqual(await self.found(server, "names", "price"), [])
        await self.post(server, [event("price", 1, exchange="adx")])
        for one in (server, other):
            self.assertEqual(await self.found(one, "names", "price"), [ADX])
        await self.post(server, [event("price")])
        await self.post(server, [event("price", 1, exchange="rub", dc="eu")])
        self.assertEqual(await self.found(server, "names", "price"), ["price", RUB, ADX] if RUB < "price" else sorted(["price", ADX, RUB]))
        self.assertEqual(await self.found(other, "names", "price*"), sorted(["price", ADX, RUB]))
        await self.ask(server, "/v1/tabs?" + urlencode([("name", ADX)]), "DELETE")
        self.assertEqual(await self.found(server, "names", "price"), sorted(["price", RUB]))
        await self.ask(server, "/v1/clients?client=web/1", "DELETE")
        for one in (server, other):
            self.assertEqual(await self.found(one, "names", "pric*"), [])

    @asynchronous
    async def test_names_are_read_again_only_in_buckets_whose_tabs_have_changed(self) -> None:
        server = await self.filled()
        read: list[int] = []
        original = server.router.read_many

        async def read_many(reads: Any, away: Any = None) -> Any:
            read.extend(bucket for bucket, commands in reads.items() for command in commands if command[1].endswith(b":tabs"))
            return await original(reads, away)

        self.patch(server.query.index._router, "read_many", read_many)
        names = await self.get(server, "/v1/names")
        read.clear()
        self.assertEqual(await self.get(server, "/v1/names"), names)
        await self.post(server, [event("bids")])
        self.assertEqual((await self.get(server, "/v1/names"), read), (names, []))
        await self.post(server, [event("new")])
        self.assertEqual(await self.get(server, "/v1/names"), sorted([*names, "new"]))
        self.assertEqual(read, [bucket_of("new", BUCKETS)])

    @asynchronous
    async def test_more_names_than_are_kept_are_read_for_each_question(self) -> None:
        server = await self.filled()
        names = await self.get(server, "/v1/names")
        for most in (len(names), len(names) - 1, 0):
            self.patch(index, "MAX_KEPT", most)
            server.query.index._known.clear()
            server.query.index._kept = 0
            for _ in range(2):
                self.assertEqual(await self.get(server, "/v1/names"), names)
            self.assertLessEqual(server.query.index._kept, most)

    @asynchronous
    async def test_questions_at_once_share_a_look_that_began_after_they_came(self) -> None:
        server = await self.filled()
        looks: list[int] = []
        original = server.query.index._look

        async def look() -> Any:
            looks.append(1)
            return await original()

        self.patch(server.query.index, "_look", look)
        answers = await together([self.get(server, "/v1/names") for _ in range(20)])
        self.assertTrue(all(answer == answers[0] for answer in answers))
        self.assertLess(len(looks), 20)


class OnlyDead(ServerCase):
    """Tabs of which nothing could be folded."""

    async def filled(self) -> Any:
        self.patch(service, "find_safely", lambda: lookup_of(Sum(), Words()))
        server = await self.start()
        events = [
            event("words", "bad", "Words", of="a"),
            event("words", "good", "Words", of="b"),
            event("alone", "bad", "Words"),
            event("strange", 1, "Strange", of="c"),
        ]
        await self.post(server, events)
        return server

    @asynchronous
    async def test_they_stand_in_their_place_with_the_reason_however_they_are_asked_for(self) -> None:
        server = await self.filled()
        bad, good, strange = 'words{of="a"}', 'words{of="b"}', 'strange{of="c"}'
        for question, expected in {
            "name=words": [bad, good],
            "name=word*": [bad, good],
            "match=words.*": [bad, good],
            "label=of:a": [bad],
            "label=of:c": [strange],
            "name=alone": ["alone"],
            "name=strange": [strange],
            "": ["alone", strange, bad, good],
            "client=web/1": ["alone", strange, bad, good],
            "client=web/2": [],
            "limit=2": ["alone", strange],
            "cursor=strange~": [bad, good],
        }.items():
            aggregates, projections = (
                await self.get(server, f"/v1/aggregates?{question}"),
                await self.get(server, f"/v1/projections?{question}"),
            )
            self.assertEqual((list(aggregates), list(projections)), (expected, expected), question)
            for tab in expected:
                why = {bad: "ValueError: bad", "alone": "ValueError: bad", strange: "unknown_type"}.get(tab)
                if why is not None:
                    self.assertIn(why, aggregates[tab]["error"], question)
                    self.assertIn(why, projections[tab]["web/1"]["error"], question)
        self.assertEqual((await self.get(server, "/v1/aggregates?name=words"))[good], {"words": ["good"]})
        text = (await self.ask(server, "/v1/aggregates?name=words", headers={"Accept": ["text/plain"]})).text
        self.assertEqual([line.partition(": ")[0] for line in text.splitlines()], [bad, good])

    @asynchronous
    async def test_a_group_or_a_whole_that_lacks_them_says_so(self) -> None:
        server = await self.filled()
        whole = await self.get(server, "/v1/superaggregate?name=words")
        self.assertEqual(whole["words"], ["good"])
        self.assertIn("1 of 2 Clients left out: no event was folded", whole["error"])
        self.assertIn("no event was folded", (await self.get(server, "/v1/superaggregate?name=alone"))["error"])
        grouped = await self.get(server, "/v1/aggregates?name=words&by=none")
        self.assertEqual((list(grouped), grouped["words"]["words"]), (["words"], ["good"]))
        self.assertIn("1 of 2 Clients left out", grouped["words"]["error"])

    @asynchronous
    async def test_as_many_as_the_bounds_say_are_named(self) -> None:
        server = await self.filled()
        for most in (3, 2):
            self.patch(choosing, "MAX_DEAD_TABS", most)
            self.assertEqual(len(await self.get(server, "/v1/aggregates")), most + 1)
        self.patch(choosing, "SLICE_LETTERS", 1)
        self.patch(choosing, "MAX_DEAD_TABS", 100)
        self.assertEqual(len(await self.get(server, "/v1/aggregates")), 4)
        self.patch(choosing, "MAX_BURIED", 0)
        self.assertEqual(list(await self.get(server, "/v1/aggregates")), ['words{of="b"}'])
