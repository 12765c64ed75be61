/* The ring's layout, as the producer needs it: the numbers of taba/ring.py and taba/bounds.py. A test compares every one of them. */

#ifndef TABA_LAYOUT_H
#define TABA_LAYOUT_H

#include <stdatomic.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the ring is little-endian"
#endif

typedef _Atomic uint64_t word_t;

/* a word is published by one store; a lock in a library would be of this process alone */
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && sizeof(word_t) == 8 && _Alignof(word_t) == 8, "64-bit atomics take no lock");
_Static_assert(sizeof(double) == 8, "a double takes 8 bytes");

/* each number is one of taba.ring's (or of taba.bounds'), under the same name */
#define LAYOUT(NUMBER)                                                                                                                  \
    NUMBER(HEADER_BYTES, 4096)                                                                                                          \
    NUMBER(MIN_RING_BYTES, 65536)                                                                                                       \
    NUMBER(MAX_RING_BYTES, 1073741824)                                                                                                  \
    NUMBER(RECORD_BYTES, 24)                                                                                                            \
    NUMBER(VALUE_OFFSET, 8)                                                                                                             \
    NUMBER(COMMIT_OFFSET, 16)                                                                                                           \
    NUMBER(DIRECTORY_COUNT_OFFSET, 512)                                                                                                 \
    NUMBER(DIRECTORY_USED_OFFSET, 520)                                                                                                  \
    NUMBER(ENTRY_BYTES, 8)                                                                                                              \
    NUMBER(DROPS_OFFSET, 640)                                                                                                           \
    NUMBER(OWES_OFFSET, 768)                                                                                                            \
    NUMBER(MAX_DROP_REASONS, 16)                                                                                                        \
    NUMBER(TAIL_OFFSET, 1024)                                                                                                           \
    NUMBER(BYTE_TAIL_OFFSET, 1032)                                                                                                      \
    NUMBER(RETIRED_OFFSET, 1040)                                                                                                        \
    NUMBER(SLOTS_OFFSET, 1152)                                                                                                          \
    NUMBER(SLOT_BYTES, 128)                                                                                                             \
    NUMBER(TAB_BITS, 24)                                                                                                                \
    NUMBER(FLAG_BYTES, 1)                                                                                                               \
    NUMBER(LAP_SHIFT, 32)                                                                                                               \
    NUMBER(BYTE_POSITION_BITS, 40)                                                                                                      \
    NUMBER(CELL_BYTES, 64)                                                                                                              \
    NUMBER(OWED_OFFSET, 0)                                                                                                              \
    NUMBER(OWED_EVENTS_OFFSET, 8)                                                                                                       \
    NUMBER(MAX_VALUE_BYTES, 32768)                                                                                                      \
    NUMBER(MAX_VALUE_DEPTH, 32)

#define NUMBER_OF(name, value) name = value,
enum { LAYOUT(NUMBER_OF) };

/* places of counts in the header, in the order of ring.DROP_REASONS */
#define REASONS(REASON)                                                                                                                 \
    REASON(RING_FULL, "ring_full")                                                                                                      \
    REASON(BYTES_FULL, "bytes_full")                                                                                                    \
    REASON(VALUE_TOO_LARGE, "value_too_large")                                                                                          \
    REASON(VALUE_TYPE, "value_type")                                                                                                    \
    REASON(BAD_TIME, "bad_time")                                                                                                        \
    REASON(DIRECTORY_FULL, "directory_full")                                                                                            \
    REASON(NO_RING, "no_ring")                                                                                                          \
    REASON(STOPPED, "stopped")                                                                                                          \
    REASON(REENTRANT, "reentrant")                                                                                                      \
    REASON(UNKNOWN, "unknown")                                                                                                          \
    REASON(EXHAUSTED, "exhausted")                                                                                                      \
    REASON(FUNCTION_RAISED, "function_raised")

#define REASON_PLACE(name, text) name,
enum { REASONS(REASON_PLACE) REASONS_KNOWN };
_Static_assert((int)REASONS_KNOWN <= (int)MAX_DROP_REASONS, "each reason has a place in the header");

#define MAX_EXACT_INT (1LL << 53)   /* bounds.MAX_EXACT_INT */
#define MAX_TIME 1099511627776.0    /* bounds.MAX_TIME */

static inline word_t *
word_at(uint8_t *base, uint64_t offset)
{
    return (word_t *)(void *)(base + offset);
}

#endif
