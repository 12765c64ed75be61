"""docs/shard.md is true: its examples run as they stand, its tables are what the code says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from inspect import CO_COROUTINE, iscoroutine
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from taba.bounds import DEFAULT_BUCKETS, MAX_BUCKETS, MiB
from taba.shard import operations, reading, transaction
from taba.shard.keys import places, writing
from taba.shard.router import Router
from taba.shard.servers import pool, url
from taba.shard.servers.url import parse_store
from tests.documents import blocks
from tests.patience import PATIENCE_SECONDS
from tests.services import ROOT
from tests.stores import borrow

DOCUMENT = ROOT / "docs" / "shard.md"


class ExampleTests(TestCase):
    timeout = 300

    def setUp(self) -> None:
        self.valkey = borrow(self, tcp=True)
        self.program, *self.others = [block for block in blocks(DOCUMENT.read_text()) if block.language == "python"]

    def test_the_quick_start_is_a_whole_program(self) -> None:
        code = self.program.code.replace("redis://127.0.0.1:6379", self.valkey.url)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_SECONDS, cwd=ROOT)
        self.assertEqual((done.stdout, done.returncode), ("b'hello'\n", 0), done.stderr)

    async def test_the_other_examples_run_in_their_order(self) -> None:
        router = Router(parse_store(self.valkey.url), reactor=reactor)
        self.addCleanup(lambda: ensureDeferred(router.close()))
        await router.connect()
        namespace: dict[str, Any] = {"router": router, "print": lambda *_: None}
        for block in self.others:
            code = compile("\n" * (block.line - 1) + block.code, str(DOCUMENT), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, namespace)
            self.assertEqual(iscoroutine(result), bool(code.co_flags & CO_COROUTINE))
            if iscoroutine(result):
                await result


class TableTests(SynchronousTestCase):
    text = DOCUMENT.read_text()

    def test_every_operation_is_named(self) -> None:
        shown = [name for name in dir(operations.Operations) if not name.startswith("_") and name not in ("buckets", "transact_patiently")]
        self.assertGreater(len(shown), 50)
        self.assertEqual([name for name in shown if not re.search(rf"\b{name}\b", self.text)], [])

    def test_the_hash_vectors(self) -> None:
        rows = re.findall(r"^\| `(.+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", self.text, re.MULTILINE)
        self.assertEqual(len(rows), 4)
        for name, *found in rows:
            self.assertEqual([int(one) for one in found], [places.bucket_of(name, buckets) for buckets in (1, 4, 512, 65_536)])

    def test_the_limits(self) -> None:
        self.assertIn(f"1 to {MAX_BUCKETS:,}, fixed when the store is new; {DEFAULT_BUCKETS} by default", self.text)
        self.assertIn(f"1 to {places.MAX_NAME_BYTES:,} bytes", self.text)
        self.assertIn(f"| a value | {places.MAX_CONTENT_BYTES // MiB} MiB |", self.text)
        self.assertIn(f"at most {places.MAX_PAGE_NAMES:,}", self.text)
        self.assertIn(f"| {pool.POOL_CONNECTIONS}, opened", self.text)
        self.assertIn(f"| {url.MAX_SHARDS:,} |", self.text)
        self.assertIn(f"A read within {reading.READ_SECONDS:g} s, a write within {transaction.TRANSACT_SECONDS:g} s", self.text)
        self.assertIn(f"({transaction.TRANSACT_SECONDS + 2 * writing.TURN_SECONDS:g} s behind", self.text)
