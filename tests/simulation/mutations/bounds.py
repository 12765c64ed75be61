"""Mutations of bounds, and of what is said."""

from __future__ import annotations

from typing import Any

from taba.agent.dispatch import ServerPeer
from taba.agent.keeper import Keeper
from taba.server.fold import ingest
from taba.server.fold.marks import Marks
from taba.shard.servers.connection import Transactions
from tests.simulation.mutations.listing import AGENT, beside, focused, instead


@focused(AGENT + ",memory full", 30.0, seed=47)
def retained_batches_have_no_bound(put: Any) -> None:
    put(Keeper, "_bound_retained", lambda self: None)


@beside("tests.agent.test_spooling.SpoolingTests.test_with_one_more_retained_than_may_be_what_waits_before_it_moves_to_the_spool")
def what_waits_holds_whatever_is_retained_behind_it(put: Any) -> None:
    put(Keeper, "_is_stuck", False)


@focused("store dies,store late,kill server", 30.0, seed=46)
def a_line_that_is_full_takes_more(put: Any) -> None:
    real = ingest.Ingest._enqueue

    def enqueue(self: Any, bucket: int, entry: Any) -> Any:
        with instead(ingest, "MAX_LINE_BYTES", 1 << 40), instead(ingest, "MAX_WAITING_BYTES", 1 << 40):
            return real(self, bucket, entry)

    put(ingest.Ingest, "_enqueue", enqueue)


@focused(AGENT, 30.0, seed=4)
def dead_letters_have_no_bound(put: Any) -> None:
    real = Transactions.commit

    async def commit(self: Any, commands: Any, seconds: float = 4.0) -> Any:
        return await real(
            self, [command for command in commands if not (command[0] == b"LTRIM" and command[1].endswith(b":dead"))], seconds
        )

    put(Transactions, "commit", commit)


@beside("tests.server.fold.test_marks.Ages.test_a_full_bucket_has_opens_wait_names_the_agent_and_folds_what_is_open")
def streams_are_opened_without_end(put: Any) -> None:
    real = Marks.do

    def do(self: Any, header: Any, drawn: bytes) -> Any:
        self._room = max(self._room, 1)
        return real(self, header, drawn)

    put(Marks, "do", do)


@focused("server cut off,kill server", seed=1)
def what_is_mended_is_said_for_ever(put: Any) -> None:
    put(ServerPeer, "answers", lambda self: None)
