/* What an outbox keeps beside the bytes of a group's batches: its index, and where each is. */

#ifndef TABA_AGENT_PUBLISHING_H
#define TABA_AGENT_PUBLISHING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "../batch/_named.h"

enum { ID, CREATED, EVENTS, CONTENT, KEY, CRC, BATCH_PLACES };                    /* of an EncodedBatch */
enum { STREAM_BYTES = 16, INDEX_KEY_BYTES = 36, INDEX_BYTES = 92, STORED_PLACES = 9 }; /* see _INDEX in outbox.py */

static unsigned char *
put_little(unsigned char *to, uint64_t number, size_t bytes)
{
    memcpy(to, &number, bytes);
    return to + bytes;
}

/* The bytes of this, with zeros up to `most`. */
static unsigned char *
put_padded(unsigned char *to, PyObject *bytes, Py_ssize_t most)
{
    if (!PyBytes_Check(bytes)) {
        PyErr_SetString(PyExc_TypeError, "streams and keys are bytes");
        return to + most;
    }
    Py_ssize_t length = PyBytes_GET_SIZE(bytes) < most ? PyBytes_GET_SIZE(bytes) : most;
    memset(to, 0, (size_t)most);
    memcpy(to, PyBytes_AS_STRING(bytes), (size_t)length);
    return to + most;
}

/* A number of 32 bits: of another one an exception. */
static uint64_t
as_uint32(PyObject *object)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(object);
    if (!PyErr_Occurred() && number > UINT32_MAX)
        PyErr_SetString(PyExc_ValueError, "a number of more than 32 bits");
    return number;
}

/* What the index says of a moment, (seconds, boot, store age), in `stamp`: by its own `fields`. */
static int
read_moment(PyObject *created, unsigned char *stamp)
{
    PyObject *fields = PyObject_CallMethod(created, "fields", NULL);
    if (fields == NULL)
        return -1;
    if (PyTuple_Check(fields) && PyTuple_GET_SIZE(fields) == 3) {
        double seconds = PyFloat_AsDouble(PyTuple_GET_ITEM(fields, 0));
        uint64_t boot = as_uint32(PyTuple_GET_ITEM(fields, 1)), age = PyErr_Occurred() ? 0 : as_uint32(PyTuple_GET_ITEM(fields, 2));
        memcpy(stamp, &seconds, 8);
        put_little(put_little(stamp + 8, boot, 4), age, 4);
    }
    else
        PyErr_SetString(PyExc_TypeError, "no Moment");
    Py_DECREF(fields);
    return PyErr_Occurred() ? -1 : 0;
}

PyDoc_STRVAR(index_group_doc,
             "index_group(batches, flag, position, form)\n--\n\n"
             "(the index of a group of these EncodedBatches, a list of them as `form`, StoredBatch): the first one's flag is at `flag`, its\n"
             "bytes begin at `position`, and the others follow. None where the checksum of one is not known.");

static PyObject *
index_group(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *batches, *form, *moment = NULL;
    Py_ssize_t flag, position;
    unsigned char stamp[16] = {0};
    if (!PyArg_ParseTuple(args, "O!nnO", &PyList_Type, &batches, &flag, &position, &form))
        return NULL;
    Py_ssize_t total = PyList_GET_SIZE(batches);
    PyObject *index = PyBytes_FromStringAndSize(NULL, total * INDEX_BYTES), *stored = PyList_New(total), *answer = NULL;
    if (index == NULL || stored == NULL)
        goto done;
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(index);
    for (Py_ssize_t at = 0; at < total && at < PyList_GET_SIZE(batches); at++) {
        PyObject *batch = PyList_GET_ITEM(batches, at), *id = NULL;
        if (PyTuple_Check(batch) && PyTuple_GET_SIZE(batch) == BATCH_PLACES)
            id = PyTuple_GET_ITEM(batch, ID);
        if (id == NULL || !PyTuple_Check(id) || PyTuple_GET_SIZE(id) != 3) {
            PyErr_SetString(PyExc_TypeError, "no EncodedBatch");
            goto done;
        }
        PyObject *crc = PyTuple_GET_ITEM(batch, CRC), *created = PyTuple_GET_ITEM(batch, CREATED), *key = PyTuple_GET_ITEM(batch, KEY);
        if (crc == Py_None) {
            answer = Py_NewRef(Py_None);
            goto done;
        }
        Py_ssize_t length = PyObject_Length(PyTuple_GET_ITEM(batch, CONTENT));
        if (length < 0)
            goto done;
        if (created != moment) {
            if (read_moment(created, stamp) < 0)
                goto done;
            moment = created;
        }
        to = put_padded(to, PyTuple_GET_ITEM(id, 0), STREAM_BYTES);
        to = put_little(to, as_uint32(PyTuple_GET_ITEM(id, 1)), 4);
        to = put_little(to, (uint64_t)length, 4);
        if (PyErr_Occurred() || length > UINT32_MAX)
            goto beyond;
        to = put_little(to, PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(id, 2)), 8);
        memcpy(to, stamp, sizeof stamp);
        to = put_little(to + sizeof stamp, PyErr_Occurred() ? 0 : as_uint32(PyTuple_GET_ITEM(batch, EVENTS)), 4);
        to = put_little(to, PyErr_Occurred() ? 0 : as_uint32(crc), 4);
        to = PyErr_Occurred() ? to : put_padded(to, key, INDEX_KEY_BYTES);
        if (PyErr_Occurred())
            goto done;
        PyObject *items[STORED_PLACES] = {Py_NewRef(id),
                                          Py_NewRef(created),
                                          Py_NewRef(PyTuple_GET_ITEM(batch, EVENTS)),
                                          PyLong_FromSsize_t(length),
                                          Py_NewRef(crc),
                                          PyLong_FromSsize_t(position),
                                          PyLong_FromSsize_t(flag + at),
                                          Py_NewRef(Py_False),
                                          Py_NewRef(key)};
        PyObject *made = named(form, STORED_PLACES, items);
        if (made == NULL)
            goto done;
        PyList_SET_ITEM(stored, at, made);
        position += length;
    }
    answer = PyTuple_Pack(2, index, stored);
    goto done;
beyond:
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "a batch beyond all bounds");
done:
    Py_XDECREF(index);
    Py_XDECREF(stored);
    return answer;
}

#endif
