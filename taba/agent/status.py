"""What an Agent says of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import taba
from taba import parts
from taba.agent.admission import MAX_SHOWN
from taba.agent.backlog import MAX_LANES
from taba.agent.books import MAX_RETAINED_BATCHES, MAX_RETAINED_BYTES
from taba.agent.discover import Slots
from taba.agent.dispatch import ServerPeer
from taba.agent.grants import MAX_GRANTS
from taba.agent.keeper import Keeper
from taba.agent.keys import MAX_KEYS
from taba.agent.native import NAME
from taba.agent.pump import RingPump
from taba.agent.tallies import MAX_GONE
from taba.client.identity import MAX_SLOTS
from taba.exposition import Exposed, Point, counter, gauge
from taba.plural import many
from taba.series import COUNTER, GAUGE
from taba.tokens import Scope

MAX_RINGS_SHOWN = 1000


def describe(
    agent: str,
    keeper: Keeper,
    pump: RingPump,
    servers: Sequence[ServerPeer],
    problems: list[str],
    now: float,
    unix_now: float,
    slots: Slots,
    keys: int = 0,
    inputs: Sequence[Mapping[str, Any]] = (),
    grants: int = 0,
    second_tries: int = 0,
) -> dict[str, Any]:
    """The content of `GET /v1/status`; `keys`: how many Idempotency-Keys are remembered, `grants`: for how many
    Clients of how many buckets room for them was taken, `second_tries`: how often a Server had closed a kept connection."""
    rings, live = pump.rings, pump.live_drops()
    shown = [
        {
            "name": ring.name,
            "client": ring.client,
            "pid": ring.header.pid,
            "bytes": ring.header.size,
            "accelerated": ring.header.is_accelerated,
            "tabs": len(ring.directory),
            "overflow": ring.names.overflowing,
            "recorded": ring.recorded,
            "holes": len(ring.covered),
        }
        for ring in list(rings.open.values())[:MAX_RINGS_SHOWN]
    ]
    return {
        "version": taba.__version__,
        "agent": agent,
        "pid": os.getpid(),
        "buckets": pump.buckets,
        "rings": shown,
        "rings_open": len(rings.open),
        "in_c": parts.told(),
        # folded, dead-lettered or dropped, sooner or later: what clients dropped counts too
        "recorded": keeper.books.recorded + sum(live.values()),
        "dropped_by_reason": dict(sorted((keeper.books.totals() + live).items())),
        "dropped_by_client": pump.drops_by_client(),
        "batch_version": keeper.version,
        "edge": {"types": dict(pump.edge.allowed), "events": pump.edge.events, "states": pump.edge.states, "failed": pump.edge.failed},
        "keys": {"count": keys, "most": MAX_KEYS},
        "grants": {"count": grants, "most": MAX_GRANTS},
        "slots": {"count": slots.count, "of_one_program": slots.most, "most": MAX_SLOTS},
        "lanes": {"count": len(keeper.lanes), "most": MAX_LANES},
        "tabs": rings.admission.total,
        "sums": {
            "kept": pump.tallies.kept,
            "most": MAX_GONE,
            "cut": pump.tallies.cut,
            "left_out": {"no_room": pump.tallies.left_out, "not_finite": pump.tallies.beyond},
        },
        "clients": rings.admission.clients,
        "caps": rings.admission.caps._asdict(),
        "overflow": {
            one.client: {"tabs": one.tabs, "dropped": one.dropped, "base": one.base} for one in rings.admission.overflowing()[:MAX_SHOWN]
        },
        "outbox": {
            "bytes": keeper.outbox.capacity,
            "used_bytes": keeper.outbox.used,
            "batches": keeper.unacknowledged,
            "retained_batches": keeper.books.retained_batches,
            "retained_bytes": keeper.books.retained_bytes,
            "given_up": keeper.books.given_up,
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
            for server in servers
        ],
        "second_tries": second_tries,
        "refused": [
            {
                "bucket": refusal.bucket,
                "events": refusal.events,
                "reason": refusal.reason,
                "detail": refusal.detail,
                "time": unix_now - (now - refusal.now),
            }
            for refusal in keeper.books.refusals
        ],
        "inputs": list(inputs),
        "problems": problems,
    }


def within(content: dict[str, Any], scope: Scope) -> dict[str, Any]:
    """The same as the bearer of a token that is bound is told it: without what names other Clients, or a Tab."""
    if not scope.is_bound:
        return content
    own = {
        of: {client: said for client, said in content[of].items() if scope.covers_client(client)}
        for of in ("dropped_by_client", "overflow")
    }
    own["overflow"] = {client: {**said, "base": None} for client, said in own["overflow"].items()}
    rings = [ring for ring in content["rings"] if scope.covers_client(ring["client"])]
    refused = [{**one, "detail": None} for one in content["refused"]]
    own["spool"] = {**content["spool"], "path": ""}
    return {**content, **own, "rings": rings, "refused": refused, "problems": scope.shown(content["problems"])}


def _held(content: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Of what there is a bound for, how many there are, and at the most; outbox and spool tell theirs in bytes."""
    caps, outbox = content["caps"], content["outbox"]
    return {
        "tabs": (content["tabs"], caps["agent_tabs"]),
        "clients": (content["clients"], caps["agent_clients"]),
        "lanes": (content["lanes"]["count"], content["lanes"]["most"]),
        "keys": (content["keys"]["count"], content["keys"]["most"]),
        "grants": (content["grants"]["count"], content["grants"]["most"]),
        "slots": (content["slots"]["of_one_program"], content["slots"]["most"]),
        "retained_batches": (outbox["retained_batches"], MAX_RETAINED_BATCHES),
        "retained_bytes": (outbox["retained_bytes"], MAX_RETAINED_BYTES),
    }


def as_families(content: dict[str, Any]) -> list[Exposed]:
    """The same as families that Prometheus scrapes: figures, without what names a ring or a Client."""
    outbox, spool, servers = content["outbox"], content["spool"], content["servers"]
    about = {"version": content["version"], "part": "agent", "agent": content["agent"]}
    held = _held(content)
    return [
        Exposed("taba_build_info", GAUGE, "Which version this is.", [Point("taba_build_info", about, 1.0)]),
        counter("taba_recorded_events_total", "Events that this Agent's rings held, those dropped included.", content["recorded"]),
        counter("taba_dropped_events_total", "Events that were dropped, by reason.", content["dropped_by_reason"], "reason"),
        gauge("taba_rings", "Rings that are open.", content["rings_open"]),
        gauge("taba_outbox_used_bytes", "Bytes of batches that wait in shared memory.", outbox["used_bytes"]),
        gauge("taba_outbox_bytes", "Room for them.", outbox["bytes"]),
        gauge("taba_outbox_batches", "Batches that are not acknowledged yet.", outbox["batches"]),
        gauge("taba_spool_used_bytes", "Bytes of batches that wait on disk.", spool["used_bytes"]),
        gauge("taba_spool_bytes", "Room for them.", spool["bytes"]),
        gauge("taba_spool_batches", "Batches that wait on disk.", spool["batches"]),
        counter(
            "taba_sums_left_out_events_total",
            "Events that are not among the sums of match=: of Tabs of ended processes without room, or with a sum beyond all floats.",
            content["sums"]["left_out"],
            "reason",
        ),
        gauge("taba_held", "How many there are of what has a bound.", {what: count for what, (count, _) in held.items()}, "what"),
        gauge("taba_held_most", "How many there may be.", {what: most for what, (_, most) in held.items()}, "what"),
        counter("taba_edge_events_total", "Events that this Agent folded to States before they were sent.", content["edge"]["events"]),
        counter("taba_edge_states_total", "States to which it folded them.", content["edge"]["states"]),
        counter(
            "taba_second_tries_total",
            "Requests that were sent once more, as a Server had closed the connection that was kept for them.",
            content["second_tries"],
        ),
        *_of_inputs(content["inputs"]),
        gauge("taba_servers_healthy", "Servers that answer.", sum(bool(server["healthy"]) for server in servers)),
        gauge("taba_servers", "Servers that are known.", len(servers)),
        gauge("taba_problems", "Sentences of taba status: what needs a person.", len(content["problems"])),
    ]


def _of_inputs(inputs: Sequence[Mapping[str, Any]]) -> list[Exposed]:
    """What inputs count, one series for each of them and each count."""
    if not inputs:
        return []
    name = "taba_input_total"
    points = [
        Point(name, {"kind": one["kind"], "address": one["address"], "what": what}, float(count))
        for one in inputs
        for what, count in one["counts"].items()
    ]
    return [Exposed(name, COUNTER, "What inputs received, and what became of it.", points)]


def as_text(content: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"taba-agent {content['version']}, Agent {content['agent']}"]
    drained = content["in_c"][NAME]
    how = "" if drained == parts.USED else f", drained without the C part: {drained}"
    lines.append(f"rings: {content['rings_open']}, recorded: {content['recorded']}{how}")
    edge = content["edge"]
    lines.append(
        f"folded here: {many(edge['events'], 'event')} to {many(edge['states'], 'State')}, of "
        f"{', '.join(edge['types']) or 'no Type by now'}"
    )
    lines += [f"dropped, {reason}: {events}" for reason, events in content["dropped_by_reason"].items()]
    outbox, spool = content["outbox"], content["spool"]
    lines.append(f"outbox: {many(outbox['batches'], 'batch')}, {outbox['used_bytes']} of {outbox['bytes']} bytes")
    lines.append(f"spool: {many(spool['batches'], 'batch')}, {spool['used_bytes']} of {spool['bytes']} bytes")
    lines.append("held: " + ", ".join(f"{what.replace('_', ' ')} {count} of {most}" for what, (count, most) in _held(content).items()))
    lines += [f"Server {server['url']}: {'healthy' if server['healthy'] else 'failing'}" for server in content["servers"]]
    for one in content["inputs"]:
        lines.append(
            f"{one['kind']} {one['address']}: {one['state']}, {many(one['counts']['lines'], 'line')}, "
            f"{many(one['counts']['events'], 'event')}"
        )
    lines += [f"problem: {problem}" for problem in content["problems"]]
    return "\n".join(lines) + "\n"
