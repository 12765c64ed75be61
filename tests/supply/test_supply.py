from __future__ import annotations

import json
from contextlib import redirect_stdout
from importlib.metadata import distribution
from io import StringIO
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.installing import DISTRIBUTION
from tests.supply import __main__ as supply
from tests.supply.audit import Audit, audit, sentences
from tests.supply.lock import locked
from tests.supply.sbom import bill, canonical, needed


class Bill(SynchronousTestCase):
    def test_all_that_runs_is_on_it_with_what_that_needs_in_turn(self) -> None:
        found = needed("all")
        self.assertLessEqual({"twisted", "treq", "msgpack", "numpy", "txredisapi", "hiredis", "zope-interface", "incremental"}, set(found))
        self.assertNotIn("pytest", found)
        parts = [part for part in found.values() if part is not None]
        made = bill(parts, "1.2")
        self.assertEqual((made["bomFormat"], made["metadata"]["component"]["version"]), ("CycloneDX", "1.2"))
        by_name = {part["name"]: part for part in made["components"]}
        version = distribution("twisted").version
        self.assertEqual((by_name["twisted"]["version"], by_name["twisted"]["purl"]), (version, f"pkg:pypi/twisted@{version}"))
        self.assertIn(canonical(DISTRIBUTION), by_name)
        json.dumps(made)

    def test_the_client_alone_needs_nothing(self) -> None:
        self.assertEqual(set(needed("")), {canonical(DISTRIBUTION)})


class Lock(SynchronousTestCase):
    def test_each_part_is_locked_by_the_hash_of_its_file_and_taba_itself_is_left_out(self) -> None:
        one = {"metadata": {"name": "One", "version": "1.0"}, "download_info": {"archive_info": {"hashes": {"sha256": "ab"}}}}
        own = {"metadata": {"name": DISTRIBUTION, "version": "1"}, "download_info": {"dir_info": {}}}
        self.assertEqual(locked({"install": [own, one]}).splitlines()[1:], ["one==1.0 --hash=sha256:ab"])
        one["download_info"] = {"archive_info": {}}
        self.assertRaises(ValueError, locked, {"install": [one]})

    def test_what_is_locked_here_has_a_hash_in_each_line(self) -> None:
        paths = list((Path(__file__).parent.parent.parent / ".ci").glob("locked-*.txt"))
        self.assertTrue(paths)
        for path in paths:
            for line in path.read_text("utf-8").splitlines():
                self.assertRegex(line, r"^(#.*|[a-z0-9_.-]+==[^ ]+ --hash=sha256:[0-9a-f]{64})$")


class Audits(SynchronousTestCase):
    def test_what_is_known_to_be_wrong_is_named_and_what_is_not_installed_is_said(self) -> None:
        def ask(body: bytes) -> bytes:
            asked = [query["package"]["name"] for query in json.loads(body)["queries"]]
            self.assertEqual(asked, ["bad", "good"])
            return json.dumps({"results": [{"vulns": [{"id": "X-1"}, {"id": "X-2"}]}, {}]}).encode()

        found = audit({"good": "1", "bad": "2", "gone": None}, ask)
        self.assertEqual(found.wrong, {"bad 2": ["X-1", "X-2"]})
        self.assertEqual(sentences(found), ["bad 2: X-1, X-2", "not installed here, so not looked up: gone"])

    def test_the_exit_code_tells_what_is_wrong_from_what_is_not_known_and_both_from_good(self) -> None:
        for wrong, unknown, code in [
            ({}, [], 0),
            ({}, ["not looked up"], 2),
            ({"one 1": ["X-1"]}, [], 1),
            ({"one 1": ["X-1"]}, ["and more"], 1),
        ]:
            found = Audit(wrong, unknown)
            self.patch(supply, "audit", lambda _, found=found: found)  # type: ignore[misc]
            printed = StringIO()
            with redirect_stdout(printed):
                self.assertEqual(supply.main("audit"), code)
            self.assertEqual(printed.getvalue().splitlines(), [f"audit: {line}" for line in sentences(found)])

    def test_what_cannot_be_looked_up_is_said_and_is_no_success(self) -> None:
        def away(body: bytes) -> bytes:
            raise OSError("no route")

        answers: list[Any] = [
            away,
            *(lambda body, text=text: text for text in (b"", b"{}", b'{"results": []}', b'{"results": [1]}', b"[]")),
        ]
        for ask in answers:
            found = audit({"one": "1"}, ask)
            self.assertEqual(found.wrong, {})
            [said] = sentences(found)
            self.assertTrue(said.startswith("not looked up, 1 distributions: "), said)
