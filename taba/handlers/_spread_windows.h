/* What many of PercentileGroup's States come to, as windows and all of the time show them: from bytes, without a slot or a bin of Python's.

   Sums are made in the order in which numpy makes them: of each group first the journals', and to it those of each lot of archives. A slot
   counts in the least window that covers it, and the others are sums over the windows. */

#ifndef TABA_HANDLERS_SPREAD_WINDOWS_H
#define TABA_HANDLERS_SPREAD_WINDOWS_H

#include "_spread_spills.h"
#include "_windows.h"

#define EVER SHOWN               /* the place of all of the time behind the windows */
#define TALLIES 3                /* refused, held, old */

typedef struct {
    int32_t least, most;         /* of codes below zero, and of the others */
} Range;

typedef struct {
    double total, low, high;
} Figures;

typedef struct {
    Spilling spilling;
    Covers covers;
    int64_t (*cells)[ALL_CODES]; /* by window, or EVER, and code + 32,768; all 0 between two groups */
    Range ranges[2];             /* of the codes that were counted in any of them */
    Figures lot[SHOWN];          /* of this group in this lot of archives; before them, in the journals */
    Table tables[2];             /* of the windows, and of all of the time */
    double *figures[2];          /* total, least, greatest of each */
    int64_t *bins[2], *tallies;
    Py_ssize_t total;
} Showing;

static const Figures NO_FIGURES = {0.0, Py_HUGE_VAL, -Py_HUGE_VAL};

static void widen(Showing *showing, int32_t least, int32_t most) {
    Range *range = &showing->ranges[least >= 0];
    if (least < range->least) range->least = least;
    if (most > range->most) range->most = most;
}

static void count_bins(Showing *showing, int place, const int32_t *codes, const int64_t *weights, int count) {
    if (!count) return;
    int64_t *cells = showing->cells[place] + 32768;
    for (int bin = 0; bin < count; bin++) cells[codes[bin]] += weights[bin];
    int negative = 0;
    if (codes[0] < 0) {
        while (negative < count && codes[negative] < 0) negative++;
        widen(showing, codes[0], codes[negative - 1]);
    }
    if (negative < count) widen(showing, codes[negative], codes[count - 1]);
}

/* False where the machine would decide which of two zeros is the lesser. */
static int add_figures(Figures *figures, double total, double low, double high) {
    if (is_zero_with_sign(low) || is_zero_with_sign(high)) return 0;
    figures->total += total;
    if (low < figures->low) figures->low = low;
    if (high > figures->high) figures->high = high;
    return 1;
}

/* A slot into the least window that covers it. */
static int add_slot_to(Showing *showing, int level, const Slot *slot, const int32_t *codes, const int64_t *weights) {
    int window = 0;
    while (window < SHOWN && slot->start < showing->covers.since[level][window]) window++;
    if (window == SHOWN) return 1;
    count_bins(showing, window, codes + slot->first, weights + slot->first, slot->bins);
    return add_figures(&showing->lot[window], slot->total, slot->low, slot->high);
}

static const uint8_t *bytes_of(PyObject *content, Py_ssize_t *length) {
    if (!PyBytes_Check(content)) return NULL;
    *length = PyBytes_GET_SIZE(content);
    return (const uint8_t *)PyBytes_AS_STRING(content);
}

/* What was summed up lately becomes part of the windows. */
static void end_lot(Showing *showing, Py_ssize_t group) {
    double *totals = showing->figures[0] + group * SHOWN, *lows = totals + showing->total * SHOWN, *highs = lows + showing->total * SHOWN;
    for (int window = 0; window < SHOWN; window++) {
        totals[window] += showing->lot[window].total;
        if (showing->lot[window].low < lows[window]) lows[window] = showing->lot[window].low;
        if (showing->lot[window].high > highs[window]) highs[window] = showing->lot[window].high;
        showing->lot[window] = NO_FIGURES;
    }
}

/* The journal, and what ever left it, of one more State of a group; false for what is out of the ordinary. */
static int add_main(Showing *showing, Py_ssize_t group, PyObject *dump, PyObject *left) {
    State *state = &showing->spilling.state;
    Sketch *sketch = &showing->spilling.sketch;
    const Py_ssize_t total = showing->total;
    Py_ssize_t length;
    const uint8_t *from = bytes_of(dump, &length);
    if (from == NULL || !read_state(from, length, state)) return 0;
    from = bytes_of(left, &length);
    if (from == NULL || !read_sketch(from, length, sketch)) return 0;
    double *figures = showing->figures[1] + group;
    Figures ever = {0.0, figures[total], figures[2 * total]};
    if (!add_figures(&ever, 0.0, sketch->low, sketch->high)) return 0;
    count_bins(showing, EVER, sketch->codes, sketch->weights, sketch->bins);
    for (int place = 0; place < state->slots; place++) {
        const Slot *slot = &state->slot[place];
        if (!add_figures(&ever, 0.0, slot->low, slot->high) || !add_slot_to(showing, 0, slot, state->codes, state->weights)) return 0;
        count_bins(showing, EVER, state->codes + slot->first, state->weights + slot->first, slot->bins);
    }
    figures[0] += state->total;
    figures[total] = ever.low;
    figures[2 * total] = ever.high;
    showing->tallies[group] += state->refused;
    showing->tallies[total + group] += (int64_t)state->held;
    showing->tallies[2 * total + group] += (int64_t)state->old;
    return 1;
}

static int add_archive(Showing *showing, PyObject *archive) {
    Spilling *spilling = &showing->spilling;
    int counts[LEVELS];
    Py_ssize_t length;
    const uint8_t *from = bytes_of(archive, &length);
    if (from == NULL || !read_archive(from, length, spilling, counts)) return 0;
    const Slot *slot = spilling->old;
    for (int level = 0; level < LEVELS; level++)
        for (int place = 0; place < counts[level]; place++, slot++)
            if (!add_slot_to(showing, level + 1, slot, spilling->old_codes, spilling->old_weights)) return 0;
    return 1;
}

/* The sketch of `cells`, where codes are in order of their sign. False with an exception. */
static int end_sketch(Showing *showing, const int64_t *cells, Table *table, int64_t *bins) {
    Py_ssize_t most = 0, first = table->count;
    for (int sign = 0; sign < 2; sign++)
        if (showing->ranges[sign].most >= showing->ranges[sign].least) most += showing->ranges[sign].most - showing->ranges[sign].least + 1;
    if (!make_room_in(table, most)) return 0;
    for (int sign = 0; sign < 2; sign++) {
        for (int32_t code = showing->ranges[sign].least; code <= showing->ranges[sign].most; code++) {
            if (!cells[code + 32768]) continue;
            table->codes[table->count] = code;
            table->weights[table->count++] = cells[code + 32768];
        }
    }
    *bins = collapsed(table->codes + first, table->weights + first, (int)(table->count - first));
    table->count = first + (Py_ssize_t)*bins;
    return 1;
}

static void begin_ranges(Showing *showing) {
    for (int sign = 0; sign < 2; sign++) showing->ranges[sign] = (Range){MAX_CODE + 1, -MAX_CODE - 1};  /* none */
}

/* The windows and all of the time of a whole group; false with an exception. */
static int end_group(Showing *showing, Py_ssize_t group) {
    double *figures = showing->figures[0] + group * SHOWN, *lows = figures + showing->total * SHOWN, *highs = lows + showing->total * SHOWN;
    for (int window = 0; window < SHOWN; window++) {
        if (window) {
            figures[window] += figures[window - 1];
            if (lows[window - 1] < lows[window]) lows[window] = lows[window - 1];
            if (highs[window - 1] > highs[window]) highs[window] = highs[window - 1];
            for (int sign = 0; sign < 2; sign++)
                for (int32_t code = showing->ranges[sign].least; code <= showing->ranges[sign].most; code++)
                    showing->cells[window][code + 32768] += showing->cells[window - 1][code + 32768];
        }
        if (!end_sketch(showing, showing->cells[window], &showing->tables[0], &showing->bins[0][group * SHOWN + window])) return 0;
    }
    if (!end_sketch(showing, showing->cells[EVER], &showing->tables[1], &showing->bins[1][group])) return 0;
    for (int place = 0; place <= EVER; place++)
        for (int sign = 0; sign < 2; sign++)
            for (int32_t code = showing->ranges[sign].least; code <= showing->ranges[sign].most; code++) showing->cells[place][code + 32768] = 0;
    begin_ranges(showing);
    return 1;
}

/* All rows of a group, from `row` to `end`; `size` is of the lot of archives. 0 for what is out of the ordinary, and -1 with an exception. */
static int add_group(Showing *showing, PyObject *const *given, Py_ssize_t group, Py_ssize_t row, Py_ssize_t end, Py_ssize_t most, Py_ssize_t *size) {
    for (Py_ssize_t at = row; at < end; at++)
        if (!add_main(showing, group, PyList_GET_ITEM(given[0], at), PyList_GET_ITEM(given[2], at))) return 0;
    end_lot(showing, group);
    for (Py_ssize_t at = row; at < end; at++) {
        PyObject *archive = PyList_GET_ITEM(given[1], at);
        if (!add_archive(showing, archive)) return 0;
        *size += PyBytes_GET_SIZE(archive);
        if (*size >= most) {
            end_lot(showing, group);
            *size = 0;
        }
    }
    end_lot(showing, group);
    return end_group(showing, group) ? 1 : -1;
}

PyDoc_STRVAR(windows_doc,
"windows(dumps, archives, sketches, groups, total, now, lot) -> (tallies, windows, ever) | None\n\n"
"What the States of each of `total` groups come to; `groups` (int64) says of each row which it is in, in their order, and archives are summed\n"
"up `lot` bytes at a time. `windows` and `ever` are each (figures, bins, codes, weights): of `figures` (float64) a column of all of total,\n"
"least and greatest; `bins` (int64): how many of `codes` (int32) and `weights` (int64) each has. A group's windows stand together. Of\n"
"`tallies` (int64) a column of all groups of what was refused, held, old. None, where something is out of the ordinary.");

static PyObject *windows(PyObject *module, PyObject *arguments) {
    PyObject *given[3], *columns[5] = {NULL, NULL, NULL, NULL, NULL}, *result = NULL;
    Py_buffer groups;
    Py_ssize_t total, lot, size = 0;
    double now;
    Showing *showing = NULL;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!O!O!y*ndn:windows", &PyList_Type, &given[0], &PyList_Type, &given[1], &PyList_Type, &given[2], &groups, &total, &now, &lot)) return NULL;
    const Py_ssize_t rows = PyList_GET_SIZE(given[0]);
    const int64_t *of = groups.buf;
    if (PyList_GET_SIZE(given[1]) != rows || PyList_GET_SIZE(given[2]) != rows || !is_a_time(now) || !are_groups(&groups, rows, total)) goto none;
    showing = PyMem_Calloc(1, sizeof *showing);
    if (showing == NULL || (showing->cells = PyMem_Calloc(EVER + 1, sizeof *showing->cells)) == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    showing->total = total;
    begin_covers(&showing->covers, now);
    begin_ranges(showing);
    for (int window = 0; window < SHOWN; window++) showing->lot[window] = NO_FIGURES;
    columns[0] = make_column(TALLIES * total, &showing->tallies);
    for (int place = 0; place < 2; place++) {
        const Py_ssize_t each = place ? total : total * SHOWN;
        columns[1 + 2 * place] = make_column(3 * each, &showing->figures[place]);
        columns[2 + 2 * place] = make_column(each, &showing->bins[place]);
        if (columns[1 + 2 * place] == NULL || columns[2 + 2 * place] == NULL) goto done;
        for (Py_ssize_t at = 0; at < each; at++) {
            showing->figures[place][each + at] = Py_HUGE_VAL;
            showing->figures[place][2 * each + at] = -Py_HUGE_VAL;
        }
    }
    if (columns[0] == NULL) goto done;
    for (Py_ssize_t row = 0; row < rows;) {
        Py_ssize_t end = row + 1;
        while (end < rows && of[end] == of[row]) end++;
        int is_done = add_group(showing, given, (Py_ssize_t)of[row], row, end, lot, &size);
        if (is_done < 0) goto done;
        if (!is_done) goto none;
        row = end;
    }
    result = Py_BuildValue("O(OONN)(OONN)", columns[0], columns[1], columns[2], codes_of_table(&showing->tables[0]), weights_of_table(&showing->tables[0]),
                           columns[3], columns[4], codes_of_table(&showing->tables[1]), weights_of_table(&showing->tables[1]));
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    for (int column = 0; column < 5; column++) Py_XDECREF(columns[column]);
    if (showing != NULL) {
        PyMem_Free(showing->cells);
        for (int place = 0; place < 2; place++) free_table(&showing->tables[place]);
    }
    PyMem_Free(showing);
    PyBuffer_Release(&groups);
    return result;
}

#endif
