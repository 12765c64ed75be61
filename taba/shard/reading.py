"""Reads, of whichever buckets: the owner key says after the data, on the very server, that what was read was the bucket's.

The usual case is one round trip to where the bucket is known to be; all else (a bucket that is sealed, moved, or on its way, a server
that is away) is left to `_read_many`, which looks at the map again and waits, up to its deadline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from taba.errors import StoreUnavailable
from taba.shard.atlas import Atlas, Hand, NotHere
from taba.shard.buckets import BucketMap, owner_key
from taba.shard.keys.places import Text
from taba.shard.keys.writing import KEPT_TYPES, MOST_KEYS, Place
from taba.shard.operations import Operations
from taba.shard.patience import SEALED_PAUSE_SECONDS, Deadline
from taba.shard.servers.asking import ASKED_AT_ONCE, Joiner
from taba.shard.servers.connection import REPLY_SECONDS, Command, Redirected, Reply, raise_for
from taba.shard.servers.gather import gather
from taba.shard.servers.pool import CHECKOUT_SECONDS, Pool
from taba.shard.transaction import keys_read

READ_SECONDS = 8.0  # a read, with all its waits; a person waits for the answer


class Reads(Operations):
    """What a Router reads. `away_seconds`: how long a read waits for a server that does not answer at all, or takes no connection.

    `uses`: reads and transactions, by bucket.
    """

    def __init__(self, atlas: Atlas, reactor: Any, token: str, away_seconds: float):
        super().__init__(reactor, atlas.pauses, atlas.standing, atlas.counts, token)
        self.atlas = atlas
        self.uses: Counter[int] = Counter()
        self._away_seconds = away_seconds

    @property
    def buckets(self) -> int:
        return len(self.atlas.map.owners)

    async def read(self, bucket: int, reads: Sequence[Command]) -> list[Any]:
        """The replies to `reads`, keys of `bucket`, in order; one round trip.

        Raises StoreUnavailable when they cannot be had in time, TransactionRefused when the store refuses one,
        ValueError for what is no read of this bucket.
        """
        keys_read(bucket, reads)
        return await self._read_here(bucket, reads)

    async def read_many(self, reads: Mapping[int, Sequence[Command]], away: MutableMapping[int, str] | None = None) -> dict[int, list[Any]]:
        """`read` of many buckets: bucket → replies; one round trip per shard, all shards at once.

        With `away`, what cannot be had in time is not in the answer, and why is in `away`, by bucket.
        """
        for bucket, commands in reads.items():
            keys_read(bucket, commands)
        try:
            return await self._read_many(reads, away)
        except StoreUnavailable as error:
            if away is None:
                raise
            away.update(dict.fromkeys(reads, str(error)))  # the map itself cannot be had
            return {}

    async def _read_own(self, reads: Mapping[int, Sequence[Command]], passed: float = 0.0) -> dict[int, list[Any]]:
        return await self._read_many(reads, None, passed)  # whose commands need no look

    async def _read(self, name: Text, command: bytes, *arguments: bytes) -> Any:
        """The usual case of `_read_many`: where the bucket is, is known, and what its owner key says. All else is left to that."""
        # all in one place, for this is what a program does most: every call and every coroutine more can be felt here
        place = self._places.get(name) if type(name) in KEPT_TYPES else None
        hand = None if place is None else self.atlas.hands.get(place[0])
        if place is None or hand is None or place[2] != hand.buckets:
            place = self._place(name, self.buckets)
            hand = self.atlas.at_hand(place[0])
        bucket = place[0]
        asked = (command, place[1], *arguments)
        began = self._reactor.seconds()
        if hand is not None:
            server = hand.server
            asking = server.asking
            quiet = self._away_seconds if self._away_seconds < READ_SECONDS else READ_SECONDS
            try:
                if asking.under_way >= ASKED_AT_ONCE or (connection := server.idle()) is None:
                    answer = await asking.join(Joiner(asked, hand.reads, hand.is_whole, began, READ_SECONDS, quiet))
                else:
                    asking.under_way += 1
                    try:
                        answer = await connection.execute((asked, hand.reads), READ_SECONDS, quiet)
                    finally:
                        server.release(connection)
                        asking.go_on()
            except StoreUnavailable as error:
                self._may_look_again(hand, began, error)
            else:
                if answer is not None and answer[1] == hand.owner and self.atlas.is_certain and not isinstance(answer[0], Exception):
                    self.uses[bucket] += 1
                    return answer[0]
        return (await self._read_many({bucket: (asked,)}, None, self._reactor.seconds() - began))[bucket][0]

    async def _read_here(self, bucket: int, reads: Sequence[Command]) -> list[Any]:
        """As `_read_one`, of several commands, which have a connection of their own: single ones that wait do not wait for them."""
        began = self._reactor.seconds()
        hand = self.atlas.at_hand(bucket)
        connection = None if hand is None else hand.server.idle()
        if hand is not None and connection is not None:
            try:
                replies = await connection.execute([*reads, hand.reads], READ_SECONDS, min(READ_SECONDS, self._away_seconds))
            except StoreUnavailable as error:
                self._may_look_again(hand, began, error)
            else:
                if replies.pop() == hand.owner and self.atlas.is_certain:
                    for reply in replies:
                        if isinstance(reply, Exception):
                            break
                    else:
                        self.uses[bucket] += 1
                        return replies
            finally:
                hand.server.release(connection)
        return (await self._read_many({bucket: reads}, None, self._reactor.seconds() - began))[bucket]

    def _may_look_again(self, hand: Hand, began: float, error: StoreUnavailable) -> None:
        """What `error` means is found out by asking once more, while there is time: else it is raised."""
        if self._reactor.seconds() - began >= self._away_seconds:
            raise StoreUnavailable(f"shard {hand.shard} is away: {error}") from None
        self.counts["retries"] += 1

    async def _read_strings(self, places: Sequence[Place], passed: float = 0.0) -> list[bytes | None]:
        """The usual case in one MGET a server, in which nothing need be dealt out; all else is left to `_read_many`."""
        began = self._reactor.seconds()
        hands: dict[int, Hand] = {}
        lots: dict[Pool, Sequence[int]] = {}  # server → the numbers of those that are there
        for bucket in {place[0] for place in places} if len(places) <= MOST_KEYS else ():
            hand = self.atlas.at_hand(bucket)
            if hand is None or not hand.is_whole:
                return await super()._read_strings(places, passed)
            hands[bucket] = hand
            lots.setdefault(hand.server, [])
        if len(lots) == 1:
            lots = dict.fromkeys(lots, range(len(places)))
        else:
            own: dict[Pool, list[int]] = {server: [] for server in lots}
            for number, place in enumerate(places if hands else ()):
                own[hands[place[0]].server].append(number)
            lots.update(own)
        answers = await gather([self._strings_of(server, [places[number][1] for number in lot], hands) for server, lot in lots.items()])
        found: list[bytes | None] = [None] * len(places)
        for (server, lot), answer in zip(lots.items(), answers, strict=True):
            if isinstance(answer, Exception):
                if not isinstance(answer, StoreUnavailable):
                    raise answer
                if self._reactor.seconds() - began >= self._away_seconds:
                    shard = next(hand.shard for hand in hands.values() if hand.server is server)
                    raise StoreUnavailable(f"shard {shard} is away: {answer}")
                self.counts["retries"] += 1  # what it means is found out there
            if not isinstance(answer, list):
                break
            if len(lots) == 1:
                return answer
            for number, content in zip(lot, answer, strict=True):
                found[number] = content
        else:
            if hands:
                return found
        return await super()._read_strings(places, passed + self._reactor.seconds() - began)

    async def _strings_of(self, server: Pool, keys: Sequence[bytes], hands: Mapping[int, Hand]) -> list[bytes | None] | None:
        """The values of `keys` on `server`; None unless all of `hands` that are there hold."""
        connection = server.idle()
        if connection is None:
            return None
        here = {bucket: hand for bucket, hand in hands.items() if hand.server is server}
        owners = [hand.reads[1] for hand in here.values()]  # after the data
        try:
            [reply] = await connection.execute([(b"MGET", *keys, *owners)], READ_SECONDS, min(READ_SECONDS, self._away_seconds))
        finally:
            server.release(connection)
        if not isinstance(reply, list) or not self.atlas.is_certain or reply[len(keys) :] != [hand.owner for hand in here.values()]:
            return None
        self.uses.update(here.keys())
        return reply[: len(keys)]

    async def _read_many(
        self, reads: Mapping[int, Sequence[Command]], away: MutableMapping[int, str] | None, passed: float = 0.0
    ) -> dict[int, list[Any]]:
        """`passed`: how many of its seconds are over."""
        began = self._reactor.seconds() - passed
        deadline = self.atlas.deadline(READ_SECONDS - passed)
        replies: dict[int, list[Any]] = {}
        why: dict[int, str] = {}  # bucket → what we last heard of it, where it was no answer
        left = dict(reads)
        while left:
            error: Exception | None = None
            map = await self.atlas.current_map(self.atlas.deadline(min(deadline.left, self._away_seconds)))
            by_server = self.atlas.by_server(map, left)
            is_sealed = is_forwarded = True
            if None in by_server:
                error, is_sealed = StoreUnavailable(self.atlas.where_of(map, by_server.pop(None)[0])), False
                is_forwarded = False
            asked = [(server, here) for server, here in by_server.items() if server is not None]
            answers = await gather(
                [self._read_server(server, map, {bucket: left[bucket] for bucket in here}, deadline) for server, here in asked]
            )
            for (_, here), answer in zip(asked, answers, strict=True):
                if isinstance(answer, Exception):
                    if not isinstance(answer, StoreUnavailable):
                        raise answer
                    error, is_sealed = StoreUnavailable(f"shard {map.shard_of(here[0])} is away: {answer}"), False
                    is_forwarded = False
                    why.update(dict.fromkeys(here, str(error)))
                    continue
                for bucket, outcome in answer.items():
                    if isinstance(outcome, NotHere):
                        why[bucket] = str(outcome)
                        error, is_sealed = error or outcome, is_sealed and outcome.is_sealed
                        is_forwarded = is_forwarded and outcome.is_forwarded
                    else:
                        replies[bucket] = outcome
                        del left[bucket]
            if error is not None and left:
                self.counts["retries"] += 1
                try:
                    if self._reactor.seconds() - began >= self._away_seconds and isinstance(error, StoreUnavailable):
                        raise error
                    await deadline.pause(error, 0.0 if is_forwarded else SEALED_PAUSE_SECONDS if is_sealed else None)
                except StoreUnavailable as given_up:
                    if away is None:
                        raise
                    away.update({bucket: why.get(bucket, str(given_up)) for bucket in left})
                    break
                # the owner keys said that the map is old, or a shard does not answer: the others may know a newer map
                if not is_forwarded and deadline.is_time_to_look(is_sealed):
                    await self.atlas.refresh(deadline)
                for answer in answers:
                    if isinstance(answer, dict):
                        self.atlas.believe(map, answer)
        self.uses.update(iter(reads))
        return {bucket: replies[bucket] for bucket in reads if bucket in replies}

    async def _read_server(
        self, server: Pool, map: BucketMap, reads: Mapping[int, Sequence[Command]], deadline: Deadline
    ) -> dict[int, list[Any] | NotHere]:
        # the owner keys after the data: what was read was read while the bucket was open here
        owners = [owner_key(bucket) for bucket in reads]
        is_whole = self.atlas.is_whole(map, next(iter(reads)), server)
        # many at once where they need not be of one slot: one command and one reply, instead of one a bucket
        commands = [command for own in reads.values() for command in own]
        commands += [(b"MGET", *owners)] if is_whole else [(b"GET", owner) for owner in owners]
        patience = min(deadline.left, self._away_seconds)
        replies = await server.execute(commands, min(deadline.left, REPLY_SECONDS), min(patience, CHECKOUT_SECONDS), patience)
        if not self.atlas.is_certain:  # it was connected anew, and is perhaps another store's
            raise StoreUnavailable(f"{server.address.text}: it may be another store's")
        outcomes: dict[int, list[Any] | NotHere] = {}
        told: Sequence[Reply] = replies[-1:] if is_whole else replies[-len(owners) :]
        if is_whole:
            told = told[0] if isinstance(told[0], list) else [told[0]] * len(owners)  # refused for all of them
        has_errors = any(issubclass(kind, Exception) for kind in {type(reply) for reply in replies})
        end = 0
        are_open = self.atlas.are_open(map, reads, told)
        for (bucket, own), owner in zip(reads.items(), told, strict=True):
            start, end = end, end + len(own)
            try:
                if not are_open:
                    self.atlas.check_owner(bucket, map.shard_of(bucket), owner, server.text)
                outcomes[bucket] = replies[start:end]
                for reply in replies[start:end] if has_errors else ():
                    if isinstance(reply, Exception):
                        raise_for(reply, f"{server.text}: bucket {bucket}")
            except NotHere as error:
                outcomes[bucket] = error
            except Redirected as error:
                outcomes[bucket] = NotHere(bucket, error.is_settling, str(error), error.redirection)
        return outcomes
