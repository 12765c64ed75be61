"""The twistd plugin of the Agent. Nothing of it is imported until it is asked for."""

from twisted.application.service import ServiceMaker

taba_agent = ServiceMaker("Taba Agent", "taba.agent.service", "Reads rings and forwards their events to Servers.", "taba-agent")
