"""Parts in C that do not fit the Python beside them are left alone, and that is said."""

from __future__ import annotations

import re
import sys
import types
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from taba import parts
from tests.sources import ROOT

NAME = "taba.agent._drain"


class PartsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(parts._asked.update, parts.told())

    def found(self, module: types.ModuleType | None, **environment: str) -> tuple[object, str]:
        """What `find` gives where this is built, and what is told of it."""
        with mock.patch.dict("os.environ", {"TABA_PURE": "", **environment}), mock.patch.dict(sys.modules, {NAME: module}):
            found = parts.find(NAME)
        return found, parts.told()[NAME]

    def test_each_part_is_of_the_form_that_is_asked_for(self) -> None:
        of_sources = {
            ".".join(path.relative_to(ROOT).with_suffix("").parts): [
                int(form) for form in re.findall(r"^#define FORM (\d+)", path.read_text(), re.M)
            ]
            for path in (ROOT / "taba").rglob("*.c")
        }
        self.assertEqual(of_sources, {name: [form] for name, form in parts.FORMS.items()})
        built = re.findall(r'^ +part\("([\w.]+)"', (ROOT / "setup.py").read_text(), re.M)
        self.assertEqual(sorted(built), sorted(parts.FORMS))

    def test_a_library_of_before_is_not_used(self) -> None:
        now, before, of_old = (types.ModuleType(NAME) for _ in range(3))
        now.FORM, before.FORM = parts.FORMS[NAME], parts.FORMS[NAME] - 1  # type: ignore[attr-defined]
        self.assertEqual(self.found(now), (now, parts.USED))
        for module in (before, of_old):  # the first libraries said nothing of a form
            self.assertEqual(self.found(module), (None, parts.OTHER))

    def test_a_part_that_is_not_built_or_not_wanted_is_not_used(self) -> None:
        module = types.ModuleType(NAME)
        module.FORM = parts.FORMS[NAME]  # type: ignore[attr-defined]
        self.assertEqual(self.found(None), (None, parts.NOT_BUILT))
        self.assertEqual(self.found(module, TABA_PURE="1"), (None, parts.OFF))
        with mock.patch.object(sys, "_is_gil_enabled", lambda: False, create=True):
            self.assertEqual(self.found(module), (None, parts.FREE))
