"""P7, fresh: an event is seen in a query soon after it was recorded. How soon on an idle machine, `./run bench` says."""

from __future__ import annotations

import pytest

from .job import Job

MOST_SECONDS = 5.0  # p99 at the most that a machine can hold


class Fresh(Job):
    def test_what_is_recorded_is_seen_while_recording_goes_on_and_its_way_is_timed(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        enough = self.services.directory / "enough"
        recorders = self.start_recorders(16_000, pause=0.1, file=enough)
        self.until(lambda: self.services.query.aggregates(match="job_1.*"))
        self.assertEqual([recorder.poll() for recorder in recorders], [None] * len(recorders))
        enough.touch()
        self.end_recorders(recorders)
        self.assert_exact(16_000)
        latency = self.services.query.latency()
        self.assertLessEqual(0.0, latency["p50"])
        self.assertLessEqual(latency["p50"], latency["p95"])
        self.assertLessEqual(latency["p95"], latency["p99"])


@pytest.mark.real
class FreshForLong(Job):
    def test_at_a_steady_rate_p99_stays_within_the_bound(self) -> None:
        self.services.start_server()
        self.services.start_agent()
        recorders = self.start_recorders(400_000, pause=0.5)  # some 16,000 a second, for half a minute
        worst: list[float] = []
        while any(recorder.poll() is None for recorder in recorders):
            self.services.query.aggregates(match="job_1.*")
            worst.append(self.services.query.latency()["p99"] or 0.0)
        self.end_recorders(recorders)
        self.assert_exact(400_000)
        self.assertLessEqual(sorted(worst)[len(worst) // 2], MOST_SECONDS)  # half of the looks: others use this machine too
