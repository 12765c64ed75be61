"""P7, fresh: an event is seen in a query soon after it was recorded. How soon on an idle machine, `./run bench` says."""

from __future__ import annotations

import pytest

from tests.patience import until

from .job import TYPE_OF, Job, ShortJob, figures


class Timed(Job):
    def latency(self) -> dict[str, float] | None:
        """The percentiles of the last minute, where it has any."""
        found = self.services.query.latency()
        return found if None not in found.values() else None


@pytest.mark.takes(seconds=15)
class Fresh(Timed):
    tabs, buckets = ShortJob.tabs, ShortJob.buckets

    def test_what_is_recorded_is_seen_while_recording_goes_on_and_its_way_is_timed(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        enough = self.services.directory / "enough"
        recorders = self.start_recorders(16_000, pause=0.1, file=enough)
        self.until(lambda: self.services.query.aggregates(match="job_1.*"), "nothing is seen")
        self.assertEqual([recorder.poll() for recorder in recorders], [None] * len(recorders))
        enough.touch()
        latency = until(self.latency, "no way is timed")
        self.assertLessEqual(0.0, latency["p50"])
        self.assertLessEqual(latency["p50"], latency["p95"])
        self.assertLessEqual(latency["p95"], latency["p99"])
        self.end_recorders(recorders)
        self.assert_exact(16_000)


@pytest.mark.real
@pytest.mark.takes(seconds=35)
class FreshForLong(Timed):
    def test_at_a_steady_rate_what_is_recorded_is_seen_while_it_goes_on(self) -> None:
        """The first half is seen whole before the second begins, and look after look shows no less than the one before."""
        self.services.start_server()
        self.services.start_agent()
        enough = self.services.directory / "enough"
        recorders = self.start_recorders(200_000, pause=0.25, file=enough)  # some 30,000 a second
        self.wait_for(100_000)
        self.assertEqual([recorder.poll() for recorder in recorders], [None] * len(recorders))
        looks = [self.count_seen()]
        self.assertGreater(looks[0], 0)
        enough.touch()
        worst = [until(self.latency, "no way is timed")["p99"]]
        while any(recorder.poll() is None for recorder in recorders):
            looks.append(self.count_seen())
            worst += [p99 for p99 in [self.services.query.latency()["p99"]] if p99 is not None]
        self.end_recorders(recorders)
        self.assert_exact(200_000)
        looks.append(self.count_seen())
        self.assertEqual(looks, sorted(looks))
        self.assertGreater(looks[-1], looks[0])
        print(f"p99 from record to visible, the median of {len(worst)} looks: {sorted(worst)[len(worst) // 2]:.2f} s")

    def count_seen(self) -> float:
        """How many events the Aggregates of a third of the Tabs show."""
        shown = until(lambda: self.services.query.aggregates(match="job_1.*"), "nothing is seen")  # asked again where the store is slow
        return sum(figures(TYPE_OF[name], of_name)[0] for name, of_name in shown.items() if TYPE_OF[name] != "UpDown")
