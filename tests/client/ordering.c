/* A producer and an agent at one ring, each a thread: what the one releases the other finds, whole, and writes over nothing before that.

   Compiled with -fsanitize=thread every access that the ring's orders do not keep apart is found, on any processor: x86 would forgive most of
   them, ARM none. WITHOUT_RELEASES and WITHOUT_ACQUIRES take orders of the producer away: then something must be found. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#ifdef WITHOUT_RELEASES
#define memory_order_release memory_order_relaxed
#endif
#ifdef WITHOUT_ACQUIRES
#define memory_order_acquire memory_order_relaxed
#endif
#include "../../taba/client/_producer.h"
#undef memory_order_release
#undef memory_order_acquire

#define SIZE MIN_RING_BYTES
#define EVENTS 100000
#define EVERY 3 /* so often a value is bytes */
#define LENGTH 40
#define CELL 4096 /* in the directory */

static _Alignas(64) uint8_t segment[SIZE];

static void
fail(const char *what, uint64_t at)
{
    fprintf(stderr, "%s, at %llu\n", what, (unsigned long long)at);
    exit(1);
}

static void *
produce(void *nothing)
{
    Producer producer = {0};
    producer_enter(&producer, segment, SIZE, DROPS_OFFSET);
    for (uint64_t at = 0; at < EVENTS; at++) {
        while (!producer_has_room(&producer) && !producer_finds_room(&producer))
            ;
        if (at % EVERY == 0) {
            while (producer_byte_room(&producer) < LENGTH)
                producer_read_byte_tail(&producer);
            for (uint64_t place = 0; place < LENGTH; place++)
                producer.byte_ring[(producer.byte_head + place) & (producer.byte_ring_bytes - 1)] = (uint8_t)at;
            producer_commit_bytes(&producer, 1, (double)at, LENGTH);
        }
        else
            producer_commit(&producer, 2, (double)at, at, 0);
        if (at % 1024 == 0)
            producer_owe(&producer, CELL, 1.0);
    }
    return nothing;
}

static void *
drain(void *nothing)
{
    const uint64_t records = SIZE / 32, bytes = SIZE / 8;
    uint64_t byte_tail = 0;
    for (uint64_t at = 0; at < EVENTS; at++) {
        uint8_t *record = segment + SIZE / 4 + (at % records) * RECORD_BYTES;
        uint64_t commit, lap = at / records + 1, value;
        double time;
        do
            commit = atomic_load_explicit(word_at(record, COMMIT_OFFSET), memory_order_acquire);
        while (commit >> LAP_SHIFT != lap);
        memcpy(&time, record, 8);
        memcpy(&value, record + VALUE_OFFSET, 8);
        if (time != (double)at)
            fail("a time that is not its record's", at);
        if (at % EVERY == 0) {
            if (value >> BYTE_POSITION_BITS != LENGTH || (value & ((1ULL << BYTE_POSITION_BITS) - 1)) != byte_tail)
                fail("a value that lies elsewhere", at);
            for (uint64_t place = 0; place < LENGTH; place++)
                if (segment[bytes + (byte_tail + place) % bytes] != (uint8_t)at)
                    fail("bytes that are not their value's", at);
            byte_tail += LENGTH;
            atomic_store_explicit(word_at(segment, BYTE_TAIL_OFFSET), byte_tail, memory_order_release);
        }
        else if (value != at)
            fail("a value that is not its record's", at);
        uint64_t events = atomic_load_explicit(word_at(segment, CELL + OWED_EVENTS_OFFSET), memory_order_acquire), bits;
        bits = atomic_load_explicit(word_at(segment, CELL + OWED_OFFSET), memory_order_relaxed);
        double owed;
        memcpy(&owed, &bits, 8);
        if (owed < (double)events)
            fail("fewer owed than were counted", at);
        atomic_store_explicit(word_at(segment, TAIL_OFFSET), at + 1, memory_order_release);
    }
    return nothing;
}

int
main(void)
{
    pthread_t threads[2];
    if (pthread_create(&threads[0], NULL, produce, NULL) != 0 || pthread_create(&threads[1], NULL, drain, NULL) != 0)
        return 2;
    for (int at = 0; at < 2; at++)
        pthread_join(threads[at], NULL);
    puts("in order");
    return 0;
}
