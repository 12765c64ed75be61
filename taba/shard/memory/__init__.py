"""A store in memory, for fast tests: the real Router over servers that are dictionaries."""
