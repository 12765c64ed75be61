"""A server that is a dictionary: it answers the commands that Taba uses as a real one does.

`tests/shard/test_memory.py` gives the same commands to both and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from taba.shard.memory.scripts import SCRIPTS, evaluate
from taba.shard.memory.values import (
    SetMembers,
    SortedMembers,
    as_float,
    as_integer,
    as_slice,
    check_shown,
    element,
    is_above,
    is_below,
    limited,
    scan_options,
    score_text,
    shown,
    sum_of,
    walk,
)
from taba.shard.servers.connection import Command, ErrorReply, Reply

WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
SETTINGS = {b"appendonly": b"yes", b"appendfsync": b"always", b"maxmemory": b"0", b"maxmemory-policy": b"noeviction"}


class MemoryServer:
    """One server: its keys, when they expire, and how often each was changed. `is_away`: it answers nobody.

    It is a primary without replicas; `run` and `stream` say which process it is, and which history it has.
    """

    def __init__(self, clock: Any, random: Random | None = None):
        self.is_away = False
        self._random = random or Random()
        self.run_id, self.stream_id = self.new_id(), self.new_id()
        self.replicas: dict[str, int] = {}  # "host:port" → how much of what was changed it has
        self._clock = clock
        self._values: dict[bytes, Any] = {}
        self._expires: dict[bytes, float] = {}
        self._changes = 0
        self._versions: dict[bytes, int] = {}
        self._scripts: set[bytes] = set()  # that it knows by their digests

    def version(self, key: bytes) -> int:
        """Grows with each change of `key`, its expiry too."""
        self._expire(key)
        return self._versions.get(key, 0)

    def new_id(self) -> str:
        """An id as servers have them."""
        return f"{self._random.getrandbits(160):040x}"

    @property
    def offset(self) -> int:
        """How much was changed so far: what a replica has to have."""
        return self._changes

    def run(self, command: Command) -> Reply:
        """The reply to one command, none of a transaction's own."""
        refused = refusal(command)
        if refused is not None:
            return refused
        try:
            return COMMANDS[command[0].upper()][2](self, *command[1:])
        except ErrorReply as error:
            return error

    # --- keys ---

    def _expire(self, key: bytes) -> None:
        if key in self._expires and self._expires[key] <= self._clock.seconds():
            self._remove(key)

    def _touch(self, key: bytes) -> None:
        self._changes += 1
        self._versions[key] = self._changes

    def _remove(self, key: bytes) -> bool:
        self._expires.pop(key, None)
        found = self._values.pop(key, None) is not None
        if found:
            self._touch(key)
        return found

    def _get(self, key: bytes, kind: type, make: bool = False) -> Any:
        """The value of `key`; None, or with `make` a new one that is kept, where there is none. Raises for one of another kind."""
        self._expire(key)
        value = self._values.get(key)
        if value is None:
            if not make:
                return None
            value = self._values[key] = kind()
        if type(value) is not kind:  # a sorted set is a dict too
            raise ErrorReply(WRONG_TYPE)
        return value

    def _changed(self, key: bytes, has_changed: bool = True) -> None:
        if has_changed:
            self._touch(key)
        if key in self._values and not self._values[key] and not isinstance(self._values[key], bytes):
            self._remove(key)  # what holds nothing does not exist

    def _set(self, key: bytes, value: bytes, *options: bytes) -> Reply:
        seconds: float | None = None
        condition, is_kept = b"", False
        left = list(options)
        while left:
            word = left.pop(0).upper()
            if word in (b"NX", b"XX") and condition in (b"", word):
                condition = word
            elif word == b"KEEPTTL":
                is_kept = True
            elif word in (b"EX", b"PX") and left and seconds is None:
                seconds = as_integer(left.pop(0)) * (1.0 if word == b"EX" else 0.001)
            else:
                raise ErrorReply("ERR syntax error")
        self._expire(key)
        if condition and (condition == b"NX") == (key in self._values):
            return None
        if not is_kept:
            self._expires.pop(key, None)
        if seconds is not None:
            self._expires[key] = self._clock.seconds() + seconds
        self._values[key] = value
        self._touch(key)
        return b"OK"

    def _delete(self, *keys: bytes) -> Reply:
        for key in keys:
            self._expire(key)
        return sum([self._remove(key) for key in keys])

    def _exists(self, *keys: bytes) -> Reply:
        for key in keys:
            self._expire(key)
        return sum(key in self._values for key in keys)

    def _pexpire(self, key: bytes, milliseconds: bytes) -> Reply:
        self._expire(key)
        if key not in self._values:
            return 0
        self._expires[key] = self._clock.seconds() + as_integer(milliseconds) / 1000
        self._touch(key)
        self._expire(key)
        return 1

    def _pttl(self, key: bytes) -> Reply:
        self._expire(key)
        if key not in self._values:
            return -2
        return round((self._expires[key] - self._clock.seconds()) * 1000) if key in self._expires else -1

    def _persist(self, key: bytes) -> Reply:
        self._expire(key)
        if key not in self._expires:
            return 0
        del self._expires[key]
        self._touch(key)
        return 1

    def _mget(self, *keys: bytes) -> Reply:
        for key in keys:
            self._expire(key)
        found = [self._values.get(key) for key in keys]
        return [value if isinstance(value, bytes) else None for value in found]

    def _incrby(self, key: bytes, amount: bytes = b"1") -> Reply:
        added = as_integer(amount)
        before = self._get(key, bytes)
        total = sum_of(as_integer(b"0" if before is None else before), added)
        self._values[key] = b"%d" % total
        self._touch(key)
        return total

    # --- hashes, sets, lists ---

    def _hset(self, key: bytes, *pairs: bytes) -> Reply:
        if len(pairs) % 2:
            raise ErrorReply("ERR wrong number of arguments for 'hset' command")
        fields = self._get(key, dict, make=True)
        before = len(fields)
        fields.update(zip(pairs[::2], pairs[1::2], strict=True))
        self._changed(key)
        return len(fields) - before

    def _hincrby(self, key: bytes, field: bytes, amount: bytes) -> Reply:
        added = as_integer(amount)
        fields = self._get(key, dict) or {}
        try:
            before = as_integer(fields.get(field, b"0"))
        except ErrorReply:
            raise ErrorReply("ERR hash value is not an integer") from None
        total = sum_of(before, added)
        self._get(key, dict, make=True)[field] = b"%d" % total
        self._changed(key)
        return total

    def _hdel(self, key: bytes, *names: bytes) -> Reply:
        fields = self._get(key, dict) or {}
        removed = sum([fields.pop(name, None) is not None for name in names])
        self._changed(key, bool(removed))
        return removed

    def _hgetall(self, key: bytes) -> Reply:
        return [part for pair in (self._get(key, dict) or {}).items() for part in pair]

    def _sadd(self, key: bytes, *members: bytes) -> Reply:
        held = self._get(key, SetMembers, make=True)
        before = len(held)
        held.update(members)
        self._changed(key, len(held) > before)
        return len(held) - before

    def _srem(self, key: bytes, *members: bytes) -> Reply:
        held = self._get(key, SetMembers) or SetMembers()
        before = len(held)
        held.difference_update(members)
        self._changed(key, len(held) < before)
        return before - len(held)

    def _smismember(self, key: bytes, *members: bytes) -> Reply:
        held = self._get(key, SetMembers) or SetMembers()
        return [int(member in held) for member in members]

    def _zadd(self, key: bytes, *pairs: bytes) -> Reply:
        if len(pairs) % 2:
            raise ErrorReply("ERR syntax error")
        scores = [as_float(score) for score in pairs[::2]]
        held = self._get(key, SortedMembers, make=True)
        written = dict(zip(pairs[1::2], scores, strict=True))
        new = len(written.keys() - held.keys())
        is_changed = bool(new) or any(held[member] != score for member, score in written.items())
        held.update(written)
        self._changed(key, is_changed)
        return new

    def _zrem(self, key: bytes, *members: bytes) -> Reply:
        held = self._get(key, SortedMembers) or SortedMembers()
        removed = sum([held.pop(member, None) is not None for member in members])
        self._changed(key, bool(removed))
        return removed

    def _zmscore(self, key: bytes, *members: bytes) -> Reply:
        held = self._get(key, SortedMembers) or SortedMembers()
        return [score_text(held[member]) if member in held else None for member in members]

    def _zrank(self, key: bytes, member: bytes, *words: bytes) -> Reply:
        if words:
            raise ErrorReply("ERR syntax error")
        held = self._get(key, SortedMembers) or SortedMembers()
        return held.in_order().index(member) if member in held else None

    def _zrange(self, key: bytes, first: bytes, last: bytes, *words: bytes, is_reverse: bool = False) -> Reply:
        check_shown(words)
        start, end = as_integer(first), as_integer(last)
        held = self._get(key, SortedMembers) or SortedMembers()
        members = held.in_order()[::-1] if is_reverse else held.in_order()
        return shown(held, members[as_slice(len(members), start, end)], words)

    def _zrangebyscore(self, key: bytes, low: bytes, high: bytes, *words: bytes) -> Reply:
        words, (offset, count) = limited(words)
        check_shown(words)
        least, most = as_float(low or b"0"), as_float(high or b"0")  # as a real one takes them
        held = self._get(key, SortedMembers) or SortedMembers()
        members = [member for member in held.in_order() if least <= held[member] <= most]
        return shown(held, members[offset:][: count if count >= 0 else None], words)

    def _type(self, key: bytes) -> Reply:
        self._expire(key)
        kinds: dict[Any, bytes] = {bytes: b"string", dict: b"hash", SetMembers: b"set", list: b"list", SortedMembers: b"zset"}
        return kinds[type(self._values[key])] if key in self._values else b"none"

    def _zrangebylex(self, key: bytes, low: bytes, high: bytes, _: bytes, offset: bytes, count: bytes) -> Reply:
        held = sorted(self._get(key, SortedMembers) or ())
        found = [member for member in held if is_above(member, low) and is_below(member, high)]
        return found[as_integer(offset) :][: as_integer(count)]

    def _zrandmember(self, key: bytes, count: bytes) -> Reply:
        held = sorted(self._get(key, SortedMembers) or ())
        return self._random.sample(held, min(len(held), as_integer(count)))

    def _push(self, key: bytes, members: Sequence[bytes], at_the_head: bool) -> Reply:
        held = self._get(key, list, make=True)
        for member in members:
            held.insert(0 if at_the_head else len(held), member)
        self._changed(key)
        return len(held)

    def _lrange(self, key: bytes, first: bytes, last: bytes) -> Reply:
        start, end = as_integer(first), as_integer(last)
        held = self._get(key, list) or []
        return list(held[as_slice(len(held), start, end)])

    def _ltrim(self, key: bytes, first: bytes, last: bytes) -> Reply:
        start, end = as_integer(first), as_integer(last)
        held = self._get(key, list)
        if held is not None:
            held[:] = held[as_slice(len(held), start, end)]
            self._changed(key)
        return b"OK"

    def _lindex(self, key: bytes, index: bytes) -> Reply:
        held: list[bytes] | None = self._get(key, list)
        if held is None:
            return None  # a real one looks at the index only now
        position = as_integer(index)
        return held[position] if -len(held) <= position < len(held) else None

    def _lset(self, key: bytes, index: bytes, member: bytes) -> Reply:
        held: list[bytes] | None = self._get(key, list)
        if held is None:
            raise ErrorReply("ERR no such key")
        position = as_integer(index)
        if not -len(held) <= position < len(held):
            raise ErrorReply("ERR index out of range")
        held[position] = member
        self._changed(key)
        return b"OK"

    def _lrem(self, key: bytes, count: bytes, member: bytes) -> Reply:
        most = as_integer(count)
        held: list[bytes] = self._get(key, list) or []
        places = [place for place, one in enumerate(held) if one == member]
        places = places[most:] if most < 0 else places[:most] if most else places
        for place in reversed(places):
            del held[place]
        if places:
            self._changed(key)
        return len(places)

    def _ping(self, *text: bytes) -> Reply:
        if len(text) > 1:
            raise ErrorReply("ERR wrong number of arguments for 'ping' command")
        return text[0] if text else b"PONG"

    def _time(self) -> Reply:
        now = self._clock.seconds()
        return [b"%d" % int(now), b"%d" % int(now % 1 * 1_000_000)]

    def _info(self, *sections: bytes) -> Reply:
        parts = {
            b"server": f"run_id:{self.run_id}",
            b"memory": "used_memory:0",
            b"stats": "instantaneous_ops_per_sec:0",
            b"replication": "\r\n".join(self._replication()),
            b"keyspace": f"db0:keys={len(self._values)},expires=0",
        }
        wanted = [parts[name] for name in map(bytes.lower, sections) if name in parts] if sections else list(parts.values())
        return "".join(f"{part}\r\n" for part in wanted).encode()

    def _replication(self) -> list[str]:
        lines = ["role:master", f"connected_slaves:{len(self.replicas)}"]
        for place, (where, offset) in enumerate(self.replicas.items()):
            host, _, port = where.rpartition(":")
            lines.append(f"slave{place}:ip={host},port={port},state=online,offset={offset},lag=0")
        return [*lines, f"master_replid:{self.stream_id}", f"master_repl_offset:{self.offset}"]

    def _wait(self, count: bytes, milliseconds: bytes) -> Reply:
        """Nothing waits here: how many replicas have it by now."""
        del count, milliseconds
        return sum(offset >= self.offset for offset in self.replicas.values())

    # --- scripts ---

    def _evalsha(self, sha: bytes, count: bytes, *rest: bytes) -> Reply:
        return evaluate(self.run, self._scripts, sha, count, rest)

    def _eval(self, script: bytes, count: bytes, *rest: bytes) -> Reply:
        """Raises ValueError for a script that is none of Taba's."""
        [sha] = [sha for sha, (known, _) in SCRIPTS.items() if known == script]
        self._scripts.add(sha)
        return self._evalsha(sha, count, *rest)

    # --- what a walk over keys or elements needs ---

    def _scan(self, cursor: bytes, *options: bytes) -> Reply:
        for key in list(self._expires):
            self._expire(key)
        pattern, count = scan_options(options)
        following, keys = walk(self._values, cursor, count)
        return [following, [key for key in keys if pattern is None or pattern(key)]]

    def _scan_in(self, kind: type, key: bytes, cursor: bytes, options: Sequence[bytes]) -> Reply:
        held = self._get(key, kind) or kind()
        pattern, count = scan_options(options)
        following, names = walk(held, cursor, count)
        return [following, [part for name in names if pattern is None or pattern(name) for part in element(held, name)]]

    def _spop(self, key: bytes, *count: bytes) -> Reply:
        held = self._get(key, SetMembers)
        wanted = as_integer(count[0]) if count else 1
        if wanted < 0:
            raise ErrorReply("ERR value is out of range, must be positive")
        members = self._random.sample(sorted(held or ()), min(wanted, len(held or ())))
        if held is not None:
            held.difference_update(members)
            self._changed(key, bool(members))
        return members if count else members[0] if members else None

    def _rename(self, key: bytes, name: bytes) -> Reply:
        self._expire(key)
        if key not in self._values:
            raise ErrorReply("ERR no such key")
        value, expires = self._values[key], self._expires.get(key)
        self._remove(key)
        self._expires.pop(name, None)
        self._values[name] = value
        if expires is not None:
            self._expires[name] = expires
        self._touch(name)
        return b"OK"

    def _append(self, key: bytes, more: bytes) -> Reply:
        value = self._values[key] = (self._get(key, bytes) or b"") + more
        self._touch(key)
        return len(value)

    def _getrange(self, key: bytes, first: bytes, last: bytes) -> Reply:
        start, end = as_integer(first), as_integer(last)
        value = self._get(key, bytes) or b""
        if start < 0 and end < 0 and start > end:
            return b""
        first_byte, last_byte = (max(index + len(value), 0) if index < 0 else index for index in (start, end))  # otherwise than a list's
        return bytes(value[first_byte : last_byte + 1])

    def _memory(self, what: bytes, *arguments: bytes) -> Reply:
        """About what the key takes: of the very number nobody makes anything."""
        if what.upper() != b"USAGE" or len(arguments) != 1:
            raise ErrorReply("ERR syntax error")
        [key] = arguments
        self._expire(key)
        if key not in self._values:
            return None
        value = self._values[key]
        parts = [value] if isinstance(value, bytes) else value.values() if type(value) is dict else ()
        return 64 + len(key) + sum(map(len, parts)) + sum(len(part) + 16 for part in (() if isinstance(value, bytes) else value))

    def _config(self, _: bytes, name: bytes) -> Reply:
        return [name, SETTINGS[name]] if name in SETTINGS else []


def refusal(command: Command) -> Exception | None:
    """What a server says at once, also instead of QUEUED."""
    known = COMMANDS.get(command[0].upper())
    if known is None:
        return ErrorReply(f"ERR unknown command '{_shown(command)}'")
    least, most, _ = known
    if len(command) - 1 < least or (most is not None and len(command) - 1 > most):
        return ErrorReply(f"ERR wrong number of arguments for '{_shown(command)}' command")
    return None


def _shown(command: Command) -> str:
    return command[0].decode(errors="replace").lower()


_S = MemoryServer
# name: (fewest arguments, most or None, what answers)
COMMANDS: dict[bytes, tuple[int, int | None, Callable[..., Reply]]] = {
    b"PING": (0, None, _S._ping),
    b"ECHO": (1, 1, lambda s, text: text),
    b"INFO": (0, None, _S._info),
    b"TIME": (0, 0, _S._time),
    b"CONFIG": (2, 2, _S._config),
    b"EVALSHA": (2, None, _S._evalsha),
    b"EVAL": (2, None, _S._eval),
    b"WAIT": (2, 2, _S._wait),
    b"MEMORY": (1, None, _S._memory),
    b"SCAN": (1, None, _S._scan),
    b"HSCAN": (2, None, lambda s, key, cursor, *options: s._scan_in(dict, key, cursor, options)),
    b"SSCAN": (2, None, lambda s, key, cursor, *options: s._scan_in(SetMembers, key, cursor, options)),
    b"ZSCAN": (2, None, lambda s, key, cursor, *options: s._scan_in(SortedMembers, key, cursor, options)),
    b"RENAME": (2, 2, _S._rename),
    b"APPEND": (2, 2, _S._append),
    b"GETRANGE": (3, 3, _S._getrange),
    b"SPOP": (1, 2, _S._spop),
    b"GET": (1, 1, lambda s, key: s._get(key, bytes)),
    b"SET": (2, None, _S._set),
    b"STRLEN": (1, 1, lambda s, key: len(s._get(key, bytes) or b"")),
    b"INCR": (1, 1, _S._incrby),
    b"INCRBY": (2, 2, _S._incrby),
    b"DEL": (1, None, _S._delete),
    b"UNLINK": (1, None, _S._delete),
    b"EXISTS": (1, None, _S._exists),
    b"TYPE": (1, 1, _S._type),
    b"MGET": (1, None, _S._mget),
    b"PEXPIRE": (2, 2, _S._pexpire),
    b"PTTL": (1, 1, _S._pttl),
    b"PERSIST": (1, 1, _S._persist),
    b"HSET": (3, None, _S._hset),
    b"HGET": (2, 2, lambda s, key, name: (s._get(key, dict) or {}).get(name)),
    b"HMGET": (2, None, lambda s, key, *names: [(s._get(key, dict) or {}).get(name) for name in names]),
    b"HGETALL": (1, 1, _S._hgetall),
    b"HKEYS": (1, 1, lambda s, key: list(s._get(key, dict) or {})),
    b"HVALS": (1, 1, lambda s, key: list((s._get(key, dict) or {}).values())),
    b"HLEN": (1, 1, lambda s, key: len(s._get(key, dict) or {})),
    b"HEXISTS": (2, 2, lambda s, key, name: int(name in (s._get(key, dict) or {}))),
    b"HDEL": (2, None, _S._hdel),
    b"HINCRBY": (3, 3, _S._hincrby),
    b"SADD": (2, None, _S._sadd),
    b"SREM": (2, None, _S._srem),
    b"SMEMBERS": (1, 1, lambda s, key: sorted(s._get(key, SetMembers) or ())),
    b"SCARD": (1, 1, lambda s, key: len(s._get(key, SetMembers) or ())),
    b"SISMEMBER": (2, 2, lambda s, key, member: int(member in (s._get(key, SetMembers) or ()))),
    b"SMISMEMBER": (2, None, _S._smismember),
    b"ZADD": (3, None, _S._zadd),
    b"ZREM": (2, None, _S._zrem),
    b"ZRANGEBYLEX": (6, 6, _S._zrangebylex),
    b"ZRANDMEMBER": (2, 2, _S._zrandmember),
    b"ZSCORE": (2, 2, lambda s, key, member: s._zmscore(key, member)[0]),
    b"ZMSCORE": (2, None, _S._zmscore),
    b"ZCARD": (1, 1, lambda s, key: len(s._get(key, SortedMembers) or ())),
    b"ZRANK": (2, None, _S._zrank),
    b"ZRANGE": (3, None, _S._zrange),
    b"ZREVRANGE": (3, None, lambda s, *arguments: s._zrange(*arguments, is_reverse=True)),
    b"ZRANGEBYSCORE": (3, None, _S._zrangebyscore),
    b"LPUSH": (2, None, lambda s, key, *members: s._push(key, members, True)),
    b"RPUSH": (2, None, lambda s, key, *members: s._push(key, members, False)),
    b"LRANGE": (3, 3, _S._lrange),
    b"LTRIM": (3, 3, _S._ltrim),
    b"LLEN": (1, 1, lambda s, key: len(s._get(key, list) or [])),
    b"LINDEX": (2, 2, _S._lindex),
    b"LSET": (3, 3, _S._lset),
    b"LREM": (3, 3, _S._lrem),
}
