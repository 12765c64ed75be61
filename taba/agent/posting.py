"""Events that are posted to an Agent: published to its outbox before they are answered.

Their names are decided on as those of a ring are (`taba.agent.admission`). What came under an Idempotency-Key must be cut into the same
batches wherever it is posted again: it is taken under its own names, or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from taba.agent.admission import Admission
from taba.agent.ages import Moment
from taba.agent.encoding import PackedLot, encode_lots
from taba.agent.grants import Grants
from taba.agent.keeper import Keeper
from taba.agent.keys import Keys
from taba.agent.outbox import TableFull, group_bytes
from taba.agent.spool import SpoolFull
from taba.batch import KeyPart
from taba.errors import TabaError
from taba.events import Posted

POST_MOVES = 2  # pieces of the outbox that move to the spool for one post; drains leave room for most, and another try finds more


class OtherRequest(TabaError):
    """Another request under an Idempotency-Key that is known."""


class TooManyNames(TabaError):
    """A post with an Idempotency-Key names more Tabs than go under their own names; none of it was taken."""


class PostNaming:
    """The names of one post of `client`. One with a key raises TooManyNames for a name that does not stay as it is."""

    def __init__(self, admission: Admission, client: str, has_key: bool):
        self._admission, self._client, self._has_key = admission, client, has_key
        self._names: dict[str, bool] = {}  # that go as they are
        self._sums: dict[tuple[str, str], tuple[str, str] | None] = {}
        self._summed: Counter[str] = Counter()
        admission.begin(client)

    def sent_as(self, tab: str, type: str) -> tuple[str, str] | None:
        admission, client = self._admission, self._client
        is_own = self._names.get(tab)
        if is_own is None:
            is_own = self._names[tab] = admission.admit(client, tab)
        if is_own:
            return client, tab
        if (tab, type) not in self._sums:
            base = tab.partition("{")[0]
            name = None if self._has_key else admission.overflow(client, base, type)
            summed = base if name is not None else ""
            admission.count(client, summed)
            self._summed[summed] += 1
            self._sums[tab, type] = None if name is None else (admission.client_of(client), name)
        if self._has_key:
            raise TooManyNames(f"none of it was taken: {admission.sentence(client)}")
        return self._sums[tab, type]

    def refusal(self) -> str:
        return f"too_many_tabs: {self._admission.sentence(self._client)}"

    def close(self) -> None:
        self._admission.end_post(self._client, [name for name, is_own in self._names.items() if is_own], self._summed)


def post(
    keeper: Keeper,
    keys: Keys,
    grants: Grants,
    posted: Posted,
    packed: Mapping[int, Sequence[PackedLot]],
    key: KeyPart | None,
    now: float,
    moment: Moment,
    poster: str,
    buckets: int,
) -> bool:
    """Publish events that `poster` sent, and that were `packed` (see `packing`); True once they are in the outbox, False where there is no
    room. `buckets`: how many the store has.

    With a `key` they count once, however often they are posted, and stand in a lane of their poster's own: what a Server has no room for
    holds up nobody else's. Raises OtherRequest for another request under that key, TooManyKeys where the poster has its share of room.
    """
    if key is not None:
        known = keys.digest(key.key)
        if known is not None:
            if known != key.digest:
                raise OtherRequest("another request came under this Idempotency-Key before; take a new key for new events")
            return True
        if not posted.accepted:
            keys.add([key], now, posted.client, poster)
            return True
        grants.check(key.key, posted.client, poster, buckets, now)
    for _ in range(2):
        stream, numbers = (keeper.stream, keeper.numbers) if key is None else keeper.keyed_stream(poster)
        batches = encode_lots(packed, stream, numbers, moment, key, keeper.version)
        before = keeper.stream
        needed = group_bytes(batches)
        if not any(keeper.is_ready(needed, now, moment) for _ in range(POST_MOVES)) or not keeper.make_room(batches, now, moment):
            return False
        if keeper.stream == before:
            break  # else all before moved to the spool, and fresh batches are of a new stream
    try:
        keeper.publish(batches, now, recorded=posted.accepted)
    except (TableFull, SpoolFull):  # of the disk, before the spool's bound is reached
        return False
    if key is not None:
        grants.take(key.key, posted.client, poster, buckets, now)
        keys.add([key], now, posted.client, poster)  # a kill before this: the next Agent finds the key beside the batches
    return True
