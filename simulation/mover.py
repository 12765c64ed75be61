"""Who moves buckets in a world: the commands' own work, interrupted and called again."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, ensureDeferred

from simulation.clockwork import Process
from simulation.ground import Ground, Part, router_of
from taba.errors import StoreUnavailable, TabaError
from taba.shard import Router
from taba.shard.moving.check import check
from taba.shard.moving.reshard import Reshard, current_shards
from taba.shard.servers.url import Address

CONNECT_SECONDS = 10.0  # that a command takes to reach the store, or to undo what it did


class Mover(Part):
    """Somebody who moves buckets: `taba reshard` or `taba check`, as the command runs them, again where it was killed."""

    restart_seconds = (0.5, 15.0)

    def __init__(self, world: Ground, name: str):
        super().__init__(world, name)
        self.may_start = False  # until somebody calls the command
        self.aim: tuple[str, int] = ("rebalance", 0)
        self._work: Deferred[Any] | None = None
        self.is_done = False

    def call(self, aim: str, which: int) -> None:
        """Somebody calls the command; not while it runs already."""
        if self.process is None:
            self.aim, self.may_start, self.is_done = (aim, which), True, False
            self.start()

    def interrupt(self) -> None:
        """As Ctrl-C does. Runs as this process."""
        if self._work is not None:
            self._work.cancel()

    def live(self) -> None:
        process = self.process
        assert process is not None
        self._work = ensureDeferred(self._run(process))
        self._work.addErrback(self._failed)
        self._work.addBoth(lambda _: self._end(process))

    def _failed(self, failure: Any) -> None:
        if failure.check(TabaError, TimeoutError):  # the command says either in one line
            self.world.fired[f"{self.aim[0]} ended with {failure.type.__name__}"] += 1
            self.world.say(f"{self.name}: {self.aim[0]}: {failure.value}")
        elif not failure.check(CancelledError):
            self.world.unexpected(failure.value, self.process)

    def _end(self, process: Process) -> None:
        if process.is_alive:
            self.may_start = not self.is_done and self.world.is_quiet  # in the end it is repeated until it is done
            self.world.kill(process)

    def died(self) -> None:
        self._work = None
        if not self.world.is_quiet:
            self.may_start = self.may_start and self.world.random.random() < 0.7  # else nobody calls it again
        super().died()

    async def _run(self, process: Process) -> None:
        world, (aim, which) = self.world, self.aim
        router = router_of(world, process, None, may_make=False)
        reactor: Any = process.reactor
        connecting: Deferred[None] = ensureDeferred(router.connect())
        await connecting.addTimeout(CONNECT_SECONDS, reactor)
        if aim in ("check", "repair"):
            wrong = await check(await current_shards(router.atlas), reactor, aim == "repair", router.atlas.standing)
            world.fired["checked, and all was well" if not wrong else f"{aim}: something was wrong"] += 1
        else:
            work = Reshard(router.atlas, reactor)
            try:
                await self._reshard(work, router, aim, which)
            except CancelledError:
                undoing: Deferred[None] = ensureDeferred(work.give_up())
                try:
                    await undoing.addTimeout(CONNECT_SECONDS, reactor)
                    world.fired["a mover gave up, as it was told"] += 1
                except (TimeoutError, TabaError):
                    world.fired["a mover could not undo all"] += 1
                raise
            finally:
                world.fired["buckets moved"] += sum(moved.how == "moved" for moved in work.moved)
                world.fired["moves of others ended"] += sum(moved.how != "moved" for moved in work.moved)
                await work.close()
            if aim == "settle":
                await self._look_whether_all_is_well(router, reactor)
        self.is_done = True

    async def _reshard(self, work: Reshard, router: Router, aim: str, which: int) -> None:
        if aim == "add":
            stores = [store.name for store in self.world.stores]
            await work.add([Address(host=stores[which % len(stores)], port=6379)])
        elif aim == "drain":
            names = [shard.name for shard in router.map.shards]
            await work.drain(names[which % len(names)])
        elif aim == "abort":
            await work.abort()
        else:
            await work.rebalance()

    async def _look_whether_all_is_well(self, router: Router, reactor: Any) -> None:
        signs = router.atlas.standing
        wrong = await check(await current_shards(router.atlas), reactor, False, signs)
        if wrong and not self.world.goes_back:
            self.world.errors.append(f"after all moves have ended, check says: {[one.text for one in wrong]}")
        if wrong:
            self.world.fired["a person had to repair"] += 1
            await check(await current_shards(router.atlas), reactor, True, signs)
            wrong = await check(await current_shards(router.atlas), reactor, False, signs)
            if wrong:
                raise StoreUnavailable(f"repaired, and check says: {[one.text for one in wrong]}")
