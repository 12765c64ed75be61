"""What a Server has a bound for: how much there is of it, and how much there may be, as its status, its metrics and people are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

from taba.connections import MAX_HALL, MAX_KNOWN, MAX_RECEIVING_BYTES, BoundedSite
from taba.places import Places, Share, SharedBytes
from taba.server.ask.live import Live
from taba.server.fold.envelopes import Envelopes
from taba.server.fold.ingest import MAX_LINE_BYTES, MAX_WAITING_BYTES, Ingest
from taba.server.prometheus.api import Seats
from taba.server.work.sandbox import MAX_APART, Sandbox
from taba.web import Api


class Held(NamedTuple):
    """So much there is, and so much there may be; of what askers share, how much who has most has of it, and how many gave up theirs."""

    there: int
    most: int
    share: Share | None = None
    displaced: int | None = None

    def told(self) -> dict[str, int]:
        """As a status has it."""
        of_asker = {} if self.share is None else {"greatest": self.share.greatest, "each": self.share.most}
        gave_up = {} if self.displaced is None else {"displaced": self.displaced}
        return {"count": self.there, "most": self.most, **of_asker, **gave_up}


def _shared(places: Places | SharedBytes) -> Held:
    return Held(places.held, places.most, places.share, places.displaced if isinstance(places, Places) and places.waits else None)


def held_in_store(in_all: Mapping[str, int], fullest: Mapping[str, int], caps: Mapping[str, int]) -> dict[str, Held]:
    """Of the store. `in_all`: how much all buckets have; `fullest`: of each the bucket that has most; `caps`: as a status has them."""
    found = {what: Held(in_all.get(what, 0), caps[f"all_{what}"]) for what in ("tabs", "clients")}
    found |= {what: Held(in_all.get(what, 0), caps[what]) for what in ("boards", "notes")}
    for what in ("tabs", "clients", "streams", "posters", "dead_letters"):
        found[f"bucket_{what}"] = Held(fullest.get(what, 0), caps[f"bucket_{what}"])
    return found


def held_here(
    site: BoundedSite, ingest: Ingest, envelopes: Envelopes, sandbox: Sandbox, live: Live, promql: Seats, scrapes: Seats
) -> dict[str, Held]:
    """Of this process."""
    waiting = ingest.waiting()
    return {
        "waiting_bytes": Held(waiting["bytes"], MAX_WAITING_BYTES),
        "line_bytes": Held(waiting["greatest_line_bytes"], MAX_LINE_BYTES),
        "receiving_bytes": Held(site.receiving, MAX_RECEIVING_BYTES),
        "connections": Held(len(site.known), site.places(MAX_KNOWN)),
        "newcomers": Held(len(site.hall), site.places(MAX_HALL)),
        "listeners": Held(len(site.listening), site.max_listeners),
        "reading_bytes": _shared(envelopes.reading),
        "streams_sent": _shared(cast(Api, site.resource).streams),
        "live_questions": _shared(live.places),
        "promql": _shared(promql.places),
        "scrapes": _shared(scrapes.places),
        "patterns": _shared(sandbox.patterns.places),
        "apart": Held(sandbox.waiting_apart, MAX_APART, sandbox.askers_apart.share),
    }
