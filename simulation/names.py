"""What the parts of a world are called, and how large what they have is."""

from taba.bounds import MiB

AGENT = "sim"
RING_BYTES = 64 * 1024
OUTBOX_BYTES = 4 * MiB
SPOOL_BYTES = 16 * MiB
ENVIRONMENT = {"TABA_AGENT": AGENT, "TABA_RING_BYTES": str(RING_BYTES), "TABA_SHM_BYTES": str(64 * MiB)}


def part_of(name: str) -> str:
    """What a part or a process of this name is: `agent`, `server`, `client`, `mover`, …"""
    name = name.partition("#")[0]
    return "agent" if name.endswith("agent") and not name.startswith("poster") else name.partition("-")[0]
