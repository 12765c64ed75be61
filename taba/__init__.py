"""Taba: measurement events from many processes, aggregated in near real time into durable, queryable state."""

__version__ = "0.1.0.dev0"
