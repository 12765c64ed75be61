"""What Tabs are: Type, unit and description, as their applications said it, or as their names tell the unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taba.meanings import unit_of
from taba.server import keys
from taba.server.fold.cycle import bucket_of
from taba.server.router import IsReader

SLICE_TABS = 2000  # whose meanings one command reads


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
        texts = [None if text is None else text.decode() for reply in replies[bucket] for text in reply]
        for tab, unit, description in zip(tabs, texts[::2], texts[1::2], strict=True):
            base = tab.partition("{")[0]
            found[tab] = {"type": types[tab], "unit": unit or unit_of(base) or None, "description": description}
    return {tab: found[tab] for tab in types}
