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

enum { FD, RECORD_OFFSET, RECORDS, POSITION, END, BYTE_TAIL, BYTE_RING, ASKED }; /* of a ring: a row of int64 */
enum { FRESH, BYTE_END, SEEN };                                                  /* what is said of it: another */
/* that are read first, where the last look found something new, and where it did not: see SMALL_LOOK and FEW_RECORDS in search.py */
enum { GLANCE_RECORDS = 48, FEW_RECORDS = 8 };
enum { GLANCE_CHUNK = 256, GLANCE_MOST = 2048, GLANCE_ALL = 1 << 17 }; /* then each time; of one ring; of all in one call: 3 MiB */

/* What is new in a ring from a position on. `left`: how many records may still be read behind the first few. `seen` has what the last look
   found: nearly always nothing, where it found nothing. */
static void
glance_at(const int64_t *ring, int64_t *seen, int64_t *left)
{
    int64_t records = ring[RECORDS], position = ring[POSITION], start = position;
    int64_t chunk = seen[FRESH] == 0 ? FEW_RECORDS : GLANCE_RECORDS;
    seen[FRESH] = seen[BYTE_END] = 0;
    if (ring[END] <= position)
        return; /* it is full, or has no records */
    seen[FRESH] = ODD;
    if (records <= 0 || (records & (records - 1)) != 0 || position < 0)
        return;
    Record here[GLANCE_CHUNK];
    uint64_t greatest = 0;
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
        if (most - few >= FEW_RECORDS || (few == 0 && position == start))
            break;
        if ((few < most && most < chunk) || position - start > GLANCE_MOST)
            return; /* there may be more */
    }
    seen[FRESH] = position - start;
    seen[BYTE_END] = (int64_t)greatest;
}

PyDoc_STRVAR(glance_doc,
             "glance(asked, seen)\n--\n\n"
             "Look at the next records of rings. `asked` has seven int64 of each: its descriptor, where its records are and how many (a power\n"
             "of two), from which position on and before which one, its tail in bytes and how many bytes it has. `seen`, which has what the last\n"
             "look said of each or -1 (less is read at first where that was 0), gets two of each:\n"
             "how many records are new there, and where the values that are no floats end behind that tail. -1 where it is not so plain:\n"
             "holes, more than some thousands, what cannot be read. Returns of how many something is new, or not so plain.");

static PyObject *
glance(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "glance(asked, seen)");
        return NULL;
    }
    Py_buffer asked, seen;
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
        glance_at((const int64_t *)asked.buf + ring * ASKED, its, &left);
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

/* Whether the record at this position is committed: 1, 0, or -1 where it cannot be read. */
static int
is_fresh(int fd, int64_t record_offset, int64_t records, int64_t position)
{
    uint32_t lap = (uint32_t)((position >> __builtin_ctzll((unsigned long long)records)) + 1), here;
    off_t place = (off_t)(record_offset + (position & (records - 1)) * RECORD_BYTES + (int64_t)offsetof(Record, lap));
    return pread(fd, &here, sizeof here, place) != (ssize_t)sizeof here ? ODD : here == lap;
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
