"""The bounds that more than one part relies on, each with its reason. A bound of one part alone stands in that part.

Standard library only: applications import this module.
"""

from __future__ import annotations

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
MARK_DAYS = 14  # a mark not written for so long is removed: nothing that it guards against is still sent

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

# --- buckets ---
DEFAULT_BUCKETS = 512
MAX_BUCKETS = 65_536
