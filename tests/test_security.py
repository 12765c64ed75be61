"""docs/security.md: each threat names tests, and each test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
_NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.py)(?:::([A-Za-z0-9_]+)::(test_[a-z0-9_]+))?`")


def threats(text: str) -> list[list[str]]:
    """The rows of the table of threats: who and what, what stands against it, where it is tried."""
    table = text.partition("\n## Threats\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    return rows[2:]  # without its head


class Security(SynchronousTestCase):
    def setUp(self) -> None:
        self.rows = threats((ROOT / "docs/security.md").read_text("utf-8"))

    def test_each_threat_names_what_stands_against_it_and_tests_that_are_there(self) -> None:
        self.assertGreater(len(self.rows), 10)
        for row in self.rows:
            self.assertEqual(len(row), 3, row)
            found = _NAMED.findall(row[2])
            self.assertTrue(found and all(row), row)
            self.assertEqual(re.sub(r"[,\s]", "", _NAMED.sub("", row[2])), "", f"{row[0]}: names something that is no test")
            for path, case, name in found:
                self.assertTrue((ROOT / path).is_file(), f"{row[0]}: there is no {path}")
                source = (ROOT / path).read_text("utf-8")
                self.assertIn("def test_", source, path)
                if name:
                    self.assertRegex(source, rf"class {case}\b[\s\S]*    (async )?def {name}\(", row[0])
