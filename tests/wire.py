"""How tests talk to a store without `taba.shard`: hiredis, loaded here first where a test takes it away from everybody else."""

from __future__ import annotations

from hiredis import Reader, pack_command

__all__ = ["Reader", "pack_command"]
