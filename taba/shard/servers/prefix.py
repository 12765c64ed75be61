"""Stores that share a server and a database: on the wire the keys of each begin with a word of its own. Pure.

All of Taba calls a key `taba:…`; what a store's address says instead (`?prefix=NAME`) stands at the beginning of every key on
its servers, and nowhere else: not in values, not in what is noted of keys, not in replies.
"""

from __future__ import annotations

from collections.abc import Sequence

from taba.shard.dirty import Command

USUAL = "taba"
_BEGIN = b"taba:"

_WITHOUT_KEYS = frozenset(
    b"PING ECHO AUTH HELLO SELECT MULTI EXEC UNWATCH INFO CONFIG TIME ROLE WAIT WAITAOF CLUSTER SENTINEL SCAN".split()
)
_SCRIPTS = frozenset([b"EVALSHA", b"EVAL"])
# whose further arguments are values, fields and members, which may look like keys
_ONE_KEY = frozenset(
    b"GET SET SETNX SETEX PSETEX GETSET GETDEL GETEX APPEND STRLEN GETRANGE SETRANGE INCR INCRBY INCRBYFLOAT DECR DECRBY "
    b"TYPE TTL PTTL EXPIRE PEXPIRE EXPIREAT PEXPIREAT PERSIST DUMP RESTORE GETBIT SETBIT BITCOUNT "
    b"HGET HMGET HGETALL HKEYS HVALS HLEN HEXISTS HSTRLEN HSCAN HSET HMSET HSETNX HDEL HINCRBY HINCRBYFLOAT HRANDFIELD "
    b"SADD SREM SPOP SMEMBERS SCARD SISMEMBER SMISMEMBER SSCAN SRANDMEMBER "
    b"LPUSH RPUSH LPUSHX RPUSHX LPOP RPOP LTRIM LRANGE LLEN LINDEX LSET LREM LINSERT LPOS "
    b"ZADD ZREM ZINCRBY ZSCORE ZMSCORE ZCARD ZRANK ZREVRANK ZRANGE ZREVRANGE ZRANGEBYSCORE ZRANGEBYLEX ZRANDMEMBER ZSCAN ZCOUNT "
    b"ZREMRANGEBYSCORE ZREMRANGEBYRANK ZREMRANGEBYLEX ZPOPMIN ZPOPMAX XADD XLEN XRANGE XTRIM XDEL PFADD".split()
)


def on_the_wire(key: bytes, prefix: str) -> bytes:
    """What stands on the server for the key `key`; what is no key of Taba's stays as it is."""
    return prefix.encode() + key[len(USUAL) :] if key.startswith(_BEGIN) else key


def from_the_wire(key: bytes, prefix: str) -> bytes:
    """The key that stands on the server as `key`, which begins with `prefix`."""
    return _BEGIN + key[len(prefix) + 1 :]


def with_prefix(commands: Sequence[Command], prefix: str) -> list[Command]:
    """`commands`, with their keys as they stand on the server."""
    return [_command(command, prefix) for command in commands]


def _command(command: Command, prefix: str) -> Command:
    name = command[0].upper()
    if name in _WITHOUT_KEYS or len(command) < 2:
        return command
    if name in _SCRIPTS:  # how many keys there are stands before them; what follows them is arguments
        end = 3 + int(command[2])
        return (*command[:3], *[on_the_wire(key, prefix) for key in command[3:end]], *command[end:])
    if name in _ONE_KEY:
        return (command[0], on_the_wire(command[1], prefix), *command[2:])
    return (command[0], *[on_the_wire(part, prefix) for part in command[1:]])  # several keys, or one in another place
