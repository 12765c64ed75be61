/* PercentileGroup's States, from the bytes of their main parts to those of the next, in one pass a State.

   1. What is here is done a second time: taba/handlers/percentile_group.py and taba/handlers/spread.py say what the bytes mean, and do all
      that this leaves alone. Both give the same bytes (tests/handlers/test_spreads.py).
   2. Every byte of a dump is a stranger's: it is read only where the dump's own length says that it lies. A dump that is none, or one that is
      out of the ordinary, makes the whole call return None: then the arrays decide, and name who is at fault. Of this kind is a zero with a
      sign, too: which of two zeros numpy calls the lesser depends on the machine. */

#include "_dumps.h"

#define FORM 1                               /* of what Python gives it and gets: see taba/parts.py */
#define TALLY_BYTES 32
#define BLOCK_BYTES 16
#define HEAD_BYTES (TALLY_BYTES + BLOCK_BYTES)
#define MARK UINT32_C(0x47505351)
#define WIDTH 15                             /* of a journal's slot */
#define WIDEST 3600
#define MOST_BINS 16384                      /* of all slots of a journal that is handled here; one of 18 slots has some hundreds */
#define MOST_SLOTS 128                       /* of a journal that is handled here; ordinary ones have 18 */
#define MOST_COUNT (INT64_C(1) << 48)        /* of a dump that is handled here: no sum of them is too great for 64 bits */
#define MOST_RUNS 64                         /* slots among a State's events that are handled here */
#define COUNTED_FROM 24                      /* events of one slot, from which on their codes are counted in a table of all codes */
#define ALL_CODES 65536

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

/* The lowest code that a sketch with this greatest one tells apart, or for codes below zero the highest. */
static int32_t held_code(int32_t code, int32_t first, int32_t last) {
    if (code > 0 && code < last - (MAX_BINS - 1)) return last - (MAX_BINS - 1);
    if (code < 0 && code > first + (MAX_BINS - 1)) return first + (MAX_BINS - 1);
    return code;
}

static int is_zero_with_sign(double item) {
    return item == 0.0 && signbit(item);
}

/* False where these are no slots in order, of bins and figures that there may be. */
static int read_block(const uint8_t *dump, const Block *block, int64_t base, int slots, int bins, State *state) {
    int64_t before = -1;
    int first = 0;
    for (int place = 0; place < slots; place++) {
        int64_t offset = load_int(dump + block->offsets + ((Py_ssize_t)place << block->offset_code), block->offset_code, 0);
        int64_t size = load_int(dump + block->sizes + ((Py_ssize_t)place << block->size_code), block->size_code, 0);
        if (offset < 0 || offset > MAX_START || size <= 0 || size > bins - first) return 0;
        const uint8_t *numbers = dump + block->numbers + ((Py_ssize_t)(3 * place) << block->number_code);
        Slot slot = {.start = (base + offset) * WIDTH, .first = first, .bins = (int)size};
        slot.total = load_number(numbers, block->number_code);
        slot.low = load_number(numbers + ((Py_ssize_t)1 << block->number_code), block->number_code);
        slot.high = load_number(numbers + ((Py_ssize_t)2 << block->number_code), block->number_code);
        if (slot.start > MAX_START || slot.start <= before || !(slot.low <= slot.high)) return 0;
        before = slot.start;
        int16_t code_of_first;
        memcpy(&code_of_first, dump + block->firsts + ((Py_ssize_t)place << 1), 2);
        int32_t code = code_of_first;
        for (int bin = 0; bin < slot.bins; bin++) {
            Py_ssize_t at = first + bin;
            int64_t delta = load_int(dump + block->deltas + (at << block->delta_code), block->delta_code, 0);
            int64_t weight = load_int(dump + block->weights + (at << block->weight_code), block->weight_code, 0);
            if ((bin == 0) != (delta == 0) || weight <= 0 || weight > MOST_COUNT) return 0;
            code += (int32_t)delta;
            if (code > MAX_CODE || code < -MAX_CODE) return 0;
            state->codes[at] = code;
            state->weights[at] = weight;
        }
        if (code - code_of_first >= MAX_BINS)  /* wider than what is written, where others than this decide when it is made narrower */
            for (int bin = 0; bin < slot.bins; bin++)
                if (held_code(state->codes[first + bin], code_of_first, code) != state->codes[first + bin]) return 0;
        state->slot[place] = slot;
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
    uint32_t held, old, mark, base, bins;
    uint16_t slots, codes;
    memcpy(&state->refused, dump, 4);
    memcpy(&held, dump + 4, 4);
    memcpy(&old, dump + 8, 4);
    memcpy(&mark, dump + 12, 4);
    memcpy(&state->count, dump + 16, 8);
    memcpy(&state->total, dump + 24, 8);
    memcpy(&base, dump + 32, 4);
    memcpy(&bins, dump + 36, 4);
    memcpy(&slots, dump + 40, 2);
    memcpy(&codes, dump + 42, 2);
    if (mark != MARK || state->count < 0 || state->count > MOST_COUNT || slots > MOST_SLOTS || bins > MOST_BINS) return 0;
    Block block = block_at(HEAD_BYTES, slots, (int)bins, codes);
    if (block.end != length) return 0;
    state->held = held;
    state->old = old;
    state->slots = slots;
    state->bins = (int)bins;
    return read_block(dump, &block, base, slots, (int)bins, state);
}

static uint32_t tally_of(uint64_t count) {
    return count < MAX_TALLY ? (uint32_t)count : MAX_TALLY;
}

/* The width codes of what a State's block holds. */
static unsigned codes_of_block(const State *state) {
    uint64_t heaviest = 0, farthest = 0, largest = 0, last = 0;
    double most = 0.0;
    int is_whole = 1;
    for (int place = 0; place < state->slots; place++) {
        const Slot *slot = &state->slot[place];
        const double figures[3] = {slot->total, slot->low, slot->high};
        for (int figure = 0; figure < 3; figure++) {
            double size = fabs(figures[figure]);
            if (rint(size) != size) is_whole = 0;  /* NaN too */
            else if (size > most) most = size;
        }
        if ((uint64_t)slot->bins > largest) largest = (uint64_t)slot->bins;
        for (int at = slot->first; at < slot->first + slot->bins; at++) {
            if ((uint64_t)state->weights[at] > heaviest) heaviest = (uint64_t)state->weights[at];
            if (at > slot->first && (uint64_t)(state->codes[at] - state->codes[at - 1]) > farthest)
                farthest = (uint64_t)(state->codes[at] - state->codes[at - 1]);
        }
    }
    if (state->slots) last = (uint64_t)((state->slot[state->slots - 1].start - state->slot[0].start) / WIDTH);
    int number_code = !is_whole ? 3 : most < 128.0 ? 0 : most < 32768.0 ? 1 : most < 2147483648.0 ? 2 : 3;
    return (unsigned)(number_code | count_code(last) << 2 | count_code(heaviest) << 4 | count_code(farthest) << 6 | count_code(largest) << 7);
}

static PyObject *write_state(const State *state) {
    unsigned codes = codes_of_block(state);
    Block block = block_at(HEAD_BYTES, state->slots, state->bins, codes);
    PyObject *made = PyBytes_FromStringAndSize(NULL, block.end);
    if (made == NULL) return NULL;
    uint8_t *dump = (uint8_t *)PyBytes_AS_STRING(made);
    memset(dump, 0, (size_t)block.end);
    const uint32_t tallies[4] = {state->refused, tally_of(state->held), tally_of(state->old), MARK};
    const uint32_t base = state->slots ? (uint32_t)(state->slot[0].start / WIDTH) : 0, bins = (uint32_t)state->bins;
    const uint16_t two[2] = {(uint16_t)state->slots, (uint16_t)codes};
    memcpy(dump, tallies, 16);
    memcpy(dump + 16, &state->count, 8);
    memcpy(dump + 24, &state->total, 8);
    memcpy(dump + 32, &base, 4);
    memcpy(dump + 36, &bins, 4);
    memcpy(dump + 40, two, 4);
    for (int place = 0; place < state->slots; place++) {
        const Slot *slot = &state->slot[place];
        uint8_t *numbers = dump + block.numbers + ((Py_ssize_t)(3 * place) << block.number_code);
        store_number(numbers, block.number_code, slot->total);
        store_number(numbers + ((Py_ssize_t)1 << block.number_code), block.number_code, slot->low);
        store_number(numbers + ((Py_ssize_t)2 << block.number_code), block.number_code, slot->high);
        store_int(dump + block.sizes + ((Py_ssize_t)place << block.size_code), block.size_code, slot->bins);
        store_int(dump + block.firsts + ((Py_ssize_t)place << 1), 1, state->codes[slot->first]);
        store_int(dump + block.offsets + ((Py_ssize_t)place << block.offset_code), block.offset_code, (slot->start - state->slot[0].start) / WIDTH);
        for (Py_ssize_t at = slot->first; at < slot->first + slot->bins; at++) {
            store_int(dump + block.weights + (at << block.weight_code), block.weight_code, state->weights[at]);
            int32_t delta = at > slot->first ? state->codes[at] - state->codes[at - 1] : 0;
            store_int(dump + block.deltas + (at << block.delta_code), block.delta_code, delta);
        }
    }
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
    int begin = state->slot[place].first, end = begin + state->slot[place].bins, kept = begin;
    int32_t first = state->codes[begin], last = state->codes[end - 1];
    if (last - first < MAX_BINS) return;
    for (int at = begin; at < end; at++) {
        int32_t code = held_code(state->codes[at], first, last);
        if (kept > begin && state->codes[kept - 1] == code) {
            state->weights[kept - 1] += state->weights[at];
        } else {
            state->codes[kept] = code;
            state->weights[kept++] = state->weights[at];
        }
    }
    if (kept < end) move_bins(state, place, end, kept);
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
    const double last = floor((now > 0.0 ? now : 0.0) / WIDTH) * WIDTH;
    int found = 0, run = 0;
    *is_moved = 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        double time = times[at];
        if (!isfinite(values[at]) || is_zero_with_sign(values[at]) || codes[at] > MAX_CODE || codes[at] < -MAX_CODE) return 0;
        if (!(time < last + WIDTH)) {
            time = last;
            state->held++;
        }
        double number = floor((time > 0.0 ? time : 0.0) / WIDTH);
        if (number > (double)(MAX_START / WIDTH)) return 0;
        int64_t start = (int64_t)number * WIDTH;
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
    const double oldest = floor((now - DAY) / WIDEST) * WIDEST;
    for (int run = 0; run < found; run++) {
        if ((double)runs[run].start < oldest) state->old += (uint64_t)runs[run].count;
        if (!add_run(state, runs[run].start, values + runs[run].begin, codes + runs[run].begin, runs[run].count)) return 0;
    }
    return (double)state->slot[state->slots - 1].start <= now + MAX_AHEAD;
}

PyDoc_STRVAR(fold_doc,
"fold(dumps, rows, codes, times, values, now, version) -> (dumps, slots) | None\n\n"
"The main parts with these events added, and how many slots the journal of each has. `rows` (int64) are in order, `codes` (int64) those\n"
"of the `values`. With a `version` that is not 0, each of `dumps` stands behind a frame, which has to say that one.\n"
"None, where something is out of the ordinary: nothing is done then.");

static PyObject *fold(PyObject *module, PyObject *arguments) {
    PyObject *dumps, *made = NULL, *slots = NULL, *result = NULL;
    Py_buffer rows, codes, times, values;
    double now;
    int version;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!y*y*y*y*di:fold", &PyList_Type, &dumps, &rows, &codes, &times, &values, &now, &version)) return NULL;
    const int64_t *row = rows.buf;
    Py_ssize_t total = PyList_GET_SIZE(dumps), count = rows.len / 8, place = 0;
    State *state = PyMem_Malloc(sizeof *state);
    double *room = PyMem_Malloc((size_t)count * 17 + 1);  /* for all events of a State: it may have all of them */
    if (state == NULL || room == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    const Sorted sorted = {.values = room, .codes = (int64_t *)(room + count), .runs = (uint8_t *)(room + 2 * count)};
    if (((uintptr_t)rows.buf | (uintptr_t)codes.buf | (uintptr_t)times.buf | (uintptr_t)values.buf) % 8) goto none;
    if (codes.len != rows.len || times.len != rows.len || values.len != rows.len || rows.len % 8 || !isfinite(now) || fabs(now) > 1e12) goto none;
    made = PyList_New(total);
    slots = PyList_New(total);
    if (made == NULL || slots == NULL) goto done;
    for (Py_ssize_t at = 0; at < total; at++) {
        Py_ssize_t length, begin = place;
        const uint8_t *dump = unframed(PyList_GET_ITEM(dumps, at), version, &length);
        if (dump == NULL || !read_state(dump, length, state)) goto none;
        while (place < count && row[place] == at) place++;
        if (place == begin) goto none;
        if (!add_events(state, (const int64_t *)codes.buf + begin, (const double *)times.buf + begin, (const double *)values.buf + begin,
                        place - begin, now, &sorted)) goto none;
        PyObject *one = write_state(state);
        if (one == NULL) goto done;
        PyList_SET_ITEM(made, at, one);
        PyObject *number = PyLong_FromLong(state->slots);
        if (number == NULL) goto done;
        PyList_SET_ITEM(slots, at, number);
    }
    if (place != count) goto none;  /* rows that are none, or not in order */
    result = PyTuple_Pack(2, made, slots);
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    Py_XDECREF(made);
    Py_XDECREF(slots);
    PyMem_Free(room);
    PyMem_Free(state);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&codes);
    PyBuffer_Release(&times);
    PyBuffer_Release(&values);
    return result;
}

static PyMethodDef methods[] = {
    {"fold", fold, METH_VARARGS, fold_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_spreads", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__spreads(void) {
    PyObject *module = is_little_endian() ? PyModule_Create(&definition) : NULL;
    if (module != NULL && PyModule_AddIntConstant(module, "FORM", FORM) < 0) Py_CLEAR(module);
    return module;
}
