"""Which Tabs and Clients are forwarded under their own names: so many at once, and new ones so quickly. Others are summed up.

1. It is decided once for a Tab of a ring, when its name is read and before anything of it is encoded. What is recorded for the others goes,
   in its order, to `base{overflow="true"}` of the same Client and Type: a sum over all Tabs of the base name stays right.
2. What a Client was known by costs it nothing when it comes again, in another of its rings; it is forgotten when room is needed, never
   while a ring names it. Who has named as many new ones as it may gets more by the second.
3. A Tab that heals is decided on by its place in its ring alone: its sum lies there, and another Agent must decide likewise.
4. There are overflow Tabs for so many base names; of more, events are dropped and counted.
5. It is decided once for a Client, while it has a ring. All that one too many records is summed up under one Client, but for what heals.
6. What is posted is decided on by the same rules, in the moment in which it comes: its names count as those of a ring that is closed again.

`now` is monotonic seconds, and passed in.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

from taba.agent.entries import Known
from taba.caps import Caps
from taba.names import OVERFLOW_CLIENT, canonical_name

OVERFLOW = {"overflow": "true"}
MAX_OVERFLOWS = 1000  # overflow Tabs of a Client: base names and Types; more base names are data themselves
MAX_ENDED = 16_384  # names of closed rings that are let go of in one turn, some 5 ms
MAX_HEALING = 1000  # Tabs of one ring that heal and keep their names
LOOK = "look for ids, times or paths in names and labels, or "
RAISE = LOOK + "raise that option of the Servers and, once this Agent's status shows it, restart this Agent"
MAX_SHOWN = 20  # Clients that overflow, in a status
POSTED_SECONDS = 60.0  # for which it is shown that a post named more than it may
MANY_CLIENTS = "have programs keep their client ids, or raise that option of the Servers"


class Overflowing(NamedTuple):
    """A Client that named more than it may."""

    client: str
    tabs: int  # that do not go under their own names: they are summed up, or …
    dropped: int  # … there is not even a sum for them
    base: str  # that most of those that are summed up have
    is_own: bool  # it goes under its own id; else what is summed up goes under OVERFLOW_CLIENT, but for what heals
    why: str  # what it does
    cure: str


class _Client:
    """What is known of one Client. `names` maps its Tabs to how many of its open rings name each; those of none are `idle`, too."""

    __slots__ = ("bases", "cure", "idle", "is_own", "names", "overflows", "refilled", "rings", "summed", "tokens", "why")

    def __init__(self, tokens: float, now: float, is_own: bool):
        self.is_own = is_own  # it goes under its own id
        self.names: dict[str, int] = {}
        self.idle: dict[str, None] = {}  # the one that went first comes first
        self.rings = 0
        self.tokens, self.refilled = tokens, now
        self.overflows: dict[tuple[str, str], str] = {}  # base name and Type → the overflow Tab
        self.bases: Counter[str] = Counter()  # of open rings, Tabs that are not forwarded under their names
        self.summed = 0
        self.why = self.cure = ""


class Admission:
    """Decides, for all rings of one Agent, within `caps`, which `change`: it holds for what is named from then on."""

    def __init__(self, caps: Caps = Caps()):  # noqa: B008  # a value
        self.caps = caps
        self.known = Known()
        self._now = 0.0
        self._ends = MAX_ENDED  # names of closed rings that this turn may still let go of
        self._leaving: deque[tuple[str, _Client, Iterator[str | None]]] = deque()  # those that wait for it
        self._clients: dict[str, _Client] = {}
        self._resting: dict[str, None] = {}  # Clients without a ring, the one that went first first
        self._beyond: dict[tuple[str, str], str] = {}  # the overflow Tabs of all Clients that are too many
        self._posted: dict[str, tuple[float, Overflowing]] = {}  # by Client, when a post named too many, and what
        self._new, self._renewed = float(caps.agent_clients), 0.0  # Clients that may be named now, as of when
        self.total = 0
        self.clients = 0  # that go under their own ids

    def tick(self, now: float) -> None:
        """What is decided from now on is decided at `now`."""
        self._now = now
        self._ends = MAX_ENDED
        self._let_go()

    def change(self, caps: Caps) -> None:
        """From now on these are the caps. Who has named some already may name as many more as the cap is higher, or fewer."""
        more = caps.client_tabs - self.caps.client_tabs
        for of in self._clients.values():
            self._refill(of)
            of.tokens += more  # below 0 where more were named than may be by now: they count, should the cap be higher again
        self._renew()
        self._new += caps.agent_clients - self.caps.agent_clients
        self.caps = caps

    def begin(self, client: str) -> None:
        """A ring of this Client is open."""
        of = self._clients.get(client)
        if of is None:
            of = self._clients[client] = self._meet()
        self._resting.pop(client, None)
        of.rings += 1

    def client_of(self, client: str) -> str:
        """Under which id its events go, but for what heals. It has an open ring."""
        return client if self._clients[client].is_own else OVERFLOW_CLIENT

    def end(self, client: str, names: Iterable[str | None], summed: Counter[str]) -> None:
        """A ring is closed that named these under their own names, None being none; of those that it did not, so many by base name."""
        of = self._clients[client]
        of.rings -= 1
        self._leaving.append((client, of, iter(names)))
        self._let_go()
        of.bases -= summed
        of.summed -= sum(summed.values())
        if not of.rings and not of.is_own:
            del self._clients[client]  # who is too many takes the place of nobody
        elif not of.rings:
            of.overflows.clear()
            self._resting[client] = None

    def _let_go(self) -> None:
        """Of what rings named that are closed, as much as is left of this turn's part: they are as many as somebody named."""
        while self._leaving and self._ends > 0:
            client, of, names = self._leaving[0]
            here = list(islice(names, self._ends))
            if len(here) < self._ends:
                self._leaving.popleft()
            self._ends -= len(here)
            if self._clients.get(client) is of:  # it was not forgotten meanwhile
                for name in here:
                    if name is None:
                        continue
                    held = of.names[name] = of.names[name] - 1
                    if not held:
                        of.idle[name] = None

    def sentence(self, client: str) -> str:
        """Why not all that this Client names goes under its own name, and the cure. It has an open ring, or a post."""
        of = self._clients[client]
        return f"Client {client} {of.why}: {of.cure}"

    def end_post(self, client: str, names: list[str], summed: Counter[str]) -> None:
        """As `end`, for a post. Where it named more than it may, that is shown for a while."""
        if summed:
            of = self._clients[client]
            self._posted.pop(client, None)
            self._posted[client] = self._now, _overflowing(client, sum(summed.values()), summed, of)
            if len(self._posted) > MAX_SHOWN:
                del self._posted[next(iter(self._posted))]
        self.end(client, names, summed)

    def admit(self, client: str, name: str) -> bool:
        """Whether this Tab goes under its own name. Its Client has an open ring."""
        return self.admitter(client)(name)

    def admitter(self, client: str) -> Callable[[str], bool]:
        """What says whether a Tab of this Client goes under its own name, for many of them at this moment. It has an open ring."""
        of = self._clients[client]
        self._refill(of)
        return partial(self._admit, of)

    def _admit(self, of: _Client, name: str) -> bool:
        held = of.names.get(name)
        if held is not None:
            of.names[name] = held + 1
            if not held:
                del of.idle[name]
            return True
        if not of.is_own:
            return False
        caps = self.caps
        if len(of.names) >= caps.client_tabs and not of.idle:
            of.why, of.cure = f"names more than {caps.client_tabs} Tabs at once (--max-client-tabs)", RAISE
        elif of.tokens < 1:
            of.why, of.cure = f"names new Tabs faster than {caps.new_tabs} a second (--max-new-tabs)", RAISE
        elif not self._has_room(of):
            of.why, of.cure = f"names new Tabs while those of all Clients of this Agent are {caps.agent_tabs} (--max-agent-tabs)", RAISE
        else:
            of.tokens -= 1
            of.names[name] = 1
            self.total += 1
            return True
        return False

    def overflow(self, client: str, base: str, type: str, heals: bool = False) -> str | None:
        """The Tab to which events go of one of this base name; None where they are dropped."""
        of = self._clients[client]
        known = of.overflows if of.is_own or heals else self._beyond
        found = known.get((base, type))
        if found is None and len(known) < MAX_OVERFLOWS:
            found = known[base, type] = canonical_name(base, OVERFLOW)
        return found

    def count(self, client: str, base: str) -> None:
        """One Tab more of a ring does not go under its own name, but is summed up with those of `base`, or with none: then that is ""."""
        of = self._clients[client]
        of.bases[base] += 1
        of.summed += 1

    def heals_under_its_name(self, client: str, place: int) -> bool:
        """Whether the Tab that is the `place`th of those that heal in its ring, from 0, goes under its own name."""
        if place >= MAX_HEALING:
            of = self._clients[client]
            of.why = f"names more than {MAX_HEALING} Tabs in one process that go up and down"
            of.cure = f"{LOOK}have more processes name fewer each"
            return False
        return True

    def overflowing(self) -> list[Overflowing]:
        """The Clients that name more than they may, the worst first."""
        found = {client: one for client, (when, one) in self._posted.items() if self._now - when < POSTED_SECONDS}
        found.update((client, _overflowing(client, of.summed, of.bases, of)) for client, of in self._clients.items() if of.summed)
        return sorted(found.values(), key=lambda one: -one.tabs)

    def _meet(self) -> _Client:
        """A Client that is not known, with its own id if there may be one more."""
        caps = self.caps
        self._renew()
        made = _Client(caps.client_tabs, self._now, True)
        if self._new < 1:
            made.why = f"is new while this Agent has new Clients faster than {caps.new_clients} a second (--max-new-clients)"
        else:
            while self.clients >= caps.agent_clients and self._resting:
                self._forget_one()
            if self.clients < caps.agent_clients:
                self._new -= 1
                self.clients += 1
                return made
            made.why = f"is new while this Agent has {caps.agent_clients} Clients (--max-agent-clients)"
        made.is_own, made.cure = False, MANY_CLIENTS
        return made

    def _renew(self) -> None:
        self._new = min(self.caps.agent_clients, self._new + (self._now - self._renewed) * self.caps.new_clients)
        self._renewed = self._now

    def _refill(self, of: _Client) -> None:
        of.tokens = min(self.caps.client_tabs, of.tokens + (self._now - of.refilled) * self.caps.new_tabs)
        of.refilled = self._now

    def _has_room(self, of: _Client) -> bool:
        """Whether one more may be known, of this Client and in all; what no ring names goes for it."""
        while of.idle and len(of.names) >= self.caps.client_tabs:
            name = next(iter(of.idle))
            del of.idle[name], of.names[name]
            self.total -= 1
        while self.total >= self.caps.agent_tabs and self._resting:
            self._forget_one()
        if self.total >= self.caps.agent_tabs and of.idle:
            name = next(iter(of.idle))
            del of.idle[name], of.names[name]
            self.total -= 1
        return self.total < self.caps.agent_tabs

    def _forget_one(self) -> None:
        client = next(iter(self._resting))
        del self._resting[client]
        self.clients -= 1
        self.total -= len(self._clients.pop(client).names)


def _overflowing(client: str, tabs: int, bases: Counter[str], of: _Client) -> Overflowing:
    base = max(filter(None, bases), key=bases.__getitem__, default="")
    return Overflowing(client, tabs, bases[""], base, of.is_own, of.why, of.cure)
