"""What writers note while their bucket is copied."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from taba.shard.buckets import MalformedMap, Owner, decode_owner, dirty_key, encode_owner, is_moving, lease_key
from taba.shard.dirty import FIELD, KEY, MEMBER, Note, decode_note, encode_note, notes_of, noting


class NoteTests(SynchronousTestCase):
    @given(st.sampled_from([KEY, FIELD, MEMBER]), st.binary(max_size=30), st.binary(max_size=30))
    def test_a_note_is_read_as_it_was_written(self, kind: bytes, key: bytes, part: bytes) -> None:
        self.assertEqual(decode_note(encode_note(Note(kind, key, part))), Note(kind, key, part))

    def test_what_is_no_note_is_refused(self) -> None:
        for wrong in (b"", b"k", b"x1:a", b"k9:a", b"k-1:a", b"k1a"):
            with self.assertRaises(ValueError):
                decode_note(wrong)

    def notes(self, *command: bytes) -> list[Note]:
        return [decode_note(note) for note in notes_of([command])]

    def test_fields_and_members_are_noted_alone(self) -> None:
        self.assertEqual(self.notes(b"hset", b"k", b"f", b"1", b"g", b"2"), [Note(FIELD, b"k", b"f"), Note(FIELD, b"k", b"g")])
        self.assertEqual(self.notes(b"HDEL", b"k", b"f", b"g"), [Note(FIELD, b"k", b"f"), Note(FIELD, b"k", b"g")])
        self.assertEqual(self.notes(b"HINCRBY", b"k", b"f", b"1"), [Note(FIELD, b"k", b"f")])
        self.assertEqual(self.notes(b"SADD", b"k", b"m"), [Note(MEMBER, b"k", b"m")])
        self.assertEqual(self.notes(b"SREM", b"k", b"m"), [Note(MEMBER, b"k", b"m")])

    def test_every_key_that_a_command_may_change_is_noted(self) -> None:
        self.assertEqual(self.notes(b"DEL", b"a", b"b"), [Note(KEY, b"a"), Note(KEY, b"b")])
        self.assertEqual(self.notes(b"MSET", b"a", b"1", b"b", b"2"), [Note(KEY, b"a"), Note(KEY, b"b")])
        self.assertEqual(self.notes(b"RENAME", b"a", b"b"), [Note(KEY, b"a"), Note(KEY, b"b")])
        for name in (b"SET", b"LPUSH", b"LTRIM", b"PEXPIRE", b"INCR", b"SPOP", b"SOMETHINGNEW"):
            self.assertEqual(self.notes(name, b"a", b"1"), [Note(KEY, b"a")])
        a, b = b"taba:{3}:a", b"taba:{3}:b"
        for command in ((b"BLMOVE", a, b, b"LEFT", b"RIGHT", b"0"), (b"SORT", a, b"ALPHA", b"STORE", b), (b"BRPOPLPUSH", a, b, b"0")):
            self.assertEqual(self.notes(*command), [Note(KEY, a), Note(KEY, b)])
        self.assertEqual(self.notes(b"LPUSH", a, b"taba:{33}:x", b"1"), [Note(KEY, a)])

    def test_reads_and_the_lease_are_not_noted(self) -> None:
        self.assertEqual(self.notes(b"GET", b"a"), [])
        self.assertEqual(noting(3, [(b"SET", lease_key(3), b"x"), (b"DEL", lease_key(3))]), [])
        self.assertEqual(noting(3, [(b"SET", b"a", b"x")]), [(b"SADD", dirty_key(3), b"k1:a")])


class OwnerTests(SynchronousTestCase):
    @given(
        st.sampled_from(["open", "sealed", "moved", "arriving"]),
        st.integers(0, 10**17),
        st.from_regex(r"[a-z0-9._-]{1,20}", fullmatch=True),
        st.one_of(st.just(""), st.from_regex(r"[a-z0-9._-]{1,20}", fullmatch=True)),
    )
    def test_an_owner_key_is_read_as_it_was_written(self, state: str, epoch: int, name: str, moving: str) -> None:
        owner = Owner(state, epoch, name, moving if state == "open" else "")
        self.assertEqual(decode_owner(encode_owner(owner)), owner)
        self.assertEqual(is_moving(encode_owner(owner)), bool(owner.moving))
        self.assertEqual(owner.token, name if state in ("sealed", "arriving") else owner.moving)

    def test_what_is_no_owner_is_refused(self) -> None:
        for wrong in (
            b"",
            b"open:1:",
            b"open:1:s1:moving:",
            b"open:1::moving:t",
            b"moved:2:s2:moving:t",
            b"moved:2:s2:leaving:",
            b"shut:1:s1",
            b"open:x:s1",
            b"open:1:\xff",
        ):
            with self.assertRaises(MalformedMap):
                decode_owner(wrong)
