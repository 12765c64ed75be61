/* What leaves the journal: into the archive, and into the sketch of all that ever left it. */

#ifndef TABA_HANDLERS_SPREAD_SPILLS_H
#define TABA_HANDLERS_SPREAD_SPILLS_H

#include "_spread_states.h"

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

#endif
