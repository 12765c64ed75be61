"""How many Tabs and Clients a Server lets an Agent forward under their own names: what a Server's status tells, and an Agent keeps to."""

from __future__ import annotations

from typing import Any, NamedTuple

DEFAULT_CLIENT_TABS = 20_000  # twenty times what a busy Client names; more are ids, times or paths in names
DEFAULT_AGENT_TABS = 500_000  # of all Clients of an Agent: three hundred busy ones. An Agent keeps some 0.5 KB of each
DEFAULT_NEW_TABS = 100  # a second, of one Client, once it has named as many as it may: what goes and comes fills no store
DEFAULT_AGENT_CLIENTS = 10_000  # of one Agent: more than twice as many as it reads rings
DEFAULT_NEW_CLIENTS = 10  # a second, of one Agent, once it has named as many as it may: a busy host's jobs, each with an id of its own
MAX_CAP = 10_000_000  # of any of them; more is no bound


class Caps(NamedTuple):
    """`client_tabs` of one Client at once, `agent_tabs` of one Agent at once, `new_tabs` a second of one Client in the long run;
    `agent_clients` of one Agent at once, and `new_clients` a second."""

    client_tabs: int = DEFAULT_CLIENT_TABS
    agent_tabs: int = DEFAULT_AGENT_TABS
    new_tabs: int = DEFAULT_NEW_TABS
    agent_clients: int = DEFAULT_AGENT_CLIENTS
    new_clients: int = DEFAULT_NEW_CLIENTS


def read_caps(told: Any) -> Caps:
    """The caps in what a Server's `/v1/status` says; of one that tells of none, the usual ones. Raises ValueError for nonsense."""
    if told is None:
        return Caps()
    if not isinstance(told, dict):
        raise ValueError("a Server's caps are numbers by name")
    numbers: list[int] = []
    for name, usual in Caps._field_defaults.items():
        cap = told.get(name, usual)
        if type(cap) is not int or not 1 <= cap <= MAX_CAP:
            raise ValueError(f"{cap!r} as a cap ({name})")
        numbers.append(cap)
    return Caps(*numbers)
