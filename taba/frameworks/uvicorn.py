"""For uvicorn: its command with another first word, or its Server.

python -m taba.frameworks.uvicorn shop:app --workers 4     # takes what uvicorn takes
Server(uvicorn.Config("shop:app")).run()
"""

from __future__ import annotations

from importlib import import_module
from time import perf_counter, thread_time
from typing import Any

import uvicorn
from uvicorn.supervisors import multiprocess

from taba import client
from taba.frameworks.working import Working

TICK = 0.1  # seconds between two ticks of uvicorn's


class Server(uvicorn.Server):
    """A uvicorn Server that records, with its own ticks, how it is."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        listening = [each for server in self.servers for each in server.sockets]
        self._working = Working("uvicorn", listening or sockets or ())
        self._connections = client.gauge("uvicorn_connections", description="connections that are open")
        self._tasks = client.gauge("uvicorn_tasks", description="requests and websockets that are being served")
        self._lag = client.percentile("uvicorn_loop_lag_seconds", description="how much later than asked for the event loop comes round")
        self._ticked, self._used = perf_counter(), thread_time()

    async def on_tick(self, counter: int) -> bool:
        now, used = perf_counter(), thread_time()
        if counter:
            self._lag.observe(max(0.0, now - self._ticked - TICK))
        self._working.look(used - self._used)
        if counter % 10 == 0:
            self._connections.set(len(self.server_state.connections))
            self._tasks.set(len(self.server_state.tasks))
        try:
            return await super().on_tick(counter)
        finally:
            self._ticked, self._used = perf_counter(), used


class Process(multiprocess.Process):
    """A worker of several, which runs such a Server."""

    @property
    def server(self) -> Server:
        if self._server is None:
            self._server: Any = Server(config=self.config)
        found: Server = self._server
        return found


def main() -> None:
    """The command `uvicorn`, with this Server."""
    command: Any = import_module("uvicorn.main")
    command.Server = Server
    multiprocess.Process = Process  # type: ignore[misc]
    command.main(prog_name="python -m taba.frameworks.uvicorn")


if __name__ == "__main__":
    import_module("taba.frameworks.uvicorn").main()  # not this one, which is called __main__: its workers import it by name
