"""Events that are posted to an Agent: published to its outbox before they are answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taba.agent.drain import encode_lots
from taba.agent.keeper import Keeper
from taba.batch import Column


def post(
    keeper: Keeper, lots: Mapping[int, Sequence[list[Column]]], events: int, stream: bytes | None, now: float, unix_now: float
) -> bool:
    """Publish posted events; True once they are in the outbox, False where there is no room.

    With a `stream` of the sender's own they count once, however often they are posted.
    """
    if stream is not None and keeper.is_spooled(stream):
        return True  # it came before, and waits in the spool
    if stream is not None and any((stream, bucket) in keeper.lanes for bucket in lots):
        return True
    for _ in range(2):
        batches = encode_lots(lots, stream or keeper.stream, {} if stream else keeper.numbers, unix_now)
        before = keeper.stream
        if not keeper.make_room(batches, now, unix_now):
            return False
        if stream is not None or keeper.stream == before:
            break
    keeper.publish(batches, now, recorded=events)
    return True
