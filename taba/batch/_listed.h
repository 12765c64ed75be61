/* Sections whose values are lists, of which nothing is amiss, as Columns: values that hold no others, and absolutes, which stay packed. What
   reading.py finds there as well, and what is left alone here that finds (tests/test_entries.py). */

#ifndef TABA_BATCH_LISTED_H
#define TABA_BATCH_LISTED_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_bytes.h"

#define RING_BYTES 16
#define ROW_OBJECTS 4 /* that a row of an absolute is measured as */

/* A value that holds no others; NULL for anything else, or with an exception. */
static PyObject *take_value(Bytes *from) {
    if (from->end - from->at < 1) return NULL;
    const uint8_t first = from->at[0], *start;
    uint64_t number;
    Py_ssize_t size;
    if (first < 0x80 || (first >= 0xcc && first <= 0xcf)) return take_number(from, &number) ? PyLong_FromUnsignedLongLong(number) : NULL;
    if (first >= 0xe0) {
        from->at++;
        return PyLong_FromLong((long)first - 256);
    }
    if (first == 0xc0 || first == 0xc2 || first == 0xc3) {
        from->at++;
        return Py_NewRef(first == 0xc0 ? Py_None : first == 0xc2 ? Py_False : Py_True);
    }
    if (first == 0xcb) {
        double value;
        if (!take_big(from, 8, &number)) return NULL;
        memcpy(&value, &number, sizeof value);
        return PyFloat_FromDouble(value);
    }
    if (first >= 0xd0 && first <= 0xd3) {
        const int bytes = 1 << (first - 0xd0);
        if (!take_big(from, bytes, &number)) return NULL;
        const uint64_t sign = UINT64_C(1) << (8 * bytes - 1);
        if (!(number & sign)) return PyLong_FromUnsignedLongLong(number);
        /* what is missing to the next power of two, so that no number is beyond what a signed one holds */
        return PyLong_FromLongLong(-1 - (long long)((sign - 1) - (number - sign)));
    }
    if (first >= 0xc4 && first <= 0xc6) return take_bin(from, &start, &size) ? PyBytes_FromStringAndSize((const char *)start, size) : NULL;
    if (first == 0xda || first == 0xdb) {
        if (!take_big(from, first == 0xda ? 2 : 4, &number) || !take_some(from, number, &start)) return NULL;
        size = (Py_ssize_t)number;
    } else if (!take_text(from, &start, &size)) {
        return NULL;
    }
    PyObject *text = PyUnicode_DecodeUTF8((const char *)start, size, NULL);
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) PyErr_Clear();
    return text;
}

/* Whether these bytes are the row of an absolute: ring, position, sum. */
static int is_row(Bytes from) {
    const uint8_t *ring;
    Py_ssize_t size;
    uint64_t number;
    return take_array(&from) == 3 && take_bin(&from, &ring, &size) && size == RING_BYTES && take_number(&from, &number) &&
           from.end - from.at == 9 && from.at[0] == 0xcb;
}

/* So many values, which are all that there is. NULL for anything else, or with an exception. */
static PyObject *take_values(Bytes from, Py_ssize_t count) {
    if (count > from.end - from.at) return NULL;
    PyObject *found = PyList_New(count);
    for (Py_ssize_t at = 0; found != NULL && at < count; at++) {
        PyObject *value = take_value(&from);
        if (value == NULL) {
            Py_CLEAR(found);
        } else {
            PyList_SET_ITEM(found, at, value);
        }
    }
    if (found != NULL && from.at != from.end) Py_CLEAR(found);
    return found;
}

static inline uint32_t uint32_at(const uint8_t *numbers, Py_ssize_t place) {
    const uint8_t *its = numbers + 4 * place;
    return (uint32_t)its[0] | (uint32_t)its[1] << 8 | (uint32_t)its[2] << 16 | (uint32_t)its[3] << 24;
}

/* Text of a Client that was looked at, behind the NUL of a field. */
static inline PyObject *client_of(PyObject *field) {
    const char *text = PyBytes_AS_STRING(field);
    Py_ssize_t size = PyBytes_GET_SIZE(field);
    const char *nul = memchr(text, 0, (size_t)size);
    return PyUnicode_DecodeASCII(nul + 1, size - (nul + 1 - text), NULL);
}

#endif
