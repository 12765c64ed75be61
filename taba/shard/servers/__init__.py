"""The servers of a store: their addresses, connections and topologies, and the one that a Server runs itself."""
