"""For how many Clients whoever posts to an Agent may do so with Idempotency-Keys, as a Server grants it to the Agent. Pure.

1. To a Server an Agent is one poster. A Server has room for the keys of so many Clients in a bucket, and gives a poster as much as it
   leaves to others, for a day. What it has no room for waits, and its lane with it. So an Agent takes no more than a Server gives one
   that is alone, shares that between its own posters by the same rule, and tells whoever has its share to come again later, before
   anything of the post is taken.
2. What other Agents took of a bucket a Server alone knows: once a batch waits for room there, no post of a new Client is taken for it
   until that is over.
3. Of very many the oldest are forgotten: then the Server's answer counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b

from taba.bounds import DAY
from taba.errors import TabaError
from taba.plural import many

MAX_CLIENTS_HERE = 4000  # in one bucket: four fifths of what a Server gives one poster, for what is forgotten here may count there
MAX_GRANTS = 131_072  # a Client in a bucket each, 11 MiB: 256 Clients that post all day under keys that fall anywhere
KEPT_SECONDS = DAY + 2 * 3600.0  # a Server counts by the hour
SURE_SECONDS = DAY - 3600.0  # for so long a Client that was granted room has it
FULL_SECONDS = 60.0  # for which a bucket is taken to have no room after a batch was told so; one that waits asks twice as often
RETRY_SECONDS = 3600  # that a poster is told to wait
SHOWN_SECONDS = 120.0  # for which it is shown who was refused
MAX_NAMED = 3  # of these
MOST_FORGOTTEN = 1000  # that are over, for one post
STAMP_SECONDS = 60.0  # that times are told apart by: one is remembered once for all
MAX_STAMPS = 100  # posters that such a time is remembered of
WHOSE_BYTES = 8  # of a digest


class TooManyKeys(TabaError):
    """Whoever posts has taken as much room for Clients with keys as is left to others; none of the post was taken, and later is."""


def digest_of(text: str) -> bytes:
    """What a poster or a Client is known by here, and in the file of keys."""
    return blake2b(text.encode(), digest_size=WHOSE_BYTES).digest()


def bucket_of(key: bytes, buckets: int) -> int:
    """In which bucket a Server keeps the record of a KeyPart's key."""
    return int.from_bytes(key[:8], "big") % buckets


class Grants:
    """Who has posted for which Clients in which buckets within a day. `now` is monotonic seconds."""

    def __init__(self, here: int = MAX_CLIENTS_HERE, in_all: int = MAX_GRANTS):
        self._here, self._in_all = here, in_all
        self._buckets = 0
        self._forget_all()
        self._refused: dict[str, float] = {}  # posters, and when they were told so last

    def _forget_all(self) -> None:
        self._of: dict[int, tuple[bytes, float]] = {}  # (Client, bucket) → poster and when; who posted last comes last
        self._in: Counter[int] = Counter()
        self._taken: Counter[tuple[int, bytes]] = Counter()  # (bucket, poster) → Clients
        self._full: dict[int, float] = {}  # bucket → until when
        self._stamps: dict[bytes, tuple[bytes, float]] = {}  # of this minute, for many places each

    def __len__(self) -> int:
        return len(self._of)

    def take_up(self, known: Iterable[tuple[bytes, bytes]], buckets: int, now: float) -> None:
        """What an earlier Agent took: keys, each with the digests of poster and Client, as if they came now."""
        self._count_in(buckets)
        for key, whose in known:
            if isinstance(whose, bytes) and len(whose) == 2 * WHOSE_BYTES and isinstance(key, bytes):  # else nobody knows whose
                self._add(bucket_of(key, buckets), whose[WHOSE_BYTES:], whose[:WHOSE_BYTES], now)

    def check(self, key: bytes, client: str, poster: str, buckets: int, now: float) -> None:
        """Raise TooManyKeys where `poster` may not post under this key for `client` now."""
        self._count_in(buckets)
        self._forget(now)
        bucket, mine = bucket_of(key, buckets), digest_of(poster)
        known = self._of.get(self._place(bucket, digest_of(client)))
        if known is not None and now - known[1] < SURE_SECONDS:
            return
        if self._full.get(bucket, now) > now:
            self._refuse(poster, now)
            raise TooManyKeys("none of it was taken: Servers remember keys of no more Clients of this Agent there until others have gone")
        free, taken = self._here - self._in[bucket], self._taken[bucket, mine]
        if known is None and taken >= free:
            self._refuse(poster, now)
            raise TooManyKeys(
                f"none of it was taken: whoever posts this did so with Idempotency-Keys of {many(taken, 'Client')} there within a day, "
                f"and room for {max(0, free)} more is left to others"
            )

    def take(self, key: bytes, client: str, poster: str, buckets: int, now: float) -> None:
        """A post that was checked is published."""
        self._count_in(buckets)
        self._add(bucket_of(key, buckets), digest_of(client), digest_of(poster), now)

    def told_full(self, key: bytes, buckets: int, now: float) -> None:
        """A Server has no room for a Client of this Agent where this key's record would be: its batch waits."""
        self._count_in(buckets)
        self._full = {bucket: until for bucket, until in self._full.items() if until > now}
        self._full[bucket_of(key, buckets)] = now + FULL_SECONDS

    def problems(self, now: float) -> dict[str, str]:
        """What somebody should look at: sentences, by a key each."""
        return {
            f"keys of {poster}": f"{poster or 'somebody'} posts to this Agent under Idempotency-Keys of ever new Clients, and has as much "
            "room for them as is left to others: further ones are refused (429) until a day has gone; if they are meant, give whoever "
            "posts tokens of their own"
            for poster, when in self._refused.items()
            if now - when <= SHOWN_SECONDS
        }

    def _refuse(self, poster: str, now: float) -> None:
        self._refused.pop(poster, None)
        self._refused[poster] = now
        if len(self._refused) > MAX_NAMED:
            del self._refused[next(iter(self._refused))]

    def _count_in(self, buckets: int) -> None:
        """Of a store with another number of buckets nothing of before says anything."""
        if self._buckets != buckets:
            self._buckets = buckets
            self._forget_all()

    @staticmethod
    def _place(bucket: int, client: bytes) -> int:
        return bucket << 8 * WHOSE_BYTES | int.from_bytes(client, "big")

    def _add(self, bucket: int, client: bytes, poster: bytes, now: float) -> None:
        place = self._place(bucket, client)
        known = self._of.pop(place, None)
        if known is not None:
            self._less(bucket, known[0])
        elif len(self._of) >= self._in_all:
            self._drop_oldest()
        stamp = self._stamps.get(poster)
        if stamp is None or now - stamp[1] >= STAMP_SECONDS:
            if len(self._stamps) >= MAX_STAMPS:
                self._stamps.clear()
            stamp = self._stamps[poster] = poster, now
        self._of[place] = stamp  # who posts for a Client has its room, as at a Server
        self._in[bucket] += 1
        self._taken[bucket, poster] += 1

    def _forget(self, now: float) -> None:
        for _ in range(MOST_FORGOTTEN):
            if not self._of or now - next(iter(self._of.values()))[1] < KEPT_SECONDS:
                break
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        place = next(iter(self._of))
        self._less(place >> 8 * WHOSE_BYTES, self._of.pop(place)[0])

    def _less(self, bucket: int, poster: bytes) -> None:
        self._in[bucket] -= 1
        self._taken[bucket, poster] -= 1
        if not self._taken[bucket, poster]:
            del self._taken[bucket, poster]
            if not self._in[bucket]:
                del self._in[bucket]
