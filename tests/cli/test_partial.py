"""`--partial`: what can be reached on standard output, what is left out on standard error, once."""

from __future__ import annotations

import contextlib
import io

from twisted.trial.unittest import SynchronousTestCase

from taba.cli.commands import command
from tests.query.test_query import Stranger

AWAY = b'Taba-Away: {"s2": {"buckets": "4-7", "why": "gone"}}\r\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n"


class Partial(SynchronousTestCase):
    def test_what_is_left_out_is_said_beside_the_answer(self) -> None:
        stranger = Stranger(HEAD + AWAY + b'\r\n["a"]')
        self.addCleanup(stranger.stop)
        for options, error in ((["--partial"], "taba names: left out is what is away: buckets 4-7 of shard s2 (gone)\n"), ([], "")):
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as told:
                command.main(["names", "--server", stranger.url, *options], "taba", standalone_mode=False)
            self.assertEqual((out.getvalue(), told.getvalue()), ("a\n", error))
