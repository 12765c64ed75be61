from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from taba.directories import make_directory, strangers_in


class Directories(SynchronousTestCase):
    def test_what_is_made_is_its_users_alone_whatever_the_umask_and_what_is_there_stays_as_it_is(self) -> None:
        top = Path(self.mktemp())
        top.mkdir()
        top.chmod(0o755)
        before = os.umask(0)
        try:
            make_directory(top / "state" / "taba" / "store")
            make_directory(top / "state" / "taba" / "store")
        finally:
            os.umask(before)
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (top, top / "state", top / "state/taba", top / "state/taba/store")]
        self.assertEqual(modes, [0o755, 0o700, 0o700, 0o700])

    def test_what_is_no_directory_is_an_error(self) -> None:
        file = Path(self.mktemp())
        file.write_text("x")
        self.assertRaises(OSError, make_directory, file)
        self.assertRaises(OSError, make_directory, file / "store")

    def test_a_directory_of_another_or_where_everybody_writes_is_relied_on_by_nobody(self) -> None:
        def why(owner: int, mode: int) -> str | None:
            status: Any = SimpleNamespace(st_uid=owner, st_mode=stat.S_IFDIR | mode)
            return strangers_in(status, 7)

        self.assertEqual([why(7, 0o700), why(7, 0o755), why(7, 0o770), why(0, 0o2775)], [None] * 4)
        self.assertEqual(why(8, 0o700), "belongs to user 8")
        for mode in (0o1777, 0o777, 0o702):
            self.assertEqual(why(7, mode), f"may be written to by everybody (mode {mode:04o})")
