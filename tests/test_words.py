"""One name means one thing: of the classes that rooms show each other, and of the inner words of docs/architecture.md."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent

EXCEPTIONS = {
    "Reply": "of an application over WSGI, by its name in C too, and of a store's server: the second is a public name of `taba.shard`",
    "Query": "what asks a Server and what answers there: the first is the public name of `taba.query`",
    "Page": "of a listing by key and of a list of names: the first is the public name of `taba.shard`",
}


def room_of(module: str) -> str:
    """The folder of a module, by its dotted name."""
    return module.rpartition(".")[0]


@cache
def sources() -> dict[str, str]:
    """The modules of `taba`, by dotted name."""
    paths = sorted((ROOT / "taba").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text() for path in paths}


@cache
def kinds() -> dict[str, list[str]]:
    """Of each public name of a class, or of an alias of a type, the modules that have one. Read by line: parsing takes seconds."""
    found: dict[str, list[str]] = defaultdict(list)
    for module, source in sources().items():
        for name in re.findall(
            r"^(?:class (?=[A-Z])|(?=[A-Z][A-Za-z]*[a-z][A-Za-z]*(?:: TypeAlias)? = (?!TypeVar)))(\w+)", source, re.MULTILINE
        ):
            found[name].append(module)
    return found


class WordsTest(SynchronousTestCase):
    def test_a_class_that_other_rooms_import_shares_its_name_with_none_that_they_do(self) -> None:
        abroad: dict[str, set[str]] = defaultdict(set)  # module → the names that other rooms import of it
        for module, source in sources().items():
            for of, names in re.findall(r"^ *from (taba[\w.]*) import (\([^)]*\)|[^\n]*)", source, re.MULTILINE):
                if room_of(of) != room_of(module):
                    abroad[of].update(re.findall(r"\w+", names))
        shared = {name: [one for one in modules if name in abroad[one]] for name, modules in kinds().items()}
        twice = {name: modules for name, modules in shared.items() if len(modules) > 1}
        self.assertEqual(twice.keys(), EXCEPTIONS.keys(), twice)

    def test_an_inner_word_is_the_name_of_one_class(self) -> None:
        page = (ROOT / "docs/architecture.md").read_text().partition("## Inner words")[2]
        words = re.findall(r"^\| (\w+) \| ", page, re.MULTILINE)
        self.assertGreater(len(words), 40)
        self.assertIn("line", words)
        found = {word: modules for word in words if len(modules := kinds().get(word.title(), [])) > 1}
        self.assertEqual(found, {"scope": ["taba.frameworks.asgi", "taba.tokens"]})  # the former is ASGI's own word
