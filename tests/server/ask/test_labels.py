"""Labels in every place: canonical names, `label=` filters and `by=` groups, in all combinations, against a model of them."""

from __future__ import annotations

from itertools import product
from typing import Any
from urllib.parse import urlencode

from taba.names import bucket_of, canonical_name, parse_name

from ..running import BUCKETS, ServerCase, asynchronous, encoded
from ..samples import column

ODD = ['quo"te', "back\\slash", "line\nfeed", "co,mma", "br}ace", 'x="y"', "a:b", "ünïcode 束", "", " space ", "per%cent&and=plus+"]
EXCHANGES, SITES = ("adx", "rub", None), ("eu", "us", None)


def labels_of(**labels: str | None) -> dict[str, str]:
    return {key: value for key, value in labels.items() if value is not None}


class Labels(ServerCase):
    async def ask_for(self, server: Any, route: str, *parameters: tuple[str, str]) -> Any:
        return await self.get(server, f"/v1/{route}?{urlencode(parameters)}")

    @asynchronous
    async def test_every_value_comes_back_in_the_canonical_name_and_is_found_by_it(self) -> None:
        server = await self.start()
        events = [
            {"tab": "odd", "type": "TotalsCounter", "value": 1, "labels": {"value": value, "also": "x"}} for value in [*ODD, "x" * 100]
        ]
        self.assertEqual((await self.post(server, events)).json, {"accepted": len(events), "rejected": []})
        names = [canonical_name("odd", {"value": value, "also": "x"}) for value in [*ODD, "x" * 100]]
        self.assertEqual(await self.get(server, "/v1/names"), sorted(names))
        for name in names:
            value = parse_name(name)[1]["value"]
            self.assertEqual(list(await self.ask_for(server, "aggregates", ("name", name))), [name])
            self.assertEqual(await self.ask_for(server, "names", ("label", f"value:{value}"), ("label", "also:x")), [name])
        grouped = await self.ask_for(server, "aggregates", ("by", "value"))
        self.assertEqual(set(grouped), {canonical_name("odd", {"value": value}) for value in [*ODD, "x" * 100]})
        self.assertEqual((await self.ask_for(server, "aggregates", ("by", "also")))['odd{also="x"}']["count"], len(names))
        answered = await self.ask(server, f"/v1/tabs?{urlencode([('name', name) for name in names])}", "DELETE")
        self.assertEqual(answered.json, {"tabs": len(names), "states": len(names)})
        self.assertEqual(await self.get(server, "/v1/names"), [])

    @asynchronous
    async def test_what_breaks_the_rules_of_labels_is_rejected_alone(self) -> None:
        server = await self.start()
        bad: list[Any] = [{"a-b": "x"}, {"1st": "x"}, {"le": "x"}, {"a": 1}, {f"k{n}": "x" for n in range(17)}, ["a"]]
        events = [
            {"tab": "t", "type": "TotalsCounter", "value": 1, "labels": labels} for labels in [*bad, {f"k{n}": "x" for n in range(16)}]
        ]
        answer = (await self.post(server, events)).json
        self.assertEqual((answer["accepted"], [one["index"] for one in answer["rejected"]]), (1, list(range(len(bad)))))

    @asynchronous
    async def test_a_value_with_the_separator_of_keys_is_no_name_wherever_it_comes_in(self) -> None:
        server = await self.start()
        bad, good = 't{a="x\0y"}', 't{a="xy"}'
        posted = await self.post(server, [{"tab": tab, "type": "TotalsCounter", "value": 1} for tab in (bad, good)])
        self.assertEqual((posted.json["accepted"], [one["index"] for one in posted.json["rejected"]]), (1, [0]))
        bucket = bucket_of(good, BUCKETS)
        columns = [column(tab, "TotalsCounter", [1.0], client=client) for tab, client in ((bad, "web/1"), (good, "we\0b"), (good, "web/2"))]
        await self.send(server, encoded(1, bucket, 1, columns))
        self.assertEqual(await self.get(server, "/v1/names"), [good])
        self.assertEqual(await self.get(server, "/v1/clients"), ["web/1", "web/2"])
        self.assertEqual((await self.get(server, "/v1/status"))["dead_letters_by_reason"], {"bad_column": 2})
        for route in ("aggregates", "projections", "names"):
            self.assertFalse(await self.ask_for(server, route, ("name", bad)))
        answered = await self.ask(server, f"/v1/tabs?{urlencode([('name', bad)])}", "DELETE")
        self.assertEqual(answered.json, {"tabs": 0, "states": 0})

    @asynchronous
    async def test_filters_and_groups_agree_with_their_model_in_all_combinations(self) -> None:
        server = await self.start()
        recorded: list[tuple[str, dict[str, str], str, int]] = []
        for number, (base, exchange, site, client) in enumerate(product(("price", "bids"), EXCHANGES, SITES, ("web/1", "web/2")), start=1):
            recorded.append((base, labels_of(exchange=exchange, site=site), client, number))
        for client in ("web/1", "web/2"):
            events = [
                {"tab": base, "type": "UpDown", "value": value, "labels": labels} for base, labels, of, value in recorded if of == client
            ]
            self.assertEqual((await self.post(server, events, client=client)).json["rejected"], [])
        for wanted, by, base, client in product(
            ((), ("exchange:adx",), ("exchange:adx", "site:eu"), ("site:nowhere",), ("nothing:x",)),
            ((), ("exchange",), ("site", "exchange"), ("nothing",)),
            ("", "price"),
            ("", "web/2"),
        ):
            parameters = [("label", one) for one in wanted] + [("by", one) for one in by]
            parameters += ([("match", f"{base}.*")] if base else []) + ([("client", client)] if client else [])
            expected: dict[str, int] = {}
            names = set()
            for of, labels, who, value in recorded:
                fits = all(labels.get(one.partition(":")[0]) == one.partition(":")[2] for one in wanted)
                if fits and base in ("", of) and client in ("", who):
                    names.add(canonical_name(of, labels))
                    group = {key: labels[key] for key in by if key in labels} if by else labels
                    name = canonical_name(of, group)
                    expected[name] = expected.get(name, 0) + value
            found = await self.ask_for(server, "aggregates", *parameters)
            self.assertEqual({name: aggregate["value"] for name, aggregate in found.items()}, expected, parameters)
            plain = [(key, value) for key, value in parameters if key != "by"]
            self.assertEqual(await self.ask_for(server, "names", *plain), sorted(names), parameters)
            self.assertEqual(set(await self.ask_for(server, "projections", *plain)), names)
            whole = await self.ask_for(server, "superaggregate", *plain)
            self.assertEqual(whole.get("value", 0), sum(expected.values()), parameters)
