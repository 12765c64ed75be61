/* Records of rings: counted by Tab, and put in order. */

#ifndef TABA_AGENT_RECORDS_H
#define TABA_AGENT_RECORDS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "../_arrays.h"

#if PY_BIG_ENDIAN
#error "records are little-endian"
#endif

#define RECORD_BYTES 24
#define AHEAD 8 /* words in a line of the cache */
#define FETCH_LINE(array, at) __builtin_prefetch((const void *)((uintptr_t)(array) + 8 * (at)), 1)
#define MAX_RECORDS (1u << 30)

typedef struct {
    double time;
    uint64_t value;
    uint32_t tab; /* and flags above */
    uint32_t lap;
} Record;

_Static_assert(sizeof(Record) == RECORD_BYTES, "the layout of a record");

enum { ODD = -1 }; /* what `count` gives instead of a number of Tabs */

enum { TAB_BITS = 24, FLAG_BYTES = 1, FLAG_SKIP = 2, BYTE_POSITION_BITS = 40 }; /* see ring.py */
#define TAB_MASK ((1u << TAB_BITS) - 1)
#define BYTE_POSITION_MASK ((UINT64_C(1) << BYTE_POSITION_BITS) - 1)

/* Values that lie in the byte ring: rows of int64, of which the first has what is allowed. */
enum { TAIL, LONGEST, ALL_BYTES };                         /* what the first row has … */
enum { FOUND = 0, ROW = 0, BEGIN, LENGTH, BOXED };         /* … and then how many there are; what the others have, and how much that is */

/* Note one more of them, if it is one. Returns whether. */
static int
note_boxed(const Record *record, Py_ssize_t row, Py_ssize_t known, int64_t *boxes, Py_ssize_t room, Py_ssize_t *boxed)
{
    if (record->tab >> TAB_BITS != FLAG_BYTES || (Py_ssize_t)(record->tab & TAB_MASK) >= known || *boxed == room)
        return 0;
    uint64_t length = record->value >> BYTE_POSITION_BITS;
    uint64_t ahead = (record->value - (uint64_t)boxes[TAIL]) & BYTE_POSITION_MASK;
    if (length > (uint64_t)boxes[LONGEST] || ahead + length > (uint64_t)boxes[ALL_BYTES])
        return 0;
    int64_t *mine = boxes + BOXED * ++*boxed;
    mine[ROW] = row;
    mine[BEGIN] = (int64_t)ahead;
    mine[LENGTH] = (int64_t)length;
    return 1;
}

static int
get_records(PyObject *object, Py_buffer *view)
{
    if (get_array(object, view, RECORD_BYTES, _Alignof(Record), PyBUF_SIMPLE) < 0)
        return -1;
    if (view->len / RECORD_BYTES >= MAX_RECORDS) {
        PyBuffer_Release(view);
        PyErr_SetString(PyExc_ValueError, "too many records at once");
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(leading_doc,
             "leading(records, lap)\n--\n\n"
             "(How many records from the first have this lap, where the last that has it ends.)");

static PyObject *
leading(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "leading(records, lap)");
        return NULL;
    }
    unsigned long lap = PyLong_AsUnsignedLong(args[1]);
    if (lap == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    Py_buffer view;
    if (get_records(args[0], &view) < 0)
        return NULL;
    const Record *records = view.buf;
    Py_ssize_t total = view.len / RECORD_BYTES, first = 0;
    while (first < total && records[first].lap == lap)
        first++;
    Py_ssize_t last = total;
    while (last > first && records[last - 1].lap != lap)
        last--;
    PyBuffer_Release(&view);
    return Py_BuildValue("nn", first, last);
}

static int
by_number(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

/* The Tabs that were counted, in order, and how often each; the counts are zero again. -1 with an exception. `most`: so many at the most. */
static Py_ssize_t
take_counts(const Record *records, Py_ssize_t total, uint32_t *counts, Py_ssize_t known, uint32_t *tabs, int64_t *many, Py_ssize_t most)
{
    Py_ssize_t found = 0;
    if (known <= 8 * total) {
        for (Py_ssize_t tab = 0; tab < known; tab++)
            if (counts[tab] != 0) {
                if (found == most) {
                    memset(counts, 0, (size_t)known * sizeof *counts);
                    PyErr_SetString(PyExc_ValueError, "counts that were not zero");
                    return -1;
                }
                tabs[found] = (uint32_t)tab;
                many[found++] = counts[tab];
                counts[tab] = 0;
            }
        return found;
    }
    uint64_t *seen = PyMem_Malloc((size_t)total * sizeof(uint64_t) + 1); /* many names, few events: only those that there are */
    if (seen == NULL) {
        for (Py_ssize_t at = 0; at < total; at++)
            counts[records[at].tab & TAB_MASK] = 0;
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t at = 0; at < total; at++) {
        uint32_t tab = records[at].tab & TAB_MASK;
        if (counts[tab] != 0) {
            seen[found++] = (uint64_t)tab << 32 | counts[tab];
            counts[tab] = 0;
        }
    }
    qsort(seen, (size_t)found, sizeof(uint64_t), by_number);
    for (Py_ssize_t at = 0; at < found; at++) {
        tabs[at] = (uint32_t)(seen[at] >> 32);
        many[at] = (int64_t)(seen[at] & UINT32_MAX);
    }
    PyMem_Free(seen);
    return found;
}

PyDoc_STRVAR(count_doc,
             "count(records, pieces, known, counts, tabs, many, boxes)\n--\n\n"
             "How many Tabs have a record here: these in order in `tabs` (uint32), and how many records of each in `many` (int64).\n\n"
             "`pieces`: (number of records, their lap), of all records one after the other; a lap of None is not looked at. -1 where a\n"
             "record has another, or flags, or a Tab that is not below `known`. `counts` (uint32) are zeros, and are again.\n\n"
             "`boxes` (int64, rows of three), if any, is for values in the byte ring, which are not odd then: the first row has the byte\n"
             "tail, how long one may be and how many bytes there are, and then how many were found; each of the others which record, how\n"
             "far ahead of the tail, how long.");

static PyObject *
count(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 7 || !PyTuple_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "count(records, pieces, known, counts, tabs, many, boxes)");
        return NULL;
    }
    Py_ssize_t known = PyLong_AsSsize_t(args[2]), found = 0;
    if (known == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer records_view, counts_view, tabs_view, many_view, boxes_view = {0};
    if (get_records(args[0], &records_view) < 0)
        return NULL;
    if (get_array(args[3], &counts_view, 4, 4, PyBUF_WRITABLE) < 0)
        goto no_counts;
    if (get_array(args[4], &tabs_view, 4, 4, PyBUF_WRITABLE) < 0)
        goto no_tabs;
    if (get_array(args[5], &many_view, 8, 8, PyBUF_WRITABLE) < 0)
        goto no_many;
    if (args[6] != Py_None && get_array(args[6], &boxes_view, 8 * BOXED, 8, PyBUF_WRITABLE) < 0)
        goto no_boxes;
    const Record *records = records_view.buf;
    uint32_t *counts = counts_view.buf;
    Py_ssize_t total = records_view.len / RECORD_BYTES, at = 0;
    Py_ssize_t most = total < known ? total : known;
    int64_t *boxes = boxes_view.buf;
    Py_ssize_t boxed = 0, room = boxes_view.len / (8 * BOXED) - 1;
    if (known < 0 || known > counts_view.len / 4 || (boxes != NULL && room < 0) || most > tabs_view.len / 4 || most > many_view.len / 8) {
        PyErr_SetString(PyExc_ValueError, "no room for so many Tabs");
        goto done;
    }
    for (Py_ssize_t place = 0; place < PyTuple_GET_SIZE(args[1]); place++) {
        PyObject *piece = PyTuple_GET_ITEM(args[1], place);
        if (!PyTuple_Check(piece) || PyTuple_GET_SIZE(piece) != 2) {
            PyErr_SetString(PyExc_TypeError, "pieces are pairs");
            goto undo;
        }
        Py_ssize_t length = PyLong_AsSsize_t(PyTuple_GET_ITEM(piece, 0));
        PyObject *said = PyTuple_GET_ITEM(piece, 1);
        unsigned long lap = said == Py_None ? 0 : PyLong_AsUnsignedLong(said);
        if (PyErr_Occurred())
            goto undo;
        if (length < 0 || length > total - at) {
            PyErr_SetString(PyExc_ValueError, "pieces of more records than there are");
            goto undo;
        }
        Py_ssize_t end = at + length;
        for (;;) {
            if (said == Py_None) {
                for (; at < end && records[at].tab < known; at++)
                    counts[records[at].tab]++;
            }
            else {
                for (; at < end && records[at].lap == lap && records[at].tab < known; at++)
                    counts[records[at].tab]++;
            }
            if (at == end)
                break;
            int is_of_lap = said == Py_None || records[at].lap == lap;
            if (boxes == NULL || !is_of_lap || !note_boxed(&records[at], at, known, boxes, room, &boxed)) {
                found = ODD;
                goto undo;
            }
            counts[records[at++].tab & TAB_MASK]++;
        }
    }
    if (at < total) {
        PyErr_SetString(PyExc_ValueError, "pieces of fewer records than there are");
        goto undo;
    }
    found = take_counts(records, total, counts, known, tabs_view.buf, many_view.buf, most);
    if (boxes != NULL)
        boxes[FOUND] = boxed;
    goto done;
undo:
    while (at > 0)
        counts[records[--at].tab & TAB_MASK] = 0;
done:
    PyBuffer_Release(&boxes_view); /* which does nothing where there is none */
no_boxes:
    PyBuffer_Release(&many_view);
no_many:
    PyBuffer_Release(&tabs_view);
no_tabs:
    PyBuffer_Release(&counts_view);
no_counts:
    PyBuffer_Release(&records_view);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(found);
}

PyDoc_STRVAR(place_doc,
             "place(records, tabs, starts, cursors, times, values, where)\n--\n\n"
             "Put the times and values of the records in order: those of each of `tabs` (uint32) from its one of `starts` (int64) on.\n\n"
             "`cursors` (int64) has room for every Tab; what is in it means nothing. `where` (int64): where each record went, or None.");

static PyObject *
place(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 7) {
        PyErr_SetString(PyExc_TypeError, "place(records, tabs, starts, cursors, times, values, where)");
        return NULL;
    }
    static const struct { Py_ssize_t size; int flags; } kinds[] = {
        {RECORD_BYTES, PyBUF_SIMPLE}, {4, PyBUF_SIMPLE}, {8, PyBUF_SIMPLE}, {8, PyBUF_WRITABLE},
        {8, PyBUF_WRITABLE}, {8, PyBUF_WRITABLE}, {8, PyBUF_WRITABLE},
    };
    Py_buffer views[7];
    Py_ssize_t had = 0, wanted = args[6] == Py_None ? 6 : 7;
    for (; had < wanted; had++) {
        size_t alignment = kinds[had].size == 4 ? 4 : 8;
        if (get_array(args[had], &views[had], kinds[had].size, alignment, kinds[had].flags) < 0)
            goto done;
    }
    const Record *records = views[0].buf;
    const uint32_t *tabs = views[1].buf;
    const int64_t *starts = views[2].buf;
    int64_t *cursors = views[3].buf, *where = wanted == 7 ? views[6].buf : NULL;
    double *times = views[4].buf;
    uint64_t *values = views[5].buf;
    Py_ssize_t total = views[0].len / RECORD_BYTES, columns = views[1].len / 4;
    uint64_t known = (uint64_t)views[3].len / 8, room = (uint64_t)views[4].len / 8;
    if (columns != views[2].len / 8 || views[5].len != views[4].len || (where != NULL && views[6].len / 8 < total)) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    for (Py_ssize_t column = 0; column < columns; column++) {
        if (tabs[column] >= known || starts[column] < 0) {
            PyErr_SetString(PyExc_ValueError, "a Tab beyond all");
            goto done;
        }
        cursors[tabs[column]] = starts[column];
    }
    for (Py_ssize_t at = 0; at < total; at++) {
        uint32_t tab = records[at].tab;
        if (tab >= known) {
            PyErr_SetString(PyExc_ValueError, "a Tab that was not counted");
            goto done;
        }
        uint64_t to = (uint64_t)cursors[tab];
        if (to >= room) { /* of a Tab that is not among them, too: whatever stands there */
            PyErr_SetString(PyExc_ValueError, "more records than were counted");
            goto done;
        }
        cursors[tab] = (int64_t)(to + 1);
        FETCH_LINE(times, to + AHEAD); /* of its column, the next line: nobody else knows that it will be written to */
        FETCH_LINE(values, to + AHEAD);
        times[to] = records[at].time;
        values[to] = records[at].value;
        if (where != NULL)
            where[at] = (int64_t)to;
    }
done:
    return end_arrays(views, had);
}

#endif
