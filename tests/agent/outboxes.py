"""The memory of an outbox that is killed at any step of it, for tests."""

from __future__ import annotations

from taba.agent.outbox import PAGE, Outbox

SIZE = 512 * 1024


class Killed(BaseException):
    """The process died before this step."""


class Memory:
    """Memory that dies before its `steps`-th write; a write of many bytes may be torn."""

    def __init__(self, size: int = SIZE):
        self.size = size
        self.content = bytearray(size)
        self.steps: int | None = None
        self.torn = 0
        self.had: set[int] = set()  # pages
        self.pages: int | None = None  # bytes that there are, at most

    def _step(self) -> bool:
        if self.steps is None:
            return False
        self.steps -= 1
        return self.steps < 0

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= self.size
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, *parts: bytes | memoryview) -> None:
        content = b"".join(parts)
        assert offset + len(content) <= self.size
        assert set(range(offset // PAGE, (offset + len(content) + PAGE - 1) // PAGE)) <= self.had
        if self._step():
            torn = content[: len(content) * self.torn // 100]
            self.content[offset : offset + len(torn)] = torn
            raise Killed
        self.content[offset : offset + len(content)] = content

    def load(self, offset: int) -> int:
        return int.from_bytes(self.content[offset : offset + 8], "little")

    def store(self, offset: int, word: int) -> None:
        if self._step():
            raise Killed
        self.content[offset : offset + 8] = word.to_bytes(8, "little")

    def room(self) -> int:
        return self.pages - len(self.had) * PAGE if self.pages is not None else self.size

    def reserve(self, offset: int, length: int) -> None:
        self.had |= set(range(offset // PAGE, (offset + length + PAGE - 1) // PAGE))

    def punch(self, offset: int, length: int) -> None:
        assert offset % PAGE == length % PAGE == 0
        if self._step():
            raise Killed
        self.content[offset : offset + length] = bytes(length)
        self.had -= set(range(offset // PAGE, (offset + length) // PAGE))


class Bytes:
    """The memory of an outbox, which has all its pages; nothing outside of it is asked for."""

    def __init__(self, content: bytearray):
        self.content, self.size = content, len(content)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and length >= 0 and offset + length <= self.size
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, *parts: bytes | memoryview) -> None:
        content = b"".join(parts)
        assert offset >= 0 and offset + len(content) <= self.size
        self.content[offset : offset + len(content)] = content

    def load(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 8), "little")

    def store(self, offset: int, word: int) -> None:
        self.write(offset, word.to_bytes(8, "little"))

    def room(self) -> int:
        return self.size

    def reserve(self, offset: int, length: int) -> None:
        assert offset + length <= self.size

    def punch(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))


def formatted(size: int = SIZE) -> tuple[Memory, Outbox]:
    memory = Memory(size)
    Outbox.format(memory, b"i" * 16)
    return memory, Outbox(memory)
