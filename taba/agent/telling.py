"""What an Agent tells its log of its life: Servers found, lost and back, moves to the spool, and each problem once.

What goes on is told again after a while, what comes and goes no more often than that: a log tells what happened, and never fills a disk.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger

from taba.agent.dispatch import Dispatch
from taba.agent.keeper import Keeper

REPEAT_SECONDS = 600.0  # between two words on the same thing
MAX_TOLD = 4096  # things that are remembered as told


class Teller:
    """Tells `log` what changed between two calls of `tell`."""

    def __init__(self, log: Logger, keeper: Keeper, dispatch: Dispatch):
        self._log, self._keeper, self._dispatch = log, keeper, dispatch
        self._told: dict[str, float] = {}  # when what was told last
        self._open: dict[str, str] = {}  # problems that were told, and are there still
        self._lost: dict[str, float] = {}  # Servers that were there and are not, and since when
        self._known: set[str] = set()
        self._moves = keeper.moves
        self._is_spooling = bool(keeper.spool.batches)

    def tell(self, problems: Mapping[str, str], now: float) -> None:
        """Tell what is new since the last call."""
        self._tell_problems(problems, now)
        self._tell_servers(now)
        keeper = self._keeper
        if keeper.moves != self._moves:
            self._moves, self._is_spooling = keeper.moves, True
            if self._may("move", now):
                self._log.info(
                    "half of the outbox is what no Server took: it moves to the spool (move {moves}; {batches} batches are there)",
                    moves=keeper.moves,
                    batches=keeper.spool.batches,
                )
        elif self._is_spooling and not keeper.spool.batches and not keeper.holds_any:
            self._is_spooling = False
            if self._may("empty", now):
                self._log.info("the spool is empty again: Servers have all that was in it")

    def _tell_problems(self, problems: Mapping[str, str], now: float) -> None:
        for key, problem in problems.items():
            if self._may(key, now):
                self._log.warn("problem: {problem}", problem=problem)
                self._open[key] = problem
        for key in [key for key in self._open if key not in problems]:
            self._log.info("no problem any more: {problem}", problem=self._open.pop(key))

    def _tell_servers(self, now: float) -> None:
        servers = self._dispatch.servers
        for url, server in servers.items():
            if server.problem is None and server.is_known:
                if url not in self._known:
                    self._known.add(url)
                    self._log.info("found Server {url}", url=url)
                elif url in self._lost:
                    since = self._lost.pop(url)
                    self._log.info("Server {url} is back after {seconds:.0f} s", url=url, seconds=now - since)
            elif url in self._known and url not in self._lost and self._may(f"lost {url}", now):
                self._lost[url] = now
                self._log.warn("lost Server {url}: {problem}", url=url, problem=server.problem)
        for url in [url for url in self._known if url not in servers]:
            self._known.discard(url)
            self._lost.pop(url, None)
            self._log.info("Server {url} is none any more, as the others tell", url=url)

    def _may(self, key: str, now: float) -> bool:
        if now - self._told.get(key, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told[key] = now
        return True
