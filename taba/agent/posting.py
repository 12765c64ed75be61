"""Events that are posted to an Agent: published to its outbox before they are answered."""

from __future__ import annotations

from taba.agent.ages import Moment
from taba.agent.drain import encode_lots
from taba.agent.keeper import Keeper
from taba.agent.keys import Keys
from taba.agent.outbox import TableFull
from taba.agent.spool import SpoolFull
from taba.batch import KeyPart
from taba.errors import TabaError
from taba.events import Posted


class OtherRequest(TabaError):
    """Another request under an Idempotency-Key that is known."""


def post(keeper: Keeper, keys: Keys, posted: Posted, key: KeyPart | None, now: float, moment: Moment) -> bool:
    """Publish posted events; True once they are in the outbox, False where there is no room.

    With a `key` they count once, however often they are posted. Raises OtherRequest for another request under that key.
    """
    if key is not None:
        known = keys.digest(key.key)
        if known is not None:
            if known != key.digest:
                raise OtherRequest("another request came under this Idempotency-Key before; take a new key for new events")
            return True
    for _ in range(2):
        batches = encode_lots(posted.lots, keeper.stream, keeper.numbers, moment, key)
        before = keeper.stream
        if not keeper.make_room(batches, now, moment):
            return False
        if keeper.stream == before:
            break  # else all before moved to the spool, and fresh batches are of a new stream
    try:
        keeper.publish(batches, now, recorded=posted.accepted)
    except (TableFull, SpoolFull):  # of the disk, before the spool's bound is reached
        return False
    if key is not None:
        keys.add([key])  # a kill before this: the next Agent finds the key beside the batches
    return True
