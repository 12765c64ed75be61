"""What each thing may cost: all budgets, in one place."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple


class Budget(NamedTuple):
    """A bound on a figure, in its row's unit."""

    sign: str  # "≤" or "≥"
    bound: float

    def is_met(self, figure: float) -> bool:
        return _compare(self.sign)(figure, self.bound)


def _compare(sign: str) -> Callable[[float, float], bool]:
    compare: Callable[[float, float], bool] = operator.le if sign == "≤" else operator.ge
    return compare


RECORD = Budget("≤", 22)  # ns
EMPTY_CALL = 16.4  # ns that an empty C call that reads the coarse clock took where these were set
# The same in times of such a call, in the same rounds, by which a slow phase of the machine is told from a regression.
RECORD_RATIO = Budget("≤", 1.35)
INC_RATIO = Budget("≤", 1.28)
LABELS_RATIO = Budget("≤", 3.66)
RECORD_STRING_RATIO = Budget("≤", 3.54)
RECORD_PURE_RATIO = Budget("≤", 5)  # times a dict of floats, the interpreter's own speed: what it is, 4.3, and some more
INC = Budget("≤", 21)  # ns
LABELS = Budget("≤", 60)  # ns, of labels that are known
RECORD_PURE = Budget("≤", 200)  # ns
RECORD_STRING = Budget("≤", 58)  # ns, 200 bytes
REQUEST = Budget("≤", 2)  # µs that a middleware adds to a request
SERVED = Budget("≤", 1)  # % that 20 events add to a request of an application
SYSTEM_CALLS = Budget("≤", 0)  # in 100,000 records
DRAIN_FEW = Budget("≥", 20e6)  # events/s, one core, 16 rings a quarter full with 100 Tabs each
DRAIN_MANY = Budget("≥", 12e6)  # … and with 1,000
DRAIN_EDGE = Budget("≥", 15e6)  # … with 100, folded at the edge
IDLE_CPU = Budget("≤", 1)  # % of a core, 16 rings
IDLE_MEMORY = Budget("≤", 80)  # MiB
HOT = Budget("≥", 12e6)  # events/s, one Server process
COLD = Budget("≥", 150_000)  # State updates/s, one Server process
UPDATE_CPU = Budget("≤", 5_000)  # ns of the Server's process for each update, at 400 States a bucket and more …
UPDATE_CPU_SOME = Budget("≤", 5_500)  # … at some 90, …
UPDATE_CPU_FEW = Budget("≤", 10_000)  # … and at 5
UPDATE_BYTES = Budget("≤", 500)  # read, and written, per CounterGroup update
COUNTER_MINUTE = Budget("≤", 400)  # bytes of a CounterGroup State in the store, one active minute
COUNTER_DAY = Budget("≤", 2560)  # … and a full day
PERCENTILE_DAY = Budget("≤", 6144)  # bytes of a PercentileGroup State, a full day
PATH = Budget("≥", 12e6)  # events/s, record to query, on 2 cores
LATENCY = Budget("≤", 1.0)  # s, p99
AGGREGATE = Budget("≤", 10)  # ms, p99, one CounterGroup Tab over 300 Clients
CURVE = Budget("≤", 10)  # ms, 300 Clients, an hour by 15 s
CURVES = Budget("≤", 60)  # ms, 100 Tabs of 10 Clients, 241 points
COUNTER_AGGREGATE = Budget("≤", 10)  # ms, 300 full-day States
PERCENTILE_WINDOW = Budget("≤", 25)  # ms, an hour of 300 Clients' slots
PERCENTILE_AGGREGATE = Budget("≤", 50)  # ms, 300 full-day States
PROMQL_COUNTERS = Budget("≤", 100)  # ms, an hour at 15 s over 100 CounterGroup Tabs of 10 Clients
PROMQL_PERCENTILES = Budget("≤", 400)  # ms, likewise of PercentileGroup
PROMQL_HEALTH = Budget("≤", 5)  # ms, what Grafana asks to see whether somebody is there
SCRAPE = Budget("≤", 300)  # ms, /metrics of 2,000 Tabs
STRANGERS_TAKE = Budget("≤", 8)  # times the largest body that anybody may send, of memory, of one request
SCRAPE_WAIT = Budget("≤", 50)  # ms that any other request waits meanwhile
STATSD_PACKED = Budget("≥", 400_000)  # lines/s of one core, in packets of 1,432 bytes
STATSD_SINGLE = Budget("≥", 100_000)  # … and one line a packet
COMPAT_INC = Budget("≤", 1.4)  # times what prometheus_client's own costs in one process
COMPAT_MULTIPROCESS = Budget("≥", 2)  # times as fast as its multiprocess mode
NAMES = Budget("≤", 20)  # ms, a list of 10,000
OVERVIEW = Budget("≤", 100)  # ms, 50 rows of 10,000 Tabs × 50 Clients, warm
MANY_AGGREGATES = Budget("≤", 150)  # ms, 1,000 in one answer
WAIT = Budget("≤", 50)  # ms that any other request waits for any one question
PAGES = Budget("≤", 20)  # % of a core beyond folding, eight pages open
LISTENERS_TICK = Budget("≤", 10)  # ms of the Server's processor for each event that 1,000 hear
LISTENERS_MEMORY = Budget("≤", 57)  # MiB for 1,000 of them
TOP = Budget("≤", 5)  # % of a core that `taba top` uses, beside 2,000 Tabs
CLUSTER_FRESHNESS = Budget("≤", 2)  # s, p99, of 10 M events a minute
CLUSTER_CORES = Budget("≤", 1)  # Agent, Server and store together, of 10 M
CLUSTER_FOURFOLD_FRESHNESS = Budget("≤", 5)  # s, p99, of 40 M
CLUSTER_TENTH_FRESHNESS = Budget("≤", 1)  # s, p99, of 1 M
CLUSTER_TENTH_CORES = Budget("≤", 0.3)
CLUSTER_DROPS = Budget("≤", 0)
SCALE = Budget("≤", 2)  # times the cost of an event, a column, a State, as Tabs, Clients, shards, Agents grow
CATCHING_UP = Budget("≥", 3)  # times what comes meanwhile, after an outage
SPOOL_TURN = Budget("≤", 50)  # ms that a move to the spool holds the Agent's loop at once
ROUTING = Budget("≤", 10)  # % more time than over a plain connection
READ_TIMES = Budget("≤", 1.1)  # times a bare connection of the same library, of a single read through a Router
WRITE_TIMES = Budget("≤", 2)  # … of a single write
MANY_TIMES = Budget("≤", 1.5)  # … of 2,000 keys, over the same GETs in one write
CROWD_VERDICT = Budget("≤", 1)  # s, p99, of 800 Agents with an envelope a second each at one Server process
CROWD_PROCESSOR = Budget("≤", 1250)  # µs of the Server's processor an envelope: of 800 a second a core
MOVED_COMMANDS = Budget("≤", 6)  # of each Router, whatever the number of shards: as it was known, as it is found out, and where it is
SETTINGS_COMMANDS = Budget("≤", 6)  # of a Router to a shard in a minute: one INFO and five CONFIG GET
BUCKET_WAIT = Budget("≤", 100)  # ms that a bucket is unavailable while it moves, p99, buckets of 50 MB among them
