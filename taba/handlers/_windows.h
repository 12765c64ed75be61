/* What windows show of many States: which slots each covers, and a table of bins that grows. Whoever includes this has WIDTHS, SPANS and
   LEVELS. */

#ifndef TABA_HANDLERS_WINDOWS_H
#define TABA_HANDLERS_WINDOWS_H

#include "_folds.h"

#define SHOWN (LEVELS + 1)  /* windows, one for each width */

/* From which start on a slot of each level is covered by each window: whole slots of the window's own width that end after it began. */
typedef struct {
    int64_t since[LEVELS + 1][SHOWN];
} Covers;

static void begin_covers(Covers *covers, double now) {
    for (int level = 0; level <= LEVELS; level++) {
        for (int window = 0; window < SHOWN; window++) {
            const int64_t width = WIDTHS[level > window ? level : window];
            const double before = now - (double)SPANS[window];
            int64_t since = (int64_t)floor(before / (double)width) * width;
            while ((double)(since + width) > before) since -= width;
            while (!((double)(since + width) > before)) since += width;
            covers->since[level][window] = since;
        }
    }
}

/* Codes and how often each is counted, of one sketch after the other. */
typedef struct {
    int32_t *codes;
    int64_t *weights;
    Py_ssize_t count, room;
} Table;

/* Room for `more`; false with an exception. */
static int make_room_in(Table *table, Py_ssize_t more) {
    if (table->count + more <= table->room) return 1;
    Py_ssize_t room = 2 * (table->count + more);
    int32_t *codes = PyMem_Realloc(table->codes, (size_t)room * sizeof *codes);
    if (codes != NULL) table->codes = codes;
    int64_t *weights = PyMem_Realloc(table->weights, (size_t)room * sizeof *weights);
    if (weights != NULL) table->weights = weights;
    if (codes == NULL || weights == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    table->room = room;
    return 1;
}

static void free_table(Table *table) {
    PyMem_Free(table->codes);
    PyMem_Free(table->weights);
}

static PyObject *codes_of_table(const Table *table) {
    return PyBytes_FromStringAndSize((const char *)table->codes, table->count * (Py_ssize_t)sizeof *table->codes);
}

static PyObject *weights_of_table(const Table *table) {
    return PyBytes_FromStringAndSize((const char *)table->weights, table->count * (Py_ssize_t)sizeof *table->weights);
}

/* So many numbers of 8 bytes, all 0, and where they are; NULL with an exception. */
static PyObject *make_column(Py_ssize_t count, void *where) {
    PyObject *made = PyBytes_FromStringAndSize(NULL, count * 8);
    if (made == NULL) return NULL;
    char *start = PyBytes_AS_STRING(made);
    memset(start, 0, (size_t)count * 8);
    memcpy(where, &start, sizeof start);
    return made;
}

/* Whether `groups` says for each of so many rows which of `total` groups it is in, and those of one stand together, in their order. */
static int are_groups(const Py_buffer *groups, Py_ssize_t rows, Py_ssize_t total) {
    if (groups->len != rows * 8 || (uintptr_t)groups->buf % 8 || total < 1) return 0;
    const int64_t *of = groups->buf;
    int64_t before = 0;
    for (Py_ssize_t row = 0; row < rows; row++) {
        if (of[row] < before || of[row] >= total) return 0;
        before = of[row];
    }
    return 1;
}

#endif
