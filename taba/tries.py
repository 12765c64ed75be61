"""Tries of tokens that nobody knows, by the address that they come from: counted, and each is told later than the one before.

1. What is remembered is bounded; one that is pushed out is counted, and begins anew.
2. Only a failed try waits. Behind one address there may be many, and whoever shows a token that is known is never slowed.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from taba.plural import many

FAILED_SECONDS = 1.0  # before a refusal is said: with a place taken for so long nobody asks fast
MOST_FAILED_SECONDS = 3.0  # … after many of one address: an Agent with an old token waits 5 s to be told
FREE_TRIES = 5  # of one address, that wait no longer than the first: a program restarted with an old token is no guesser
RECENT_SECONDS = 600.0  # for which a try is remembered, and is a problem: after that nobody needs to look
MAX_ADDRESSES = 1000  # that are told apart
MAX_NAMED = 3  # of them in a sentence
PREFIX_BITS = 64  # of an IPv6 address: one host has all that begin alike


class Tries:
    """Of one listener. `seconds` is a monotonic clock."""

    def __init__(self, seconds: Callable[[], float]):
        self._seconds = seconds
        self._tried: dict[str, tuple[int, float]] = {}  # address → how many, and when last; who tried last is last
        self.count = 0
        """All there were."""
        self.forgotten = 0
        """Addresses that were pushed out although their tries were recent."""

    def failed(self, peer: str) -> float:
        """Note one of `peer`, an address; how many seconds it has to wait for its answer."""
        self.count += 1
        now, address = self._seconds(), address_of(peer)
        before, when = self._tried.pop(address, (0, now))
        count = 1 + (before if now - when < RECENT_SECONDS else 0)
        if len(self._tried) >= MAX_ADDRESSES:
            _, when = self._tried.pop(next(iter(self._tried)))
            self.forgotten += now - when < RECENT_SECONDS
        self._tried[address] = count, now
        return min(MOST_FAILED_SECONDS, FAILED_SECONDS * max(1, count - FREE_TRIES))

    def recent(self) -> dict[str, int]:
        """How many there were of each address not long ago, the most first."""
        since = self._seconds() - RECENT_SECONDS
        found = {address: count for address, (count, when) in self._tried.items() if when > since}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def problems(self) -> list[str]:
        """What needs a person, in sentences."""
        recent = self.recent()
        if not recent:
            return []
        named = ", ".join(f"{count} from {address}" for address, count in list(recent.items())[:MAX_NAMED])
        more = f" and from {many(len(recent) - MAX_NAMED, 'more address')}" if len(recent) > MAX_NAMED else ""
        return [
            f"{many(sum(recent.values()), 'try of a token that is', 'tries of tokens that are')} not known, {named}{more}: give "
            "it a token of the file, or keep it away"
            f" ({self.count} since this process began)"
        ]


def address_of(peer: str) -> str:
    """What stands for all the addresses that one host may have."""
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return peer or "this host"  # over a socket of a file system
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if address.is_loopback:
        return str(address)
    return f"{IPv6Address(int(address) >> (128 - PREFIX_BITS) << (128 - PREFIX_BITS))}/{PREFIX_BITS}"
