/* A State: its main part read, Events added, and the next one written. */

#ifndef TABA_HANDLERS_SPREAD_STATES_H
#define TABA_HANDLERS_SPREAD_STATES_H

#include "_counted.h"
#include "_spread_blocks.h"

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

static void collapse(State *state, int place) {
    const Slot *slot = &state->slot[place];
    int kept = collapsed(state->codes + slot->first, state->weights + slot->first, slot->bins);
    if (kept < slot->bins) move_bins(state, place, slot->first + slot->bins, slot->first + kept);
}

/* Add what was counted. False where there are more bins than are handled here. */
static int add_counted(State *state, int place, const Marked *marked, int *is_new) {
    Slot *slot = &state->slot[place];
    int is_done = 1, are_last = slot->bins == 0 && slot->first == state->bins;
    for (int group = marked->first; group <= marked->last; group++) {
        for (uint64_t left = take_marks(group); left; left &= left - 1) {
            int at = group * 64 + __builtin_ctzll(left);
            int64_t weight = take_counted((size_t)at);  /* also of those for which there is no room */
            if (are_last && state->bins < MOST_BINS) {  /* they come in order, and behind all others */
                state->codes[state->bins] = at - 32768;
                state->weights[state->bins++] = weight;
                slot->bins++;
                *is_new = 1;
            } else {
                is_done = is_done && add_bin(state, place, at - 32768, weight, is_new);
            }
        }
    }
    return is_done;
}

/* False where one of these is none, or there are more bins than are handled here. */
static int add_codes(State *state, int place, const int64_t *codes, Py_ssize_t count) {
    int is_new = 0;
    Marked marked;
    if (count >= COUNTED_FROM && count <= UINT32_MAX) {
        if (!count_codes(codes, count, &marked) || !add_counted(state, place, &marked, &is_new)) return 0;
    } else {
        for (Py_ssize_t at = 0; at < count; at++) {
            if (codes[at] > MAX_CODE || codes[at] < -MAX_CODE) return 0;
            if (!add_bin(state, place, (int32_t)codes[at], 1, &is_new)) return 0;
        }
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

/* Add these figures to those of a slot, of which bins are there unless it was just made. False where they are out of the ordinary. */
static int add_to_slot(Slot *slot, double total, double low, double high) {
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
    return 1;
}

/* False where these are out of the ordinary. */
static int add_run(State *state, int64_t start, const double *values, const int64_t *codes, Py_ssize_t count) {
    const double total = summed(values, count);
    const Extent its = extent_of(values, count);
    int place = slot_of(state, start);
    return add_to_slot(&state->slot[place], total, its.low, its.high) && add_codes(state, place, codes, count);
}

/* Add a slot of another State to the one with this start. False where it is out of the ordinary. */
static int add_slot(State *state, int64_t start, const State *other, const Slot *slot) {
    int place = slot_of(state, start), is_new = 0;
    if (!add_to_slot(&state->slot[place], slot->total, slot->low, slot->high)) return 0;
    for (int bin = slot->first; bin < slot->first + slot->bins; bin++)
        if (!add_bin(state, place, other->codes[bin], other->weights[bin], &is_new)) return 0;
    if (is_new) collapse(state, place);
    return 1;
}

/* The runs of these events, one of each slot and in their order; with `sorted`, values and codes are put there in that order, where they
   do not stand in it. How many; 0 where they are out of the ordinary. */
static int runs_of(State *state, Run *runs, const double *times, const double *values, const int64_t *codes, Py_ssize_t count, double now,
                   const Sorted *sorted, int *is_moved) {
    const double width = (double)WIDTHS[0];
    const double last = floor((now > 0.0 ? now : 0.0) / width) * width;
    int found = 0, run = 0;
    *is_moved = 0;
    const Extent when = extent_of(times, count);
    if (when.are_finite && when.low >= 0.0 && when.high < last + width) {
        const double from = floor(when.low / width) * width;
        if (when.high < from + width && from + width <= (double)MAX_START) {  /* nearly always all are of one slot */
            uint64_t bits;
            int have_zeros_with_signs = 0;
            for (Py_ssize_t at = 0; at < count; at++) {
                memcpy(&bits, values + at, 8);
                have_zeros_with_signs |= bits == UINT64_C(1) << 63;
            }
            if (have_zeros_with_signs || !extent_of(values, count).are_finite) return 0;
            runs[0] = (Run){.start = (int64_t)from, .count = count};
            return 1;
        }
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        double time = times[at];
        if (!isfinite(values[at]) || is_zero_with_sign(values[at])) return 0;
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

#endif
