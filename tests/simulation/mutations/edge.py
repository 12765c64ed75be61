"""Mutations of folding at the edge: of what an Agent folds, and of what a Server makes of it."""

from __future__ import annotations

from typing import Any

from taba.agent import edge, pump
from taba.agent.dispatch import Dispatch
from taba.agent.encoding import encode
from taba.agent.gathering import InOrder
from taba.agent.keeper import Keeper
from taba.batch import AtEdge, Column, decode_batch, edges_of
from taba.handlers.windows import Held, Ladder
from taba.server.fold import burying, deciding, together, type_groups
from taba.server.fold.deadletters import column_of
from taba.server.keep import retrying
from tests.simulation.mutations.listing import AGENT, LATE, at_edge, beside


@at_edge(AGENT, seed=1)
def what_is_folded_goes_as_events_as_well(put: Any) -> None:
    put(InOrder, "_of", lambda self, kept: self)


@at_edge(AGENT, seed=41)
def what_was_folded_is_read_again_after_a_kill(put: Any) -> None:
    real = Keeper.publish

    def publish(self: Any, batches: Any, now: float, covered: Any = None, *arguments: Any, **named: Any) -> None:
        if any(edges_of(batch.content) for batch in batches):
            covered = ()
        real(self, batches, now, covered, *arguments, **named)

    put(Keeper, "publish", publish)


@at_edge(AGENT, seed=6)
def of_what_waits_of_one_tab_the_last_state_counts(put: Any) -> None:
    real = type_groups.dumps_of

    def dumps_of(group: Any, begin: int = 0) -> Any:
        return list(dict(real(group, begin)).items())

    for where in (deciding, together):
        put(where, "dumps_of", dumps_of)


@at_edge(AGENT, seed=6)
def a_state_is_left_out_where_events_of_its_row_came_with_it(put: Any) -> None:
    real = type_groups.dumps_of

    def dumps_of(group: Any, begin: int = 0) -> Any:
        taken = {begin + row for row, _ in group.columns}
        return [(row, dump) for row, dump in real(group, begin) if row not in taken]

    for where in (deciding, together):
        put(where, "dumps_of", dumps_of)


@at_edge(AGENT, seed=1)
def a_server_counts_a_state_as_one_event(put: Any) -> None:
    put(deciding.Fold, "_settle", _as_one(deciding.Fold._settle))


def _as_one(real: Any) -> Any:
    def settle(self: Any, group: Any, local: int, column: Column, *arguments: Any) -> None:
        real(self, group, local, column._replace(stands_for=1) if isinstance(column.values, AtEdge) else column, *arguments)

    return settle


@at_edge("kill agent,kill server,store dies", seed=19)
def servers_are_not_asked_what_they_merge(put: Any) -> None:
    real = edge.Edge.allow
    put(edge.Edge, "allow", lambda self, edges: real(self, self.edges))
    put(Dispatch, "_unmerged", lambda self, server, run: (0, ""))


@at_edge("other version,kill agent,kill server", seed=18)
def a_dead_letter_of_a_state_counts_as_one_event(put: Any) -> None:
    real = burying.Burial.bury

    def bury(self: Any, column: Any, *arguments: Any) -> None:
        real(self, column._replace(stands_for=1) if isinstance(column.values, AtEdge) else column, *arguments)

    put(burying.Burial, "bury", bury)


@at_edge("spool spoilt,memory full,disk full,server cut off,kill agent", 30.0, 1.0, seed=2)
def an_agent_counts_a_state_as_one_event(put: Any) -> None:
    real = encode

    def as_one(*arguments: Any, **named: Any) -> Any:
        made = []
        for batch in real(*arguments, **named):
            columns = [column for column in decode_batch(bytes(batch.content)).columns if isinstance(column, Column)]
            more = sum(column.weight - 1 for column in columns if isinstance(column.values, AtEdge))
            made.append(batch._replace(events=batch.events - more))
        return made

    put(pump, "encode", as_one)


@at_edge("other version,kill agent,kill server", seed=21)
def a_state_that_is_a_dead_letter_is_never_merged(put: Any) -> None:
    real = column_of
    put(retrying, "column_of", lambda letter: None if letter.content else real(letter))


@at_edge("other version,kill agent,kill server", seed=21)
def a_letter_that_was_folded_again_stays(put: Any) -> None:
    real = retrying._FoldAgain.run

    def run(self: Any) -> Any:
        outcome = yield from real(self)
        return outcome._replace(commands=[command for command in outcome.commands if command[0] != b"LSET"])

    put(retrying._FoldAgain, "run", run)


@at_edge("other version,kill agent,kill server", seed=18)
def a_state_that_is_not_merged_here_is_left_out(put: Any) -> None:
    real = burying.Burial.bury

    def bury(self: Any, column: Any, reason: str, detail: str) -> None:
        if reason != burying.UNKNOWN_EDGE:
            real(self, column, reason, detail)

    put(burying.Burial, "bury", bury)


@at_edge(LATE, seed=14)
def a_batch_with_states_is_merged_whenever_it_comes(put: Any) -> None:
    real = deciding.Fold._judge

    def judge(self: Any, of: Any) -> Any:
        verdicts, accepted = real(self, of)
        again = [place for place, item in enumerate(self.cycle.waiting) if _has_states(item.batch)]
        return verdicts, sorted({*accepted, *again})

    put(deciding.Fold, "_judge", judge)


def _has_states(batch: Any) -> bool:
    return any(isinstance(column, Column) and isinstance(column.values, AtEdge) for column in getattr(batch, "columns", ()))


@beside(
    "tests.server.fold.test_edge.Merging"
    ".test_a_state_of_other_events_than_it_is_said_to_be_or_that_is_none_is_a_bad_column_and_harms_none_beside_it"
)
def what_a_state_is_said_to_be_of_is_believed(put: Any) -> None:
    for where in (deciding, together):
        put(where, "are_good", lambda groups: True)


@beside("tests.agent.test_merging.Merging.test_a_state_waits_for_a_server_that_merges_it_and_says_so_and_fresh_events_go_on")
def a_state_is_sent_to_whoever_is_there(put: Any) -> None:
    put(Dispatch, "_unmerged", lambda self, server, run: (0, ""))


@beside("tests.handlers.test_types.CounterGroupTests.test_states_folded_at_the_edge_and_merged_are_those_folded_at_once")
def slots_of_a_state_lie_where_its_clients_clock_had_them(put: Any) -> None:
    put(Ladder, "hold_slots", lambda self, starts, now: Held(starts, starts != starts))
