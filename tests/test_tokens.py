from __future__ import annotations

import hmac
import os
from pathlib import Path
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba import tokens
from taba.tokens import ADMIN, ANY, KINDS, MAX_SCOPE, OPEN, READ, UNBOUND, WRITE, Grant, Scope, line_of, new_token, parse_tokens


class Kinds(SynchronousTestCase):
    def test_a_token_does_what_its_kind_says_and_an_administrator_does_all(self) -> None:
        may = {kind: [wanted for wanted in (OPEN, ANY, *KINDS) if Grant(kind).allows(wanted)] for kind in KINDS}
        self.assertEqual(may, {READ: [OPEN, ANY, READ], WRITE: [OPEN, ANY, WRITE], ADMIN: [OPEN, ANY, *KINDS]})


IDS = st.text("ab/", min_size=1, max_size=3)


class Scopes(SynchronousTestCase):
    @given(st.lists(st.text("ab_.", max_size=4), max_size=20), st.lists(st.text("ab_.", min_size=1, max_size=3), min_size=1, max_size=4))
    def test_the_tabs_within_are_found_among_sorted_ones_as_one_by_one(self, tabs: list[str], prefixes: list[str]) -> None:
        scope, tabs = Scope((), tuple(prefixes)), sorted(set(tabs))
        self.assertEqual(list(scope.of_tabs(tabs)), [tab for tab in tabs if scope.covers_tab(tab)])
        self.assertEqual(UNBOUND.of_tabs(tabs), tabs)

    @given(st.lists(IDS | IDS.map(lambda begin: begin + "*"), min_size=1, max_size=3, unique=True), IDS)
    def test_a_client_is_within_where_it_is_named_or_begins_as_one_with_a_star(self, bounds: list[str], client: str) -> None:
        wanted = any(client == bound or (bound[-1] == "*" and client.startswith(bound[:-1])) for bound in bounds)
        self.assertEqual(Scope(tuple(bounds)).covers_client(client), wanted)
        self.assertTrue(UNBOUND.covers_client(client))

    def test_a_line_says_what_its_token_is_bound_to_and_as_often_as_it_may(self) -> None:
        token = new_token(WRITE)
        scope = Scope(tuple(f"web/{n}*" for n in range(MAX_SCOPE)), ("team_a.", "x"))
        line = line_of(token, scope)
        self.assertTrue(line.endswith("client=web/63* prefix=team_a. prefix=x"), line)
        self.assertEqual(parse_tokens(line + " # theirs").grant_of(token), Grant(WRITE, scope))
        self.assertRaises(ValueError, parse_tokens, line + " client=one/more")

    def test_what_a_token_cannot_be_bound_to_is_refused(self) -> None:
        token = new_token(READ)
        for fields in ["client=", "client=*", "client=a*b", "prefix=", "prefix=a{", "prefix=a*", "name=a", "a", f"client={token}x" * 9]:
            error = self.assertRaises(ValueError, parse_tokens, f"{line_of(token)} {fields}")
            self.assertNotIn(token, str(error))
        for scope in [Scope(("a b",)), Scope(("a#b",)), Scope((), ("a\nb",)), Scope((), ("a", "a"))]:
            self.assertRaises(ValueError, line_of, token, scope)
        self.assertRaises(ValueError, line_of, new_token(ADMIN), Scope(("a",)))


class Files(SynchronousTestCase):
    def test_what_a_line_grants_is_what_it_was_made_for(self) -> None:
        for kind in KINDS:
            token = new_token(kind)
            known = parse_tokens(f"# ours\n\n{line_of(token)} # a team's\n")
            self.assertEqual(known.grant_of(token), Grant(kind))

    @given(st.text(max_size=200))
    def test_no_text_is_read_as_tokens_by_chance(self, text: str) -> None:
        self.assertRaises(ValueError, parse_tokens, text)

    def test_several_tokens_of_a_kind_live_at_once_and_no_other_text_is_one(self) -> None:
        mine = [new_token(READ), new_token(READ), new_token(WRITE)]
        known = parse_tokens("\n".join(map(line_of, mine)))
        self.assertEqual([known.grant_of(token) for token in mine], [Grant(READ), Grant(READ), Grant(WRITE)])
        for other in ["", new_token(READ), mine[0][:-1], mine[0] + "x", mine[0].upper(), "\udce4", tokens.digest_of(mine[0]).hex()]:
            self.assertIsNone(known.grant_of(other))

    def test_neither_the_line_nor_what_is_kept_has_the_token(self) -> None:
        token = new_token(ADMIN)
        secret = token.split("_", 2)[2]
        known = parse_tokens(line_of(token))
        self.assertNotIn(secret, line_of(token))
        self.assertNotIn(secret, repr(vars(known)))

    def test_every_known_token_is_compared_whichever_is_found(self) -> None:
        mine = [new_token(READ) for _ in range(5)]
        known = parse_tokens("\n".join(map(line_of, mine)))
        for offered in [*mine, "none"]:
            with patch.object(hmac, "compare_digest", wraps=hmac.compare_digest) as compare:
                known.grant_of(offered)
            self.assertEqual(compare.call_count, 5)

    def test_a_line_that_is_none_is_named_and_never_shown(self) -> None:
        good, token = line_of(new_token(READ)), new_token(WRITE)
        for bad, reason in [
            (token, "line 2: takes read"),
            (f"write {token}", "line 2: takes read"),
            ("write", "line 2: takes read"),
            (f"root {good.split()[1]}", "line 2: takes read"),
            (f"{line_of(token)[:-1]}", "line 2: takes read"),
            (good, "line 2: has the same token"),
            (f"{line_of(token)} names=a", "line 2: takes client=ID and prefix=NAME"),
        ]:
            error = self.assertRaises(ValueError, parse_tokens, f"{good}\n{bad}\n")
            self.assertIn(reason, str(error))
            self.assertNotIn(token.split("_", 2)[2], str(error))
        for empty in ["", "\n \n", "# nothing\n"]:
            self.assertIn("no token", str(self.assertRaises(ValueError, parse_tokens, empty)))

    def test_as_many_tokens_as_the_bound_says_and_not_one_more(self) -> None:
        lines = [line_of(new_token(READ)) for _ in range(tokens.MAX_TOKENS)]
        self.assertEqual(len(parse_tokens("\n".join(lines))), tokens.MAX_TOKENS)
        self.assertRaises(ValueError, parse_tokens, "\n".join([*lines, line_of(new_token(READ))]))
        self.assertRaises(ValueError, line_of, "taba_read_short")


class OwnedFiles(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.path.write_text("text")
        self.path.chmod(0o600)

    def refusal(self, path: Path | None = None, most: int = 100) -> str:
        return str(self.assertRaises(ValueError, tokens.read_owned, path or self.path, most))

    def test_a_file_that_others_can_read_or_write_is_refused_with_the_cure(self) -> None:
        self.assertEqual(tokens.read_owned(self.path, 4), "text")
        for mode in (0o400, 0o700):
            self.path.chmod(mode)
            self.assertEqual(tokens.read_owned(self.path, 4), "text")
        for mode in (0o640, 0o604, 0o620, 0o602, 0o666, 0o610):
            self.path.chmod(mode)
            self.assertRegex(self.refusal(), f"chmod 600.*{mode:o}")

    def test_what_is_no_file_of_this_users_is_refused(self) -> None:
        fifo = Path(self.mktemp())
        os.mkfifo(fifo, 0o600)
        self.assertIn("regular file", self.refusal(fifo))
        self.assertIn("regular file", self.refusal(Path(self.path).parent))
        self.assertIn("no such file", self.refusal(Path("/nowhere")))
        if os.geteuid():
            self.patch(os, "geteuid", lambda: -1)
        else:
            os.chown(self.path, 12345, -1)
        self.assertIn("belongs to uid", self.refusal())

    def test_a_file_may_be_as_large_as_its_bound_and_is_text(self) -> None:
        self.assertIn("at most 3 bytes", self.refusal(most=3))
        self.path.write_bytes(b"\xff")
        self.assertIn("UTF-8", self.refusal())

    def test_a_file_with_one_token_has_nothing_else(self) -> None:
        token = new_token(WRITE)
        self.path.write_text(f"{token}\n")
        self.assertEqual(tokens.read_token(self.path), token)
        self.path.write_bytes(b"\xef\xbb\xbf" + f"{token}\r\n".encode())  # as some editors write it
        self.assertEqual(tokens.read_token(self.path), token)
        self.path.write_bytes(b"\xef\xbb\xbf" + f"{line_of(token)}\r\n".encode())
        self.assertEqual(len(tokens.read_tokens(self.path)), 1)
        for text in ["", f"{token} {token}", line_of(token), "secret"]:
            self.path.write_text(text)
            error = self.assertRaises(ValueError, tokens.read_token, self.path)
            self.assertIn("one token", str(error))
            self.assertNotIn(token, str(error))
