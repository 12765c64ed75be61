"""What an Agent tells its log of its life: Servers found, lost and back, moves to the spool, and each problem once."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.logger import Logger

from taba.agent.dispatch import Dispatch
from taba.agent.keeper import Keeper
from taba.telling import Teller


class Life:
    """Tells `log` what changed between two calls of `tell`."""

    def __init__(self, log: Logger, keeper: Keeper, dispatch: Dispatch):
        self._log, self._keeper, self._dispatch = log, keeper, dispatch
        self._teller = Teller(log)
        self._lost: dict[str, float] = {}  # Servers that were there and are not, and since when
        self._known: set[str] = set()
        self._moves = keeper.moves
        self._is_spooling = bool(keeper.spool.batches)

    def tell(self, problems: Mapping[str, str], now: float) -> None:
        """Tell what is new since the last call."""
        self._teller.tell(problems, now)
        self._tell_servers(now)
        keeper = self._keeper
        if keeper.moves != self._moves:
            self._moves, self._is_spooling = keeper.moves, True
            if self._teller.may("move", now):
                self._log.info(
                    "three quarters of the outbox wait for a Server: all moves to the spool (move {moves}; {batches} batches are there)",
                    moves=keeper.moves,
                    batches=keeper.spool.batches,
                )
        elif self._is_spooling and not keeper.spool.batches and not keeper.holds_any:
            self._is_spooling = False
            if self._teller.may("empty", now):
                self._log.info("the spool is empty again: Servers have all that was in it")

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
            elif url in self._known and url not in self._lost and self._teller.may(f"lost {url}", now):
                self._lost[url] = now
                self._log.warn("lost Server {url}: {problem}", url=url, problem=server.problem)
        for url in [url for url in self._known if url not in servers]:
            self._known.discard(url)
            self._lost.pop(url, None)
            self._log.info("Server {url} is none any more, as the others tell", url=url)
