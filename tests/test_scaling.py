"""What docs/scaling.md computes is what its own figures come to."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from taba.agent.dispatch import NEAR_SERVERS
from taba.bounds import DEFAULT_BUCKETS
from taba.shard.servers.pool import POOL_CONNECTIONS

TEXT = " ".join((Path(__file__).parent.parent / "docs" / "scaling.md").read_text().split())


class ScalingTests(SynchronousTestCase):
    def test_the_sums_are_those_of_the_figures_beside_them(self) -> None:
        agents, servers, mark = 10_000, 100, 75
        heard = NEAR_SERVERS * agents // servers
        self.assertIn(f"Ten thousand Agents and {servers} Servers: {heard} envelopes a second for each process", TEXT)
        self.assertIn(f"those {heard} Agents, simulated", TEXT)
        self.assertIn(f"at {1_000_000 // heard:,} µs a core would be full", TEXT)
        self.assertIn(
            f"{agents:,} Agents, {DEFAULT_BUCKETS} buckets and {mark} bytes: {agents * DEFAULT_BUCKETS * mark / 1e6:.0f} MB", TEXT
        )
        self.assertIn(f"With {servers} Servers {POOL_CONNECTIONS * servers:,} at each shard", TEXT)
        self.assertIn(f"with {servers} Servers, {-(-servers // NEAR_SERVERS)} write a bucket", TEXT)
