"""How many there are of something, in a sentence."""

from __future__ import annotations


def many(count: int, one: str, more: str | None = None) -> str:
    """`count` and what it counts: "1 event", "7 events", "2 batches"; `more` where no ending makes the plural: "7 events are lost"."""
    if count == 1:
        return f"1 {one}"
    return f"{count} {more if more is not None else f'{one}es' if one.endswith(('ch', 's', 'x')) else f'{one}s'}"
