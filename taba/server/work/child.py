"""The child process in which code runs that may hang or crash: Handlers that are not Taba's own, and regular expressions.

Started by line.py as `python -m taba.server.work.child PARENT ABOUT`. Frames of msgpack, each with its length before it, come on
standard input: `[operation, argument, …]`. The answer is any number of frames `[True, item]` and `[None, place]` (it has come to this
place of the item) and one `[False, rest]`; the parent waits for each frame, so that it knows how far the work came when none comes.
The first frame of all says that it is ready, for what the work needs is imported by then, and what the process is kept from.

The limits are against what a Handler does by mistake. It is code of the Server's user, which imports it, too.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import msgpack

from taba.bounds import MiB
from taba.counting import measure
from taba.server.work.boxing import Box, bound_processor, enter

if TYPE_CHECKING:
    from taba.handlers.lookup import Lookup

MAX_FRAME_BYTES = 64 * MiB  # twice a cycle of States and columns at their bounds would not fit; then its States are taken one by one
TURN_SECONDS = 0.5  # of one request; then its rest is asked for anew, so that others have their turn
MAX_FRAME_ITEMS = 262_144  # that a frame from a child is made of: 16 MiB, and 50 ms of the Server's
MAX_FRAME_DEPTH = 80  # of the same, a Projection of 64 within it: whatever walks a deeper one recurses
MATCHES = 10_000  # places of a pattern's matches in one frame

LENGTH = struct.Struct("<I")


def pack(content: Any) -> bytes:
    """One frame. Raises ValueError or TypeError for what msgpack cannot carry."""
    packed: bytes = msgpack.packb(content, default=_plain)
    return LENGTH.pack(len(packed)) + packed


def unpack(content: bytes) -> Any:
    """What a frame holds, after its length."""
    size = len(content)
    return msgpack.unpackb(content, strict_map_key=False, max_bin_len=size, max_str_len=size, max_array_len=size, max_map_len=size)


def unpack_answer(content: bytes) -> Any:
    """What a frame from a child holds, after its length, counted before it is made. ValueError for one that is none, or too much."""
    if measure(content, 0, MAX_FRAME_DEPTH, MAX_FRAME_ITEMS)[0] != len(content):
        raise ValueError("more than one value")
    try:
        return unpack(content)
    except TypeError:  # a tuple is a key as it is sent, and a list as it comes
        raise ValueError("a key holds other values: keys are texts and numbers") from None


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        return value.item()  # numpy's numbers
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is no value that can be shown")


class Child:
    """What the child can do. `lookup`: the Handlers, where it is to work with them; `at` tells the parent a place; `seconds` is monotonic.

    What can be done item by item ends where its turn is over: the parent asks for the rest anew.
    """

    def __init__(self, lookup: Lookup | None, at: Callable[[int], None], seconds: Callable[[], float]) -> None:
        self._lookup, self._at, self._seconds = lookup, at, seconds
        self._began = seconds()

    def begin_turn(self) -> None:
        """A request has come."""
        self._began = self._seconds()

    def is_over(self) -> bool:
        """Whether this request has had its turn."""
        return self._seconds() - self._began >= TURN_SECONDS

    def _in_turn(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield item
            if self.is_over():
                return

    @property
    def lookup(self) -> Lookup:
        if self._lookup is None:
            raise ValueError("this child has no Handlers")
        return self._lookup

    def operations(self) -> dict[str, Callable[..., Iterator[Any]]]:
        """What a request may ask for."""
        return {
            "match": self.match,
            "rewrite": self.rewrite,
            "parse": self.parse,
            "samples": self.samples,
            "fold": self.fold,
            "project": self.project,
            "aggregate": self.aggregate,
            "history": self.history,
            "render": self.render,
            "upgrade": self.upgrade,
            "prunable": self.prunable,
            "merge": self.merge,
        }

    def match(self, pattern: str, texts: list[str]) -> Iterator[Any]:
        import re

        matches = re.compile(pattern).fullmatch
        found = [index for index, text in enumerate(texts) if matches(text)]
        for start in range(0, len(found), MATCHES):
            yield found[start : start + MATCHES]

    def rewrite(self, pattern: str, template: str, texts: list[str]) -> Iterator[Any]:
        """Of each text that the whole pattern matches the template with its groups in it, as `$1` or `${name}`; else None."""
        import re

        expression = re.compile(pattern)
        for text in self._in_turn(texts):
            match = expression.fullmatch(text)
            yield None if match is None else expanded(match, template)

    def parse(self, text: str) -> Iterator[Any]:
        """The nodes of a PromQL text."""
        from taba.server.prometheus.syntax import flattened

        yield flattened(text)

    def samples(self, type: str, projections: list[Any]) -> Iterator[Any]:
        from taba.server.work.projecting import samples_one

        for projection in self._in_turn(projections):
            yield samples_one(self.lookup.get(type), projection)

    def fold(
        self, type: str, now: float, states: list[Any], columns: list[Any], parts: dict[int, Any], lots: list[list[int]], singly: bool
    ) -> Iterator[Any]:
        """Folds one lot of rows after another; each gives [states, parts, failed, spoiled, wants, done]."""
        from taba.server.keys import Framed
        from taba.server.work.culprits import Turn
        from taba.server.work.folding import fold_type
        from taba.server.work.rows import Folded, Work

        handler, is_array = self.lookup.get(type), self.lookup.is_array(type)
        framed = [Framed(*state) for state in states]
        known = {row: [Framed(*part) for part in of_row] for row, of_row in parts.items()}
        turn = Turn(self._at, self.is_over) if singly else None
        for lot in self._in_turn(lots):
            rows = set(lot)
            work = Work(framed, [tuple(column) for column in columns if column[0] in rows])
            steps = fold_type(handler, is_array, work, now, False, turn)
            sent: Any = None
            wants: list[int] = []
            try:
                while True:
                    wanted = steps.send(sent)
                    wants = [row for row in wanted if row not in known]
                    if wants:
                        break
                    sent = {row: known[row] for row in wanted}
            except StopIteration as stop:
                folded: Folded = stop.value
            if wants:
                yield [{}, {}, {}, {}, wants, None]
            else:
                yield [*folded, [], turn.done if turn is not None else None]

    def project(self, type: str, now: float, states: list[Any], detail: bool) -> Iterator[Any]:
        from taba.server.work.projecting import project_type

        handler, is_array = self.lookup.get(type), self.lookup.is_array(type)
        framed = _framed(states)
        if is_array:
            yield from project_type(handler, is_array, framed, now, detail)
        else:
            for state in self._in_turn(framed):  # one after the other, so that the parent sees which one is the last
                yield from project_type(handler, is_array, [state], now, detail)

    def aggregate(self, type: str, projections: list[Any]) -> Iterator[Any]:
        from taba.server.work.projecting import aggregate_type

        yield aggregate_type(self.lookup.get(type), projections)

    def history(self, type: str, now: float, states: list[Any]) -> Iterator[Any]:
        from taba.server.work.pasts import history_type, pack_history

        yield pack_history(history_type(self.lookup.get(type), self.lookup.is_array(type), _framed(states), now))

    def render(self, type: str, projections: list[Any]) -> Iterator[Any]:
        from taba.server.work.projecting import render_one

        for projection in self._in_turn(projections):
            yield render_one(self.lookup.get(type), projection)

    def upgrade(self, type: str, now: float, states: list[Any]) -> Iterator[Any]:
        from taba.server.work.keeping import upgrade_type

        yield from self._in_turn(upgrade_type(self.lookup.get(type), self.lookup.is_array(type), _framed(states), now))

    def prunable(self, type: str, now: float, states: list[Any]) -> Iterator[Any]:
        from taba.server.work.keeping import prunable_type

        yield from self._in_turn(prunable_type(self.lookup.get(type), self.lookup.is_array(type), _framed(states), now))

    def merge(self, type: str, now: float, states: list[Any]) -> Iterator[Any]:
        from taba.server.work.keeping import merge_states

        yield merge_states(self.lookup.get(type), self.lookup.is_array(type), _framed(states), now)


def expanded(match: Any, template: str) -> str:
    """A template with a match's groups in place of `$1`, `${1}`, `$name` and `${name}`; `$$` is a dollar, and what is no group nothing."""
    import re

    def group(found: Any) -> str:
        if found[0] == "$$":
            return "$"
        name = found[1] or found[2]
        try:
            return match[int(name) if name.isdigit() else name] or ""
        except IndexError:
            return ""

    return re.sub(r"\$\$|\$\{(\w+)\}|\$(\w+)", group, template)


def _framed(states: list[Any]) -> list[Any]:
    from taba.server.keys import Framed

    return [[Framed(*part) for part in state] for state in states]


def serve(incoming: BinaryIO, outgoing: BinaryIO, excluded: Mapping[str, str], with_handlers: bool, box: Box) -> None:
    """Answer requests until the input ends."""

    def say(content: Any) -> None:
        outgoing.write(pack(content))
        outgoing.flush()

    child = Child(_found(excluded) if with_handlers else None, lambda place: say([None, place]), time.monotonic)
    operations = child.operations()
    say([False, box._asdict()])
    while True:
        head = incoming.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return
        operation, *arguments = unpack(incoming.read(LENGTH.unpack(head)[0]))
        rest: Any = None
        bound_processor()
        child.begin_turn()
        try:
            for item in operations[operation](*arguments):
                try:
                    frame = pack([True, item])
                    unpack_answer(frame[LENGTH.size :])  # what the Server would not take is no reason to end this process
                except (TypeError, ValueError, OverflowError, RecursionError) as error:
                    frame = pack([True, f"{type(error).__name__}: {error}"[:200]])
                outgoing.write(frame)
                outgoing.flush()
        except Exception as error:
            rest = f"{type(error).__name__}: {error}"[:200]
        say([False, rest])


def _found(excluded: Mapping[str, str]) -> Lookup:
    """The Handlers; and every module that their work needs is imported, so that the first to work pays for none."""
    import taba.server.work.folding
    import taba.server.work.keeping
    import taba.server.work.projecting  # noqa: F401
    from taba.handlers.lookup import find_handlers

    return find_handlers(excluded)


def main(parent: int, about: Mapping[str, Any]) -> None:
    """Run as the child of `parent`, without the Handlers of excluded origins; what Handlers print goes to standard error."""
    from taba.server.tether import die_with

    die_with(parent)
    box = enter()
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    serve(incoming, outgoing, about["excluded"], about["with_handlers"], box)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
