/* What many of CounterGroup's States come to, as windows show them: from bytes, without a State or a slot of Python's.

   Sums are made in the order in which numpy makes them: of each group first the journals', then the archives', in the order of rows. */

#ifndef TABA_HANDLERS_ROW_WINDOWS_H
#define TABA_HANDLERS_ROW_WINDOWS_H

#include "_windows.h"

#define FIGURES 3  /* total, least, greatest; then the windows' counts and the windows' totals */

typedef struct {
    State state, together;                   /* of `together` the bins alone: those of a group */
    Slot old[LEVELS][MOST_SLOTS];
    Covers covers;
    Table table;
    double *figures;                         /* a column of all groups for each */
    int64_t *tallies, *bins;
    Py_ssize_t total;
} Showing;

static void add_covered(Showing *showing, Py_ssize_t group, int level, const Slot *slots, int count) {
    for (int window = 0; window < SHOWN; window++) {
        const int64_t since = showing->covers.since[level][window];
        double *counts = &showing->figures[(FIGURES + window) * showing->total + group];
        double *totals = &showing->figures[(FIGURES + SHOWN + window) * showing->total + group];
        double many = *counts, amount = *totals;
        int place = count;
        while (place && slots[place - 1].start >= since) place--;
        for (; place < count; place++) {
            many += (double)slots[place].count;
            amount += slots[place].total;
        }
        *counts = many;
        *totals = amount;
    }
}

/* False where there are more bins than are handled here, or some that no State writes: one knows only so many codes. */
static int add_bins_of(State *together, const State *state) {
    const int32_t first = state->bins ? state->codes[0] : 0, last = state->bins ? state->codes[state->bins - 1] : 0;
    int place = 0;
    for (int bin = 0; bin < state->bins; bin++) {
        const int32_t code = state->codes[bin];
        if ((code > 0 && code < last - (MAX_BINS - 1)) || (code < 0 && code > first + (MAX_BINS - 1))) return 0;
        while (place < together->bins && together->codes[place] < code) place++;
        if (place < together->bins && together->codes[place] == code) {
            together->weights[place] += state->weights[bin];
            continue;
        }
        if (together->bins == MOST_BINS) return 0;
        memmove(together->codes + place + 1, together->codes + place, (size_t)(together->bins - place) * sizeof *together->codes);
        memmove(together->weights + place + 1, together->weights + place, (size_t)(together->bins - place) * sizeof *together->weights);
        together->codes[place] = code;
        together->weights[place] = state->weights[bin];
        together->bins++;
    }
    return 1;
}

/* The figures, journal and bins of one more State of a group; false for what is out of the ordinary. */
static int add_main(Showing *showing, Py_ssize_t group, PyObject *dump) {
    State *state = &showing->state;
    const Py_ssize_t total = showing->total;
    if (!PyBytes_Check(dump) || !read_state((const uint8_t *)PyBytes_AS_STRING(dump), PyBytes_GET_SIZE(dump), state)) return 0;
    if (!state->bins && !(state->low == Py_HUGE_VAL && state->high == -Py_HUGE_VAL)) return 0;
    showing->figures[group] += state->total;
    if (state->low < showing->figures[total + group]) showing->figures[total + group] = state->low;
    if (state->high > showing->figures[2 * total + group]) showing->figures[2 * total + group] = state->high;
    showing->tallies[group] += state->refused;
    showing->tallies[total + group] += (int64_t)state->held;
    add_covered(showing, group, 0, state->slot, state->slots);
    return add_bins_of(&showing->together, state);
}

/* The bins of a whole group; false with an exception. */
static int end_group(Showing *showing, Py_ssize_t group) {
    State *together = &showing->together;
    Table *table = &showing->table;
    collapse(together);
    if (!make_room_in(table, together->bins)) return 0;
    for (int bin = 0; bin < together->bins; bin++) {
        table->codes[table->count] = together->codes[bin];
        table->weights[table->count++] = together->weights[bin];
    }
    showing->bins[group] = together->bins;
    together->bins = 0;
    return 1;
}

static int add_archive(Showing *showing, Py_ssize_t group, PyObject *archive) {
    int counts[LEVELS];
    if (!PyBytes_Check(archive)) return 0;
    if (!read_archive((const uint8_t *)PyBytes_AS_STRING(archive), PyBytes_GET_SIZE(archive), showing->old, counts)) return 0;
    for (int level = 0; level < LEVELS; level++) add_covered(showing, group, level + 1, showing->old[level], counts[level]);
    return 1;
}

PyDoc_STRVAR(windows_doc,
"windows(dumps, archives, groups, total, now) -> (figures, tallies, bins, codes, weights) | None\n\n"
"What the States of each of `total` groups come to; `groups` (int64) says of each row which it is in, in their order. Of `figures` (float64)\n"
"a column of all groups each: total, least, greatest, the windows' counts, the windows' totals; of `tallies` (int64) what was refused, and\n"
"what was held. `bins` (int64): how many of `codes` (int32) and `weights` (int64) each has. None, where something is out of the ordinary.");

static PyObject *windows(PyObject *module, PyObject *arguments) {
    PyObject *dumps, *archives, *columns[3] = {NULL, NULL, NULL}, *result = NULL;
    Py_buffer groups;
    Py_ssize_t total;
    double now;
    Showing *showing = NULL;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!O!y*nd:windows", &PyList_Type, &dumps, &PyList_Type, &archives, &groups, &total, &now)) return NULL;
    const Py_ssize_t rows = PyList_GET_SIZE(dumps);
    const int64_t *of = groups.buf;
    if (PyList_GET_SIZE(archives) != rows || !is_a_time(now) || !are_groups(&groups, rows, total)) goto none;
    showing = PyMem_Malloc(sizeof *showing);
    if (showing == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    showing->together.bins = 0;
    showing->table = (Table){.room = 0};
    showing->total = total;
    begin_covers(&showing->covers, now);
    columns[0] = make_column((FIGURES + 2 * SHOWN) * total, &showing->figures);
    columns[1] = make_column(2 * total, &showing->tallies);
    columns[2] = make_column(total, &showing->bins);
    if (columns[0] == NULL || columns[1] == NULL || columns[2] == NULL) goto done;
    for (Py_ssize_t group = 0; group < total; group++) {
        showing->figures[total + group] = Py_HUGE_VAL;
        showing->figures[2 * total + group] = -Py_HUGE_VAL;
    }
    for (Py_ssize_t row = 0; row < rows; row++) {
        if (!add_main(showing, (Py_ssize_t)of[row], PyList_GET_ITEM(dumps, row))) goto none;
        if ((row + 1 == rows || of[row + 1] != of[row]) && !end_group(showing, (Py_ssize_t)of[row])) goto done;
    }
    for (Py_ssize_t row = 0; row < rows; row++)
        if (!add_archive(showing, (Py_ssize_t)of[row], PyList_GET_ITEM(archives, row))) goto none;
    result = Py_BuildValue("OOONN", columns[0], columns[1], columns[2], codes_of_table(&showing->table), weights_of_table(&showing->table));
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    for (int column = 0; column < 3; column++) Py_XDECREF(columns[column]);
    if (showing != NULL) free_table(&showing->table);
    PyMem_Free(showing);
    PyBuffer_Release(&groups);
    return result;
}

#endif
