"""Which Tabs are forwarded under their own names: so many of a Client, so many of an Agent, and new ones so quickly. Others are summed up.

1. It is decided once for a Tab of a ring, when its name is read and before anything of it is encoded. What is recorded for the others goes,
   in its order, to `base{overflow="true"}` of the same Client and Type: a sum over all Tabs of the base name stays right.
2. What a Client was known by costs it nothing when it comes again, in another of its rings; it is forgotten when room is needed, never
   while a ring names it. Who has named as many new ones as it may gets more by the second.
3. A Tab that heals is decided on by its place in its ring alone: its sum lies there, and another Agent must decide likewise.
4. There are overflow Tabs for so many base names; of more, events are dropped and counted.

`now` is monotonic seconds, and passed in.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from taba.caps import Caps
from taba.names import canonical_name

OVERFLOW = {"overflow": "true"}
MAX_OVERFLOWS = 1000  # overflow Tabs of a Client: base names and Types; more base names are data themselves
MAX_HEALING = 1000  # Tabs of one ring that heal and keep their names
RAISE = "raise that option of the Servers and, once this Agent's status shows it, restart this Agent"
MAX_KNOWN = 10_000  # Clients: more than twice as many as an Agent reads rings
MAX_SHOWN = 20  # Clients that overflow, in a status


class Overflowing(NamedTuple):
    """A Client that named more than it may."""

    client: str
    tabs: int  # that do not go under their own names: they are summed up, or …
    dropped: int  # … there is not even a sum for them
    base: str  # that most of those that are summed up have
    why: str  # what it names
    cure: str


class _Client:
    """What is known of one Client. `names` maps its Tabs to how many of its open rings name each; those of none are `idle`, too."""

    __slots__ = ("bases", "cure", "idle", "names", "overflows", "refilled", "rings", "summed", "tokens", "why")

    def __init__(self, tokens: float, now: float):
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
        self.now = 0.0
        self._clients: dict[str, _Client] = {}
        self._resting: dict[str, None] = {}  # Clients without a ring, the one that went first first
        self.total = 0

    def change(self, caps: Caps) -> None:
        """From now on these are the caps. Who has named some already may name as many more as the cap is higher, or fewer."""
        more = caps.client_tabs - self.caps.client_tabs
        for of in self._clients.values():
            self._refill(of)
            of.tokens += more  # below 0 where more were named than may be by now: they count, should the cap be higher again
        self.caps = caps

    def begin(self, client: str) -> None:
        """A ring of this Client is open."""
        of = self._clients.get(client)
        if of is None:
            while len(self._clients) >= MAX_KNOWN and self._resting:
                self._forget_one()
            of = self._clients[client] = _Client(self.caps.client_tabs, self.now)
        self._resting.pop(client, None)
        of.rings += 1

    def end(self, client: str, names: list[str], summed: Counter[str]) -> None:
        """A ring is closed that named these under their own names; of those that it did not, so many by base name."""
        of = self._clients[client]
        of.rings -= 1
        for name in names:
            held = of.names[name] = of.names[name] - 1
            if not held:
                of.idle[name] = None
        of.bases -= summed
        of.summed -= sum(summed.values())
        if not of.rings:
            of.overflows.clear()
            self._resting[client] = None

    def admit(self, client: str, name: str) -> bool:
        """Whether this Tab goes under its own name. Its Client has an open ring."""
        of = self._clients[client]
        held = of.names.get(name)
        if held is not None:
            of.names[name] = held + 1
            if not held:
                del of.idle[name]
            return True
        caps = self.caps
        self._refill(of)
        if len(of.names) >= caps.client_tabs and not of.idle:
            of.why, of.cure = f"more than {caps.client_tabs} Tabs at once (--max-client-tabs)", RAISE
        elif of.tokens < 1:
            of.why, of.cure = f"new Tabs faster than {caps.new_tabs} a second (--max-new-tabs)", RAISE
        elif not self._has_room(of):
            of.why, of.cure = f"new Tabs while those of all Clients of this Agent are {caps.agent_tabs} (--max-agent-tabs)", RAISE
        else:
            of.tokens -= 1
            of.names[name] = 1
            self.total += 1
            return True
        return False

    def overflow(self, client: str, name: str, type: str) -> str | None:
        """The Tab to which this one's events go; None where they are dropped."""
        of = self._clients[client]
        base = name.partition("{")[0]
        found = of.overflows.get((base, type))
        if found is None and len(of.overflows) < MAX_OVERFLOWS:
            found = of.overflows[base, type] = canonical_name(base, OVERFLOW)
        return found

    def count(self, client: str, name: str, is_summed: bool) -> str:
        """One Tab more of a ring does not go under its own name. Returns what it is to be counted under when the ring ends."""
        of = self._clients[client]
        base = name.partition("{")[0] if is_summed else ""
        of.bases[base] += 1
        of.summed += 1
        return base

    def heals_under_its_name(self, client: str, place: int) -> bool:
        """Whether the Tab that is the `place`th of those that heal in its ring, from 0, goes under its own name."""
        if place >= MAX_HEALING:
            of = self._clients[client]
            of.why, of.cure = f"more than {MAX_HEALING} Tabs in one process that go up and down", "have more processes name fewer each"
            return False
        return True

    def overflowing(self) -> list[Overflowing]:
        """The Clients that name more than they may, the worst first."""
        found = [
            Overflowing(client, of.summed, of.bases[""], max(filter(None, of.bases), key=of.bases.__getitem__, default=""), of.why, of.cure)
            for client, of in self._clients.items()
            if of.summed
        ]
        return sorted(found, key=lambda one: -one.tabs)

    def _refill(self, of: _Client) -> None:
        of.tokens = min(self.caps.client_tabs, of.tokens + (self.now - of.refilled) * self.caps.new_tabs)
        of.refilled = self.now

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
        self.total -= len(self._clients.pop(client).names)
