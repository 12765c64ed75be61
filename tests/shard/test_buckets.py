"""The bucket map: total, disjoint, and strict about its bytes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.bounds import DEFAULT_BUCKETS, MAX_BUCKETS
from taba.names import bucket_of
from taba.shard import buckets
from taba.shard.buckets import BucketMap, MalformedMap, Owner, Shard, StoreRecord


class BucketMapTests(SynchronousTestCase):
    def test_the_published_vectors_of_the_hash(self) -> None:
        self.assertEqual(bucket_of("bids_won", 512), 483)
        self.assertEqual(bucket_of('winning_bid_price{exchange="adx"}', 512), 229)

    @given(st.integers(1, 20), st.integers(1, 600))
    def test_a_first_map_is_total_disjoint_and_even(self, shards: int, count: int) -> None:
        map = buckets.first_map("id", [f"redis://h{n}" for n in range(shards)], count)
        owned = [map.owned_by(shard.name) for shard in map.shards]
        self.assertEqual(sorted(bucket for one in owned for bucket in one), list(range(count)))
        self.assertLessEqual(max(sizes := [len(one) for one in owned]) - min(sizes), 1)
        for bucket in range(count):
            self.assertIn(bucket, map.owned_by(map.shard_of(bucket)))

    @given(st.data())
    def test_a_map_goes_through_its_bytes_unchanged(self, draw: st.DataObject) -> None:
        shards = tuple(Shard(f"s{n}", f"redis://h{n}:1") for n in range(draw.draw(st.integers(1, 5))))
        owners = draw.draw(st.lists(st.integers(0, len(shards) - 1), min_size=1, max_size=50))
        epochs = draw.draw(st.lists(st.integers(1, 10**9), min_size=len(owners), max_size=len(owners)))
        draining = draw.draw(st.sets(st.sampled_from([shard.name for shard in shards])))
        map = BucketMap("id", draw.draw(st.integers(1, 10**9)), shards, tuple(owners), 0, tuple(epochs), tuple(sorted(draining)))
        self.assertEqual(buckets.decode_map(buckets.encode_map(map)), map)

    def test_the_largest_map_fits_its_bound(self) -> None:
        urls = [f"redis://a-rather-long-host-name-{n}.example.org:6379" for n in range(1000)]
        map = buckets.first_map("0" * 32, urls, MAX_BUCKETS)
        self.assertEqual(buckets.decode_map(buckets.encode_map(map)), map)
        with self.assertRaises(MalformedMap):
            buckets.decode_map(b" " * (buckets.MAX_MAP_BYTES + 1))
        with self.assertRaises(MalformedMap):
            buckets.first_map("id", ["redis://h"], MAX_BUCKETS + 1)
        with self.assertRaises(MalformedMap):
            buckets.first_map("id", ["redis://h"], 0)

    def test_a_map_with_gaps_strangers_or_no_sense_is_refused(self) -> None:
        good = json.loads(buckets.encode_map(buckets.first_map("id", ["redis://a", "redis://b"], 4)))
        changes: tuple[dict[str, Any], ...] = (
            *({"owners": []}, {"owners": [0, 1, 2, 0]}, {"owners": [0, -1, 1, 0]}, {"owners": [0, None, 1]}, {"owners": [True, False]}),
            *({"shards": []}, {"shards": [["s1", "x"], ["s1", "y"]]}, {"shards": [["s1"]]}, {"shards": [["", "x"]]}),
            *({"epoch": 0}, {"epoch": "1"}, {"store": None}, {"v": 1}, {"v": good["v"] + 1}),
            *(
                {"epochs": []},
                {"epochs": [1]},
                {"epochs": [1, 1, 1, 0]},
                {"epochs": None},
                {"draining": ["s9"]},
                {"draining": ["s1", "s1"]},
            ),
        )
        for change in changes:
            with self.assertRaises(MalformedMap):
                buckets.decode_map(json.dumps({**good, **change}).encode())

    @given(st.binary(max_size=100))
    def test_any_bytes_are_read_or_refused(self, content: bytes) -> None:
        for decode in (buckets.decode_map, buckets.decode_record, buckets.decode_owner):
            with contextlib.suppress(MalformedMap):
                decode(content)

    def test_owner_keys_go_through_their_text_unchanged(self) -> None:
        for owner in (Owner("open", 1, "s1"), Owner("sealed", 12, "token:with:colons"), Owner("moved", 3, "s2")):
            self.assertEqual(buckets.decode_owner(buckets.encode_owner(owner)), owner)
        self.assertEqual(buckets.encode_owner(Owner("open", 1, "s1")), b"open:1:s1")
        for wrong in (b"", b"open", b"open:1", b"open:1:", b"open:x:s1", b"shut:1:s1", b"open:-1:s1", b"open:1:\xff", b"open:01:s1"):
            with self.assertRaises(MalformedMap):
                buckets.decode_owner(wrong)

    def test_records_go_through_their_bytes_unchanged(self) -> None:
        record = StoreRecord("id", DEFAULT_BUCKETS, "s1", ("redis://a", "redis://b"))
        self.assertEqual(buckets.decode_record(buckets.encode_record(record)), record)
