"""Commands are written in C as hiredis writes them."""

from __future__ import annotations

from hiredis import pack_command
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from taba.shard import transaction
from taba.shard.servers import connection
from taba.shard.servers.connection import encode

COMMANDS = st.lists(st.lists(st.one_of(st.binary(max_size=12), st.integers(0, 300).map(bytes)), min_size=1, max_size=12).map(tuple))


class WireTests(SynchronousTestCase):
    def setUp(self) -> None:
        if connection._wire is None:
            raise SkipTest("_wire is not built: needs a compiler")

    @settings(deadline=None)
    @given(COMMANDS)
    def test_commands_are_the_bytes_that_hiredis_makes(self, commands: list[tuple[bytes, ...]]) -> None:
        wanted = b"".join([pack_command(command) for command in commands])  # type: ignore[arg-type]  # its stub wants one element
        self.assertEqual(connection._wire.encode(commands), wanted)
        self.assertEqual(encode(commands), wanted)

    def test_what_is_not_all_bytes_is_left_alone(self) -> None:
        for commands in (
            (),
            ((b"GET", b"a"),),
            [[b"GET", b"a"]],
            [(b"GET", "a")],
            [(b"GET", bytearray(b"a"))],
            [(b"GET", 1)],
            [None],
            None,
        ):
            self.assertIsNone(connection._wire.encode(commands))
        self.assertEqual(encode([(b"SET", b"a", 1)]), b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n")  # type: ignore[list-item]

    @settings(deadline=None)
    @given(COMMANDS)
    def test_keys_and_sizes_are_those_that_python_finds(self, commands: list[tuple[bytes, ...]]) -> None:
        commands = [(command[0], b"taba:{7}:" + bytes(command[-1]), *command[1:]) for command in commands]
        self.assertEqual(transaction.measure(7, commands), sum(len(part) for command in commands for part in command))
        reads = [(b"HMGET", *command[1:]) for command in commands]
        self.assertEqual(connection._wire.keys(reads, b"taba:{7}:", frozenset([b"GET", b"HMGET"])), [read[1] for read in reads])
        self.assertEqual(transaction.keys_read(7, reads), [read[1] for read in reads])

    def test_keys_of_others_and_what_has_none_are_left_alone(self) -> None:
        prefix, names = b"taba:{7}:", frozenset([b"GET"])
        good = (b"GET", b"taba:{7}:a")
        for wrong in ((b"GET", b"taba:{70}:a"), (b"GET", b"taba:{7}"), (b"GET",), (), [*good], (b"GET", "taba:{7}:a"), None):
            self.assertIsNone(connection._wire.measure([good, wrong], prefix))
            self.assertIsNone(connection._wire.keys([good, wrong], prefix, names))
        self.assertIsNone(connection._wire.measure([(*good, "text")], prefix))
        self.assertIsNone(connection._wire.measure((good,), prefix))
        self.assertIsNone(connection._wire.keys([(b"SET", good[1])], prefix, names))
        for wrong in ((b"GET", b"taba:{70}:a"), (b"GET",)):
            with self.assertRaises(ValueError):
                transaction.measure(7, [good, wrong])
