/* The ring's producer: what taba/ring.py calls one, without anything of Python's.

   1. One thread at a time is here: the caller holds the GIL, and nothing here gives it up.
   2. A record is there when its commit word is; everything else of it is stored before, and the word with release order.
   3. The tails are the Agent's. They are read with acquire order: what it released it has read, before it is written over.
   4. `head` and `byte_head` are the producer's alone, and lie in its own memory.

   tests/client/ordering.c holds 2 and 3 against whoever reads, as threads, also where an order is left out. */

#ifndef TABA_PRODUCER_H
#define TABA_PRODUCER_H

#include <string.h>
#include <time.h>

#include "_layout.h"

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define LOOK_EVERY 1000000000LL /* ns between two looks at a full ring */
#define PREFETCHED 512          /* bytes ahead of the record that is written: eight cache lines, some 20 records */

typedef struct {
    uint8_t *base;   /* of the segment; NULL without one. Without records it is a segment that only counts */
    uint64_t counts; /* where in it the counts lie */
    uint8_t *record_ring;
    uint8_t *byte_ring;
    uint64_t records;
    int record_shift;
    uint64_t byte_ring_bytes;
    uint64_t max_value;
    uint64_t head;      /* position of the next record */
    uint64_t tail;      /* as last read from the header */
    uint64_t byte_head; /* byte position of the next value */
    uint64_t byte_tail; /* as last read from the header */
    uint64_t before;    /* events recorded into earlier rings, and those owed */
    int64_t looked;     /* monotonic ns of the last look at a full ring */
    uint64_t totals[MAX_DROP_REASONS];
    uint64_t pending[MAX_DROP_REASONS]; /* of the totals, those that no header has counted */
} Producer;

/* Whether a segment of so many bytes is a ring, or one that only counts. */
static inline int
is_segment_size(uint64_t size)
{
    return size == HEADER_BYTES || (size >= MIN_RING_BYTES && size <= MAX_RING_BYTES && (size & (size - 1)) == 0);
}

/* Leave the ring; what was counted stays counted. */
static void
producer_leave(Producer *self)
{
    self->before += self->head;
    self->head = self->tail = self->byte_head = self->byte_tail = self->records = 0;
    self->base = self->record_ring = self->byte_ring = NULL;
}

/* Record into a new segment, whose header is written. `size` is one that is_segment_size(), `counts` where its counts lie. */
static void
producer_enter(Producer *self, uint8_t *base, uint64_t size, uint64_t counts)
{
    producer_leave(self);
    self->base = base;
    self->counts = counts;
    if (size > HEADER_BYTES) {
        self->byte_ring_bytes = size / 8;
        self->byte_ring = base + size / 8;
        self->record_ring = base + size / 4;
        self->records = size / 32;
        self->record_shift = __builtin_ctzll(self->records);
        self->max_value = self->byte_ring_bytes / 4 < MAX_VALUE_BYTES ? self->byte_ring_bytes / 4 : MAX_VALUE_BYTES;
    }
    for (unsigned reason = 0; reason < MAX_DROP_REASONS; reason++) {
        word_t *place = word_at(base, counts + 8 * reason); /* a place that only counts has what its earlier holders counted */
        atomic_store_explicit(place, atomic_load_explicit(place, memory_order_relaxed) + self->pending[reason], memory_order_relaxed);
        self->pending[reason] = 0;
    }
}

/* Forget everything: a forked child begins. */
static void
producer_forget(Producer *self)
{
    producer_leave(self);
    self->before = 0;
    self->looked = 0;
    memset(self->totals, 0, sizeof self->totals);
    memset(self->pending, 0, sizeof self->pending);
}

static void
producer_count(Producer *self, unsigned reason, uint64_t times)
{
    self->totals[reason] += times;
    if (self->base == NULL) {
        self->pending[reason] += times;
        return;
    }
    word_t *place = word_at(self->base, self->counts + 8 * reason);
    atomic_store_explicit(place, atomic_load_explicit(place, memory_order_relaxed) + times, memory_order_relaxed);
}

/* What finds the ring full and must not be dropped: the sum of such values in a cell of the directory, and how many they were. */
static void
producer_owe(Producer *self, uint64_t cell, double value)
{
    word_t *sum = word_at(self->base, cell + OWED_OFFSET), *events = word_at(self->base, cell + OWED_EVENTS_OFFSET);
    uint64_t bits = atomic_load_explicit(sum, memory_order_relaxed);
    double owed;
    memcpy(&owed, &bits, 8);
    owed += value;
    memcpy(&bits, &owed, 8);
    atomic_store_explicit(sum, bits, memory_order_relaxed);
    /* release: whoever reads this count finds at least so many events in the sum */
    atomic_store_explicit(events, atomic_load_explicit(events, memory_order_relaxed) + 1, memory_order_release);
    word_t *owes = word_at(self->base, OWES_OFFSET);
    atomic_store_explicit(owes, atomic_load_explicit(owes, memory_order_relaxed) + 1, memory_order_release);
    self->before++;
}

static inline int
producer_is_retired(Producer *self)
{
    return atomic_load_explicit(word_at(self->base, RETIRED_OFFSET), memory_order_relaxed) != 0;
}

static inline int
producer_has_room(Producer *self)
{
    return self->head - self->tail < self->records;
}

/* Look at the tail again; whether there is room. */
static int
producer_finds_room(Producer *self)
{
    self->tail = atomic_load_explicit(word_at(self->base, TAIL_OFFSET), memory_order_acquire);
    return producer_has_room(self);
}

/* Bytes that are free in the byte ring, as far as known. */
static inline uint64_t
producer_byte_room(Producer *self)
{
    uint64_t used = self->byte_head - self->byte_tail;
    return used <= self->byte_ring_bytes ? self->byte_ring_bytes - used : 0;
}

static void
producer_read_byte_tail(Producer *self)
{
    self->byte_tail = atomic_load_explicit(word_at(self->base, BYTE_TAIL_OFFSET), memory_order_acquire);
}

/* Write the record at the head; there is room. */
static inline void
producer_commit(Producer *self, uint32_t tab, double time, uint64_t value, uint64_t flags)
{
    uint8_t *record = self->record_ring + (self->head & (self->records - 1)) * RECORD_BYTES;
    uint64_t lap = ((self->head >> self->record_shift) + 1) & 0xffffffff;
    __builtin_prefetch(record + PREFETCHED, 1);
    memcpy(record, &time, 8);
    memcpy(record + VALUE_OFFSET, &value, 8);
    /* release: whoever sees this word sees the time, the value and the bytes before it */
    atomic_store_explicit(word_at(record, COMMIT_OFFSET), tab | flags << TAB_BITS | lap << LAP_SHIFT, memory_order_release);
    self->head++;
}

/* Write a record whose value of `length` bytes was put into the byte ring at byte_head. */
static inline void
producer_commit_bytes(Producer *self, uint32_t tab, double time, uint64_t length)
{
    uint64_t word = length << BYTE_POSITION_BITS | (self->byte_head & ((1ULL << BYTE_POSITION_BITS) - 1));
    producer_commit(self, tab, time, word, FLAG_BYTES);
    self->byte_head += length;
}

static inline double
clock_seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now); /* vDSO: no system call */
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* After a full ring: whether it is time to look why. */
static int
producer_look_is_due(Producer *self)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t nanoseconds = now.tv_sec * 1000000000LL + now.tv_nsec;
    if (self->looked != 0 && nanoseconds - self->looked < LOOK_EVERY)
        return 0;
    self->looked = nanoseconds;
    return 1;
}

#endif
