"""Who may import whom (design, section 4), read from the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
PARTS = {"client", "agent", "server", "handlers", "shard", "query", "cli"}
STANDARD_ONLY = {"names", "bounds", "errors", "ring"}  # the root modules that the client may import

MAY = {
    "root": set(),
    "client": set(),
    "handlers": set(),
    "shard": set(),
    "agent": set(),
    "server": {"shard", "handlers"},
    "query": set(),
    "cli": {"query", "client", "shard", "handlers"},
}


def imports(path: Path) -> set[str]:
    """The absolute names of all modules that a file imports, wherever in it."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def modules(part: str) -> list[Path]:
    return sorted((ROOT / "taba").glob("*.py")) if part == "root" else sorted((ROOT / "taba" / part).rglob("*.py"))


class Imports(SynchronousTestCase):
    def test_parts_import_only_what_the_design_lets_them(self) -> None:
        for part, may in MAY.items():
            for path in modules(part):
                used = {name.split(".")[1] for name in imports(path) if name.startswith("taba.")} & PARTS - {part}
                self.assertEqual(used - may, set(), path)

    def test_the_server_reaches_handlers_through_the_lookup_alone(self) -> None:
        for path in modules("server"):
            for name in imports(path):
                if name.startswith("taba.handlers"):
                    self.assertTrue(name.startswith(("taba.handlers.lookup", "taba.handlers.interface")), f"{path}: {name}")

    def test_the_client_needs_the_standard_library_alone(self) -> None:
        for path in [*modules("client"), *(ROOT / "taba" / f"{name}.py" for name in STANDARD_ONLY)]:
            for name in imports(path):
                first, *rest = name.split(".")
                if first == "taba":
                    self.assertTrue(not rest or rest[0] in STANDARD_ONLY | {"client", "__version__"}, f"{path}: {name}")
                else:
                    self.assertIn(first, sys.stdlib_module_names, path)

    def test_importing_the_client_loads_nothing_else(self) -> None:
        code = "import sys; import taba.client; print(*{name.split('.')[0] for name in sys.modules})"
        loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        self.assertEqual(set(loaded) & {"twisted", "numpy", "msgpack", "zope", "attr"}, set())

    def test_only_one_module_speaks_to_the_store_and_none_pickles(self) -> None:
        for path in (ROOT / "taba").rglob("*.py"):
            found = imports(path)
            self.assertFalse(any(name.split(".")[0] in ("pickle", "marshal", "shelve") for name in found), path)
            if any(name.startswith("txredisapi") for name in found):
                self.assertEqual(path, ROOT / "taba" / "shard" / "servers" / "connection.py")

    def test_nothing_under_twisted_is_a_package(self) -> None:
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py")), [])

    def test_tests_and_benchmarks_share_the_package_alone(self) -> None:
        for path in (ROOT / "benchmarks").rglob("*.py"):
            self.assertFalse([name for name in imports(path) if name.split(".")[0] == "tests"], path)
        for path in (ROOT / "tests").rglob("*.py"):
            used = {name.split(".")[0] for name in imports(path)} & {"benchmarks", "demo"}
            self.assertFalse(used and path.name != f"test_{used.pop()}.py", path)
