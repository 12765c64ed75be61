"""The simulator: Taba's own code in a world of its own, where time, chance, network, disk and store are drawn from a seed."""
