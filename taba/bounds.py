"""The bounds that more than one part relies on, each with its reason. A bound of one part alone stands in that part.

Standard library only: applications import this module.
"""

from __future__ import annotations

import re

KiB = 1024
MiB = 1024 * KiB
DAY = 86_400.0  # seconds

# --- batches and envelopes ---
MAX_BATCH_BYTES = 1 * MiB  # a Server folds it whole; larger would hold a bucket's lane for too long
MAX_BATCH_COLUMNS = 1000  # as many States as a Server takes in one fold cycle
MAX_ENVELOPE_BYTES = 8 * MiB  # after decompression; eight full batches
MAX_ENVELOPE_BATCHES = 1024  # twice the default number of buckets: one thin batch for each, and the same again
BATCH_DAYS = 7  # no batch older than this is sent: its mark is kept for twice as long
STREAM_DAYS = 6  # a stream takes new batches for so long, so that its last is sent before it is seven days old

# --- values ---
MAX_VALUE_BYTES = 32 * KiB  # msgpack of one value that is no float; a quarter of the byte ring of a default ring
MAX_VALUE_DEPTH = 32  # nesting; the encoder in the client recurses
MAX_EXACT_INT = 2**53  # whole numbers up to this travel as floats without loss

# --- times ---
MAX_TIME = 2.0**40  # Unix seconds from 0 to this; far beyond any clock, well within a float's whole numbers

# --- rings ---
DEFAULT_RING_BYTES = 1 * MiB
MIN_RING_BYTES = 64 * KiB
MAX_RING_BYTES = 1024 * MiB  # positions and offsets are checked against it
DEFAULT_SHM_BYTES = 256 * MiB  # all rings of one Agent's name together

# --- a fold cycle ---
MAX_CYCLE_BYTES = 2 * MiB
MAX_CYCLE_STATES = 1000
MAX_CYCLE_MADE = 6 * MiB  # of what batches were decoded to, in a cycle of several: a fold walks it; of lists in lists one batch and a half

# --- buckets ---
DEFAULT_BUCKETS = 512
MAX_BUCKETS = 65_536

# --- notes ---
MAX_NOTE = 500  # characters: a sentence or two beside a chart

# --- answers ---
MAX_ROWS = 1000  # of one overview
MAX_WHO = 1000  # Clients at either end of one figure
MAX_LETTERS = 10_000  # dead letters in one answer

_SIZE = re.compile(r"([0-9]{1,19}) ?(|b|[kmg](?:ib)?)", re.IGNORECASE)


def size_of(text: str) -> int | None:
    """How many bytes a size says that people write, such as 65536, 64K, 64 MiB, 1g: steps of 1,024. None for what is none."""
    match = _SIZE.fullmatch(text) if text.isascii() else None
    return None if match is None else int(match[1]) * {"k": KiB, "m": MiB, "g": KiB * MiB}.get(match[2][:1].lower(), 1)


MAX_PATTERN = 1000  # characters of a regular expression over names; who needs more has a list of them
