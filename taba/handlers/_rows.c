/* CounterGroup's States, from the bytes of their main parts to those of the next, in one pass a State.

   1. What is here is done a second time: taba/handlers/counter_group.py says what the bytes mean, and does all that this leaves alone.
      Both give the same bytes (tests/handlers/test_rows.py).
   2. Every byte of a dump is a stranger's: it is read only where the dump's own length says that it lies. A dump that is none, or one that is
      out of the ordinary, makes the whole call return None: then the arrays decide, and name who is at fault.
   3. A sum is made in the order in which numpy makes it: the first of a run, and to it the sum of the rest by pairs. Each step is rounded by
      itself (setup.py says how). Which sign the least of 0.0 and -0.0 has is left to both. */

#include "../_part.h"
#include "_binned.h"
#include "_counted.h"

#define FORM 6                               /* of what Python gives it and gets: see taba/parts.py */
#define HEAD_BYTES 48
#define BLOCK_BYTES 8
#define LEVELS 3                             /* of an archive */
#define MARK 0x43
#define MOST_BINS 8192                       /* of a State that is handled here; a sketch has 4,097 at the most */
#define MOST_SLOTS 512                       /* of a journal, and of an archive's level, that is handled here; ordinary ones have a hundred */
#define MOST_COUNT (INT64_C(1) << 48)        /* of one bin or slot of a dump that is handled here: no sum of them is too great for 64 bits */
#define MOST_RUNS 64                         /* runs of one slot among a State's events that are handled here */
#define MOST_WRITTEN (LEVELS * MOST_SLOTS + MOST_SLOTS + MOST_RUNS)  /* slots of a block: all that a journal and an archive have */

static const int64_t WIDTHS[LEVELS + 1] = {5, 30, 150, 900};
static const int64_t SPANS[LEVELS + 1] = {60, 600, 3600, DAY};

typedef struct {
    int64_t start, count;
    double total;
} Slot;

typedef struct {
    double total, low, high;
    uint32_t refused;
    uint64_t held;
    int bins, slots;
    int32_t codes[MOST_BINS];
    int64_t weights[MOST_BINS];
    int64_t deltas[MOST_BINS];               /* while it is read or written */
    Slot slot[MOST_SLOTS + MOST_RUNS];
} State;

/* Where the sections of a block lie, from `start` on. False where `end` comes first. */
typedef struct {
    int count_code, total_code, offset_code;
    Py_ssize_t totals, counts, offsets, end;
} Block;

static Block block_at(Py_ssize_t start, int slots, unsigned codes) {
    Block block = {.count_code = codes & 3, .total_code = codes >> 2 & 3, .offset_code = codes >> 4 & 3, .totals = start};
    block.counts = aligned(start + ((Py_ssize_t)slots << block.total_code), block.count_code);
    block.offsets = aligned(block.counts + ((Py_ssize_t)slots << block.count_code), block.offset_code);
    block.end = aligned(block.offsets + ((Py_ssize_t)slots << block.offset_code), 3);
    return block;
}

/* False where these are no slots in order, of times and counts that there may be. */
static int read_block(const uint8_t *dump, const Block *block, int slots, int64_t base, int64_t width, Slot *found) {
    int64_t offsets[MOST_SLOTS], counts[MOST_SLOTS], before = -1;
    double totals[MOST_SLOTS];
    load_ints(dump + block->offsets, block->offset_code, offsets, slots);
    load_ints(dump + block->counts, block->count_code, counts, slots);
    load_numbers(dump + block->totals, block->total_code, totals, slots);
    for (int place = 0; place < slots; place++) {
        int64_t offset = offsets[place], count = counts[place];
        if (offset < 0 || offset > MAX_START || count <= 0 || count > MOST_COUNT) return 0;
        int64_t start = (base + offset) * width;
        if (start > MAX_START || start <= before) return 0;
        before = start;
        found[place] = (Slot){start, count, totals[place]};
    }
    return 1;
}

static unsigned codes_of_block(const Slot *slots, int count, int64_t width) {
    uint64_t most = 0;
    int number_code = 0;
    for (int place = 0; place < count; place++) {
        if ((uint64_t)slots[place].count > most) most = (uint64_t)slots[place].count;
        number_code = wider_code(number_code, slots[place].total);
    }
    uint64_t farthest = count ? (uint64_t)((slots[count - 1].start - slots[0].start) / width) : 0;
    return (unsigned)(count_code(most) | number_code << 2 | count_code(farthest) << 4);
}

static void write_block(uint8_t *dump, const Block *block, const Slot *slots, int count, int64_t width) {
    if (count <= 0) return;
    int64_t items[MOST_WRITTEN];
    double totals[MOST_WRITTEN];
    const double share = 1.0 / (double)width;
    for (int place = 0; place < count; place++) totals[place] = slots[place].total;
    store_numbers(dump + block->totals, block->total_code, totals, count);
    for (int place = 0; place < count; place++) items[place] = slots[place].count;
    store_ints(dump + block->counts, block->count_code, items, count);
    for (int place = 0; place < count; place++) items[place] = slots_in(slots[place].start - slots[0].start, share);
    store_ints(dump + block->offsets, block->offset_code, items, count);
}

static void write_block_head(uint8_t *to, const Slot *slots, int count, int64_t width, unsigned codes) {
    uint32_t base = count ? (uint32_t)(slots[0].start / width) : 0;
    uint16_t two[2] = {(uint16_t)count, (uint16_t)codes};
    memcpy(to, &base, 4);
    memcpy(to + 4, two, 4);
}

/* False for what is no State of the ordinary. */
static int read_state(const uint8_t *dump, Py_ssize_t length, State *state) {
    if (length == 0) {
        state->total = 0.0;
        state->low = Py_HUGE_VAL;
        state->high = -Py_HUGE_VAL;
        state->refused = 0;
        state->held = 0;
        state->bins = state->slots = 0;
        return 1;
    }
    if (length < HEAD_BYTES || length % 8 || dump[37] != MARK) return 0;
    uint32_t held, base;
    uint16_t bins, slots, codes;
    int16_t first;
    memcpy(&state->total, dump, 8);
    memcpy(&state->low, dump + 8, 8);
    memcpy(&state->high, dump + 16, 8);
    memcpy(&state->refused, dump + 24, 4);
    memcpy(&held, dump + 28, 4);
    memcpy(&bins, dump + 32, 2);
    memcpy(&first, dump + 34, 2);
    memcpy(&base, dump + 40, 4);
    memcpy(&slots, dump + 44, 2);
    memcpy(&codes, dump + 46, 2);
    if (bins > MOST_BINS || slots > MOST_SLOTS || (bins && !(state->low <= state->high))) return 0;
    int weight_code = dump[36] & 3, delta_code = dump[36] >> 2 & 1;
    Py_ssize_t weights = HEAD_BYTES;
    Py_ssize_t deltas = aligned(weights + ((Py_ssize_t)bins << weight_code), delta_code);
    Block block = block_at(aligned(deltas + ((Py_ssize_t)bins << delta_code), 3), slots, codes);
    if (block.end != length) return 0;
    state->held = held;
    state->bins = bins;
    state->slots = slots;
    int32_t code = first;
    load_ints(dump + weights, weight_code, state->weights, bins);
    load_ints(dump + deltas, delta_code, state->deltas, bins);
    for (int place = 0; place < bins; place++) {
        int64_t delta = state->deltas[place], weight = state->weights[place];
        if ((place == 0) != (delta == 0) || weight <= 0 || weight > MOST_COUNT) return 0;
        code += (int32_t)delta;
        if (code > MAX_CODE || code < -MAX_CODE) return 0;
        state->codes[place] = code;
    }
    return read_block(dump, &block, slots, base, WIDTHS[0], state->slot);
}

static PyObject *write_state(State *state, const Frame *frame) {
    uint64_t heaviest = 0, farthest = 0;
    for (int place = 0; place < state->bins; place++) {
        state->deltas[place] = place ? state->codes[place] - state->codes[place - 1] : 0;
        if ((uint64_t)state->weights[place] > heaviest) heaviest = (uint64_t)state->weights[place];
        if ((uint64_t)state->deltas[place] > farthest) farthest = (uint64_t)state->deltas[place];
    }
    int weight_code = count_code(heaviest), delta_code = count_code(farthest);
    unsigned codes = codes_of_block(state->slot, state->slots, WIDTHS[0]);
    Py_ssize_t deltas = aligned(HEAD_BYTES + ((Py_ssize_t)state->bins << weight_code), delta_code);
    Block block = block_at(aligned(deltas + ((Py_ssize_t)state->bins << delta_code), 3), state->slots, codes);
    uint8_t *dump;
    PyObject *made = make_dump(frame, block.end, &dump);
    if (made == NULL) return NULL;
    uint32_t held = state->held < MAX_TALLY ? (uint32_t)state->held : MAX_TALLY;
    uint16_t bins = (uint16_t)state->bins;
    int16_t first = (int16_t)(state->bins ? state->codes[0] : 0);
    memcpy(dump, &state->total, 8);
    memcpy(dump + 8, &state->low, 8);
    memcpy(dump + 16, &state->high, 8);
    memcpy(dump + 24, &state->refused, 4);
    memcpy(dump + 28, &held, 4);
    memcpy(dump + 32, &bins, 2);
    memcpy(dump + 34, &first, 2);
    dump[36] = (uint8_t)(weight_code | delta_code << 2);
    dump[37] = MARK;
    write_block_head(dump + 40, state->slot, state->slots, WIDTHS[0], codes);
    store_ints(dump + HEAD_BYTES, weight_code, state->weights, state->bins);
    store_ints(dump + deltas, delta_code, state->deltas, state->bins);
    write_block(dump, &block, state->slot, state->slots, WIDTHS[0]);
    return made;
}

/* The place of `code` among the bins, or of the first beyond it. */
static int bin_of(const State *state, int32_t code) {
    int low = 0, high = state->bins;
    while (low < high) {
        int middle = (low + high) / 2;
        if (state->codes[middle] < code) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* False where there are more bins than are handled here. */
static int add_bin(State *state, int32_t code, int64_t weight, int *is_new) {
    int place = bin_of(state, code);
    if (place < state->bins && state->codes[place] == code) {
        state->weights[place] += weight;
        return 1;
    }
    if (state->bins == MOST_BINS) return 0;
    memmove(state->codes + place + 1, state->codes + place, (size_t)(state->bins - place) * sizeof *state->codes);
    memmove(state->weights + place + 1, state->weights + place, (size_t)(state->bins - place) * sizeof *state->weights);
    state->codes[place] = code;
    state->weights[place] = weight;
    state->bins++;
    *is_new = 1;
    return 1;
}

static void collapse(State *state) {
    if (state->bins < 2 || state->codes[state->bins - 1] - state->codes[0] < MAX_BINS) return;
    int32_t first = state->codes[0], last = state->codes[state->bins - 1];
    int kept = 0;
    for (int place = 0; place < state->bins; place++) {
        int32_t code = state->codes[place];
        if (code > 0 && code < last - (MAX_BINS - 1)) code = last - (MAX_BINS - 1);
        else if (code < 0 && code > first + (MAX_BINS - 1)) code = first + (MAX_BINS - 1);
        if (kept && state->codes[kept - 1] == code) {
            state->weights[kept - 1] += state->weights[place];
        } else {
            state->codes[kept] = code;
            state->weights[kept++] = state->weights[place];
        }
    }
    state->bins = kept;
}

/* Add what was counted. False where there are more bins than are handled here. */
static int add_counted(State *state, const Marked *marked) {
    int is_new = 0, is_done = 1, was_empty = state->bins == 0;
    for (int group = marked->first; group <= marked->last; group++) {
        for (uint64_t left = take_marks(group); left; left &= left - 1) {
            int place = group * 64 + __builtin_ctzll(left);
            int64_t weight = take_counted((size_t)place);  /* also of those for which there is no room */
            if (was_empty && state->bins < MOST_BINS) {    /* they come in order */
                state->codes[state->bins] = place - 32768;
                state->weights[state->bins++] = weight;
                is_new = 1;
            } else {
                is_done = is_done && add_bin(state, place - 32768, weight, &is_new);
            }
        }
    }
    if (is_done && is_new) collapse(state);
    return is_done;
}

static int add_codes(State *state, const int64_t *codes, Py_ssize_t count) {
    int is_new = 0;
    Marked marked;
    if (count >= COUNTED_FROM && count <= UINT32_MAX)
        return count_codes(codes, count, &marked) && add_counted(state, &marked);
    for (Py_ssize_t place = 0; place < count; place++) {
        if (codes[place] > MAX_CODE || codes[place] < -MAX_CODE) return 0;
        if (!add_bin(state, (int32_t)codes[place], 1, &is_new)) return 0;
    }
    if (is_new) collapse(state);
    return 1;
}

/* Add runs, which are sorted and one of each slot, to slots. */
static void merge_slots(State *state, const Slot *runs, int count) {
    for (int run = 0; run < count; run++) {
        int place = state->slots;
        while (place && state->slot[place - 1].start > runs[run].start) place--;
        if (place && state->slot[place - 1].start == runs[run].start) {
            state->slot[place - 1].count += runs[run].count;
            state->slot[place - 1].total += runs[run].total;
        } else {
            memmove(state->slot + place + 1, state->slot + place, (size_t)(state->slots - place) * sizeof(Slot));
            state->slot[place] = runs[run];
            state->slots++;
        }
    }
}

/* Stable, by start; of equal ones the sum, as numpy makes it. How many are left. */
static int join_slots(Slot *slots, int count) {
    for (int place = 1; place < count; place++) {
        Slot one = slots[place];
        int before = place;
        for (; before && slots[before - 1].start > one.start; before--) slots[before] = slots[before - 1];
        slots[before] = one;
    }
    int kept = 0;
    for (int place = 0; place < count;) {
        double totals[LEVELS * MOST_SLOTS + MOST_SLOTS + MOST_RUNS];
        totals[0] = slots[place].total;
        int64_t sum = slots[place].count;
        int end = place + 1;
        for (; end < count && slots[end].start == slots[place].start; end++) {
            totals[end - place] = slots[end].total;
            sum += slots[end].count;
        }
        slots[kept++] = (Slot){slots[place].start, sum, summed(totals, end - place)};
        place = end;
    }
    return kept;
}

/* The time as of which what a State has widens and leaves. */
static double steady_of(const State *state, double now) {
    if (!state->slots) return now;
    double newest = (double)state->slot[state->slots - 1].start;
    return newest < now ? newest : now;
}

static double since_of(double now) {
    return floor((now - DAY) / (double)WIDTHS[LEVELS]) * (double)WIDTHS[LEVELS];
}

/* Leave out what no window covers any more. False where a slot lies so far ahead that it is held. */
static int forget(State *state, double now) {
    double since = since_of(steady_of(state, now));
    if ((double)state->slot[state->slots - 1].start > now + MAX_AHEAD) return 0;
    int gone = 0;
    while (gone < state->slots && (double)state->slot[gone].start < since) gone++;
    if (gone) {
        memmove(state->slot, state->slot + gone, (size_t)(state->slots - gone) * sizeof(Slot));
        state->slots -= gone;
    }
    return state->slots <= MOST_SLOTS;
}

/* False where these events are out of the ordinary. */
static int add_events(State *state, const int64_t *codes, const double *times, const double *values, Py_ssize_t count, double now) {
    Slot runs[MOST_RUNS];
    int found = 0;
    Py_ssize_t begin = 0;
    const double width = (double)WIDTHS[0];
    const double last = floor((now > 0.0 ? now : 0.0) / width) * width;
    const double end = last + width;
    const Extent its = extent_of(values, count), when = extent_of(times, count);
    double from = 1.0, until = 0.0;
    if (!its.are_finite) return 0;
    if (when.are_finite && when.low >= 0.0 && when.high < end) {  /* nearly always all are of one slot */
        const double only = floor(when.low / width) * width;
        if (when.high < only + width && only + width <= (double)MAX_START) {
            runs[found++].start = (int64_t)only;
            goto found;
        }
    }
    for (Py_ssize_t place = 0; place < count; place++) {
        double time = times[place];
        if (time >= from && time < until) continue;  /* of the run's slot, as nearly always, without dividing: a quotient is rounded to no other */
        if (!(time < end)) {
            time = last;
            state->held++;
        }
        int64_t start = (int64_t)floor((time > 0.0 ? time : 0.0) / width) * WIDTHS[0];
        from = (double)start;
        until = from + width < end ? from + width : end;
        if (found && runs[found - 1].start == start) continue;
        if (start > MAX_START || found == MOST_RUNS) return 0;
        if (found) {
            runs[found - 1].count = place - begin;
            runs[found - 1].total = summed(values + begin, place - begin);
        }
        begin = place;
        runs[found++].start = start;
    }
found:
    runs[found - 1].count = count - begin;
    runs[found - 1].total = summed(values + begin, count - begin);
    state->total += found > 1 ? summed(values, count) : runs[0].total;
    if (its.low < state->low) state->low = its.low;
    if (its.high > state->high) state->high = its.high;
    if (!add_codes(state, codes, count)) return 0;
    merge_slots(state, runs, join_slots(runs, found));
    return forget(state, now);
}

static void *make_room(Py_ssize_t events) {
    (void)events;
    return PyMem_Malloc(sizeof(State));
}

static int add_to_state(void *room, const uint8_t *dump, Py_ssize_t length, const Events *events) {
    return read_state(dump, length, room) && add_events(room, events->codes, events->times, events->values, events->count, events->now);
}

static PyObject *write_room(void *room, const Frame *frame) {
    return write_state(room, frame);
}

static int slots_of_room(const void *room) {
    return ((const State *)room)->slots;
}

static const Kind KIND = {"O!y*y*y*diy*y*:fold", 1, make_room, add_to_state, write_room, slots_of_room};

/* A State of the edge, and the one to which it is added. */
typedef struct {
    State state, edge;
} Both;

static void *make_both(void) {
    return PyMem_Malloc(sizeof(Both));
}

static int read_edge(void *both, const uint8_t *dump, Py_ssize_t length, int64_t *count) {
    State *edge = &((Both *)both)->edge;
    if (!read_state(dump, length, edge) || edge->refused || edge->held || edge->slots > MOST_RUNS || !edge->bins) return 0;
    if (!isfinite(edge->total) || !isfinite(edge->low) || !isfinite(edge->high)) return 0;
    const int32_t first = edge->codes[0], last = edge->codes[edge->bins - 1];
    int64_t of_slots = 0;
    *count = 0;
    for (int place = 0; place < edge->bins; place++) {
        int32_t code = edge->codes[place];
        if ((code > 0 && code < last - (MAX_BINS - 1)) || (code < 0 && code > first + (MAX_BINS - 1))) return 0;  /* wider than any writes */
        if (edge->weights[place] > UINT32_MAX) return 0;
        *count += edge->weights[place];
    }
    for (int place = 0; place < edge->slots; place++) {
        if (edge->slot[place].count > UINT32_MAX || !isfinite(edge->slot[place].total)) return 0;
        of_slots += edge->slot[place].count;
    }
    return of_slots == *count;
}

static int add_edge(void *its, const uint8_t *dump, Py_ssize_t length, double now) {
    State *state = &((Both *)its)->state;
    const State *edge = &((Both *)its)->edge;
    const int64_t last = (int64_t)floor((now > 0.0 ? now : 0.0) / (double)WIDTHS[0]) * WIDTHS[0];
    Slot slots[MOST_RUNS];
    int is_new = 0;
    if (!read_state(dump, length, state)) return 0;
    for (int place = 0; place < edge->slots; place++) {
        slots[place] = edge->slot[place];
        if (slots[place].start > last) {
            slots[place].start = last;
            state->held += (uint64_t)slots[place].count;
        }
    }
    state->total += edge->total;
    if (edge->low < state->low) state->low = edge->low;
    if (edge->high > state->high) state->high = edge->high;
    for (int place = 0; place < edge->bins; place++)
        if (!add_bin(state, edge->codes[place], edge->weights[place], &is_new)) return 0;
    if (is_new) collapse(state);
    merge_slots(state, slots, join_slots(slots, edge->slots));
    return forget(state, now);
}

static PyObject *write_both(void *both, const Frame *frame) {
    return write_state(&((Both *)both)->state, frame);
}

static int slots_of_both(const void *both) {
    return ((const Both *)both)->state.slots;
}

static const Merging MERGING = {make_both, read_edge, add_edge, write_both, slots_of_both};

/* The slots of each level of an archive; False for what is none of the ordinary. */
static int read_archive(const uint8_t *dump, Py_ssize_t length, Slot (*levels)[MOST_SLOTS], int *counts) {
    counts[0] = counts[1] = counts[2] = 0;
    if (length == 0) return 1;
    if (length < LEVELS * BLOCK_BYTES || length % 8) return 0;
    Block blocks[LEVELS];
    Py_ssize_t end = LEVELS * BLOCK_BYTES;
    for (int level = 0; level < LEVELS; level++) {
        uint16_t two[2];
        memcpy(two, dump + level * BLOCK_BYTES + 4, 4);
        if (two[0] > MOST_SLOTS) return 0;
        counts[level] = two[0];
        blocks[level] = block_at(end, two[0], two[1]);
        end = blocks[level].end;
    }
    if (end != length) return 0;
    for (int level = 0; level < LEVELS; level++) {
        uint32_t base;
        memcpy(&base, dump + level * BLOCK_BYTES, 4);
        if (!read_block(dump, &blocks[level], counts[level], base, WIDTHS[level + 1], levels[level])) return 0;
    }
    return 1;
}

typedef struct {
    State state;
    Slot old[LEVELS][MOST_SLOTS];
    Slot new[LEVELS][LEVELS * MOST_SLOTS + MOST_SLOTS + MOST_RUNS];
} Spilling;

/* Widen one slot, and give it to its level. */
static void give(Spilling *spilling, int *counts, Slot slot, int level, double steady, double now) {
    if ((double)slot.start > now + MAX_AHEAD) slot.start = (int64_t)steady;
    if ((double)slot.start < since_of(steady)) return;
    for (int next = level + 1; next <= LEVELS; next++) {
        int64_t wide = slot.start / WIDTHS[next] * WIDTHS[next];
        if ((double)(wide + WIDTHS[next]) <= steady - (double)SPANS[next - 1]) level = next;
        else break;
    }
    slot.start = slot.start / WIDTHS[level] * WIDTHS[level];
    spilling->new[level - 1][counts[level - 1]++] = slot;
}

static PyObject *write_archive(Spilling *spilling, int *counts) {
    Block blocks[LEVELS];
    unsigned codes[LEVELS];
    Py_ssize_t end = LEVELS * BLOCK_BYTES;
    for (int level = 0; level < LEVELS; level++) {
        counts[level] = join_slots(spilling->new[level], counts[level]);
        codes[level] = codes_of_block(spilling->new[level], counts[level], WIDTHS[level + 1]);
        blocks[level] = block_at(end, counts[level], codes[level]);
        end = blocks[level].end;
    }
    uint8_t *dump;
    PyObject *made = make_dump(&NO_FRAME, end, &dump);
    if (made == NULL) return NULL;
    for (int level = 0; level < LEVELS; level++) {
        write_block_head(dump + level * BLOCK_BYTES, spilling->new[level], counts[level], WIDTHS[level + 1], codes[level]);
        write_block(dump, &blocks[level], spilling->new[level], counts[level], WIDTHS[level + 1]);
    }
    return made;
}

PyDoc_STRVAR(spill_doc,
"spill(dumps, archives, now, framed) -> (dumps, archives) | None\n\n"
"The main parts without the slots that leave their journals, and the archives with them. Before each of `dumps` stand `framed` bytes,\n"
"before each new one the same; before archives none.\n"
"None, where something is out of the ordinary: nothing is done then.");

static PyObject *spill(PyObject *module, PyObject *arguments) {
    PyObject *dumps, *archives, *made = NULL, *archived = NULL, *result = NULL;
    double now;
    (void)module;
    Py_ssize_t framed;
    if (!PyArg_ParseTuple(arguments, "O!O!dn:spill", &PyList_Type, &dumps, &PyList_Type, &archives, &now, &framed)) return NULL;
    Py_ssize_t total = PyList_GET_SIZE(dumps);
    Spilling *spilling = PyMem_Malloc(sizeof *spilling);
    if (spilling == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (PyList_GET_SIZE(archives) != total || !is_a_time(now) || framed < 0) goto none;
    made = PyList_New(total);
    archived = PyList_New(total);
    if (made == NULL || archived == NULL) goto done;
    State *state = &spilling->state;
    for (Py_ssize_t at = 0; at < total; at++) {
        int old[LEVELS], counts[LEVELS] = {0, 0, 0}, kept = 0;
        Py_ssize_t length;
        PyObject *archive = PyList_GET_ITEM(archives, at);
        Frame frame;
        const uint8_t *dump = cut_frame(PyList_GET_ITEM(dumps, at), framed, &frame, &length);
        if (dump == NULL || !PyBytes_Check(archive) || !read_state(dump, length, state)) goto none;
        if (!read_archive((const uint8_t *)PyBytes_AS_STRING(archive), PyBytes_GET_SIZE(archive), spilling->old, old)) goto none;
        double steady = steady_of(state, now);
        if (steady < 0.0) goto none;
        for (int level = 0; level < LEVELS; level++)
            for (int place = 0; place < old[level]; place++) give(spilling, counts, spilling->old[level][place], level + 1, steady, now);
        for (int place = 0; place < state->slots; place++) {
            Slot slot = state->slot[place];
            double ends = (double)(slot.start / WIDTHS[1] * WIDTHS[1] + WIDTHS[1]);
            if (ends <= steady - (double)SPANS[0] || (double)slot.start > steady + (double)SPANS[0]) give(spilling, counts, slot, 1, steady, now);
            else state->slot[kept++] = slot;
        }
        state->slots = kept;
        PyObject *one = write_state(state, &frame);
        if (one == NULL) goto done;
        PyList_SET_ITEM(made, at, one);
        one = write_archive(spilling, counts);
        if (one == NULL) goto done;
        PyList_SET_ITEM(archived, at, one);
    }
    result = PyTuple_Pack(2, made, archived);
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    Py_XDECREF(made);
    Py_XDECREF(archived);
    PyMem_Free(spilling);
    return result;
}

#include "_row_windows.h"  /* of what stands above */

static PyMethodDef methods[] = {
    {"fold", fold, METH_VARARGS, fold_doc},
    FAST("edge", edge, EDGE_DOC),
    {"counted", counted_in, METH_O, COUNTED_DOC},
    {"merge", merge, METH_VARARGS, MERGE_DOC},
    {"spill", spill, METH_VARARGS, spill_doc},
    {"windows", windows, METH_VARARGS, windows_doc},
    {NULL, NULL, 0, NULL},
};

MAKE_PART(_rows, "taba.handlers._rows", begin, OF_ONE_INTERPRETER, "CounterGroup's States, from bytes to bytes.")
