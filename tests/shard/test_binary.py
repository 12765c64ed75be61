from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import rmtree
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba.shard.servers import binary


class Programs(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(rmtree, self.directory)
        self.patch(binary, "_bundled", lambda: None)
        alone = mock.patch.dict("os.environ", {"PATH": str(self.directory)})
        alone.start()
        self.addCleanup(alone.stop)

    def program(self, name: str, says: str) -> str:
        path = self.directory / name
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)
        return str(path)

    def bundle(self, version: str) -> str:
        bundled = self.program(f"bundled-{version}", f"Valkey server v={version} sha=0:0 malloc=libc bits=64")
        self.patch(binary, "_bundled", lambda: bundled)
        return bundled

    def test_a_distribution_s_is_taken_unless_it_is_older_than_the_bundled_one(self) -> None:
        bundled = self.bundle("8.1.2")
        self.assertEqual(binary.find_store_binary(), bundled)
        for version, is_taken in [("8.0.9", False), ("7.2.5", False), ("8.1.0", True), ("9.0.0", True), ("10.1.0", True)]:
            installed = self.program("valkey-server", f"Valkey server v={version} sha=0:0")
            binary._version.cache_clear()
            self.assertEqual(binary.find_store_binary(), installed if is_taken else bundled, version)

    def test_one_that_does_not_say_its_version_is_passed_over_where_there_is_another(self) -> None:
        bundled = self.bundle("8.1.3")
        installed = self.program("valkey-server", "no version")
        binary._version.cache_clear()
        self.assertEqual(binary.find_store_binary(), bundled)
        self.patch(binary, "_bundled", lambda: None)
        self.assertEqual(binary.find_store_binary(), installed)

    def test_redis_is_the_last_and_without_any_a_sentence_says_what_to_install(self) -> None:
        self.assertIn("no Valkey here", str(self.assertRaises(FileNotFoundError, binary.find_store_binary)))
        redis = self.program("redis-server", "Redis server v=7.0.1")
        self.assertEqual(binary.find_store_binary(), redis)
        self.assertEqual(binary.find_store_binary(), redis)
        bundled = self.bundle("8.1.4")
        self.assertEqual(binary.find_store_binary(), bundled)
