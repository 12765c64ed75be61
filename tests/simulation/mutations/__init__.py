"""Faults of Taba that a simulator must find: each takes one line of the real code away, or turns it round. For `test_mutations`.

They stand in rooms, by what they break: the store and its marks, the Agent, folding at the edge, moves of buckets, bounds, single kinds of
faults, and others, of what no world has.
"""

from tests.simulation.mutations import agent, bounds, edge, kinds, moving, others, store
from tests.simulation.mutations.listing import ALL, BESIDE, FOCUS, applied, find

__all__ = ["ALL", "BESIDE", "FOCUS", "agent", "applied", "bounds", "edge", "find", "kinds", "moving", "others", "store"]
