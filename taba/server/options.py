"""The options of `twistd taba-server`, defined once."""

from __future__ import annotations

from typing import NamedTuple

from taba.bounds import DAY, DEFAULT_BUCKETS, MAX_BUCKETS
from taba.caps import DEFAULT_AGENT_CLIENTS, DEFAULT_AGENT_TABS, DEFAULT_CLIENT_TABS, DEFAULT_NEW_CLIENTS, DEFAULT_NEW_TABS, MAX_CAP
from taba.errors import ConfigurationError
from taba.listening import LISTENING_OPTIONS
from taba.options import Listen, Option, ServiceOptions, duration, http_url, listen, whole_number
from taba.server.fold.bounds import DEFAULT_ALL_CLIENTS, DEFAULT_ALL_TABS, DEFAULT_MAX_CLIENTS, DEFAULT_MAX_TABS
from taba.shard import StoreURL, parse_store

MAX_WAIT_REPLICAS = 16  # more replicas of one primary nobody has
MAX_WORKERS = 64  # processes, each with its own connections to every shard
MAX_OF_BUCKET = 10_000_000  # Tabs or Clients; more would be too much for one transaction's look at them
MAX_IN_ALL = 1_000_000_000  # likewise of all buckets
MAX_FORGET = 36_500 * int(DAY)  # seconds; who wants more wants for ever


class Store(NamedTuple):
    """The store as it was named (`text` may have a password in it: never shown) and as it was understood."""

    text: str
    url: StoreURL

    def __repr__(self) -> str:
        return f"Store({self.url.text})"


def _store(text: str) -> Store:
    return Store(text, parse_store(text))


class ServerOptions(ServiceOptions):
    """The options; after parsing, `listen` is a Listen, `store` a Store, `buckets` an int or None, the others ints."""

    program = "taba-server"
    prefix = "TABA_SERVER_"
    longdesc = "Folds the events that Agents send into States kept in a store, and answers queries over HTTP."
    definitions = (
        Option("listen", "tcp:8280:interface=127.0.0.1", "Where to listen: an endpoint such as tcp:8280, or unix:PATH.", listen),
        *LISTENING_OPTIONS,
        Option("url", "", "How Agents reach this Server; default is what --listen says, with this host's name.", http_url),
        Option(
            "store",
            "embedded:",
            "embedded:[DIR], which this Server runs itself, or redis[+sentinel|+cluster]://[user:pass@]host:port[,…].",
            _store,
        ),
        Option(
            "buckets",
            "",
            f"The number of buckets, fixed when a store is first used; then {DEFAULT_BUCKETS} unless given.",
            whole_number(1, MAX_BUCKETS),
        ),
        Option(
            "wait-replicas",
            "0",
            "How many replicas must have a batch before it is acknowledged.",
            whole_number(0, MAX_WAIT_REPLICAS),
        ),
        Option("workers", "1", "How many processes; more than one listen on consecutive ports.", whole_number(1, MAX_WORKERS)),
        Option(
            "max-tabs",
            str(DEFAULT_MAX_TABS),
            "How many Tabs one bucket takes; events for more become dead letters.",
            whole_number(1, MAX_OF_BUCKET),
        ),
        Option(
            "max-clients",
            str(DEFAULT_MAX_CLIENTS),
            "How many Clients one bucket takes; events of more become dead letters.",
            whole_number(1, MAX_OF_BUCKET),
        ),
        Option(
            "max-all-tabs",
            str(DEFAULT_ALL_TABS),
            "How many Tabs all buckets together take; events for more become dead letters.",
            whole_number(1, MAX_IN_ALL),
        ),
        Option(
            "max-all-clients",
            str(DEFAULT_ALL_CLIENTS),
            "How many Clients all buckets together take, each counted in each bucket that has it; events of more become dead letters.",
            whole_number(1, MAX_IN_ALL),
        ),
        Option(
            "max-client-tabs",
            str(DEFAULT_CLIENT_TABS),
            "How many Tabs of one Client at once Agents forward under their own names; the others are summed up by base name.",
            whole_number(1, MAX_CAP),
        ),
        Option("max-agent-tabs", str(DEFAULT_AGENT_TABS), "Likewise of all Clients of one Agent together.", whole_number(1, MAX_CAP)),
        Option(
            "max-new-tabs",
            str(DEFAULT_NEW_TABS),
            "How many new Tabs a second of one Client, once it has named as many as it may at once.",
            whole_number(1, MAX_CAP),
        ),
        Option(
            "max-agent-clients",
            str(DEFAULT_AGENT_CLIENTS),
            "How many Clients of one Agent at once go under their own ids; what others record is summed up.",
            whole_number(1, MAX_CAP),
        ),
        Option(
            "max-new-clients",
            str(DEFAULT_NEW_CLIENTS),
            "How many new Clients a second of one Agent, once it has named as many as it may at once.",
            whole_number(1, MAX_CAP),
        ),
        Option("forget", "30d", "After how long without an event a State is pruned; such as 12h or 600s.", duration(1, MAX_FORGET)),
    )

    def postOptions(self) -> None:
        super().postOptions()
        where: Listen = self["listen"]
        workers: int = self["workers"]
        if workers > 1 and not (where.port and where.port + workers - 1 <= 65_535):
            raise ConfigurationError("--listen", where.text, f"takes a TCP port with --workers {workers}: the first of {workers} in a row")
