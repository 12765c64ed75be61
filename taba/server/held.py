"""What a Server has a bound for: how much there is of it, and how much there may be, as its status, its metrics and people are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from taba.connections import MAX_HALL, MAX_KNOWN, MAX_RECEIVING_BYTES, BoundedSite
from taba.server.ask.live import MAX_LIVE, Live
from taba.server.fold.ingest import MAX_LINE_BYTES, MAX_WAITING_BYTES, Ingest
from taba.server.work.patterns import MAX_PATTERNS
from taba.server.work.sandbox import MAX_APART, Sandbox
from taba.web import MAX_STREAMS, Api


class Held(NamedTuple):
    """So much there is, and so much there may be."""

    there: int
    most: int

    def told(self) -> dict[str, int]:
        """As a status has it."""
        return {"count": self.there, "most": self.most}


def held_in_store(in_all: Mapping[str, int], fullest: Mapping[str, int], caps: Mapping[str, int]) -> dict[str, Held]:
    """Of the store. `in_all`: how much all buckets have; `fullest`: of each the bucket that has most; `caps`: as a status has them."""
    found = {what: Held(in_all.get(what, 0), caps[f"all_{what}"]) for what in ("tabs", "clients")}
    found |= {what: Held(in_all.get(what, 0), caps[what]) for what in ("boards", "notes")}
    for what in ("tabs", "clients", "streams", "posters", "dead_letters"):
        found[f"bucket_{what}"] = Held(fullest.get(what, 0), caps[f"bucket_{what}"])
    return found


def held_here(site: BoundedSite, ingest: Ingest, sandbox: Sandbox, live: Live) -> dict[str, Held]:
    """Of this process."""
    waiting = ingest.waiting()
    return {
        "waiting_bytes": Held(waiting["bytes"], MAX_WAITING_BYTES),
        "line_bytes": Held(waiting["greatest_line_bytes"], MAX_LINE_BYTES),
        "receiving_bytes": Held(site.receiving, MAX_RECEIVING_BYTES),
        "connections": Held(len(site.known), site.places(MAX_KNOWN)),
        "newcomers": Held(len(site.hall), site.places(MAX_HALL)),
        "listeners": Held(len(site.listening), site.max_listeners),
        "streams_sent": Held(cast(Api, site.resource).streams, MAX_STREAMS),
        "live_questions": Held(len(live.questions), MAX_LIVE),
        "patterns": Held(sandbox.patterns.held, MAX_PATTERNS),
        "apart": Held(sandbox.waiting_apart, MAX_APART),
    }
