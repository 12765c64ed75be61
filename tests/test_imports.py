"""Who may import whom, and who may ask the machine for time and chance; read from the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
PARTS = {"client", "agent", "server", "handlers", "shard", "query", "cli", "compat", "frameworks", "inputs"}
ROOT_ROOMS = {"batch"}  # packages that are of the root
STANDARD_ONLY = {"names", "bounds", "errors", "parts", "ring"}  # the root modules that the client may import

MAY = {
    "root": set(),
    "client": set(),
    "handlers": set(),
    "shard": set(),
    "agent": {"client", "handlers"},  # handlers through the lookup alone
    "server": {"shard", "handlers"},  # handlers through the lookup alone
    "query": set(),
    "cli": {"query", "client", "shard", "handlers"},  # shard in cli/sharding.py alone
    "compat": {"client", "query"},  # query in compat/collecting.py alone
    "frameworks": {"client"},
    "inputs": {"client"},
}

TYPED = ("taba", "twisted", "demo", "benchmarks", "simulation", "tests")  # what mypy reads

LOOKUP = ("taba.handlers.lookup", "taba.handlers.interface")  # what of the Handlers a Server or an Agent may import

# What is not the same at each run: a part gets it by argument. Beside each place that takes it from the machine, what for.
CLOCKS = {f"time.{name}{unit}" for name in ("time", "monotonic", "perf_counter", "process_time") for unit in ("", "_ns")}
CHANCE = {*CLOCKS, "time.sleep", "datetime.now", "os.urandom", "random", "secrets", "uuid", "reactor", "clocks"}
EDGES = {
    "clocks.py": {"time.monotonic"},  # it makes reactors' time of it
    "tokens.py": {"secrets"},  # new tokens
    "tls.py": {"time.time"},  # whether a certificate is past its end: peers, in handshakes, ask the machine's clock too
    "inputs/process.py": {"time.time", "time.monotonic"},  # a process of its own, without a reactor
    "agent/service.py": {"time.time", "os.urandom", "random", "reactor", "clocks"},  # composes the Agent
    "server/service.py": {"time.time", "os.urandom", "random", "reactor", "clocks"},  # composes the Server
    "server/worker.py": {"reactor", "clocks"},  # composes a worker
    "server/keep/jobs.py": {"os.urandom"},  # ids of jobs
    "server/work/child.py": {"time.monotonic"},  # a process of its own, without a reactor
    "server/work/probing.py": {"time.monotonic"},  # blocks, before the reactor runs
    "shard/router.py": {"os.urandom", "reactor"},  # what `Router(store)` gets where its user passes nothing
    "shard/memory/router.py": {"reactor"},  # likewise
    "shard/atlas.py": {"os.urandom"},  # a new store's id
    "shard/lock.py": {"os.urandom"},  # a holder's token
    "shard/moving/mover.py": {"os.urandom"},  # a mover's id
    "shard/servers/launch.py": {"time.monotonic", "time.sleep"},  # a process of its own, without a reactor
    "shard/servers/embedded.py": {"reactor"},
}


class Told(NamedTuple):
    """What a file says of others: the absolute names of all that it imports, wherever in it; the modules among them that it has by
    their own name; and what it takes of plain names, `name.attribute`."""

    imports: frozenset[str]
    modules: frozenset[str]
    taken: frozenset[tuple[str, str]]


@cache
def told(path: Path) -> Told:
    """As the source has it. Only this is kept: whole trees of all sources would be looked through by each collection of garbage."""
    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    imports, modules, taken = set(), set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name):
                taken.add((node.value.id, node.attr))
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            imports |= {f"{base}.{alias.name}" for alias in node.names}
    return Told(frozenset(imports | modules), frozenset(modules), frozenset(taken))


def imports(path: Path) -> frozenset[str]:
    """The absolute names of all modules that a file imports, wherever in it."""
    return told(path).imports


def chance(path: Path) -> set[str]:
    """Which of CHANCE a file uses."""
    found = set()
    for name, attribute in told(path).taken:
        found |= {f"{name}.{attribute}", name if name in ("random", "secrets", "uuid") else ""}
    found -= {"random", "secrets", "uuid"} - told(path).modules  # a variable or argument of that name
    for name in imports(path):
        found |= {"reactor"} if name == "twisted.internet.reactor" else set()
        found |= {"clocks"} if name.startswith("taba.clocks.boot") else set()
        found |= {name} if name in CHANCE and "." in name else set()  # from time import time
    return found & CHANCE


def neighbours(path: Path) -> set[str]:
    """The modules of Taba and its simulator that a file imports, wherever in it, for the type checker alone too."""
    known = known_modules()
    return {name if name in known else name.rpartition(".")[0] for name in imports(path)} & known.keys()


@cache
def known_modules() -> dict[str, Path]:
    """Those of Taba and of its simulator by name; with them what is written in C, which imports nothing."""
    return {module_name(path): path for name in ("taba", "simulation") for kind in ("py", "c") for path in (ROOT / name).rglob(f"*.{kind}")}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules(part: str) -> list[Path]:
    if part != "root":
        return sorted((ROOT / "taba" / part).rglob("*.py"))
    return sorted([*(ROOT / "taba").glob("*.py"), *(path for room in ROOT_ROOMS for path in (ROOT / "taba" / room).rglob("*.py"))])


IMPORTED = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)  # the first package of each import


class Imports(SynchronousTestCase):
    def test_parts_import_only_what_they_may(self) -> None:
        for part, may in MAY.items():
            for path in modules(part):
                used = {name.split(".")[1] for name in imports(path) if name.startswith("taba.")} & PARTS - {part}
                self.assertEqual(used - may, set(), path)

    def test_every_part_is_known_here(self) -> None:
        self.assertLessEqual({path.name for path in (ROOT / "taba").iterdir() if (path / "__init__.py").exists()}, PARTS | ROOT_ROOMS)

    def test_servers_and_agents_reach_handlers_through_the_lookup_alone(self) -> None:
        for path in [*modules("server"), *modules("agent")]:
            for name in imports(path):
                if name.startswith("taba.handlers"):
                    self.assertTrue(name.startswith(LOOKUP), f"{path}: {name}")

    def test_the_command_reaches_the_store_where_buckets_are_moved_alone(self) -> None:
        for path in modules("cli"):
            if path.name != "sharding.py":
                self.assertFalse([name for name in imports(path) if name.startswith("taba.shard")], path)

    def test_no_two_modules_import_each_other(self) -> None:
        graph = {name: neighbours(path) if path.suffix == ".py" else set() for name, path in known_modules().items()}
        done: set[str] = set()

        def visit(name: str, way: tuple[str, ...]) -> None:
            self.assertNotIn(name, way, " imports ".join([*way, name]))
            if name not in done:
                for other in sorted(graph[name] - {name}):
                    visit(other, (*way, name))
                done.add(name)

        for name in sorted(graph):
            visit(name, ())

    def test_time_and_chance_are_arguments_but_at_the_edges(self) -> None:
        for part in ("root", "handlers", "agent", "server", "shard", "inputs"):
            for path in modules(part):
                self.assertLessEqual(chance(path), EDGES.get(str(path.relative_to(ROOT / "taba")), set()), path)
        self.assertIn("time.time", chance(ROOT / "taba" / "server" / "service.py"))  # it does see them

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

    def test_each_framework_imports_its_own_library_and_the_client_alone(self) -> None:
        also = {"django": {"asgiref"}, "fastapi": {"starlette"}}  # which comes with it, and is half of it
        for path in modules("frameworks"):
            for name in imports(path):
                first, second, *_ = [*name.split("."), ""]
                if first == "taba":
                    self.assertIn(second, ("client", "frameworks"), f"{path}: {name}")
                else:
                    own = {path.stem} | also.get(path.stem, set())
                    self.assertTrue(first in sys.stdlib_module_names or first in own, f"{path}: {name}")

    def test_only_one_module_speaks_to_the_store_and_none_pickles(self) -> None:
        for path in (ROOT / "taba").rglob("*.py"):
            found = imports(path)
            self.assertFalse(any(name.split(".")[0] in ("pickle", "marshal", "shelve") for name in found), path)
            if any(name.startswith("txredisapi") for name in found):
                self.assertEqual(path, ROOT / "taba" / "shard" / "servers" / "connection.py")

    def test_nothing_under_twisted_is_a_package(self) -> None:
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py")), [])

    def test_the_simulator_imports_taba_alone_and_nothing_of_taba_knows_of_it(self) -> None:
        for path in (ROOT / "simulation").rglob("*.py"):
            self.assertFalse([name for name in imports(path) if name.split(".")[0] in ("tests", "benchmarks", "demo")], path)
        for folder in ("taba", "twisted", "benchmarks", "demo"):
            for path in (ROOT / folder).rglob("*.py"):
                self.assertFalse([name for name in imports(path) if name.split(".")[0] == "simulation"], path)

    def test_the_simulated_world_takes_chance_from_its_seed_and_time_from_nobody(self) -> None:
        for path in (ROOT / "simulation").rglob("*.py"):
            wanted = {"command.py": {"time.monotonic", "time.process_time"}}.get(path.name, set())  # it counts hours, and what they cost
            self.assertLessEqual(chance(path), wanted, path)

    def test_tests_and_benchmarks_share_the_package_alone(self) -> None:
        for path in (ROOT / "benchmarks").rglob("*.py"):
            self.assertFalse([name for name in imports(path) if name.split(".")[0] == "tests"], path)
        for path in (ROOT / "tests").rglob("*.py"):
            used = set(IMPORTED.findall(path.read_text())) & {"benchmarks", "demo"}  # found without parsing: these are half of all lines
            self.assertFalse(used and path.name != f"test_{used.pop()}.py", path)


class Typed(SynchronousTestCase):
    """mypy judges tests as it judges the rest, and what it is told to let pass is one code of one line."""

    def test_nothing_is_exempt_from_types(self) -> None:
        settings = (ROOT / "pyproject.toml").read_text().split("[tool.mypy]")[1].split("[tool.towncrier]")[0]
        self.assertIn("strict = true", settings)
        for name in TYPED:
            self.assertIn(f'"{name}"', settings)
        for exempting in ("disable_error_code", "ignore_errors", "untyped_defs", "incomplete_defs", "follow_imports", "exclude"):
            self.assertNotIn(exempting, settings)

    def test_what_is_ignored_is_named(self) -> None:
        any_code = re.compile(r"#\s*(?:type:\s*ignore(?!\[)|mypy:)")
        found = [str(path.relative_to(ROOT)) for name in TYPED for path in (ROOT / name).rglob("*.py") if any_code.search(path.read_text())]
        self.assertEqual(found, ["taba/handlers/interface.py"])  # methods of an interface have no self
