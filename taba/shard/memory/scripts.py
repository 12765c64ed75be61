"""The scripts that Taba sends to servers, as the store in memory carries them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taba.shard.keys import at_once
from taba.shard.servers.connection import Command, ErrorReply, Reply

RunCommand = Callable[[Command], Reply]
Script = Callable[[RunCommand, Sequence[bytes], Sequence[bytes]], Reply]


def _at_once(run: RunCommand, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Reply:
    owner_key, lease_key, done_key, names_key, key = keys
    owner, before, number, after, name, read, *words = arguments
    owner_said, lease, done = (run((b"GET", one)) for one in (owner_key, lease_key, done_key))
    if owner_said != owner or lease is not None or not isinstance(done, bytes) or not done.startswith(before):
        return at_once.OTHER
    existed = int(run((b"EXISTS", key)) == 1)
    reply = run((words[0], key, *words[1:]))
    if isinstance(reply, Exception):
        return reply
    if read:
        reply = run((read, key, *words[1 : 2 if read == b"HGET" else 1]))
    text = b"%d" % reply if isinstance(reply, int) else reply or b""
    if after == b"there" and not existed:
        run((b"ZADD", names_key, b"0", name))
    elif after == b"gone" and existed:
        run((b"ZREM", names_key, name))
    assert isinstance(text, bytes)
    run((b"SET", done_key, b"%b%d:%b" % (number, existed, text)))
    return [existed, text]


SCRIPTS: dict[bytes, tuple[bytes, Script]] = {at_once.SHA: (at_once.SCRIPT, _at_once)}


def evaluate(run: RunCommand, loaded: set[bytes], sha: bytes, count: bytes, rest: Sequence[bytes]) -> Reply:
    """The reply of the script `sha` to `count` keys and its arguments; NOSCRIPT where it is not `loaded`."""
    if sha not in loaded:
        return ErrorReply("NOSCRIPT No matching script.")
    return SCRIPTS[sha][1](run, rest[: int(count)], rest[int(count) :])
