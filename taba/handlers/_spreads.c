/* PercentileGroup's States, from the bytes of their main parts to those of the next, in one pass a State.

   1. What is here is done a second time: taba/handlers/percentile_group.py and taba/handlers/spread.py say what the bytes mean, and do all
      that this leaves alone. Both give the same bytes (tests/handlers/test_spreads.py).
   2. Every byte of a dump is a stranger's: it is read only where the dump's own length says that it lies. A dump that is none, or one that is
      out of the ordinary, makes the whole call return None: then the arrays decide, and name who is at fault. Of this kind is a zero with a
      sign, too: which of two zeros numpy calls the lesser depends on the machine. */

#include "_folds.h"

#define FORM 3                               /* of what Python gives it and gets: see taba/parts.py */
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
#define COUNTED_FROM 24                      /* events of one slot, from which on their codes are counted in a table of all codes */
#define ALL_CODES 65536
#define MOST_WRITTEN (LEVELS * MOST_SLOTS + MOST_SLOTS + MOST_RUNS)  /* slots of a block: all that a journal and an archive have */

static const int64_t WIDTHS[LEVELS + 1] = {15, 120, 600, 3600};
static const int64_t SPANS[LEVELS + 1] = {60, 600, 3600, DAY};

typedef struct {
    int64_t start;
    double total, low, high;
    int first, bins;                         /* where its bins begin among those of all slots, and how many there are */
} Slot;

typedef struct {
    int64_t count;
    double total;
    uint32_t refused;
    uint64_t held, old;
    int slots, bins;
    Slot slot[MOST_SLOTS + MOST_RUNS];
    int32_t codes[MOST_BINS];
    int64_t weights[MOST_BINS];
} State;

/* Events of one slot: where they stand, once they are in the order of slots. */
typedef struct {
    int64_t start;
    Py_ssize_t begin, count;
} Run;

/* Room for the events of one State in the order of slots. */
typedef struct {
    double *values;
    int64_t *codes;
    uint8_t *runs;
} Sorted;

static uint32_t counted[ALL_CODES];  /* by code + 32,768; all 0 between two uses */
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

/* False for what is no State of the ordinary. */
static int read_state(const uint8_t *dump, Py_ssize_t length, State *state) {
    if (length == 0) {
        state->count = 0;
        state->total = 0.0;
        state->refused = 0;
        state->held = state->old = 0;
        state->slots = state->bins = 0;
        return 1;
    }
    if (length < HEAD_BYTES || length % 8) return 0;
    uint32_t held, old, mark;
    Head head;
    memcpy(&state->refused, dump, 4);
    memcpy(&held, dump + 4, 4);
    memcpy(&old, dump + 8, 4);
    memcpy(&mark, dump + 12, 4);
    memcpy(&state->count, dump + 16, 8);
    memcpy(&state->total, dump + 24, 8);
    if (mark != MARK || state->count < 0 || state->count > MOST_COUNT || !read_head(dump + TALLY_BYTES, &head)) return 0;
    Block block = block_at(HEAD_BYTES, head.slots, (int)head.bins, head.codes);
    if (block.end != length) return 0;
    state->held = held;
    state->old = old;
    state->slots = head.slots;
    state->bins = (int)head.bins;
    return read_block(dump, &block, &head, WIDTHS[0], state->slot, state->codes, state->weights, 0);
}

static uint32_t tally_of(uint64_t count) {
    return count < MAX_TALLY ? (uint32_t)count : MAX_TALLY;
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

static PyObject *write_state(const State *state, const Frame *frame) {
    unsigned codes = codes_of_block(state->slot, state->slots, state->codes, state->weights, WIDTHS[0]);
    Block block = block_at(HEAD_BYTES, state->slots, state->bins, codes);
    uint8_t *dump;
    PyObject *made = make_dump(frame, block.end, &dump);
    if (made == NULL) return NULL;
    const uint32_t tallies[4] = {state->refused, tally_of(state->held), tally_of(state->old), MARK};
    memcpy(dump, tallies, 16);
    memcpy(dump + 16, &state->count, 8);
    memcpy(dump + 24, &state->total, 8);
    write_head(dump + TALLY_BYTES, state->slot, state->slots, state->bins, WIDTHS[0], codes);
    write_block(dump, &block, state->slot, state->slots, state->codes, state->weights, WIDTHS[0]);
    return made;
}

/* Have what stands at `from` among all bins, and behind it, stand at `to`: the bins of the slot at `place`, and of those behind it. */
static void move_bins(State *state, int place, int from, int to) {
    size_t count = (size_t)(state->bins - from);
    memmove(state->codes + to, state->codes + from, count * sizeof *state->codes);
    memmove(state->weights + to, state->weights + from, count * sizeof *state->weights);
    state->bins += to - from;
    state->slot[place].bins += to - from;
    for (int behind = place + 1; behind < state->slots; behind++) state->slot[behind].first += to - from;
}

/* False where there are more bins than are handled here. */
static int add_bin(State *state, int place, int32_t code, int64_t weight, int *is_new) {
    int low = state->slot[place].first, high = low + state->slot[place].bins, end = high;
    while (low < high) {
        int middle = (low + high) / 2;
        if (state->codes[middle] < code) low = middle + 1;
        else high = middle;
    }
    if (low < end && state->codes[low] == code) {
        state->weights[low] += weight;
        return 1;
    }
    if (state->bins == MOST_BINS) return 0;
    move_bins(state, place, low, low + 1);
    state->codes[low] = code;
    state->weights[low] = weight;
    *is_new = 1;
    return 1;
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

static void collapse(State *state, int place) {
    const Slot *slot = &state->slot[place];
    int kept = collapsed(state->codes + slot->first, state->weights + slot->first, slot->bins);
    if (kept < slot->bins) move_bins(state, place, slot->first + slot->bins, slot->first + kept);
}

/* False where one of these is none, or there are more bins than are handled here. */
static int add_codes(State *state, int place, const int64_t *codes, Py_ssize_t count) {
    int is_new = 0, is_done = 1;
    if (count < COUNTED_FROM || count > UINT32_MAX) {
        for (Py_ssize_t at = 0; at < count; at++)
            if (!add_bin(state, place, (int32_t)codes[at], 1, &is_new)) return 0;
    } else {
        int64_t least = codes[0], most = codes[0];
        for (Py_ssize_t at = 0; at < count; at++) {
            counted[codes[at] + 32768]++;
            if (codes[at] < least) least = codes[at];
            if (codes[at] > most) most = codes[at];
        }
        for (int64_t code = least; code <= most; code++) {
            uint32_t weight = counted[code + 32768];
            if (weight == 0) continue;
            counted[code + 32768] = 0;  /* also of those for which there is no room */
            is_done = is_done && add_bin(state, place, (int32_t)code, weight, &is_new);
        }
        if (!is_done) return 0;
    }
    if (is_new) collapse(state, place);
    return 1;
}

/* The place of the slot with this start, which is made where there is none. */
static int slot_of(State *state, int64_t start) {
    int place = state->slots;
    while (place && state->slot[place - 1].start > start) place--;
    if (place && state->slot[place - 1].start == start) return place - 1;
    int first = place < state->slots ? state->slot[place].first : state->bins;
    memmove(state->slot + place + 1, state->slot + place, (size_t)(state->slots - place) * sizeof(Slot));
    state->slot[place] = (Slot){.start = start, .first = first};
    state->slots++;
    return place;
}

/* False where these are out of the ordinary. */
static int add_run(State *state, int64_t start, const double *values, const int64_t *codes, Py_ssize_t count) {
    double total = summed(values, count), low = values[0], high = values[0];
    for (Py_ssize_t at = 1; at < count; at++) {
        if (values[at] < low) low = values[at];
        if (values[at] > high) high = values[at];
    }
    int place = slot_of(state, start);
    Slot *slot = &state->slot[place];
    if (slot->bins) {
        if (is_zero_with_sign(slot->low) || is_zero_with_sign(slot->high)) return 0;
        slot->total += total;
        if (low < slot->low) slot->low = low;
        if (high > slot->high) slot->high = high;
    } else {
        slot->total = total;
        slot->low = low;
        slot->high = high;
    }
    return add_codes(state, place, codes, count);
}

/* The runs of these events, one of each slot and in their order; with `sorted`, values and codes are put there in that order, where they
   do not stand in it. How many; 0 where they are out of the ordinary. */
static int runs_of(State *state, Run *runs, const double *times, const double *values, const int64_t *codes, Py_ssize_t count, double now,
                   const Sorted *sorted, int *is_moved) {
    const double width = (double)WIDTHS[0];
    const double last = floor((now > 0.0 ? now : 0.0) / width) * width;
    int found = 0, run = 0;
    *is_moved = 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        double time = times[at];
        if (!isfinite(values[at]) || is_zero_with_sign(values[at]) || codes[at] > MAX_CODE || codes[at] < -MAX_CODE) return 0;
        if (!(time < last + width)) {
            time = last;
            state->held++;
        }
        double number = floor((time > 0.0 ? time : 0.0) / width);
        if (number > (double)MAX_START / width - 1.0) return 0;
        int64_t start = (int64_t)number * WIDTHS[0];
        if (!found || runs[run].start != start) {
            for (run = 0; run < found && runs[run].start != start; run++) continue;
            if (run == found) {
                if (found == MOST_RUNS) return 0;
                if (found && start < runs[found - 1].start) *is_moved = 1;
                runs[found++] = (Run){.start = start};
            } else {
                *is_moved = 1;
            }
        }
        runs[run].count++;
        sorted->runs[at] = (uint8_t)run;
    }
    int order[MOST_RUNS];
    for (int place = 0; place < found; place++) {
        int before = place;
        for (; before && runs[order[before - 1]].start > runs[place].start; before--) order[before] = order[before - 1];
        order[before] = place;
    }
    Py_ssize_t begin = 0;
    for (int place = 0; place < found; place++) {
        runs[order[place]].begin = begin;
        begin += runs[order[place]].count;
    }
    if (!*is_moved) return found;
    Py_ssize_t next[MOST_RUNS];
    for (int place = 0; place < found; place++) next[place] = runs[place].begin;
    for (Py_ssize_t at = 0; at < count; at++) {
        Py_ssize_t to = next[sorted->runs[at]]++;
        sorted->values[to] = values[at];
        sorted->codes[to] = codes[at];
    }
    return found;
}

/* From when on a window covers what there is. */
static double since_of(double now) {
    return floor((now - DAY) / (double)WIDTHS[LEVELS]) * (double)WIDTHS[LEVELS];
}

/* False where these events are out of the ordinary. */
static int add_events(State *state, const int64_t *codes, const double *times, const double *values, Py_ssize_t count, double now, const Sorted *sorted) {
    Run runs[MOST_RUNS];
    int is_moved, found = runs_of(state, runs, times, values, codes, count, now, sorted, &is_moved);
    if (!found) return 0;
    state->count += count;
    state->total += summed(values, count);
    if (is_moved) {
        values = sorted->values;
        codes = sorted->codes;
    }
    const double oldest = since_of(now);
    for (int run = 0; run < found; run++) {
        if ((double)runs[run].start < oldest) state->old += (uint64_t)runs[run].count;
        if (!add_run(state, runs[run].start, values + runs[run].begin, codes + runs[run].begin, runs[run].count)) return 0;
    }
    return (double)state->slot[state->slots - 1].start <= now + MAX_AHEAD;
}

/* One State, and its events in the order of slots. */
typedef struct {
    State state;
    Sorted sorted;
    double room[];
} Room;

static void *make_room(Py_ssize_t events) {
    Room *room = PyMem_Malloc(sizeof *room + (size_t)events * 17 + 1);  /* for all events of a State: it may have all of them */
    if (room != NULL) room->sorted = (Sorted){.values = room->room, .codes = (int64_t *)(room->room + events), .runs = (uint8_t *)(room->room + 2 * events)};
    return room;
}

static int add_to_state(void *its, const uint8_t *dump, Py_ssize_t length, const Events *events) {
    Room *room = its;
    if (!read_state(dump, length, &room->state)) return 0;
    return add_events(&room->state, events->codes, events->times, events->values, events->count, events->now, &room->sorted);
}

static PyObject *write_room(void *room, const Frame *frame) {
    return write_state(&((Room *)room)->state, frame);
}

static int slots_of_room(const void *room) {
    return ((const Room *)room)->state.slots;
}

static const Kind PERCENTILES = {"O!y*y*y*diy*y*:fold", 1, make_room, add_to_state, write_room, slots_of_room};

/* A slot that goes to an archive: to which of its levels, and whose bins these are. */
typedef struct {
    int level;
    Slot slot;
    const int32_t *codes;
    const int64_t *weights;
} Given;

typedef struct {
    int bins;
    double low, high;
    int32_t codes[2 * MOST_BINS];
    int64_t weights[2 * MOST_BINS];
} Sketch;

typedef struct {
    State state;
    Slot old[LEVELS * MOST_SLOTS];
    int32_t old_codes[MOST_BINS];
    int64_t old_weights[MOST_BINS];
    Given given[LEVELS * MOST_SLOTS + MOST_SLOTS];
    Slot new[LEVELS * MOST_SLOTS + MOST_SLOTS];
    int32_t new_codes[2 * MOST_BINS];        /* all that an archive and a journal may have */
    int64_t new_weights[2 * MOST_BINS];
    Sketch sketch, merged, spare;
} Spilling;

/* How many slots each level of an archive has, in `counts`; False for what is none of the ordinary. */
static int read_archive(const uint8_t *dump, Py_ssize_t length, Spilling *spilling, int *counts) {
    counts[0] = counts[1] = counts[2] = 0;
    if (length == 0) return 1;
    if (length < LEVELS * BLOCK_BYTES || length % 8) return 0;
    Head heads[LEVELS];
    Block blocks[LEVELS];
    Py_ssize_t end = LEVELS * BLOCK_BYTES;
    int bins = 0, slots = 0;
    for (int level = 0; level < LEVELS; level++) {
        if (!read_head(dump + level * BLOCK_BYTES, &heads[level])) return 0;
        blocks[level] = block_at(end, heads[level].slots, (int)heads[level].bins, heads[level].codes);
        end = blocks[level].end;
        bins += (int)heads[level].bins;
    }
    if (end != length || bins > MOST_BINS) return 0;
    bins = 0;
    for (int level = 0; level < LEVELS; level++) {
        if (!read_block(dump, &blocks[level], &heads[level], WIDTHS[level + 1], spilling->old + slots, spilling->old_codes, spilling->old_weights, bins)) return 0;
        counts[level] = heads[level].slots;
        slots += heads[level].slots;
        bins += (int)heads[level].bins;
    }
    return 1;
}

static int read_sketch(const uint8_t *dump, Py_ssize_t length, Sketch *sketch) {
    sketch->bins = 0;
    sketch->low = Py_HUGE_VAL;
    sketch->high = -Py_HUGE_VAL;
    if (length == 0) return 1;
    if (length < SKETCH_BYTES || length % 8 || dump[21] != SKETCH_MARK) return 0;
    uint16_t bins;
    int16_t first;
    memcpy(&sketch->low, dump, 8);
    memcpy(&sketch->high, dump + 8, 8);
    memcpy(&bins, dump + 16, 2);
    memcpy(&first, dump + 18, 2);
    int weight_code = dump[20] & 3, delta_code = dump[20] >> 2 & 1;
    Py_ssize_t from = aligned(SKETCH_BYTES + ((Py_ssize_t)bins << weight_code), delta_code);
    if (aligned(from + ((Py_ssize_t)bins << delta_code), 3) != length || bins > MOST_BINS) return 0;
    if (isnan(sketch->low) || isnan(sketch->high) || (bins && !(sketch->low <= sketch->high))) return 0;
    int32_t code = first;
    load_ints(dump + from, delta_code, deltas, bins);
    load_ints(dump + SKETCH_BYTES, weight_code, sketch->weights, bins);
    for (int at = 0; at < bins; at++) {
        int64_t delta = deltas[at], weight = sketch->weights[at];
        if ((at == 0) != (delta == 0) || weight <= 0 || weight > MOST_COUNT) return 0;
        code += (int32_t)delta;
        if (code > MAX_CODE || code < -MAX_CODE) return 0;
        sketch->codes[at] = code;
    }
    if (bins && code - first >= MAX_BINS)  /* as in read_block */
        for (int at = 0; at < bins; at++)
            if (held_code(sketch->codes[at], first, code) != sketch->codes[at]) return 0;
    sketch->bins = bins;
    return 1;
}

static PyObject *write_sketch(const Sketch *sketch) {
    uint64_t heaviest = 0, farthest = 0;
    for (int at = 0; at < sketch->bins; at++) {
        deltas[at] = at ? sketch->codes[at] - sketch->codes[at - 1] : 0;
        if ((uint64_t)sketch->weights[at] > heaviest) heaviest = (uint64_t)sketch->weights[at];
        if ((uint64_t)deltas[at] > farthest) farthest = (uint64_t)deltas[at];
    }
    int weight_code = count_code(heaviest), delta_code = count_code(farthest);
    Py_ssize_t from = aligned(SKETCH_BYTES + ((Py_ssize_t)sketch->bins << weight_code), delta_code);
    Py_ssize_t end = aligned(from + ((Py_ssize_t)sketch->bins << delta_code), 3);
    uint8_t *dump;
    PyObject *made = make_dump(&NO_FRAME, end, &dump);
    if (made == NULL) return NULL;
    uint16_t bins = (uint16_t)sketch->bins;
    int16_t first = (int16_t)(sketch->bins ? sketch->codes[0] : 0);
    memcpy(dump, &sketch->low, 8);
    memcpy(dump + 8, &sketch->high, 8);
    memcpy(dump + 16, &bins, 2);
    memcpy(dump + 18, &first, 2);
    dump[20] = (uint8_t)(weight_code | delta_code << 2);
    dump[21] = SKETCH_MARK;
    store_ints(dump + SKETCH_BYTES, weight_code, sketch->weights, sketch->bins);
    store_ints(dump + from, delta_code, deltas, sketch->bins);
    return made;
}

/* Add these bins to a sketch, which has room for both; `spare` is what it is made in. */
static void add_bins(Sketch *sketch, const int32_t *codes, const int64_t *weights, int count, Sketch *spare) {
    int one = 0, other = 0, made = 0;
    while (one < sketch->bins || other < count) {
        int is_one = other == count || (one < sketch->bins && sketch->codes[one] <= codes[other]);
        int is_other = one == sketch->bins || (other < count && codes[other] <= sketch->codes[one]);
        spare->codes[made] = is_one ? sketch->codes[one] : codes[other];
        spare->weights[made++] = (is_one ? sketch->weights[one] : 0) + (is_other ? weights[other] : 0);
        one += is_one;
        other += is_other;
    }
    made = collapsed(spare->codes, spare->weights, made);
    memcpy(sketch->codes, spare->codes, (size_t)made * sizeof *spare->codes);
    memcpy(sketch->weights, spare->weights, (size_t)made * sizeof *spare->weights);
    sketch->bins = made;
}

/* Widen one slot, and give it to its level. */
static int give(Given *given, int count, Slot slot, int level, const int32_t *codes, const int64_t *weights, double steady, double now) {
    if ((double)slot.start > now + MAX_AHEAD) slot.start = (int64_t)steady;
    if ((double)slot.start < since_of(steady)) return count;
    for (int next = level + 1; next <= LEVELS; next++) {
        int64_t wide = slot.start / WIDTHS[next] * WIDTHS[next];
        if ((double)(wide + WIDTHS[next]) <= steady - (double)SPANS[next - 1]) level = next;
        else break;
    }
    slot.start = slot.start / WIDTHS[level] * WIDTHS[level];
    int place = count;
    for (; place && (given[place - 1].level > level || (given[place - 1].level == level && given[place - 1].slot.start > slot.start)); place--)
        given[place] = given[place - 1];
    given[place] = (Given){.level = level, .slot = slot, .codes = codes + slot.first, .weights = weights + slot.first};
    return count + 1;
}

/* The archive of what was given; None where it is out of the ordinary. */
static PyObject *write_archive(Spilling *spilling, int given) {
    Sketch *sketch = &spilling->merged;
    int counts[LEVELS] = {0, 0, 0}, bins[LEVELS] = {0, 0, 0}, slots = 0, used = 0;
    for (int place = 0; place < given;) {
        const Given *one = &spilling->given[place];
        Slot slot = one->slot;
        double totals[LEVELS * MOST_SLOTS + MOST_SLOTS];
        int end = place + 1;
        totals[0] = slot.total;
        sketch->bins = 0;
        for (; end < given && spilling->given[end].level == one->level && spilling->given[end].slot.start == slot.start; end++) {
            const Given *other = &spilling->given[end];
            totals[end - place] = other->slot.total;
            if (is_zero_with_sign(slot.low) || is_zero_with_sign(slot.high) || is_zero_with_sign(other->slot.low) || is_zero_with_sign(other->slot.high)) return Py_NewRef(Py_None);
            if (other->slot.low < slot.low) slot.low = other->slot.low;
            if (other->slot.high > slot.high) slot.high = other->slot.high;
        }
        slot.total = summed(totals, end - place);
        for (int at = place; at < end; at++) add_bins(sketch, spilling->given[at].codes, spilling->given[at].weights, spilling->given[at].slot.bins, &spilling->spare);
        slot.first = used;
        slot.bins = sketch->bins;
        memcpy(spilling->new_codes + used, sketch->codes, (size_t)sketch->bins * sizeof *sketch->codes);
        memcpy(spilling->new_weights + used, sketch->weights, (size_t)sketch->bins * sizeof *sketch->weights);
        used += sketch->bins;
        counts[one->level - 1]++;
        bins[one->level - 1] += sketch->bins;
        spilling->new[slots++] = slot;
        place = end;
    }
    Block blocks[LEVELS];
    unsigned codes[LEVELS];
    Py_ssize_t end = LEVELS * BLOCK_BYTES;
    const Slot *of = spilling->new;
    for (int level = 0; level < LEVELS; of += counts[level++]) {
        codes[level] = codes_of_block(of, counts[level], spilling->new_codes, spilling->new_weights, WIDTHS[level + 1]);
        blocks[level] = block_at(end, counts[level], bins[level], codes[level]);
        end = blocks[level].end;
    }
    uint8_t *dump;
    PyObject *made = make_dump(&NO_FRAME, end, &dump);
    if (made == NULL) return NULL;
    of = spilling->new;
    for (int level = 0; level < LEVELS; of += counts[level++]) {
        write_head(dump + level * BLOCK_BYTES, of, counts[level], bins[level], WIDTHS[level + 1], codes[level]);
        write_block(dump, &blocks[level], of, counts[level], spilling->new_codes, spilling->new_weights, WIDTHS[level + 1]);
    }
    return made;
}

/* What leaves the journal goes to the archive and to the sketch; the new bytes of both. False where they are out of the ordinary, or with
   an exception. */
static int spill_state(Spilling *spilling, const int *old, double now, PyObject **archive, PyObject **sketch) {
    State *state = &spilling->state;
    double steady = now;
    if (state->slots && (double)state->slot[state->slots - 1].start < now) steady = (double)state->slot[state->slots - 1].start;
    if (steady < 0.0) return 0;
    int given = 0, place = 0, kept = 0, bins = 0;
    uint8_t leaves[MOST_SLOTS];
    for (int level = 0; level < LEVELS; level++)
        for (int of_level = 0; of_level < old[level]; of_level++)
            given = give(spilling->given, given, spilling->old[place++], level + 1, spilling->old_codes, spilling->old_weights, steady, now);
    if (is_zero_with_sign(spilling->sketch.low) || is_zero_with_sign(spilling->sketch.high)) return 0;
    for (place = 0; place < state->slots; place++) {
        const Slot *slot = &state->slot[place];
        double ends = (double)(slot->start / WIDTHS[1] * WIDTHS[1] + WIDTHS[1]);
        leaves[place] = ends <= steady - (double)SPANS[0] || (double)slot->start > steady + (double)SPANS[0];
        if (!leaves[place]) continue;
        if (is_zero_with_sign(slot->low) || is_zero_with_sign(slot->high)) return 0;
        given = give(spilling->given, given, *slot, 1, state->codes, state->weights, steady, now);
        if (slot->low < spilling->sketch.low) spilling->sketch.low = slot->low;
        if (slot->high > spilling->sketch.high) spilling->sketch.high = slot->high;
        add_bins(&spilling->sketch, state->codes + slot->first, state->weights + slot->first, slot->bins, &spilling->spare);
    }
    *archive = write_archive(spilling, given);
    if (*archive == NULL || *archive == Py_None) return 0;
    *sketch = write_sketch(&spilling->sketch);
    if (*sketch == NULL) return 0;
    for (place = 0; place < state->slots; place++) {
        if (leaves[place]) continue;
        Slot slot = state->slot[place];
        memmove(state->codes + bins, state->codes + slot.first, (size_t)slot.bins * sizeof *state->codes);
        memmove(state->weights + bins, state->weights + slot.first, (size_t)slot.bins * sizeof *state->weights);
        slot.first = bins;
        bins += slot.bins;
        state->slot[kept++] = slot;
    }
    state->slots = kept;
    state->bins = bins;
    return 1;
}

PyDoc_STRVAR(fold_doc,
"fold(dumps, rows, times, values, now, version, frame, codes) -> (dumps, slots) | None\n\n"
"The main parts with these events added, each behind `frame`, and how many slots the journal of each has (int32). `rows` (int64) are in\n"
"order, `codes` (int64) those of the `values`. With a `version` that is not 0, each of `dumps` stands behind a frame, which has to say\n"
"that one. None, where something is out of the ordinary: nothing is done then.");

static PyObject *fold(PyObject *module, PyObject *arguments) {
    (void)module;
    return fold_all(arguments, &PERCENTILES);
}

PyDoc_STRVAR(spill_doc,
"spill(dumps, archives, sketches, now, framed) -> (dumps, archives, sketches) | None\n\n"
"The main parts without the slots that leave their journals, and the archives and sketches with them. Before each of `dumps` stand\n"
"`framed` bytes, before each new one the same; before the others none.\n"
"None, where something is out of the ordinary: nothing is done then.");

static PyObject *spill(PyObject *module, PyObject *arguments) {
    PyObject *given[3], *made[3] = {NULL, NULL, NULL}, *result = NULL;
    double now;
    Py_ssize_t framed;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!O!O!dn:spill", &PyList_Type, &given[0], &PyList_Type, &given[1], &PyList_Type, &given[2], &now, &framed)) return NULL;
    Py_ssize_t total = PyList_GET_SIZE(given[0]);
    Spilling *spilling = PyMem_Malloc(sizeof *spilling);
    if (spilling == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (PyList_GET_SIZE(given[1]) != total || PyList_GET_SIZE(given[2]) != total || !is_a_time(now) || framed < 0) goto none;
    for (int part = 0; part < 3; part++) {
        made[part] = PyList_New(total);
        if (made[part] == NULL) goto done;
    }
    for (Py_ssize_t at = 0; at < total; at++) {
        const uint8_t *dump[3] = {NULL, NULL, NULL};
        Py_ssize_t length[3] = {0, 0, 0};
        Frame frame[3];
        int old[LEVELS] = {0, 0, 0};
        PyObject *archive = NULL, *sketch = NULL;
        for (int part = 0; part < 3; part++) {
            dump[part] = cut_frame(PyList_GET_ITEM(given[part], at), part ? 0 : framed, &frame[part], &length[part]);
            if (dump[part] == NULL) goto none;
        }
        if (!read_state(dump[0], length[0], &spilling->state) || !read_archive(dump[1], length[1], spilling, old)) goto none;
        if (!read_sketch(dump[2], length[2], &spilling->sketch)) goto none;
        int is_done = spill_state(spilling, old, now, &archive, &sketch);
        if (archive != NULL) PyList_SET_ITEM(made[1], at, archive);
        if (sketch != NULL) PyList_SET_ITEM(made[2], at, sketch);
        if (PyErr_Occurred()) goto done;
        if (!is_done) goto none;
        PyObject *one = write_state(&spilling->state, &frame[0]);
        if (one == NULL) goto done;
        PyList_SET_ITEM(made[0], at, one);
    }
    result = PyTuple_Pack(3, made[0], made[1], made[2]);
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    for (int part = 0; part < 3; part++) Py_XDECREF(made[part]);
    PyMem_Free(spilling);
    return result;
}

static PyMethodDef methods[] = {
    {"fold", fold, METH_VARARGS, fold_doc},
    {"spill", spill, METH_VARARGS, spill_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_spreads", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__spreads(void) {
    PyObject *module = is_little_endian() ? PyModule_Create(&definition) : NULL;
    if (module != NULL && PyModule_AddIntConstant(module, "FORM", FORM) < 0) Py_CLEAR(module);
    return module;
}
