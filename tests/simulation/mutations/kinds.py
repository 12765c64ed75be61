"""Mutations that one kind of fault alone finds in their worlds: without that kind nothing is wrong in these."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from taba import damage
from taba.agent import pin, register
from taba.agent.books import Books
from taba.agent.pump import RingPump
from taba.agent.register import Register
from taba.agent.spool import Spool
from taba.shard.servers.connection import Transactions
from tests.simulation.mutations.listing import at_edge, focused


@focused("disk tears,host boots,kill agent", 40.0, 2.0, seed=2)
def a_register_that_a_disk_took_a_part_of_takes_the_place_of_the_one_before(put: Any) -> None:
    real = Register._write

    def write(file: Any, lines: Any) -> int:
        with contextlib.suppress(OSError):
            return real(file, lines)
        return 0

    put(Register, "_write", staticmethod(write))


@focused("file spoilt,kill agent", seed=3)
def what_an_agent_keeps_stands_once(put: Any) -> None:
    def seal(text: str) -> bytes:
        return damage._line("a", text) + b"\n\n"

    for where in (pin, register):
        put(where, "seal", seal)


@focused("server cut from store,kill agent", 20.0, 2.0, seed=12)
def what_lies_in_a_socket_is_carried_out_whenever_it_arrives(put: Any) -> None:
    real = Transactions.watch

    async def watch(self: Any, keys: Any, reads: Any, seconds: float = 4.0) -> Any:
        return await real(self, [key for key in keys if key.endswith((b":owner", b":lease"))], reads, seconds)

    put(Transactions, "watch", watch)


@focused("one store goes back,messages late", seed=1)
def a_hole_in_one_lane_ends_what_others_retain(put: Any) -> None:
    real = Books.brought_back

    def brought_back(self: Any, lane: Any, batch: Any) -> None:
        real(self, lane, batch)
        for other in self._shelf.lanes.values():
            if other is not lane:
                other.give_up_retained()

    put(Books, "brought_back", brought_back)


@at_edge("all restart,kill agent,kill server", seed=1)
def a_new_agent_leaves_out_what_died_before_it(put: Any) -> None:
    real = RingPump._scan

    def scan(self: Any, now: float, at_once: bool = False) -> None:
        real(self, now, at_once)
        if self.scans == 1:
            for name in list(self._dead):
                self._dead.discard(name)
                self._remove(self.rings.open[name])

    put(RingPump, "_scan", scan)


# --- what is synced: a kill takes none of it


@focused("power fails,memory full,server cut off", 20.0, 1.0, seed=13)
def the_spool_is_not_synced(put: Any) -> None:
    real = Spool._check

    def check(self: Any, database: Any, path: str, is_full: bool = False) -> bool:
        done = real(self, database, path, is_full)
        database.execute("PRAGMA synchronous=NORMAL")
        return done

    put(Spool, "_check", check)


@focused("power fails,kill client", 20.0, 1.0, seed=3)
def the_register_of_sums_is_not_synced(put: Any) -> None:
    def write(file: Any, lines: Any) -> int:
        fields = ((word, named.hex()) if isinstance(named, bytes) else (word, *named) for word, named in lines)
        content = b"".join(damage.seal(json.dumps(line)) for line in fields)
        file.write(content)
        file.flush()
        return len(content)

    put(Register, "_write", staticmethod(write))


@focused("power fails", 20.0, 1.0, seed=1)
def which_store_is_sent_to_is_not_synced(put: Any) -> None:
    its: Any = pin  # as the machine of a world exchanges names in it

    def write(self: Any, store: Any, caps: Any, version: Any) -> None:
        fresh = self._path.with_suffix(self._path.suffix + ".new")
        with its.open(fresh, "wb", opener=its.private) as file:
            kept = {"id": store.id, "buckets": store.buckets, "caps": caps._asdict(), "batch_version": version}
            file.write(damage.seal(json.dumps(kept)))
        its.os.replace(fresh, self._path)

    put(pin.PinFile, "_write", write)
