"""A store in memory, for fast tests: the real Router over servers that are dictionaries.

Only the wire is replaced: owner keys, leases, conflicts and retries are the Router's own code. A server answers the
commands that Taba uses as a real one does; `tests/shard/test_memory.py` gives the same commands to both and compares.
Nothing waits: with a `Clock` for reactor, what needs no retry has its result at once.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any
from zlib import crc32

from twisted.internet.defer import Deferred, fail, succeed

from taba.errors import StoreUnavailable
from taba.shard.router import Router
from taba.shard.servers.connection import REPLY_SECONDS, Command, Connection, ErrorReply, Reply, Transactions
from taba.shard.servers.pool import Pool
from taba.shard.servers.url import Address, StoreURL

WRONG_TYPE = "WRONGTYPE Operation against a key holding the wrong kind of value"
NOT_A_NUMBER = "ERR value is not an integer or out of range"
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
        refused = _refusal(command)
        if refused is not None:
            return refused
        try:
            return _COMMANDS[command[0].upper()][2](self, *command[1:])
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
                seconds = _integer(left.pop(0)) * (1.0 if word == b"EX" else 0.001)
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
        self._expires[key] = self._clock.seconds() + _integer(milliseconds) / 1000
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
        added = _integer(amount)
        before = self._get(key, bytes)
        total = _sum(_integer(b"0" if before is None else before), added)
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
        added = _integer(amount)
        fields = self._get(key, dict) or {}
        try:
            before = _integer(fields.get(field, b"0"))
        except ErrorReply:
            raise ErrorReply("ERR hash value is not an integer") from None
        total = _sum(before, added)
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
        held = self._get(key, _Set, make=True)
        before = len(held)
        held.update(members)
        self._changed(key, len(held) > before)
        return len(held) - before

    def _srem(self, key: bytes, *members: bytes) -> Reply:
        held = self._get(key, _Set) or _Set()
        before = len(held)
        held.difference_update(members)
        self._changed(key, len(held) < before)
        return before - len(held)

    def _smismember(self, key: bytes, *members: bytes) -> Reply:
        held = self._get(key, _Set) or _Set()
        return [int(member in held) for member in members]

    def _zadd(self, key: bytes, *pairs: bytes) -> Reply:
        if len(pairs) % 2:
            raise ErrorReply("ERR syntax error")
        scores = [_float(score) for score in pairs[::2]]
        held = self._get(key, _SortedSet, make=True)
        written = dict(zip(pairs[1::2], scores, strict=True))
        new = len(written.keys() - held.keys())
        is_changed = bool(new) or any(held[member] != score for member, score in written.items())
        held.update(written)
        self._changed(key, is_changed)
        return new

    def _zrem(self, key: bytes, *members: bytes) -> Reply:
        held = self._get(key, _SortedSet) or _SortedSet()
        removed = sum([held.pop(member, None) is not None for member in members])
        self._changed(key, bool(removed))
        return removed

    def _zmscore(self, key: bytes, *members: bytes) -> Reply:
        held = self._get(key, _SortedSet) or _SortedSet()
        return [_score(held[member]) if member in held else None for member in members]

    def _zrank(self, key: bytes, member: bytes, *words: bytes) -> Reply:
        if words:
            raise ErrorReply("ERR syntax error")
        held = self._get(key, _SortedSet) or _SortedSet()
        return held.in_order().index(member) if member in held else None

    def _zrange(self, key: bytes, first: bytes, last: bytes, *words: bytes, is_reverse: bool = False) -> Reply:
        _check_shown(words)
        start, end = _integer(first), _integer(last)
        held = self._get(key, _SortedSet) or _SortedSet()
        members = held.in_order()[::-1] if is_reverse else held.in_order()
        return _shown(held, members[_slice(len(members), start, end)], words)

    def _zrangebyscore(self, key: bytes, low: bytes, high: bytes, *words: bytes) -> Reply:
        words, (offset, count) = _limited(words)
        _check_shown(words)
        least, most = _float(low or b"0"), _float(high or b"0")  # as a real one takes them
        held = self._get(key, _SortedSet) or _SortedSet()
        members = [member for member in held.in_order() if least <= held[member] <= most]
        return _shown(held, members[offset:][: count if count >= 0 else None], words)

    def _type(self, key: bytes) -> Reply:
        self._expire(key)
        kinds: dict[Any, bytes] = {bytes: b"string", dict: b"hash", _Set: b"set", list: b"list", _SortedSet: b"zset"}
        return kinds[type(self._values[key])] if key in self._values else b"none"

    def _zrangebylex(self, key: bytes, low: bytes, high: bytes, _: bytes, offset: bytes, count: bytes) -> Reply:
        held = sorted(self._get(key, _SortedSet) or ())
        found = [member for member in held if _is_above(member, low) and _is_below(member, high)]
        return found[_integer(offset) :][: _integer(count)]

    def _zrandmember(self, key: bytes, count: bytes) -> Reply:
        held = sorted(self._get(key, _SortedSet) or ())
        return self._random.sample(held, min(len(held), _integer(count)))

    def _push(self, key: bytes, members: Sequence[bytes], at_the_head: bool) -> Reply:
        held = self._get(key, list, make=True)
        for member in members:
            held.insert(0 if at_the_head else len(held), member)
        self._changed(key)
        return len(held)

    def _lrange(self, key: bytes, first: bytes, last: bytes) -> Reply:
        start, end = _integer(first), _integer(last)
        held = self._get(key, list) or []
        return list(held[_slice(len(held), start, end)])

    def _ltrim(self, key: bytes, first: bytes, last: bytes) -> Reply:
        start, end = _integer(first), _integer(last)
        held = self._get(key, list)
        if held is not None:
            held[:] = held[_slice(len(held), start, end)]
            self._changed(key)
        return b"OK"

    def _lindex(self, key: bytes, index: bytes) -> Reply:
        held: list[bytes] | None = self._get(key, list)
        if held is None:
            return None  # a real one looks at the index only now
        position = _integer(index)
        return held[position] if -len(held) <= position < len(held) else None

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

    # --- what a walk over keys or elements needs ---

    def _scan(self, cursor: bytes, *options: bytes) -> Reply:
        for key in list(self._expires):
            self._expire(key)
        pattern, count = _scan_options(options)
        following, keys = _walk(self._values, cursor, count)
        return [following, [key for key in keys if pattern is None or pattern(key)]]

    def _scan_in(self, kind: type, key: bytes, cursor: bytes, options: Sequence[bytes]) -> Reply:
        held = self._get(key, kind) or kind()
        pattern, count = _scan_options(options)
        following, names = _walk(held, cursor, count)
        return [following, [part for name in names if pattern is None or pattern(name) for part in _element(held, name)]]

    def _spop(self, key: bytes, *count: bytes) -> Reply:
        held = self._get(key, _Set)
        wanted = _integer(count[0]) if count else 1
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
        start, end = _integer(first), _integer(last)
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


class _Set(set[bytes]):
    """A set's members; a kind of its own beside dict and list."""


class _SortedSet(dict[bytes, float]):
    """The members of a sorted set, and their scores."""

    def in_order(self) -> list[bytes]:
        return sorted(self, key=lambda member: (self[member], member))


def _scan_options(options: Sequence[bytes]) -> tuple[Callable[[bytes], bool] | None, int]:
    pattern: Callable[[bytes], bool] | None = None
    count = 10
    for word, value in zip(options[::2], (*options[1::2], None), strict=False):
        if word.upper() == b"MATCH" and value is not None:
            matches = re.compile(fnmatch.translate(value.decode("latin-1")), re.S).match
            pattern = lambda name, matches=matches: matches(name.decode("latin-1")) is not None  # noqa: E731
        elif word.upper() == b"COUNT" and value is not None:
            count = _integer(value)
            if count < 1:
                raise ErrorReply("ERR syntax error")
        else:
            raise ErrorReply("ERR syntax error")
    return pattern, count


def _walk(names: Iterable[bytes], cursor: bytes, count: int) -> tuple[bytes, list[bytes]]:
    """About `count` of `names` from `cursor` on, and the next cursor, 0 at the end.

    In the order of their digests, which does not change: what is there all the time is met, whatever comes and goes meanwhile.
    """
    try:
        first = int(cursor)
    except ValueError:
        raise ErrorReply("ERR invalid cursor") from None
    ordered = sorted((crc32(name) + 1, name) for name in names)
    left = [(place, name) for place, name in ordered if place >= first]
    if len(left) <= count:
        return b"0", [name for _, name in left]
    following = left[count][0]  # those of one digest go together
    met = [name for place, name in left if place < following]
    return (b"%d" % following, met) if met else _walk(names, cursor, count + 1)


def _element(held: Any, name: bytes) -> tuple[bytes, ...]:
    if isinstance(held, _Set):
        return (name,)
    return (name, _score(held[name])) if isinstance(held, _SortedSet) else (name, held[name])


def _shown(held: _SortedSet, members: Sequence[bytes], words: Sequence[bytes]) -> list[bytes]:
    return [part for member in members for part in ((member, _score(held[member])) if words else (member,))]


def _check_shown(words: Sequence[bytes]) -> None:
    if [word.upper() for word in words] not in ([], [b"WITHSCORES"]):
        raise ErrorReply("ERR syntax error")


def _limited(words: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], tuple[int, int]]:
    """`words` without LIMIT, and its offset and count: all, where it is not there."""
    names = [word.upper() for word in words]
    if b"LIMIT" not in names:
        return words, (0, -1)
    place = names.index(b"LIMIT")
    if len(words) < place + 3:
        raise ErrorReply("ERR syntax error")
    return (*words[:place], *words[place + 3 :]), (_integer(words[place + 1]), _integer(words[place + 2]))


def _float(text: bytes) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ErrorReply("ERR value is not a valid float") from None
    if number != number or text != text.strip():
        raise ErrorReply("ERR value is not a valid float")
    return number


def _score(number: float) -> bytes:
    return b"%d" % number if number.is_integer() and abs(number) < 1e17 else repr(number).encode()


def _is_above(member: bytes, low: bytes) -> bool:
    return low == b"-" or member > low[1:] or (low[:1] == b"[" and member == low[1:])


def _is_below(member: bytes, high: bytes) -> bool:
    return high == b"+" or member < high[1:] or (high[:1] == b"[" and member == high[1:])


def _refusal(command: Command) -> Exception | None:
    """What a server says at once, also instead of QUEUED."""
    name = command[0].decode(errors="replace").lower()
    if command[0].upper() not in _COMMANDS:
        return ErrorReply(f"ERR unknown command '{name}'")
    least, most, _ = _COMMANDS[command[0].upper()]
    if len(command) - 1 < least or (most is not None and len(command) - 1 > most):
        return ErrorReply(f"ERR wrong number of arguments for '{name}' command")
    return None


def _integer(text: bytes) -> int:
    try:
        number = int(text)
    except ValueError:
        raise ErrorReply(NOT_A_NUMBER) from None
    if b"%d" % number != text or not -(2**63) <= number < 2**63:
        raise ErrorReply(NOT_A_NUMBER)
    return number


def _sum(one: int, other: int) -> int:
    if not -(2**63) <= one + other < 2**63:
        raise ErrorReply("ERR increment or decrement would overflow")
    return one + other


def _slice(length: int, start: int, end: int) -> slice:
    start, end = (index + length if index < 0 else index for index in (start, end))
    return slice(max(start, 0), max(end + 1, 0))


_S = MemoryServer
# name: (fewest arguments, most or None, what answers)
_COMMANDS: dict[bytes, tuple[int, int | None, Callable[..., Reply]]] = {
    b"PING": (0, None, _S._ping),
    b"ECHO": (1, 1, lambda s, text: text),
    b"INFO": (0, None, _S._info),
    b"TIME": (0, 0, _S._time),
    b"CONFIG": (2, 2, _S._config),
    b"WAIT": (2, 2, _S._wait),
    b"MEMORY": (1, None, _S._memory),
    b"SCAN": (1, None, _S._scan),
    b"HSCAN": (2, None, lambda s, key, cursor, *options: s._scan_in(dict, key, cursor, options)),
    b"SSCAN": (2, None, lambda s, key, cursor, *options: s._scan_in(_Set, key, cursor, options)),
    b"ZSCAN": (2, None, lambda s, key, cursor, *options: s._scan_in(_SortedSet, key, cursor, options)),
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
    b"SMEMBERS": (1, 1, lambda s, key: sorted(s._get(key, _Set) or ())),
    b"SCARD": (1, 1, lambda s, key: len(s._get(key, _Set) or ())),
    b"SISMEMBER": (2, 2, lambda s, key, member: int(member in (s._get(key, _Set) or ()))),
    b"SMISMEMBER": (2, None, _S._smismember),
    b"ZADD": (3, None, _S._zadd),
    b"ZREM": (2, None, _S._zrem),
    b"ZRANGEBYLEX": (6, 6, _S._zrangebylex),
    b"ZRANDMEMBER": (2, 2, _S._zrandmember),
    b"ZSCORE": (2, 2, lambda s, key, member: s._zmscore(key, member)[0]),
    b"ZMSCORE": (2, None, _S._zmscore),
    b"ZCARD": (1, 1, lambda s, key: len(s._get(key, _SortedSet) or ())),
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
}


class MemoryConnection(Transactions):
    """A conversation with a MemoryServer: WATCH, MULTI and EXEC as a real server has them."""

    def __init__(self, server: MemoryServer, where: str):
        self.where = where
        self.is_watching = False
        self.is_open = True
        self._server = server
        self._watched: dict[bytes, int] = {}
        self._queue: list[Command] | None = None
        self._is_spoilt = False

    @property
    def is_idle(self) -> bool:
        return self.is_open and not self.is_watching

    def execute(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS, quiet: float | None = None) -> Deferred[list[Reply]]:
        if self._server.is_away or not self.is_open:
            self.is_open = False
            return fail(StoreUnavailable(f"{self.where}: away"))
        return succeed([self._one(command) for command in commands])

    def abort(self, reason: str) -> None:
        self.is_open = False

    def _one(self, command: Command) -> Reply:
        name = command[0].upper()
        if name == b"EXEC":
            return self._exec()
        if name == b"MULTI":
            self._queue = []
            return b"OK"
        if self._queue is not None:
            refused = _refusal(command)
            if refused is not None:
                self._is_spoilt = True
                return refused
            self._queue.append(command)
            return b"QUEUED"
        if name == b"WATCH":
            for key in command[1:]:
                self._watched.setdefault(key, self._server.version(key))
            return b"OK"
        if name == b"UNWATCH":
            self._watched.clear()
            return b"OK"
        return self._server.run(command)

    def _exec(self) -> Reply:
        queue, self._queue = self._queue, None
        watched, self._watched = self._watched, {}
        is_spoilt, self._is_spoilt = self._is_spoilt, False
        if queue is None:
            return ErrorReply("ERR EXEC without MULTI")
        if is_spoilt:
            return ErrorReply("EXECABORT Transaction discarded because of previous errors.")
        if any(self._server.version(key) != version for key, version in watched.items()):
            return None
        return [self._server.run(command) for command in queue]


class _MemoryPool(Pool):
    """As many connections as anybody wants."""

    def __init__(self, reactor: Any, address: Address, server: MemoryServer):
        super().__init__(reactor, address)
        self.server = server
        self.last_error = f"{address.text}: away"

    @property
    def is_connected(self) -> bool:
        return not self.server.is_away

    def start(self) -> None:
        """Nothing to do."""

    def _take(self, seconds: float) -> Deferred[Connection]:
        if self.server.is_away:
            return fail(StoreUnavailable(self.last_error))
        connection: Any = MemoryConnection(self.server, self.address.text)
        return succeed(connection)

    def _give_back(self, connection: Connection) -> None:
        """It is not used again."""


class MemoryRouter(Router):
    """A Router over `servers`, which may be shared with other MemoryRouters: then it is the same store."""

    def __init__(self, servers: Sequence[MemoryServer], buckets: int | None = None, reactor: Any = None, random: Random | None = None):
        self.servers = {f"memory-{number}": server for number, server in enumerate(servers, 1)}
        store = StoreURL(tuple(Address(host=name, port=6379) for name in self.servers))
        if reactor is None:
            from twisted.internet import reactor

        def new_pool(address: Address) -> Pool:
            return _MemoryPool(reactor, address, self.servers[address.host])

        super().__init__(store, buckets, reactor, random, new_pool=new_pool)
