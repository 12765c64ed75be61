"""Bringing buckets from shard to shard: the steps, who carries them out, what was left half-done."""
