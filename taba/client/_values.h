/* Values as msgpack, written in place into the byte ring: exact built-in types only, bounded in size and depth.

   No code of a value is called, and nothing here runs other code that could record in between: the one thing that allocates for the
   collector is an exception, and after that nothing more is written. The same bytes as taba/client/encode.py. */

#ifndef TABA_VALUES_H
#define TABA_VALUES_H

#include <Python.h>

#include "_producer.h"

typedef struct {
    uint8_t *ring;
    uint64_t bytes; /* of the ring */
    uint64_t begin; /* byte position of the value */
    uint64_t room;  /* what is free from there on; beyond it only the length is counted */
    uint64_t most;
    uint64_t length;
} Writer;

/* All functions below return DONE, else the reason for the drop. */
enum { DONE = -1, NO_SCALAR = -2 };

static inline int
put(Writer *out, const void *content, uint64_t length)
{
    if (length > out->most - out->length)
        return VALUE_TOO_LARGE;
    if (out->length + length <= out->room) {
        uint64_t slot = (out->begin + out->length) & (out->bytes - 1);
        uint64_t first = out->bytes - slot;
        if (LIKELY(length <= first)) {
            memcpy(out->ring + slot, content, length);
        } else {
            memcpy(out->ring + slot, content, first);
            memcpy(out->ring, (const uint8_t *)content + first, length - first);
        }
    }
    out->length += length;
    return DONE;
}

/* a first byte and a big-endian number of `bytes` bytes */
static inline int
put_number(Writer *out, uint8_t first, uint64_t number, int bytes)
{
    uint8_t content[9] = {first};
    for (int i = 0; i < bytes; i++)
        content[1 + i] = (uint8_t)(number >> (8 * (bytes - 1 - i)));
    return put(out, content, 1 + (uint64_t)bytes);
}

static int
put_int(Writer *out, PyObject *value)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow > 0) {
        unsigned long long large = PyLong_AsUnsignedLongLong(value);
        if (PyErr_Occurred()) {
            PyErr_Clear();
            return VALUE_TYPE;
        }
        return put_number(out, 0xcf, large, 8);
    }
    if (overflow < 0)
        return VALUE_TYPE;
    uint64_t bits = (uint64_t)number;
    if (number >= 0) {
        if (number < 0x80)
            return put_number(out, (uint8_t)number, 0, 0);
        if (number <= 0xff)
            return put_number(out, 0xcc, bits, 1);
        if (number <= 0xffff)
            return put_number(out, 0xcd, bits, 2);
        if (number <= 0xffffffffLL)
            return put_number(out, 0xce, bits, 4);
        return put_number(out, 0xcf, bits, 8);
    }
    if (number >= -32)
        return put_number(out, (uint8_t)number, 0, 0);
    if (number >= -0x80)
        return put_number(out, 0xd0, bits, 1);
    if (number >= -0x8000)
        return put_number(out, 0xd1, bits, 2);
    if (number >= -0x80000000LL)
        return put_number(out, 0xd2, bits, 4);
    return put_number(out, 0xd3, bits, 8);
}

static int
put_str(Writer *out, PyObject *value)
{
    Py_ssize_t size;
    const char *content;
    if (LIKELY(PyUnicode_IS_COMPACT_ASCII(value))) {
        content = (const char *)PyUnicode_1BYTE_DATA(value);
        size = PyUnicode_GET_LENGTH(value);
    } else {
        if ((uint64_t)PyUnicode_GET_LENGTH(value) > out->most) /* before its UTF-8 is made, which the string would keep */
            return VALUE_TOO_LARGE;
        content = PyUnicode_AsUTF8AndSize(value, &size);
        if (content == NULL) { /* a surrogate alone, or no memory */
            PyErr_Clear();
            return VALUE_TYPE;
        }
    }
    uint64_t length = (uint64_t)size;
    int reason = length < 32       ? put_number(out, (uint8_t)(0xa0 | length), 0, 0)
                 : length < 0x100   ? put_number(out, 0xd9, length, 1)
                 : length < 0x10000 ? put_number(out, 0xda, length, 2)
                                    : put_number(out, 0xdb, length, 4);
    return reason == DONE ? put(out, content, length) : reason;
}

static int
put_bytes(Writer *out, PyObject *value)
{
    uint64_t length = (uint64_t)PyBytes_GET_SIZE(value);
    int reason = length < 0x100     ? put_number(out, 0xc4, length, 1)
                 : length < 0x10000 ? put_number(out, 0xc5, length, 2)
                                    : put_number(out, 0xc6, length, 4);
    return reason == DONE ? put(out, PyBytes_AS_STRING(value), length) : reason;
}

static int
put_length(Writer *out, uint64_t length, uint8_t small, uint8_t middle)
{
    if (length < 16)
        return put_number(out, (uint8_t)(small | length), 0, 0);
    if (length < 0x10000)
        return put_number(out, middle, length, 2);
    return put_number(out, middle + 1, length, 4);
}

/* None, bool, numbers, str, bytes; or NO_SCALAR where the value is none of them */
static int
put_scalar(Writer *out, PyObject *value)
{
    if (PyUnicode_CheckExact(value))
        return put_str(out, value);
    if (value == Py_None)
        return put_number(out, 0xc0, 0, 0);
    if (value == Py_True || value == Py_False)
        return put_number(out, value == Py_True ? 0xc3 : 0xc2, 0, 0);
    if (PyFloat_Check(value)) { /* subclasses too: their content is read, their methods are not called */
        double number = PyFloat_AS_DOUBLE(value);
        uint64_t bits;
        memcpy(&bits, &number, 8);
        return put_number(out, 0xcb, bits, 8);
    }
    if (PyLong_Check(value))
        return put_int(out, value);
    if (PyBytes_CheckExact(value))
        return put_bytes(out, value);
    return NO_SCALAR;
}

static int
put_value(Writer *out, PyObject *value, int depth)
{
    int reason = put_scalar(out, value);
    if (reason != NO_SCALAR)
        return reason;
    int is_list = PyList_CheckExact(value), is_dict = PyDict_CheckExact(value);
    if (!is_list && !is_dict && !PyTuple_CheckExact(value))
        return VALUE_TYPE;
    if (depth == MAX_VALUE_DEPTH)
        return VALUE_TOO_LARGE;
    if (is_dict) {
        if ((reason = put_length(out, (uint64_t)PyDict_Size(value), 0x80, 0xde)) != DONE)
            return reason;
        PyObject *key, *content;
        Py_ssize_t position = 0;
        while (PyDict_Next(value, &position, &key, &content)) {
            /* a key that is a tuple would come back as a list, which is no key */
            if ((reason = put_scalar(out, key)) != DONE)
                return reason == NO_SCALAR ? VALUE_TYPE : reason;
            if ((reason = put_value(out, content, depth + 1)) != DONE)
                return reason;
        }
        return DONE;
    }
    Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
    if ((reason = put_length(out, (uint64_t)size, 0x90, 0xdc)) != DONE)
        return reason;
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *item = is_list ? PyList_GET_ITEM(value, i) : PyTuple_GET_ITEM(value, i);
        if ((reason = put_value(out, item, depth + 1)) != DONE)
            return reason;
    }
    return DONE;
}

#endif
