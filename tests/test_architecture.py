"""docs/architecture.md is what the tree is."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from tests.test_imports import MAY, ROOT, ROOT_ROOMS, STANDARD_ONLY

PAGE = ROOT / "docs" / "architecture.md"


class Architecture(SynchronousTestCase):
    text = PAGE.read_text()

    def rows(self, heading: str) -> list[list[str]]:
        """The rows of the table under `heading`, without its head."""
        section = self.text.split(f"## {heading}\n")[1].split("\n## ")[0]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")][2:]

    def test_every_file_and_folder_that_it_names_is_there(self) -> None:
        named = set(re.findall(r"`((?:taba|tests|docs|twisted|benchmarks|demo|newsfragments)/[\w./-]*)`", self.text))
        self.assertGreater(len(named), 40)
        self.assertEqual([path for path in sorted(named) if not (ROOT / path).exists()], [])

    def test_it_has_every_part_and_room_and_its_rules_of_import_are_those_that_are_kept(self) -> None:
        rows = {row[0].strip("`"): row[2] for row in self.rows("Rooms, and who may import whom")}
        packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "taba").rglob("__init__.py")} - {"taba"}
        self.assertEqual(packages - set(rows), set())
        for room, imports in rows.items():
            part = room.split("/")[1]
            named = set(re.findall(r"`(\w+)`", imports)) - {"lookup"}
            if part == "client":
                self.assertEqual(named, STANDARD_ONLY)
            elif room.count("/") == 1:
                self.assertEqual(named, MAY["root" if part in ROOT_ROOMS else part], room)

    def test_the_way_of_an_event_passes_every_module_once_that_it_names_and_in_the_rooms_order(self) -> None:
        way = self.text.split("## The way of one event\n")[1].split("\n## ")[0]
        parts = [path.split("/")[1] for path in re.findall(r"`(taba/\w+/[\w/.]+)`", way)]
        first = {part: parts.index(part) for part in ("client", "agent", "server", "shard")}
        self.assertEqual(sorted(first, key=lambda part: first[part]), ["client", "agent", "server", "shard"])

    def test_each_inner_word_is_used_in_the_code(self) -> None:
        code = "\n".join(path.read_text().lower() for path in (ROOT / "taba").rglob("*.py"))
        for word, meaning in self.rows("Inner words"):
            self.assertTrue(re.search(rf"\b{word.lower()}s?\b", code), word)  # all of the code is too much to be shown
            self.assertTrue(meaning)

    def test_it_is_one_page(self) -> None:
        self.assertLess(len(self.text.splitlines()), 130)
