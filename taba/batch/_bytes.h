/* Reading msgpack that a stranger wrote: every byte is read only where what is left says that it lies. */

#ifndef TABA_BATCH_BYTES_H
#define TABA_BATCH_BYTES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

typedef struct {
    const uint8_t *at, *end;
} Bytes;

/* A number of so many bytes, big-endian, behind a first one; false where it is cut off. */
static inline int take_big(Bytes *from, Py_ssize_t bytes, uint64_t *number) {
    if (from->end - from->at < 1 + bytes) return 0;
    *number = 0;
    for (Py_ssize_t place = 1; place <= bytes; place++) *number = *number << 8 | from->at[place];
    from->at += 1 + bytes;
    return 1;
}

/* A whole number that is not negative, in any of the forms of such; false for anything else. */
static inline int take_number(Bytes *from, uint64_t *number) {
    if (from->end - from->at < 1) return 0;
    uint8_t first = from->at[0];
    if (first < 0x80) {
        from->at++;
        *number = first;
        return 1;
    }
    return first >= 0xcc && first <= 0xcf && take_big(from, (Py_ssize_t)1 << (first - 0xcc), number);
}

/* Take so many bytes. */
static inline int take_some(Bytes *from, uint64_t size, const uint8_t **start) {
    if (size > (uint64_t)(from->end - from->at)) return 0;
    *start = from->at;
    from->at += size;
    return 1;
}

/* A bin; false for anything else. */
static inline int take_bin(Bytes *from, const uint8_t **start, Py_ssize_t *size) {
    if (from->end - from->at < 1) return 0;
    uint8_t first = from->at[0];
    uint64_t number;
    if (first < 0xc4 || first > 0xc6 || !take_big(from, (Py_ssize_t)1 << (first - 0xc4), &number) || !take_some(from, number, start)) return 0;
    *size = (Py_ssize_t)number;
    return 1;
}

/* A text of less than 256 bytes; false for anything else, and for longer ones. */
static inline int take_text(Bytes *from, const uint8_t **start, Py_ssize_t *size) {
    if (from->end - from->at < 1) return 0;
    uint64_t number = from->at[0];
    if (number >= 0xa0 && number <= 0xbf) {
        from->at++;
        number &= 31;
    } else if (number != 0xd9 || !take_big(from, 1, &number)) {
        return 0;
    }
    if (!take_some(from, number, start)) return 0;
    *size = (Py_ssize_t)number;
    return 1;
}

/* How many items an array has, or a map where `small` and `large` are its first bytes; -1 for anything else. */
static inline Py_ssize_t take_items(Bytes *from, uint8_t small, uint8_t large) {
    if (from->end - from->at < 1) return -1;
    uint8_t first = from->at[0];
    uint64_t number;
    if (first >= small && first <= (small | 15)) {
        from->at++;
        return first & 15;
    }
    if ((first != large && first != large + 1) || !take_big(from, first == large ? 2 : 4, &number)) return -1;
    return (Py_ssize_t)number;
}

static inline Py_ssize_t take_array(Bytes *from) {
    return take_items(from, 0x90, 0xdc);
}

static inline Py_ssize_t take_map(Bytes *from) {
    return take_items(from, 0x80, 0xde);
}

/* The item of a tuple of bounds as a number; -1 with an exception. */
static inline Py_ssize_t bound(PyObject *bounds, Py_ssize_t place) {
    if (!PyTuple_Check(bounds) || PyTuple_GET_SIZE(bounds) <= place) {
        PyErr_SetString(PyExc_TypeError, "bounds are a tuple of numbers");
        return -1;
    }
    return PyLong_AsSsize_t(PyTuple_GET_ITEM(bounds, place));
}

/* Whether a number is one of these versions; -1 with an exception. */
static inline int is_one_of(uint64_t number, PyObject *versions) {
    PyObject *version = PyLong_FromUnsignedLongLong(number);
    if (version == NULL) return -1;
    int found = PySequence_Contains(versions, version);
    Py_DECREF(version);
    return found;
}

#endif
