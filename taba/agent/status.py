"""What an Agent says of itself, and events that are posted to it: its HTTP routes (design 5.6)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import taba
from taba.events import read_events, stream_of
from taba.web import Answer, Api, Call, HTTPError

if TYPE_CHECKING:
    from taba.agent.service import AgentService

MAX_RINGS_SHOWN = 1000


def describe(service: AgentService) -> dict[str, Any]:
    """The content of `GET /v1/status`."""
    keeper, rings, forwarder = service.keeper, service.rings, service.forwarder
    live = service.pump.live_drops()
    shown = [
        {
            "name": ring.name,
            "client": ring.client,
            "pid": ring.header.pid,
            "bytes": ring.header.size,
            "accelerated": ring.header.is_accelerated,
            "tabs": len(ring.directory),
            "recorded": ring.recorded,
            "holes": len(ring.covered),
        }
        for ring in list(rings.open.values())[:MAX_RINGS_SHOWN]
    ]
    return {
        "version": taba.__version__,
        "agent": service.agent,
        "pid": os.getpid(),
        "buckets": service.pump.buckets,
        "rings": shown,
        "rings_open": len(rings.open),
        # folded, dead-lettered or dropped, sooner or later: what clients dropped counts too
        "recorded": keeper.recorded + sum(live.values()),
        "dropped_by_reason": dict(sorted((keeper.totals() + live).items())),
        "outbox": {
            "bytes": keeper.outbox.capacity,
            "used_bytes": keeper.outbox.used,
            "batches": keeper.unacknowledged,
            "retained_bytes": keeper.retained_bytes,
            "given_up": keeper.given_up,
        },
        "spool": {
            "path": keeper.spool.path,
            "bytes": keeper.spool.bound,
            "used_bytes": keeper.spool.used,
            "batches": keeper.spool.batches,
            "moves": keeper.moves,
        },
        "servers": [
            {"url": server.url, "healthy": server.is_healthy, "configured": server.is_configured, "envelopes": server.envelopes}
            for server in forwarder.servers.values()
        ],
        "refused": [refusal._asdict() for refusal in keeper.refusals],
        "problems": service.problems(),
    }


class Routes:
    """The Agent's routes."""

    def __init__(self, service: AgentService):
        self._service = service

    def api(self) -> Api:
        return Api(
            {
                ("GET", "/v1/status"): self.status,
                ("POST", "/v1/events"): self.events,
                ("GET", "/healthz"): self.healthz,
                ("GET", "/readyz"): self.readyz,
            }
        )

    async def status(self, call: Call) -> Answer:
        call.only()
        content = describe(self._service)
        return Answer(content, text=lambda: _text(content))

    async def events(self, call: Call) -> Answer:
        call.only()
        service = self._service
        key = call.header("idempotency-key")
        buckets = service.pump.buckets
        if buckets is None:
            raise HTTPError(503, "not_ready", "no Server has told the number of buckets yet; try later")
        content = call.json()
        try:
            stream = stream_of(key) if key is not None else None
            posted = read_events(content, service.unix_now(), buckets)
        except ValueError as error:
            raise HTTPError(400, "bad_request", str(error)) from None
        if posted.accepted and not service.post(posted.lots, posted.accepted, stream):
            raise HTTPError(503, "spool_full", "outbox and spool have no room; try later")
        rejected = [{"index": rejection.place, "reason": rejection.reason} for rejection in posted.rejected]
        return Answer({"accepted": posted.accepted, "rejected": rejected})

    async def healthz(self, call: Call) -> Answer:
        return Answer({"alive": True}, text=lambda: "alive\n")

    async def readyz(self, call: Call) -> Answer:
        if self._service.pump.buckets is None:
            raise HTTPError(503, "not_ready", "no Server has told the number of buckets yet")
        return Answer({"ready": True}, text=lambda: "ready\n")


def _text(content: dict[str, Any]) -> str:
    lines = [f"taba-agent {content['version']}, Agent {content['agent']}"]
    lines.append(f"rings: {content['rings_open']}, recorded: {content['recorded']}")
    lines += [f"dropped, {reason}: {events}" for reason, events in content["dropped_by_reason"].items()]
    outbox, spool = content["outbox"], content["spool"]
    lines.append(f"outbox: {outbox['batches']} batches, {outbox['used_bytes']} of {outbox['bytes']} bytes")
    lines.append(f"spool: {spool['batches']} batches, {spool['used_bytes']} of {spool['bytes']} bytes")
    lines += [f"Server {server['url']}: {'healthy' if server['healthy'] else 'failing'}" for server in content["servers"]]
    lines += [f"problem: {problem}" for problem in content["problems"]]
    return "\n".join(lines) + "\n"
