"""Where inputs receive, as people write it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.receiving import MAX_UNIX_PATH, InputAddress, receiving


class Addresses(SynchronousTestCase):
    def test_ports_are_on_loopback_unless_they_say_otherwise(self) -> None:
        self.assertEqual(receiving("udp:8125"), InputAddress("udp", "127.0.0.1", 8125, 0))
        self.assertEqual(receiving("tcp:1:interface=localhost"), InputAddress("tcp", "127.0.0.1", 1, 0))
        for text, is_local in (("0.0.0.0", False), ("10.1.2.3", False), ("::", False), (r"\:\:1", True), ("127.0.0.9", True)):
            self.assertIs(receiving(f"udp:8125:interface={text}").is_local, is_local, text)

    def test_a_unix_socket_is_its_owners_alone_unless_it_says_otherwise(self) -> None:
        self.assertEqual(receiving("unix:/run/dsd.sock"), InputAddress("unix", "/run/dsd.sock", 0, 0o600))
        self.assertEqual(receiving("unix:/run/dsd.sock:mode=0660").mode, 0o660)
        self.assertTrue(receiving("unix:/run/dsd.sock").is_local)

    def test_one_place_has_one_text_which_is_read_again(self) -> None:
        for text in ("udp:8125", "tcp:8125:interface=::1", "unix:/x/y:mode=666"):
            address = receiving(text)
            self.assertEqual(receiving(address.text), address)
        self.assertEqual(receiving("udp:8125").text, receiving("udp:8125:interface=localhost").text)

    def test_a_path_may_be_so_long_and_no_longer(self) -> None:
        receiving("unix:/" + "x" * (MAX_UNIX_PATH - 1))
        self.assertRaises(ValueError, receiving, "unix:/" + "x" * MAX_UNIX_PATH)

    def test_beside_the_longest_path_a_socket_is_made_by_whatever_process(self) -> None:
        self.assertLessEqual(MAX_UNIX_PATH + len(f".{1 << 22}"), 107)  # the kernel's bounds of a pid and of a path

    def test_what_is_no_address_is_told_what_is(self) -> None:
        for text in ("", "8125", "udp:", "udp:0", "udp:65536", "udp:x", "udp:1:interface=", "udp:1:interface=example.org", "unix:relative"):
            self.assertIn("takes", str(self.assertRaises(ValueError, receiving, text)))
        for text in ("unix:/", "unix:/a/", "unix:/a:mode=9", "tcp:1:backlog=2", "udp:1\n", "sctp:1"):
            self.assertIn("takes", str(self.assertRaises(ValueError, receiving, text)))

    @given(st.text(max_size=40) | st.text("udptcnix:=/0123456789.interfacmo", max_size=40))
    def test_any_text_is_an_address_or_a_value_error(self, text: str) -> None:
        try:
            address = receiving(text)
        except ValueError:
            return
        self.assertEqual(receiving(address.text), address)
