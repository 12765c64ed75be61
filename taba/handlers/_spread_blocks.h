/* Blocks of slots, each slot with its figures and the bins of its sketch: read, and written. */

#ifndef TABA_HANDLERS_SPREAD_BLOCKS_H
#define TABA_HANDLERS_SPREAD_BLOCKS_H

#include "_folds.h"

#define TALLY_BYTES 32
#define BLOCK_BYTES 16
#define HEAD_BYTES (TALLY_BYTES + BLOCK_BYTES)
#define MARK UINT32_C(0x47505351)
#define LEVELS 3                             /* of an archive */
#define SKETCH_BYTES 24                      /* before the bins of one that left the journal */
#define SKETCH_MARK 0x45
#define MOST_BINS 16384                      /* of a journal or an archive that is handled here; a journal of 18 slots has some hundreds */
#define MOST_SLOTS 128                       /* of a journal, and of an archive's level, that is handled here; ordinary ones have 18 and 25 */
#define MOST_COUNT (INT64_C(1) << 48)        /* of a dump that is handled here: no sum of them is too great for 64 bits */
#define MOST_RUNS 64                         /* slots among a State's events that are handled here */
#define MOST_WRITTEN (LEVELS * MOST_SLOTS + MOST_SLOTS + MOST_RUNS)  /* slots of a block: all that a journal and an archive have */

static const int64_t WIDTHS[LEVELS + 1] = {15, 120, 600, 3600};
static const int64_t SPANS[LEVELS + 1] = {60, 600, 3600, DAY};

typedef struct {
    int64_t start;
    double total, low, high;
    int first, bins;                         /* where its bins begin among those of all slots, and how many there are */
} Slot;

static int64_t deltas[2 * MOST_BINS];  /* of the codes of a block that is read or written */

/* Where the sections of a block lie, from `start` on. */
typedef struct {
    int number_code, offset_code, weight_code, delta_code, size_code;
    Py_ssize_t numbers, weights, deltas, sizes, firsts, offsets, end;
} Block;

static Block block_at(Py_ssize_t start, int slots, int bins, unsigned codes) {
    Block block = {.number_code = codes & 3, .offset_code = codes >> 2 & 3, .weight_code = codes >> 4 & 3, .delta_code = codes >> 6 & 1,
                   .size_code = codes >> 7 & 1, .numbers = start};
    block.weights = aligned(start + ((Py_ssize_t)(3 * slots) << block.number_code), 3);
    block.deltas = aligned(block.weights + ((Py_ssize_t)bins << block.weight_code), block.delta_code);
    block.sizes = aligned(block.deltas + ((Py_ssize_t)bins << block.delta_code), block.size_code);
    block.firsts = aligned(block.sizes + ((Py_ssize_t)slots << block.size_code), 1);
    block.offsets = aligned(block.firsts + ((Py_ssize_t)slots << 1), block.offset_code);
    block.end = aligned(block.offsets + ((Py_ssize_t)slots << block.offset_code), 3);
    return block;
}

/* What a block's header says. */
typedef struct {
    int64_t base;
    uint32_t bins;
    uint16_t slots, codes;
} Head;

/* False for more than is handled here. */
static int read_head(const uint8_t *from, Head *head) {
    uint32_t base;
    memcpy(&base, from, 4);
    memcpy(&head->bins, from + 4, 4);
    memcpy(&head->slots, from + 8, 2);
    memcpy(&head->codes, from + 10, 2);
    head->base = base;
    return head->slots <= MOST_SLOTS && head->bins <= MOST_BINS;
}

/* The lowest code that a sketch with this greatest one tells apart, or for codes below zero the highest. */
static int32_t held_code(int32_t code, int32_t first, int32_t last) {
    if (code > 0 && code < last - (MAX_BINS - 1)) return last - (MAX_BINS - 1);
    if (code < 0 && code > first + (MAX_BINS - 1)) return first + (MAX_BINS - 1);
    return code;
}

static int is_zero_with_sign(double item) {
    return item == 0.0 && signbit(item);
}

/* False where these are no slots in order, of bins and figures that there may be. Their bins are put `from` there on. */
static int read_block(const uint8_t *dump, const Block *block, const Head *head, int64_t width, Slot *found, int32_t *codes, int64_t *weights, int from) {
    const int slots = head->slots, bins = (int)head->bins;
    int64_t offsets[MOST_SLOTS], sizes[MOST_SLOTS], before = -1;
    double numbers[3 * MOST_SLOTS];
    int first = 0;
    load_ints(dump + block->offsets, block->offset_code, offsets, slots);
    load_ints(dump + block->sizes, block->size_code, sizes, slots);
    load_numbers(dump + block->numbers, block->number_code, numbers, (Py_ssize_t)3 * slots);
    load_ints(dump + block->deltas, block->delta_code, deltas, bins);
    load_ints(dump + block->weights, block->weight_code, weights + from, bins);
    for (int bin = 0; bin < bins; bin++)
        if (weights[from + bin] <= 0 || weights[from + bin] > MOST_COUNT) return 0;
    for (int place = 0; place < slots; place++) {
        int64_t offset = offsets[place], size = sizes[place];
        if (offset < 0 || offset > MAX_START || size <= 0 || size > bins - first) return 0;
        Slot slot = {.start = (head->base + offset) * width, .first = from + first, .bins = (int)size};
        slot.total = numbers[3 * place];
        slot.low = numbers[3 * place + 1];
        slot.high = numbers[3 * place + 2];
        if (slot.start > MAX_START || slot.start <= before || !(slot.low <= slot.high)) return 0;
        before = slot.start;
        int16_t code_of_first;
        memcpy(&code_of_first, dump + block->firsts + ((Py_ssize_t)place << 1), 2);
        int32_t code = code_of_first;
        for (int bin = 0; bin < slot.bins; bin++) {
            int64_t delta = deltas[first + bin];
            if ((bin == 0) != (delta == 0)) return 0;
            code += (int32_t)delta;
            if (code > MAX_CODE || code < -MAX_CODE) return 0;
            codes[slot.first + bin] = code;
        }
        if (code - code_of_first >= MAX_BINS)  /* wider than what is written, where others than this decide when it is made narrower */
            for (int bin = 0; bin < slot.bins; bin++)
                if (held_code(codes[slot.first + bin], code_of_first, code) != codes[slot.first + bin]) return 0;
        found[place] = slot;
        first += slot.bins;
    }
    return first == bins;
}

/* How many bins are left of one sketch, once those too far below the greatest are one. */
static int collapsed(int32_t *codes, int64_t *weights, int count) {
    if (count < 2 || codes[count - 1] - codes[0] < MAX_BINS) return count;
    const int32_t first = codes[0], last = codes[count - 1];
    int kept = 0;
    for (int at = 0; at < count; at++) {
        int32_t code = held_code(codes[at], first, last);
        if (kept && codes[kept - 1] == code) {
            weights[kept - 1] += weights[at];
        } else {
            codes[kept] = code;
            weights[kept++] = weights[at];
        }
    }
    return kept;
}

/* The width codes of a block of these slots. */
static unsigned codes_of_block(const Slot *slots, int count, const int32_t *codes, const int64_t *weights, int64_t width) {
    uint64_t heaviest = 0, farthest = 0, largest = 0, last = 0;
    int number_code = 0;
    for (int place = 0; place < count; place++) {
        const Slot *slot = &slots[place];
        number_code = wider_code(wider_code(wider_code(number_code, slot->total), slot->low), slot->high);
        if ((uint64_t)slot->bins > largest) largest = (uint64_t)slot->bins;
        for (int at = slot->first; at < slot->first + slot->bins; at++)
            if ((uint64_t)weights[at] > heaviest) heaviest = (uint64_t)weights[at];
        for (int at = slot->first + 1; at < slot->first + slot->bins; at++)
            if ((uint64_t)(codes[at] - codes[at - 1]) > farthest) farthest = (uint64_t)(codes[at] - codes[at - 1]);
    }
    if (count) last = (uint64_t)((slots[count - 1].start - slots[0].start) / width);
    return (unsigned)(number_code | count_code(last) << 2 | count_code(heaviest) << 4 | count_code(farthest) << 6 | count_code(largest) << 7);
}

static void write_head(uint8_t *to, const Slot *slots, int count, int bins, int64_t width, unsigned codes) {
    const uint32_t two[2] = {count ? (uint32_t)(slots[0].start / width) : 0, (uint32_t)bins};
    const uint16_t others[2] = {(uint16_t)count, (uint16_t)codes};
    memcpy(to, two, 8);
    memcpy(to + 8, others, 4);
}

/* The bins of these slots follow each other. */
static void write_block(uint8_t *dump, const Block *block, const Slot *slots, int count, const int32_t *codes, const int64_t *weights, int64_t width) {
    int64_t offsets[MOST_WRITTEN], sizes[MOST_WRITTEN];
    double numbers[3 * MOST_WRITTEN];
    const double share = 1.0 / (double)width;
    int bins = 0;
    for (int place = 0; place < count; place++) {
        const Slot *slot = &slots[place];
        const int32_t *own = codes + slot->first;
        numbers[3 * place] = slot->total;
        numbers[3 * place + 1] = slot->low;
        numbers[3 * place + 2] = slot->high;
        sizes[place] = slot->bins;
        offsets[place] = slots_in(slot->start - slots[0].start, share);
        const int16_t code_of_first = (int16_t)own[0];
        memcpy(dump + block->firsts + ((Py_ssize_t)place << 1), &code_of_first, 2);
        deltas[bins] = 0;
        for (int bin = 1; bin < slot->bins; bin++) deltas[bins + bin] = own[bin] - own[bin - 1];
        bins += slot->bins;
    }
    store_numbers(dump + block->numbers, block->number_code, numbers, (Py_ssize_t)3 * count);
    store_ints(dump + block->sizes, block->size_code, sizes, count);
    store_ints(dump + block->offsets, block->offset_code, offsets, count);
    store_ints(dump + block->deltas, block->delta_code, deltas, bins);
    if (count) store_ints(dump + block->weights, block->weight_code, weights + slots[0].first, bins);
}

#endif
