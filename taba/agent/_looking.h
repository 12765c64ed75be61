/* Whether anything is new in rings: many are looked at many times a second, and nearly always there is little to see. */

#ifndef TABA_AGENT_LOOKING_H
#define TABA_AGENT_LOOKING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include "../_arrays.h"
#include "_records.h"

enum { FD, RECORD_OFFSET, RECORDS, POSITION, END, BYTE_TAIL, BYTE_RING, IS_ORDERED, ASKED }; /* of a ring: a row of int64 */
enum { FRESH, BYTE_END, IS_CUT, SEEN };                                                      /* what is said of it: another */
enum { MUCH = -2 };                                                                          /* … are new, where nobody counts how many */
/* that are read first, where the last look found something new, and where it did not: see SMALL_LOOK and FEW_RECORDS in search.py */
enum { GLANCE_RECORDS = 48, FEW_RECORDS = 8 };
enum { GLANCE_CHUNK = 256, GLANCE_MOST = 1 << 17, GLANCE_ALL = 1 << 19 }; /* then each time; of one ring; of all: LOOKED_RECORDS, LOOKS */

/* Whether the record at this position is committed: 1, 0, or -1 where it cannot be read. */
static int
is_fresh(int fd, int64_t record_offset, int64_t records, int64_t position)
{
    uint32_t lap = (uint32_t)((position >> __builtin_ctzll((unsigned long long)records)) + 1), here;
    off_t place = (off_t)(record_offset + (position & (records - 1)) * RECORD_BYTES + (int64_t)offsetof(Record, lap));
    return pread(fd, &here, sizeof here, place) != (ssize_t)sizeof here ? ODD : here == lap;
}

/* What is new in a ring from a position on. `left`: how many records may still be read behind the first few. `seen` has what the last look
   found: nearly always nothing, where it found nothing. `part` as in `glance`. */
static void
glance_at(const int64_t *ring, int64_t *seen, int64_t *left, int64_t part)
{
    int64_t records = ring[RECORDS], position = ring[POSITION], start = position;
    int64_t chunk = seen[FRESH] == 0 ? FEW_RECORDS : GLANCE_RECORDS;
    seen[FRESH] = seen[BYTE_END] = seen[IS_CUT] = 0;
    if (ring[END] <= position)
        return; /* it is full, or has no records */
    seen[FRESH] = ODD;
    if (records <= 0 || (records & (records - 1)) != 0 || position < 0)
        return;
    Record here[GLANCE_CHUNK];
    uint64_t greatest = 0;
    /* one producer commits in order: the last record of that part tells of all before it */
    int64_t much = part > 0 && ring[IS_ORDERED] != 0 ? ring[END] - records + records / part - 1 : ODD;
    for (; position < ring[END]; chunk = chunk < GLANCE_RECORDS ? GLANCE_RECORDS : GLANCE_CHUNK) {
        int64_t place = position & (records - 1), to_wrap = records - place, most = ring[END] - position;
        most = most < chunk ? most : chunk;
        most = most < to_wrap ? most : to_wrap;
        if (chunk == GLANCE_CHUNK && (*left -= most) < 0)
            return; /* whoever looks in Python says whether that is too much */
        ssize_t length = (ssize_t)most * RECORD_BYTES;
        if (pread((int)ring[FD], here, (size_t)length, (off_t)(ring[RECORD_OFFSET] + place * RECORD_BYTES)) != length)
            return; /* whoever reads it in Python says why */
        uint32_t lap = (uint32_t)((position >> __builtin_ctzll((unsigned long long)records)) + 1);
        int64_t few = 0;
        for (; few < most && here[few].lap == lap; few++)
            if ((here[few].tab >> TAB_BITS & (FLAG_BYTES | FLAG_SKIP)) == FLAG_BYTES) {
                uint64_t end = ((here[few].value - (uint64_t)ring[BYTE_TAIL]) & BYTE_POSITION_MASK) + (here[few].value >> BYTE_POSITION_BITS);
                if (end <= (uint64_t)ring[BYTE_RING] && end > greatest) /* others are hostile, and nobody's fill */
                    greatest = end;
            }
        for (int64_t at = few; at < most; at++)
            if (here[at].lap == lap)
                return; /* a hole */
        position += few;
        if (chunk == GLANCE_CHUNK && few == most && much >= position) {
            if (is_fresh((int)ring[FD], ring[RECORD_OFFSET], records, much) == 1) {
                seen[FRESH] = MUCH;
                return;
            }
            much = ODD; /* whether it is there is asked once a look */
        }
        if (most - few >= FEW_RECORDS || (few == 0 && position == start))
            break;
        if (few < most && most < chunk)
            return; /* there may be more */
        if (position - start >= GLANCE_MOST) {
            seen[IS_CUT] = 1;
            break;
        }
    }
    seen[FRESH] = position - start;
    seen[BYTE_END] = (int64_t)greatest;
}

PyDoc_STRVAR(glance_doc,
             "glance(asked, seen, part)\n--\n\n"
             "Look at the next records of rings. `asked` has eight int64 of each: its descriptor, where its records are and how many (a power\n"
             "of two), from which position on and before which one, its tail in bytes and how many bytes it has, and whether its records are\n"
             "committed one after the other. `seen`, which has what the last look said of each or -1 (less is read at first where that was 0),\n"
             "gets three of each: how many records are new there, where the values that are no floats end behind that tail, and whether there\n"
             "may be more than one look looks at. -1 where it is not so plain: holes, too many in all, what cannot be read. -2 where there is\n"
             "much, and one of `part` parts of the ring is full, if any is said: nobody counted how much. Returns of how many something is\n"
             "new, or not so plain.");

static PyObject *
glance(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "glance(asked, seen, part)");
        return NULL;
    }
    Py_buffer asked, seen;
    long part = PyLong_AsLong(args[2]);
    if (part == -1 && PyErr_Occurred())
        return NULL;
    if (part < 0 || part > GLANCE_CHUNK) {
        PyErr_SetString(PyExc_ValueError, "so many parts");
        return NULL;
    }
    if (get_array(args[0], &asked, 8 * ASKED, 8, PyBUF_SIMPLE) < 0)
        return NULL;
    if (get_array(args[1], &seen, 8 * SEEN, 8, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&asked);
        return NULL;
    }
    Py_ssize_t rings = asked.len / (8 * ASKED);
    bool fits = seen.len / (8 * SEEN) == rings;
    Py_ssize_t changed = 0;
    int64_t left = GLANCE_ALL;
    for (Py_ssize_t ring = 0; fits && ring < rings; ring++) {
        int64_t *its = (int64_t *)seen.buf + ring * SEEN;
        glance_at((const int64_t *)asked.buf + ring * ASKED, its, &left, part);
        changed += its[FRESH] != 0;
    }
    PyBuffer_Release(&seen);
    PyBuffer_Release(&asked);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        return NULL;
    }
    return PyLong_FromSsize_t(changed);
}

/* Where the committed records from `low` on end, or up to `few` before, but not behind `high`; -1 where one cannot be read. */
static int64_t
leap_from(int fd, int64_t record_offset, int64_t records, int64_t low, int64_t high, int64_t few)
{
    for (int64_t step = 2 * few; low + step < high; step *= 2) {
        int fresh = is_fresh(fd, record_offset, records, low + step - 1);
        if (fresh < 0)
            return ODD;
        if (!fresh) {
            high = low + step - 1;
            break;
        }
        low += step;
    }
    while (high - low > few) {
        int64_t middle = low + (high - low) / 2;
        int fresh = is_fresh(fd, record_offset, records, middle - 1);
        if (fresh < 0)
            return ODD;
        if (fresh)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

enum { ROW_FD, ROW_OFFSET, ROW_RECORDS, ROW_POSITION, ROW_STOP, PLACE_GIVEN };

/* What `leap` and `follow` are given first. */
static int
read_place(PyObject *const *args, Py_ssize_t given, int64_t *place)
{
    for (Py_ssize_t at = 0; at < given; at++) {
        place[at] = PyLong_AsLongLong(args[at]);
        if (place[at] == -1 && PyErr_Occurred())
            return -1;
    }
    int64_t records = place[ROW_RECORDS];
    if (place[ROW_FD] < 0 || place[ROW_FD] > INT32_MAX || records <= 0 || (records & (records - 1)) != 0 || place[ROW_POSITION] < 0 ||
        place[ROW_STOP] < place[ROW_POSITION] || place[ROW_STOP] > INT64_MAX / 4) {
        PyErr_SetString(PyExc_ValueError, "beyond all bounds");
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(leap_doc,
             "leap(fd, record_offset, records, position, stop, step)\n--\n\n"
             "Where the committed records of a ring from `position` on end, or up to `step` before, but not behind `stop`: looked for by halves.\n"
             "`records` is a power of two. -1 where one cannot be read.");

static PyObject *
leap(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    int64_t its[PLACE_GIVEN + 1];
    if (nargs != PLACE_GIVEN + 1) {
        PyErr_SetString(PyExc_TypeError, "leap(fd, record_offset, records, position, stop, step)");
        return NULL;
    }
    if (read_place(args, nargs, its) < 0)
        return NULL;
    if (its[PLACE_GIVEN] <= 0 || its[PLACE_GIVEN] > its[ROW_RECORDS]) {
        PyErr_SetString(PyExc_ValueError, "beyond all bounds");
        return NULL;
    }
    return PyLong_FromLongLong(leap_from((int)its[ROW_FD], its[ROW_OFFSET], its[ROW_RECORDS], its[ROW_POSITION], its[ROW_STOP], its[PLACE_GIVEN]));
}

PyDoc_STRVAR(follow_doc,
             "follow(fd, record_offset, records, position, stop)\n--\n\n"
             "Where the committed records of a ring from `position` on end, at `stop` at the latest: of one producer, which commits them one\n"
             "after the other. Some are read, those behind them found by halves, and the last of them read. `records` is a power of two. -1\n"
             "where it is not so plain: a hole among those that are read, or one that cannot be read.");

static PyObject *
follow(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    int64_t its[PLACE_GIVEN];
    Record here[GLANCE_CHUNK];
    if (nargs != PLACE_GIVEN) {
        PyErr_SetString(PyExc_TypeError, "follow(fd, record_offset, records, position, stop)");
        return NULL;
    }
    if (read_place(args, nargs, its) < 0)
        return NULL;
    int64_t records = its[ROW_RECORDS], position = its[ROW_POSITION], stop = its[ROW_STOP];
    bool has_leapt = records < GLANCE_CHUNK;
    while (position < stop) {
        int64_t place = position & (records - 1), most = stop - position;
        most = most < GLANCE_CHUNK ? most : GLANCE_CHUNK;
        most = most < records - place ? most : records - place;
        ssize_t length = (ssize_t)most * RECORD_BYTES;
        if (pread((int)its[ROW_FD], here, (size_t)length, (off_t)(its[ROW_OFFSET] + place * RECORD_BYTES)) != length)
            return PyLong_FromLong(ODD);
        uint32_t lap = (uint32_t)((position >> __builtin_ctzll((unsigned long long)records)) + 1);
        int64_t few = 0;
        while (few < most && here[few].lap == lap)
            few++;
        for (int64_t at = few; at < most; at++)
            if (here[at].lap == lap)
                return PyLong_FromLong(ODD);
        position += few;
        if (few < most)
            break;
        if (!has_leapt) {
            has_leapt = true;
            position = leap_from((int)its[ROW_FD], its[ROW_OFFSET], records, position, stop, GLANCE_CHUNK);
            if (position < 0)
                return PyLong_FromLong(ODD);
        }
    }
    return PyLong_FromLongLong(position);
}

#endif
