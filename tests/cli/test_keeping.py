"""`taba delete`, `prune`, `upgrade`, `retry` and `jobs` as people run them."""

from __future__ import annotations

import json
from typing import Any

from taba.query import BadRequest
from tests.patience import until
from tests.services import BesideAServer
from tests.valkey import make_older


class Keeping(BesideAServer):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        # ExpiryGauge: has nothing more to say after its seconds
        events: Any = [{"tab": f"brief{n}", "type": "ExpiryGauge", "value": {"value": 1, "seconds": 0.001}} for n in range(3)]
        events += [{"tab": f"lasting{n}", "type": "TotalsCounter", "value": 1} for n in range(4)]
        events += [{"tab": "odd", "type": "NoSuchType", "value": 1}]
        assert cls.services.query.post_events("web/1", events)["accepted"] == 8
        assert cls.services.query.post_events("web/2", events[3:4])["accepted"] == 1
        # a Handler is asked about States that nobody has touched for a day
        age = make_older(cls.services.directory / "store", 24 * 60)
        until(lambda: cls.services.query.status()["store"]["age"] == age, f"the Server does not see that its store is {age} minutes old")

    def taba(self, *arguments: str, code: int = 0, error: str = "") -> str:
        done = self.services.taba(*arguments)
        self.assertEqual(done.returncode, code, done)
        self.assertRegex(done.stderr, f"^{error}\n$" if error else "^$")
        return done.stdout

    def test_what_would_be_pruned_is_said_and_then_pruned(self) -> None:
        lines = self.taba("prune", "--dry-run").splitlines()
        self.assertRegex(lines[0], "^prune: 3 States would be deleted")
        self.assertEqual(sorted(lines[1:]), [f"delete brief{n} web/1" for n in range(3)])
        self.assertEqual(len(json.loads(self.taba("prune", "--dry-run", "--json"))["found"]), 3)
        code, shown = self.services.on_terminal("prune", "--dry-run")
        self.assertEqual(code, 0)
        self.assertRegex(shown, "(?s)3 States would be deleted.*action.*tab.*client.*brief1")
        self.assertIn("brief1", self.services.query.names())
        self.assertRegex(self.taba("prune"), "^prune: 3 States deleted, 0 merged into _retired\n$")
        self.assertNotIn("brief1", self.services.query.names())

    def test_upgrade_and_retry_say_what_they_did(self) -> None:
        self.assertRegex(self.taba("upgrade"), "^upgrade: 0 States upgraded\n$")
        self.assertRegex(self.taba("retry"), "^retry: 0 events folded, 1 still cannot be\n$")
        kinds = {line.split()[1] for line in self.taba("jobs").splitlines()}
        self.assertLessEqual({"upgrade", "retry"}, kinds)
        records = json.loads(self.taba("jobs", "--json"))
        self.assertLessEqual({"id", "kind", "state", "done", "total", "started", "message"}, set(records[0]))
        self.taba("jobs", "--cancel", "nonsense", code=1, error="taba: .* no job 'nonsense'")
        code, shown = self.services.on_terminal("retry")
        self.assertEqual(code, 0)
        self.assertIn("1 still cannot be", shown)

    def test_deleting_asks_on_a_terminal_and_needs_yes_elsewhere(self) -> None:
        self.taba("delete", "tabs", "lasting0", code=2, error="taba delete: .*--yes.*")
        code, shown = self.services.on_terminal("delete", "tabs", "lasting0", said=b"n\n")
        self.assertEqual(code, 130)
        self.assertIn("for ever?", shown)
        self.assertIn("lasting0", self.services.query.names())
        code, shown = self.services.on_terminal("delete", "tabs", "lasting0", said=b"y\n")
        self.assertEqual(code, 0)
        self.assertRegex(shown, "1 Tab deleted, 2 States")
        self.assertNotIn("lasting0", self.services.query.names())
        self.assertEqual(self.taba("delete", "tabs", "--yes", "lasting1", "lasting2"), "2 Tabs deleted, 2 States\n")
        self.assertEqual(json.loads(self.taba("delete", "clients", "--yes", "--json", "nobody")), {"clients": 0, "states": 0})
        self.taba("delete", "tabs", "--yes", "nothing", code=1, error="taba: 1 of 1 names were not there.*")
        self.taba("delete", "tabs", code=2, error="taba delete: .*NAME.*")

    def test_a_kind_of_job_that_there_is_not(self) -> None:
        with self.assertRaises(BadRequest):
            self.services.query.start_job("upgrade", dry_run=True)
        with self.assertRaises(ValueError):
            self.services.query.start_job("../v1")
