"""Makes `twistd taba-agent` known; nothing else is imported until it is used."""

from taba.plugins import LazyServiceMaker

taba_agent = LazyServiceMaker(
    "Taba Agent", "taba.agent.service", "Reads rings and forwards their events to Servers.", "taba-agent", "agent"
)
