"""What Agents send: from the entries of an envelope to what waits for its bucket, and back to verdicts in their order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from typing import Any, cast

from twisted.internet.defer import DeferredList, ensureDeferred

from taba.batch import (
    KEYS_FULL,
    LATER,
    NONCE_BYTES,
    NOT_COVERED,
    REFUSED,
    BadColumn,
    Batch,
    Column,
    Entry,
    Envelope,
    Header,
    KeyPart,
    SentBatch,
    Verdict,
    plain_batch,
    reading_batch,
)
from taba.bounds import KiB
from taba.errors import MalformedBatch, StoreUnavailable, UnknownVersion
from taba.places import SharedBytes, Taker
from taba.server.fold.cycle import WaitingBatch
from taba.server.fold.deadletters import pack
from taba.server.fold.ingest import AWAY_SECONDS, FULL_SECONDS, MAX_WAITING_BYTES, Ingest
from taba.server.fold.posts import KEYS_SECONDS, OtherRequest, Posts, TooManyKeys
from taba.server.router import IsRouter
from taba.shard.servers.gather import gather
from taba.steps import finish
from taba.tokens import UNBOUND, Scope

STRANGER_SECONDS = 5.0  # `later` for an Agent that sends to another store
VERSION_SECONDS = 30.0  # `later` for a batch of another version: an upgrade takes longer
SHOWN_SECONDS = 120.0  # for which it is shown that something came that had to wait
MAX_NOTED = 16  # such things that are told apart
OTHER_STORE = "another store"  # one of them
READING_OF_SENDER = MAX_WAITING_BYTES // 2  # of one token's bearer or address
BEHIND_SECONDS = 0.05  # `later` for what follows one that is refused: its sender knows by then what it follows instead
BEHIND = Verdict(LATER, BEHIND_SECONDS, "what it follows is not taken")
HEADER_BYTES = 64  # what a header counts as in a queue
SLICE_BYTES = 64 * KiB  # of batches, with what is made of them, read between two looks at the time
_new_waiting = cast(Any, tuple.__new__)


class Envelopes:
    """Decides envelopes, with `ingest` and `posts`. `draw` gives so many random bytes; `seconds` is monotonic; `heard` is told what the
    clocks of senders say; `is_served` says whether the store of this id is the one that is served."""

    def __init__(
        self,
        router: IsRouter,
        ingest: Ingest,
        posts: Posts,
        draw: Callable[[int], bytes],
        seconds: Callable[[], float],
        heard: Callable[[str, float], None],
        is_served: Callable[[str], bool],
    ):
        self._is_served = is_served
        self._router, self._ingest, self._posts, self._draw, self._seconds, self._heard = router, ingest, posts, draw, seconds, heard
        self._noted: dict[str, tuple[float, str]] = {}
        self.reading = SharedBytes("wait in envelopes", MAX_WAITING_BYTES, READING_OF_SENDER)
        """Bytes of batches, and of what was made of them, whose envelopes are not decided yet."""

    async def decide(
        self,
        envelope: Envelope,
        breathe: Callable[[], Awaitable[None]] | None = None,
        scope: Scope = UNBOUND,
        sender: str = "",
    ) -> list[Verdict]:
        """The verdicts on its entries, in order. `breathe` lets others have a turn; without it this goes through in one. `sender`: who is
        taken for the poster of what came under keys.

        Columns beyond `scope` become dead letters that say so.
        """
        self._heard(f"{envelope.agent} {envelope.host}", envelope.now)
        try:
            buckets = self._router.buckets
        except StoreUnavailable:  # not known yet
            return [Verdict(LATER, AWAY_SECONDS)] * len(envelope.entries)
        if envelope.store is not None and not self._is_served(envelope.store):
            other = "and this Server serves another; if that is meant: taba store --accept"
            says = f"the Agent {envelope.agent} sends to the store {envelope.store[:8]}…, {other}"
            self._note(OTHER_STORE, says)
            return [Verdict(LATER, STRANGER_SECONDS, says)] * len(envelope.entries)
        read, is_bound, room = 0, scope.is_bound, self.reading
        taker, left_out = room.enter(sender), ""
        try:
            found: list[WaitingBatch | Verdict] = []
            rest, agent, has_keys = SLICE_BYTES, envelope.agent, False
            place: WaitingBatch | Verdict
            untaken: dict[bytes, Verdict] = {}  # by the nonce of a lane: what follows would look as if the store had lost what it follows
            for entry in envelope.entries:
                if breathe is not None and rest >= SLICE_BYTES:
                    rest = 0
                    await breathe()
                # the first of those that are being read is always, so that no size is refused for ever
                batch = None
                if isinstance(entry, SentBatch):
                    content, follows, nonce, key = entry
                    if room.held and not room.has_room(taker, len(content)):
                        left_out = room.refusal(taker, len(content))
                        break
                    batch = None if key else plain_batch(content)
                    if batch is not None and batch.bucket >= buckets:
                        batch = None
                if batch is not None:  # as nearly all
                    place = _new_waiting(WaitingBatch, (follows, batch, len(content), nonce, None, None, agent))
                else:
                    place = await self._read(entry, envelope, buckets, breathe, taker)
                    has_keys = has_keys or (isinstance(place, WaitingBatch) and place.part is not None)
                    if isinstance(place, Verdict) and isinstance(entry, SentBatch):
                        untaken[entry.nonce] = place if place.word == LATER else BEHIND
                if untaken and isinstance(place, WaitingBatch) and isinstance(entry, SentBatch) and entry.nonce:
                    place = untaken.get(entry.nonce, place)
                if is_bound and isinstance(place, WaitingBatch):
                    place = place._replace(batch=within(place.batch, scope))
                size = place.size + place.batch.made_bytes if isinstance(place, WaitingBatch) else 0
                found.append(place)
                read, rest = read + size, rest + size + HEADER_BYTES
                room.held += size
                taker.has += size
            # what is left is not read at all: the batches of a lane come in their order
            found += [Verdict(LATER, FULL_SECONDS, left_out)] * (len(envelope.entries) - len(found))
            return await (self._decide(found, sender) if has_keys else self._submit(found))
        finally:
            room.change(taker, -read)
            room.leave(taker)

    async def _decide(self, found: list[WaitingBatch | Verdict], sender: str) -> list[Verdict]:
        # apart, so that a key whose record is on a server that is away holds up nothing but what came under it
        keyed: list[bool] = []
        behind: set[tuple[bytes, int]] = set()  # what follows it in its lane stays behind it: decided first, it would look like a gap
        for place in found:
            lane = (place.batch.stream, place.batch.bucket) if isinstance(place, WaitingBatch) else None
            if isinstance(place, WaitingBatch) and place.part is not None and lane is not None:
                behind.add(lane)
            keyed.append(lane in behind)
        others = [place for place, has_key in zip(found, keyed, strict=True) if not has_key]
        posts = [place for place, has_key in zip(found, keyed, strict=True) if has_key]
        verdicts: list[Iterator[Verdict]] = []
        for outcome in await gather([self._submit(others), self._submit_posts(posts, sender)]):
            if isinstance(outcome, Exception):
                raise outcome
            verdicts.append(iter(outcome))
        return [next(verdicts[has_key]) for has_key in keyed]

    async def _submit(self, found: Sequence[WaitingBatch | Verdict]) -> list[Verdict]:
        waiting = [place for place in found if isinstance(place, WaitingBatch)]
        if waiting and len(waiting) == len(found):
            return await self._ingest.submit(waiting)
        decided = iter(await self._ingest.submit(waiting) if waiting else ())
        return [next(decided) if isinstance(place, WaitingBatch) else place for place in found]

    async def _submit_posts(self, found: list[WaitingBatch | Verdict], sender: str) -> list[Verdict]:
        await self._draw_streams(found, sender)
        return await self._submit(found)

    def note_version(self, error: UnknownVersion) -> None:
        """Have `problems` say that something of a version came that this Server does not read."""
        says = f"an Agent sends what this Server does not read, and keeps it until one can: {error}"
        self._note(f"{error.what} {error.version}", says)

    def _note(self, what: str, says: str) -> None:
        now = self._seconds()
        if len(self._noted) >= MAX_NOTED:  # what is shown no more makes room
            self._noted = {known: told for known, told in self._noted.items() if now - told[0] < SHOWN_SECONDS}
        if what in self._noted or len(self._noted) < MAX_NOTED or what == OTHER_STORE:  # versions are whatever a sender says
            self._noted[what] = (now, says)

    @property
    def problems(self) -> list[str]:
        """What somebody should look at, in sentences."""
        since = self._seconds() - SHOWN_SECONDS
        return [*(sentence for when, sentence in self._noted.values() if when > since), *self._posts.problems]

    async def _read(
        self, entry: Entry, envelope: Envelope, buckets: int, breathe: Callable[[], Awaitable[None]] | None, taker: Taker
    ) -> WaitingBatch | Verdict:
        try:
            if isinstance(entry, Header):
                _check_bucket(entry.bucket, buckets)
                batch = Batch(entry.stream, entry.bucket, 0, [])
                return WaitingBatch(0, batch, HEADER_BYTES, self._draw(NONCE_BYTES), header=entry, agent=envelope.agent)
            steps = reading_batch(entry.batch)
            try:
                made = next(steps)
            except StopIteration as end:  # in one go, as nearly all
                batch = end.value
            else:
                batch = await self._in_turns(steps, made, breathe, taker)
            _check_bucket(batch.bucket, buckets)
        except UnknownVersion as error:
            self.note_version(error)
            return Verdict(LATER, VERSION_SECONDS, str(error))
        except MalformedBatch as error:
            return Verdict(REFUSED, str(error))
        part = KeyPart.decode(entry.key) if entry.key else None
        return WaitingBatch(entry.follows, batch, len(entry.batch), entry.nonce, part, agent=envelope.agent)

    async def _in_turns(
        self, steps: Generator[int, None, Batch], made: int, breathe: Callable[[], Awaitable[None]] | None, taker: Taker
    ) -> Batch:
        """What `steps` returns, which have `made` so many bytes; others have their turns between them. What was made until then counts as
        being read."""
        if breathe is None:
            return finish(steps)
        charged = 0
        try:
            while True:
                self.reading.change(taker, made - charged)
                charged = made
                await breathe()
                try:
                    made = next(steps)
                except StopIteration as end:
                    batch: Batch = end.value
                    return batch
        finally:
            self.reading.change(taker, -charged)

    async def _draw_streams(self, found: list[WaitingBatch | Verdict], sender: str) -> None:
        """Have each batch of a post with a key know the stream of that post; or be decided already."""
        claims: dict[tuple[bytes, bytes], Any] = {}
        for place in found:
            if isinstance(place, WaitingBatch) and place.part is not None and (place.part.key, place.part.digest) not in claims:
                # also of what the sender may not send: the records of a post's key are its Client's, whoever sends the post
                client = next((column.client for column in place.batch.columns if column.client), "")
                claims[place.part.key, place.part.digest] = ensureDeferred(self._posts.claim(place.part, client, sender))
        outcomes = dict(zip(claims, await DeferredList(list(claims.values()), consumeErrors=True), strict=True)) if claims else {}
        waits: dict[tuple[bytes, int], Verdict] = {}  # by lane: what follows one that waits, waits
        for index, place in enumerate(found):
            if not isinstance(place, WaitingBatch):
                continue
            lane = place.batch.stream, place.batch.bucket
            if lane in waits:
                found[index] = waits[lane]
                continue
            if place.part is None:
                continue
            succeeded, outcome = outcomes[place.part.key, place.part.digest]
            if succeeded:
                found[index] = place._replace(part=place.part._replace(key=outcome))
            elif outcome.check(OtherRequest):
                found[index], waits[lane] = Verdict(REFUSED, str(outcome.value)), BEHIND
            elif outcome.check(TooManyKeys):
                found[index] = waits[lane] = Verdict(LATER, KEYS_SECONDS, (KEYS_FULL + str(outcome.value))[:200])
            elif outcome.check(StoreUnavailable):
                found[index] = waits[lane] = Verdict(LATER, AWAY_SECONDS, str(outcome.value)[:200])
            else:
                outcome.raiseException()


def within(batch: Batch, scope: Scope) -> Batch:
    """The batch, in which columns beyond `scope` are none: of each is kept what it holds, up to what a dead letter takes, to be read and
    never folded; and the name of no Tab is taken from them."""
    columns: list[Column | BadColumn] = []
    for column in batch.columns:
        if isinstance(column, Column) and not (scope.covers_client(column.client) and scope.covers_tab(column.tab)):
            says = f"{column.client} {column.tab}: the sender's token is bound to {scope.sentence()}"
            column = BadColumn(says[:200], pack([*column.opened()]), column.weight, NOT_COVERED, column.client)
        columns.append(column)
    meanings = tuple(meaning for meaning in batch.meanings if scope.covers_tab(meaning.tab))
    return batch._replace(columns=columns, meanings=meanings, bad_meanings=batch.bad_meanings + len(batch.meanings) - len(meanings))


def _check_bucket(bucket: int, buckets: int) -> None:
    if bucket >= buckets:
        raise MalformedBatch(f"bucket {bucket} of {buckets}")
