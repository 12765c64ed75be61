"""The job that looks whether the maps and owner keys on all shards agree; `taba check --repair` mends."""

from __future__ import annotations

from taba.server.keep.jobs import Job
from taba.shard import Router
from taba.shard.moving.check import check
from taba.shard.moving.reshard import current_shards


class Check:
    """`POST /v1/check`. What it finds is in its record: {"problem": sentence}."""

    def __init__(self, router: Router):
        self._router = router

    async def __call__(self, job: Job) -> None:
        """Run the job."""
        job.total = 1
        atlas = self._router.atlas
        wrong = await check(await current_shards(atlas), atlas.reactor, signs=atlas.standing)
        for one in wrong:
            job.note({"problem": one.text})
        job.done = 1
        job.message = f"{len(wrong)} disagreements; see taba check" if wrong else "all maps and owner keys agree"
