"""What a name tells of a unit."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from taba.meanings import unit_of


class Units(SynchronousTestCase):
    def test_the_end_of_a_name_tells_the_unit_and_total_only_where_nothing_before_it_does(self) -> None:
        told = {
            "render_seconds": "seconds",
            "sent_bytes": "bytes",
            "hit_ratio": "ratio",
            "requests_total": "1",
            "cpu_seconds_total": "seconds",
            "sent_bytes_total": "bytes",
            "requests": "",
            "seconds": "",
            "_seconds_of": "",
            "bytes_sent": "",
            "total": "",
            "": "",
        }
        self.assertEqual({name: unit_of(name) for name in told}, told)
