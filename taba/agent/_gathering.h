/* Rings that have few records, read one after the other in one call: of hundreds of them what Python does for each would be nearly all. */

#ifndef TABA_AGENT_GATHERING_H
#define TABA_AGENT_GATHERING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../_arrays.h"
#include "_records.h"

enum { ITS_FD, ITS_OFFSET, ITS_RECORDS, ITS_START, ITS_END, ITS_KNOWN, ITS_TAIL, ITS_LONGEST, ITS_BYTES, FEW_ASKED }; /* a row of int64 */
enum { BOX_RING, BOX_ROW, BOX_BEGIN, BOX_LENGTH, FEW_BOXED };                                                       /* likewise */
enum { SORTED_TABS = 8 }; /* so many times as many Tabs as there are here: those that there are are put in order by themselves */

/* What is found, by column, as far as there is room. */
typedef struct {
    int64_t *of;
    uint32_t *places, *numbers;
    int32_t *keys;
    int64_t *counts;
    int64_t *boxes;
    Py_ssize_t room, box_room, columns, boxed;
} Few;

static int
by_place(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

/* Read the committed records of a ring: all of them, or it is not so plain. */
static bool
read_few(const int64_t *ring, Record *to, int64_t total)
{
    int64_t records = ring[ITS_RECORDS], position = ring[ITS_START];
    while (total > 0) {
        int64_t place = position & (records - 1), most = records - place;
        most = most < total ? most : total;
        ssize_t length = (ssize_t)most * RECORD_BYTES;
        if (pread((int)ring[ITS_FD], to, (size_t)length, (off_t)(ring[ITS_OFFSET] + place * RECORD_BYTES)) != length)
            return false;
        uint32_t lap = (uint32_t)((position >> __builtin_ctzll((unsigned long long)records)) + 1);
        for (int64_t at = 0; at < most; at++)
            if (to[at].lap != lap)
                return false;
        to += most, position += most, total -= most;
    }
    return true;
}

/* Note a value that lies in the byte ring, if it is one. */
static bool
note_few(const int64_t *ring, const Record *record, int64_t of, int64_t row, Few *few)
{
    uint64_t length = record->value >> BYTE_POSITION_BITS, ahead = (record->value - (uint64_t)ring[ITS_TAIL]) & BYTE_POSITION_MASK;
    if (record->tab >> TAB_BITS != FLAG_BYTES || few->boxed == few->box_room || length > (uint64_t)ring[ITS_LONGEST] ||
        ahead + length > (uint64_t)ring[ITS_BYTES])
        return false;
    int64_t *mine = few->boxes + FEW_BOXED * few->boxed++;
    mine[BOX_RING] = of;
    mine[BOX_ROW] = row;
    mine[BOX_BEGIN] = (int64_t)ahead;
    mine[BOX_LENGTH] = (int64_t)length;
    return true;
}

/* The records of a ring, which stand from `row` on, counted by Tab; in place of its lap each gets its column. False where it is not plain. */
static bool
count_few(const int64_t *ring, Record *records, int64_t row, int64_t total, const uint32_t *numbers, const int32_t *sections,
          Py_ssize_t sections_known, uint32_t *slots, int64_t of, Few *few)
{
    uint32_t *places = few->places + few->columns;
    Py_ssize_t here = 0, known = (Py_ssize_t)ring[ITS_KNOWN], boxed = few->boxed;
    bool is_plain = total <= few->room - few->columns;
    for (int64_t at = 0; is_plain && at < total; at++) {
        uint32_t tab = records[at].tab & TAB_MASK;
        is_plain = (Py_ssize_t)tab < known && numbers[tab] < sections_known && (records[at].tab == tab || note_few(ring, &records[at], of, row + at, few));
        if (is_plain && slots[tab]++ == 0)
            places[here++] = tab;
    }
    if (is_plain && here * SORTED_TABS <= known)
        qsort(places, (size_t)here, sizeof *places, by_place);
    else if (is_plain)
        for (Py_ssize_t tab = 0, at = 0; at < here; tab++)
            if (slots[tab] != 0)
                places[at++] = (uint32_t)tab;
    for (Py_ssize_t at = 0; is_plain && at < here; at++) {
        Py_ssize_t column = few->columns + at;
        uint32_t number = numbers[places[at]];
        few->of[column] = of;
        few->numbers[column] = number;
        few->keys[column] = 2 * sections[number];
        few->counts[column] = slots[places[at]];
        slots[places[at]] = (uint32_t)column;
    }
    for (int64_t at = 0; is_plain && at < total; at++) {
        uint32_t column = slots[records[at].tab & TAB_MASK];
        if (records[at].tab > TAB_MASK)
            few->keys[column] |= 1; /* it goes as a list */
        records[at].lap = column;
    }
    for (Py_ssize_t at = 0; at < here; at++)
        slots[places[at]] = 0;
    if (is_plain)
        few->columns += here;
    else
        few->boxed = boxed;
    return is_plain;
}

PyDoc_STRVAR(gather_doc,
             "gather(asked, numbers, sections, first, records, slots, of, places, tabs, keys, counts, boxes, found)\n--\n\n"
             "(columns, values that are no floats) of the records of rings, which go into `records` one ring after the other, each with its\n"
             "column in place of its lap. `asked` has nine int64 of each ring: its descriptor, where its records are and how many (a power\n"
             "of two), from which position on and before which one, how many Tabs are known, its tail in bytes, how long a value may be,\n"
             "how many bytes it has. `numbers` (a list) has the numbers of its Tabs (uint32), by which `sections` (int32) has their sections.\n\n"
             "`found` (int64) gets how many columns each ring has; -1, and nothing else of it is there, where it is not so plain: another\n"
             "lap, a Tab that is not known, a value where none can lie, more than there is room for, what cannot be read. By column: which\n"
             "ring it is `of` (int64), the `first` one that is plain having that number; its place there, in order (uint32); of `tabs` its\n"
             "number (uint32); twice the number of its section, and one more where a value is no float (`keys`, int32); how many records\n"
             "(int64). `boxes` (rows of four int64): of which ring, which record, how far ahead of the byte tail, how long. `slots` (uint32)\n"
             "has a zero for each Tab that may be known, and has again.");

static PyObject *
gather(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    enum { ASKED_OF, SECTIONS, ROOM, SLOTS, OF, PLACES_OF, TABS, KEYS, COUNTED, BOXES, FOUND_OF, ARRAYS };
    static const struct { int at; Py_ssize_t size; int flags; } given[ARRAYS] = {
        {0, 8 * FEW_ASKED, PyBUF_SIMPLE}, {2, 4, PyBUF_SIMPLE}, {4, RECORD_BYTES, PyBUF_WRITABLE}, {5, 4, PyBUF_WRITABLE},
        {6, 8, PyBUF_WRITABLE}, {7, 4, PyBUF_WRITABLE}, {8, 4, PyBUF_WRITABLE}, {9, 4, PyBUF_WRITABLE},
        {10, 8, PyBUF_WRITABLE}, {11, 8 * FEW_BOXED, PyBUF_WRITABLE}, {12, 8, PyBUF_WRITABLE},
    };
    Py_buffer views[ARRAYS];
    int had = 0;
    Few few = {0};
    if (nargs != 13 || !PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "gather takes 13 arguments, of which the second is a list");
        return NULL;
    }
    int64_t first = PyLong_AsLongLong(args[3]);
    if (first == -1 && PyErr_Occurred())
        return NULL;
    for (; had < ARRAYS; had++)
        if (get_array(args[given[had].at], &views[had], given[had].size, given[had].size % 8 == 0 ? 8 : 4, given[had].flags) < 0)
            goto done;
    Py_ssize_t rings = views[ASKED_OF].len / (8 * FEW_ASKED), rows = views[ROOM].len / RECORD_BYTES, row = 0;
    few = (Few){.of = views[OF].buf, .places = views[PLACES_OF].buf, .numbers = views[TABS].buf, .keys = views[KEYS].buf,
                .counts = views[COUNTED].buf, .boxes = views[BOXES].buf, .room = views[OF].len / 8,
                .box_room = views[BOXES].len / (8 * FEW_BOXED)};
    if (PyList_GET_SIZE(args[1]) != rings || views[FOUND_OF].len / 8 != rings || views[PLACES_OF].len / 4 != few.room ||
        views[TABS].len / 4 != few.room || views[KEYS].len / 4 != few.room || views[COUNTED].len / 8 != few.room || rows >= MAX_RECORDS) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    for (Py_ssize_t place = 0; place < rings; place++) {
        const int64_t *ring = (const int64_t *)views[ASKED_OF].buf + FEW_ASKED * place;
        int64_t *found = (int64_t *)views[FOUND_OF].buf + place, records = ring[ITS_RECORDS];
        Record *here = (Record *)views[ROOM].buf + row;
        Py_buffer numbers;
        *found = ODD;
        if (ring[ITS_FD] < 0 || ring[ITS_FD] > INT32_MAX || records <= 0 || (records & (records - 1)) != 0 || ring[ITS_START] < 0 ||
            ring[ITS_END] < ring[ITS_START] || ring[ITS_END] - ring[ITS_START] > records || ring[ITS_END] - ring[ITS_START] > rows - row)
            continue;
        if (get_array(PyList_GET_ITEM(args[1], place), &numbers, 4, 4, PyBUF_SIMPLE) < 0)
            goto done;
        if (ring[ITS_KNOWN] < 0 || ring[ITS_KNOWN] > numbers.len / 4 || ring[ITS_KNOWN] > views[SLOTS].len / 4) {
            PyBuffer_Release(&numbers);
            PyErr_SetString(PyExc_ValueError, "no numbers, or no slots, for so many Tabs");
            goto done;
        }
        int64_t total = ring[ITS_END] - ring[ITS_START];
        Py_ssize_t before = few.columns;
        if (read_few(ring, here, total) && count_few(ring, here, row, total, numbers.buf, views[SECTIONS].buf, views[SECTIONS].len / 4,
                                                     views[SLOTS].buf, first, &few)) {
            *found = few.columns - before;
            row += total;
            first++;
        }
        PyBuffer_Release(&numbers);
    }
done:
    release_arrays(views, had);
    return PyErr_Occurred() ? NULL : Py_BuildValue("nn", few.columns, few.boxed);
}

PyDoc_STRVAR(deal_doc,
             "deal(records, cursors, times, values, where)\n--\n\n"
             "Put the times and values of records, as `gather` left them, in order: those of each column from its one of `cursors` (int64)\n"
             "on, which moves. `where` (int64): where each record went, or None.");

static PyObject *
deal(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    enum { RECORDS_OF, CURSORS, ITS_TIMES_TO, ITS_VALUES_TO, WHERE, ARRAYS };
    Py_buffer views[ARRAYS];
    int had = 0;
    if (nargs != ARRAYS) {
        PyErr_SetString(PyExc_TypeError, "deal(records, cursors, times, values, where)");
        return NULL;
    }
    int wanted = args[WHERE] == Py_None ? WHERE : ARRAYS;
    for (; had < wanted; had++)
        if (get_array(args[had], &views[had], had == RECORDS_OF ? RECORD_BYTES : 8, 8, had == RECORDS_OF ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0)
            goto done;
    const Record *records = views[RECORDS_OF].buf;
    int64_t *cursors = views[CURSORS].buf, *where = wanted == ARRAYS ? views[WHERE].buf : NULL;
    double *times = views[ITS_TIMES_TO].buf;
    uint64_t *values = views[ITS_VALUES_TO].buf;
    Py_ssize_t total = views[RECORDS_OF].len / RECORD_BYTES;
    uint64_t columns = (uint64_t)views[CURSORS].len / 8, room = (uint64_t)views[ITS_TIMES_TO].len / 8;
    if (views[ITS_VALUES_TO].len != views[ITS_TIMES_TO].len || (where != NULL && views[WHERE].len / 8 < total)) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    for (Py_ssize_t at = 0; at < total; at++) {
        uint32_t column = records[at].lap;
        if (column >= columns || (uint64_t)cursors[column] >= room) {
            PyErr_SetString(PyExc_ValueError, "a column beyond all, or more records than were counted");
            goto done;
        }
        uint64_t to = (uint64_t)cursors[column]++;
        times[to] = records[at].time;
        values[to] = records[at].value;
        if (where != NULL)
            where[at] = (int64_t)to;
    }
done:
    return end_arrays(views, had);
}

#endif
