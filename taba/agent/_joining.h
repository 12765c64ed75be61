/* What stands in a section's column after column, joined where it lies: bytes of values, and fields. */

#ifndef TABA_AGENT_JOINING_H
#define TABA_AGENT_JOINING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "../_arrays.h"
#include "_packing.h"

#define FIELDS_AHEAD 12 /* columns */

/* The msgpack of these bytes of a list, each as a bin, one after the other. */
static PyObject *
joined_bins(PyObject *listed, Py_ssize_t start, Py_ssize_t end)
{
    if (start < 0 || start > end || end > PyList_GET_SIZE(listed)) {
        PyErr_SetString(PyExc_ValueError, "beyond the list");
        return NULL;
    }
    size_t length = 0;
    for (Py_ssize_t at = start; at < end; at++) {
        PyObject *one = PyList_GET_ITEM(listed, at);
        if (!PyBytes_Check(one) || PyBytes_GET_SIZE(one) > INT32_MAX) {
            PyErr_SetString(PyExc_TypeError, "no bytes, or too many");
            return NULL;
        }
        length += put_bin(NULL, (uint64_t)PyBytes_GET_SIZE(one)) + (size_t)PyBytes_GET_SIZE(one);
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (joined == NULL)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(joined);
    for (Py_ssize_t at = start; at < end; at++) {
        PyObject *one = PyList_GET_ITEM(listed, at);
        to += put_bin(to, (uint64_t)PyBytes_GET_SIZE(one));
        memcpy(to, PyBytes_AS_STRING(one), (size_t)PyBytes_GET_SIZE(one));
        to += PyBytes_GET_SIZE(one);
    }
    return joined;
}

typedef struct {
    PyObject *names, *clients; /* borrowed: lists */
    const uint8_t *is_overflow;
    const int64_t *of;
    const uint32_t *numbers;
    Py_ssize_t tabs; /* that `is_overflow` has */
} Columns;

typedef struct {
    const char *name, *client;
    size_t name_bytes, client_bytes;
} Field;

/* The field of the column `at`, without its head. */
static int
get_field(const Columns *columns, int64_t at, Field *field)
{
    int64_t of = columns->of[at];
    uint32_t number = columns->numbers[at];
    if (of < 0 || of >= PyList_GET_SIZE(columns->clients) || number >= PyList_GET_SIZE(columns->names) || number >= columns->tabs) {
        PyErr_SetString(PyExc_ValueError, "no such field");
        return -1;
    }
    PyObject *name = PyList_GET_ITEM(columns->names, number), *both = PyList_GET_ITEM(columns->clients, (Py_ssize_t)of);
    PyObject *client = PyTuple_Check(both) && PyTuple_GET_SIZE(both) == 2 ? PyTuple_GET_ITEM(both, columns->is_overflow[number] ? 1 : 0) : NULL;
    if (client == NULL || !PyBytes_Check(client) || !PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "names are text, and Clients pairs of bytes");
        return -1;
    }
    Py_ssize_t letters = PyUnicode_GET_LENGTH(name);
    field->name = PyUnicode_IS_COMPACT_ASCII(name) ? PyUnicode_DATA(name) : PyUnicode_AsUTF8AndSize(name, &letters);
    if (field->name == NULL)
        return -1;
    field->name_bytes = (size_t)letters;
    field->client = PyBytes_AS_STRING(client);
    field->client_bytes = (size_t)PyBytes_GET_SIZE(client);
    if (field->name_bytes + field->client_bytes >= INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a field beyond all bounds");
        return -1;
    }
    return 0;
}

/* Names lie anywhere: those of columns further on are on their way meanwhile. */
static void
fetch_field(const Columns *columns, int64_t at)
{
    uint32_t number = columns->numbers[at];
    if (number < PyList_GET_SIZE(columns->names)) {
        const char *later = (const char *)PyList_GET_ITEM(columns->names, number);
        __builtin_prefetch(later);
        __builtin_prefetch(later + 64);
    }
}

PyDoc_STRVAR(join_fields_doc,
             "join_fields(names, clients, is_overflow, of, numbers, edges)\n--\n\n"
             "The fields of columns from each of `edges` (int64) to the next, each as a bin, one after the other: the name at a column's one\n"
             "of `numbers` (uint32), NUL, and of the pair at its one, `of` (int64), of `clients` the second where `is_overflow` (bool) has\n"
             "that number, else the first. A list of bytes.");

static PyObject *
join_fields(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *names, *clients, *given[4], *found = NULL;
    static const Py_ssize_t sizes[] = {1, 8, 4, 8};
    Field *fields = NULL;
    Py_buffer views[4];
    int had = 0;
    if (!PyArg_ParseTuple(args, "O!O!OOOO", &PyList_Type, &names, &PyList_Type, &clients, &given[0], &given[1], &given[2], &given[3]))
        return NULL;
    for (; had < 4; had++)
        if (get_array(given[had], &views[had], sizes[had], (size_t)sizes[had], PyBUF_SIMPLE) < 0)
            goto done;
    const Columns its = {names, clients, views[0].buf, views[1].buf, views[2].buf, views[0].len};
    const int64_t *edges = views[3].buf;
    Py_ssize_t columns = views[1].len / 8, last = views[3].len / 8 - 1;
    if (columns != views[2].len / 4 || last < 0) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    fields = PyMem_New(Field, (size_t)columns + 1);
    if (fields == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (int64_t at = 0; at < columns; at++) {
        if (at + FIELDS_AHEAD < columns)
            fetch_field(&its, at + FIELDS_AHEAD);
        if (get_field(&its, at, &fields[at]) < 0)
            goto done;
    }
    found = PyList_New(last);
    for (Py_ssize_t run = 0; found != NULL && run < last; run++) {
        int64_t start = edges[run], end = edges[run + 1];
        size_t length = 0;
        if (start < 0 || start > end || end > columns) {
            PyErr_SetString(PyExc_ValueError, "edges beyond the columns");
            Py_CLEAR(found);
            break;
        }
        for (int64_t at = start; at < end; at++) {
            size_t inside = fields[at].name_bytes + 1 + fields[at].client_bytes;
            length += put_bin(NULL, inside) + inside;
        }
        PyObject *joined = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
        if (joined == NULL) {
            Py_CLEAR(found);
            break;
        }
        PyList_SET_ITEM(found, run, joined);
        unsigned char *to = (unsigned char *)PyBytes_AS_STRING(joined);
        for (int64_t at = start; at < end; at++) {
            const Field *field = &fields[at];
            to += put_bin(to, field->name_bytes + 1 + field->client_bytes);
            memcpy(to, field->name, field->name_bytes);
            to += field->name_bytes;
            *to++ = 0;
            memcpy(to, field->client, field->client_bytes);
            to += field->client_bytes;
        }
    }
done:
    release_arrays(views, had);
    PyMem_Free(fields);
    return found;
}

#endif
