"""What Tabs are: Type, unit and description, as their applications said it, or as their names tell the unit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from itertools import islice
from typing import Any

from taba.meanings import unit_of
from taba.server import keys
from taba.server.ask.choosing import Chosen
from taba.server.fold.cycle import bucket_of
from taba.server.router import IsReader

SLICE_TABS = 2000  # whose meanings one command reads
UNIT_TABS = 50  # that wait for their units together
SHOWN_TABS = 500  # whose meanings are held at a time where each is shown


async def meanings_of(router: IsReader, types: Mapping[str, str]) -> dict[str, dict[str, str | None]]:
    """Tab → {"type", "unit", "description"}, None for what nobody says, of Tab → Type, in its order."""
    by_bucket: dict[int, list[str]] = {}
    for tab in types:
        by_bucket.setdefault(bucket_of(tab, router.buckets), []).append(tab)
    asked: dict[int, list[Any]] = {}
    for bucket, tabs in by_bucket.items():
        for start in range(0, len(tabs), SLICE_TABS):
            fields = [field for tab in tabs[start : start + SLICE_TABS] for field in keys.meaning_fields(tab.encode())]
            asked.setdefault(bucket, []).append((b"HMGET", keys.meanings(bucket), *fields))
    replies = await router.read_many(asked) if asked else {}
    found: dict[str, dict[str, str | None]] = {}
    for bucket, tabs in by_bucket.items():
        texts = [None if text is None else keys.text_of(text) for reply in replies[bucket] for text in reply]
        for tab, unit, description in zip(tabs, texts[::2], texts[1::2], strict=True):
            base = tab.partition("{")[0]
            found[tab] = {"type": types[tab], "unit": unit or unit_of(base) or None, "description": description}
    return {tab: found[tab] for tab in types}


async def each_meaning(router: IsReader, types: Mapping[str, str]) -> AsyncIterator[tuple[str, dict[str, str | None]]]:
    """`meanings_of`, some Tabs at a time."""
    tabs = iter(types.items())
    while lot := dict(islice(tabs, SHOWN_TABS)):
        for told in (await meanings_of(router, lot)).items():
            yield told


async def with_units(
    router: IsReader, chosen: Chosen, found: AsyncIterator[tuple[str, dict[str, Any]]]
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """What was found of Tabs, and the unit of each."""
    waiting: dict[str, dict[str, Any]] = {}

    async def told() -> AsyncIterator[tuple[str, dict[str, Any]]]:
        meanings = await meanings_of(router, {tab: "" if tab in chosen.dead else chosen.type_of(tab) for tab in waiting})
        for tab, one in waiting.items():
            yield tab, {**one, "unit": meanings[tab]["unit"]}
        waiting.clear()

    async for tab, one in found:
        waiting[tab] = one
        if len(waiting) >= UNIT_TABS:
            async for item in told():
                yield item
    async for item in told():
        yield item
