"""A write of one key in one round trip: a script on the server compares what a transaction would have WATCHed, and writes. Pure.

1. It writes only where the bucket's owner key says what this Router last saw there, nobody holds the bucket's lease, and the last
   write of this Router there is the one that it knows of: else, and where a command is refused, it has written nothing.
2. It notes its number and its answer in that same key. Who lost the answer reads it there; a script that comes late, from
   a socket that a stopped server had not read, finds another number and writes nothing.
3. Nothing depends on it: whatever else it answers than that it was done, the transaction decides (see `writing`).

The same words are carried out by `taba.shard.memory.scripts` for the store in memory; a contract compares both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from taba.shard.dirty import Command

MOST_WORDS = 1000  # of one write: Lua unpacks no more than some 8,000, and a script holds everybody up
KEYS = 5  # owner, lease, done, names, and the key that is written
OLD = b"old"  # the server's scripts are not held to its `min-replicas-to-write`, as those of Redis below 7
AFTER = {"there": b"there", "maybe": b"maybe", "gone": b"gone"}
OTHER = b"other"  # something is not as it was: nothing was written

# A whole number of a counter is read back as text: Lua has floats alone, which lose its last digits.
SCRIPT = b"""\
if not redis.REDIS_VERSION_NUM then return 'old' end
local said = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3])
if said[1] ~= ARGV[1] or said[2] or string.sub(said[3] or '', 1, #ARGV[2]) ~= ARGV[2] then return 'other' end
local existed = redis.call('EXISTS', KEYS[5])
local reply = redis.pcall(ARGV[7], KEYS[5], unpack(ARGV, 8))
if type(reply) == 'table' and reply.err then return reply end
if ARGV[6] == 'GET' then reply = redis.call('GET', KEYS[5])
elseif ARGV[6] == 'HGET' then reply = redis.call('HGET', KEYS[5], ARGV[8]) end
if type(reply) == 'number' then reply = string.format('%.0f', reply)
elseif type(reply) == 'table' then reply = reply.ok
elseif not reply then reply = '' end
if ARGV[4] == 'there' and existed == 0 then redis.call('ZADD', KEYS[4], '0', ARGV[5])
elseif ARGV[4] == 'gone' and existed == 1 then redis.call('ZREM', KEYS[4], ARGV[5]) end
redis.call('SET', KEYS[3], ARGV[3] .. existed .. ':' .. reply)
return {existed, reply}
"""
SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

Answer = Callable[[bool, bytes], Any]  # whether the key was there before, the server's reply as text → the result


class AtOnce(NamedTuple):
    """A write as a command without its key, what reads the answer where the reply is not it, and what that means.

    Its answer must be short: it is kept in the store until this Router's next write to the bucket.
    """

    words: Sequence[bytes]
    answer: Answer
    read: bytes = b""  # or GET, or HGET of the command's field


def counted(_: bool, text: bytes) -> int:
    """The answer of what answers a number."""
    return int(text)


def number_of(done: bytes | None) -> int:
    """The number of the write that a `done` key says."""
    return int((done or b"0").partition(b":")[0])


def answer_of(done: bytes, answer: Answer) -> Any:
    """What the script noted that it answered."""
    _, existed, text = done.split(b":", 2)
    return answer(existed == b"1", text)


def written(number: int) -> bytes:
    """How a `done` key begins after the write of that number; after a transaction, all of it."""
    return b"%d:" % number


def beginning(keys: Sequence[bytes]) -> Command:
    """How a write in a bucket begins: the script's digest, how many keys, and those that are its bucket's, in the order of `KEYS`."""
    return (b"EVALSHA", SHA, b"%d" % KEYS, *keys)


def command(begins: Command, key: bytes, owner: bytes, before: int, number: int, after: str, name: bytes, write: AtOnce) -> Command:
    """All of it; `begins`: see `beginning`."""
    return (*begins, key, owner, b"%d:" % before, b"%d:" % number, AFTER[after], name, write.read, *write.words)


def in_full(command: Command) -> Command:
    """The same for a server that does not know the digest."""
    return (b"EVAL", SCRIPT, *command[2:])
