"""A Server reduced to its embedded store, for tests that kill it: prints the store's pid once it runs, then waits."""

import sys
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import ensureDeferred

from taba.shard.servers.embedded import EmbeddedStore

reactor: Any = installed


async def main() -> None:
    store = EmbeddedStore(sys.argv[1])
    reactor.addSystemEventTrigger("before", "shutdown", store.stopService)
    store.startService()
    try:
        await store.wait_running()
        print(store.pid, flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        reactor.stop()


reactor.callWhenRunning(lambda: ensureDeferred(main()))
reactor.run()
