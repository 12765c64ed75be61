"""What the Types share whose States are sketches of the library `datasketches`: its import, their bytes, the text of a value.

1. A State is the bytes that the library wrote, behind their checksum: nothing else ever reaches its readers. b"" is a new State.
2. Values are told apart by their JSON text: 17 and 17.0 are one value, "17" is another; bytes count as the text that they hold.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from json.encoder import encode_basestring
from typing import Any

import numpy as np

from taba.handlers.base import Handler
from taba.handlers.render import as_json
from taba.installing import install_hint

try:
    import datasketches as datasketches
except ImportError as error:
    raise ImportError(f"it needs the package datasketches ({error}); install it with: {install_hint('server')}") from None

MAX_TEXT = 200  # characters of a text that are kept; a longer one is cut, and told apart by a digest of the whole
DIGEST_BYTES = 6  # two of a billion cut texts of one beginning are alike with a chance of one in 600

_CRC = struct.Struct("<I")


class SketchHandler(Handler):
    """A Handler whose State is a sketch of the library, packed; empty until there is an Event."""

    fold_checks = True
    """`load` gives what was dumped, and raises only what `fold` does of the same: who folds at once need not have both."""

    def sketch(self, state: bytes) -> Any:
        """The library's sketch of a State. Raises ValueError for bytes that are none."""
        raise NotImplementedError

    def new_state(self) -> bytes:
        return b""

    def dump(self, state: bytes) -> bytes:
        return state

    def load(self, content: bytes) -> bytes:
        self.sketch(content)
        return content


def pack_sketch(content: bytes) -> bytes:
    """A State that holds the library's `content`."""
    return _CRC.pack(zlib.crc32(content)) + content


def unpack_sketch(state: bytes) -> bytes:
    """The library's bytes in a State. Raises ValueError for bytes that are none."""
    content = state[_CRC.size :]
    if len(state) < _CRC.size or _CRC.unpack_from(state)[0] != zlib.crc32(content):
        raise ValueError("these bytes are no sketch")
    return content


def identity(value: Any) -> str:
    """The JSON text by which `value`, of any type that msgpack carries, is told apart from others."""
    if type(value) is str:  # nearly always: what `dumps` gives, of which it makes an encoder each time
        return encode_basestring(value)
    return json.dumps(_whole(as_json(value)), ensure_ascii=False, sort_keys=True)


def brief_identity(value: Any) -> str:
    """`identity`, of bounded length: a text of more than MAX_TEXT characters is cut, and ends in a digest of the whole."""
    text = identity(value)
    if len(text) <= MAX_TEXT:
        return text
    kept = value if isinstance(value, str) else text
    return encode_basestring(f"{kept[: MAX_TEXT - 30]}…{blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()}")


def count_values(values: Sequence[Any]) -> list[tuple[Any, int]]:
    """(value, how often) of `values`; some that are equal may be listed apart."""
    if isinstance(values, np.ndarray):
        unique, counts = np.unique(values, return_counts=True)
        return list(zip(unique.tolist(), counts.tolist(), strict=True))
    texts = Counter(value for value in values if type(value) is str)
    return [*texts.items(), *((value, 1) for value in values if type(value) is not str)]


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and math.fabs(value) < 2.0**63:
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
