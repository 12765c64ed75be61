"""Bytes that strangers choose, by the million: see `./run fuzz --help`."""
