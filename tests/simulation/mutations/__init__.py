"""Faults of Taba that a simulator must find: each takes one line of the real code away, or turns it round. For `test_mutations`.

They stand in rooms, by what they break: the store and its marks, the Agent, folding at the edge, moves of buckets, bounds, and others, of
what no world has.
"""

from tests.simulation.mutations import agent, bounds, edge, moving, others, store
from tests.simulation.mutations.listing import ALL, BESIDE, FOCUS, applied, find

__all__ = ["ALL", "BESIDE", "FOCUS", "agent", "applied", "bounds", "edge", "find", "moving", "others", "store"]
