/* Commands as the bytes that a Redis or Valkey takes, many at once, and what a transaction looks at in them. Anything but bytes in them
   makes these functions return None: then the caller has another way. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "../../_part.h"

#define FORM 3 /* of what Python gives it and gets: see taba/parts.py */
#define MOST_DIGITS 20

static int digits_of(Py_ssize_t number) {
    int digits = 1;
    for (; number > 9; number /= 10) digits++;
    return digits;
}

/* The mark, the number and the end of a line; where it ends. */
static char *put_number(char *to, char mark, Py_ssize_t number) {
    int digits = digits_of(number);
    *to++ = mark;
    for (int place = digits - 1; place >= 0; place--) {
        to[place] = (char)('0' + number % 10);
        number /= 10;
    }
    to += digits;
    *to++ = '\r';
    *to++ = '\n';
    return to;
}

PyDoc_STRVAR(encode_doc,
"encode(commands) -> bytes | None\n\n"
"The bytes of these on the wire, of a list of tuples of bytes; None where anything in them is something else.");

static PyObject *encode(PyObject *module, PyObject *commands) {
    (void)module;
    if (!PyList_CheckExact(commands)) Py_RETURN_NONE;
    Py_ssize_t size = 0, count = PyList_GET_SIZE(commands);
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *command = PyList_GET_ITEM(commands, at);
        if (!PyTuple_Check(command)) Py_RETURN_NONE;
        Py_ssize_t parts = PyTuple_GET_SIZE(command);
        size += 3 + digits_of(parts);
        for (Py_ssize_t place = 0; place < parts; place++) {
            PyObject *part = PyTuple_GET_ITEM(command, place);
            if (!PyBytes_CheckExact(part)) Py_RETURN_NONE;
            Py_ssize_t length = PyBytes_GET_SIZE(part);
            if (length > PY_SSIZE_T_MAX / 2 - size - MOST_DIGITS) return PyErr_NoMemory();
            size += 5 + digits_of(length) + length;
        }
    }
    PyObject *made = PyBytes_FromStringAndSize(NULL, size);
    if (made == NULL) return NULL;
    char *to = PyBytes_AS_STRING(made);
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *command = PyList_GET_ITEM(commands, at);
        Py_ssize_t parts = PyTuple_GET_SIZE(command);
        to = put_number(to, '*', parts);
        for (Py_ssize_t place = 0; place < parts; place++) {
            PyObject *part = PyTuple_GET_ITEM(command, place);
            Py_ssize_t length = PyBytes_GET_SIZE(part);
            to = put_number(to, '$', length);
            memcpy(to, PyBytes_AS_STRING(part), (size_t)length);
            to += length;
            *to++ = '\r';
            *to++ = '\n';
        }
    }
    return made;
}

/* Whether `part` is bytes that begin with `prefix`, which are. */
static int begins(PyObject *part, PyObject *prefix) {
    Py_ssize_t size = PyBytes_GET_SIZE(prefix);
    return PyBytes_CheckExact(part) && PyBytes_GET_SIZE(part) >= size &&
           memcmp(PyBytes_AS_STRING(part), PyBytes_AS_STRING(prefix), (size_t)size) == 0;
}

/* Whether `commands` is a list of tuples of two and more whose second part begins with `prefix`, with `names` the first one of these. */
static int are_of(PyObject *commands, PyObject *prefix, PyObject *names) {
    if (!PyList_CheckExact(commands) || !PyBytes_CheckExact(prefix)) return 0;
    Py_ssize_t count = PyList_GET_SIZE(commands);
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *command = PyList_GET_ITEM(commands, at);
        if (!PyTuple_CheckExact(command) || PyTuple_GET_SIZE(command) < 2 || !begins(PyTuple_GET_ITEM(command, 1), prefix)) return 0;
        if (names != NULL) {
            PyObject *name = PyTuple_GET_ITEM(command, 0);
            if (!PyBytes_CheckExact(name)) return 0;
            int is_one = PySet_Contains(names, name);
            if (is_one <= 0) return is_one;
        }
    }
    return 1;
}

/* Of reads, as `keys`: a list, or None. */
static PyObject *keys_of(PyObject *reads, PyObject *prefix, PyObject *names) {
    int are_good = are_of(reads, prefix, names);
    if (are_good < 0) return NULL;
    if (!are_good) Py_RETURN_NONE;
    Py_ssize_t size = PyList_GET_SIZE(reads);
    PyObject *found = PyList_New(size);
    for (Py_ssize_t at = 0; found != NULL && at < size; at++) {
        PyObject *key = PyTuple_GET_ITEM(PyList_GET_ITEM(reads, at), 1);
        Py_INCREF(key);
        PyList_SET_ITEM(found, at, key);
    }
    return found;
}

/* Whether these are two lists of one length. */
static int are_as_many(PyObject *some, PyObject *others) {
    return PyList_CheckExact(some) && PyList_CheckExact(others) && PyList_GET_SIZE(some) == PyList_GET_SIZE(others);
}

PyDoc_STRVAR(keys_doc,
"keys(reads, prefix, names) -> list | None\n\n"
"The keys of these reads, a list of tuples whose name is one of a frozenset, and whose only key begins with `prefix`; None where they are\n"
"anything else.");

static PyObject *keys(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    (void)module;
    if (count != 3 || !PyFrozenSet_CheckExact(given[2])) {
        PyErr_SetString(PyExc_TypeError, "keys takes reads, a prefix and a frozenset of names");
        return NULL;
    }
    return keys_of(given[0], given[1], given[2]);
}

PyDoc_STRVAR(keys_each_doc,
"keys_each(reads, prefixes, names) -> list | None\n\n"
"`keys` of each of a list of reads, with the prefix at its place in another; None where one of them is anything else.");

static PyObject *keys_each(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    (void)module;
    if (count != 3 || !are_as_many(given[0], given[1]) || !PyFrozenSet_CheckExact(given[2])) {
        PyErr_SetString(PyExc_TypeError, "keys_each takes a list of reads, one of as many prefixes, and a frozenset of names");
        return NULL;
    }
    Py_ssize_t size = PyList_GET_SIZE(given[0]);
    PyObject *found = PyList_New(size);
    for (Py_ssize_t at = 0; found != NULL && at < size; at++) {
        PyObject *own = keys_of(PyList_GET_ITEM(given[0], at), PyList_GET_ITEM(given[1], at), given[2]);
        if (own == NULL || own == Py_None) {
            Py_DECREF(found);
            return own;
        }
        PyList_SET_ITEM(found, at, own);
    }
    return found;
}

/* Of commands, as `measure`: a number, or None. */
static PyObject *measure_of(PyObject *commands, PyObject *prefix) {
    int are_good = are_of(commands, prefix, NULL);
    if (are_good < 0) return NULL;
    if (!are_good) Py_RETURN_NONE;
    Py_ssize_t total = 0, size = PyList_GET_SIZE(commands);
    for (Py_ssize_t at = 0; at < size; at++) {
        PyObject *command = PyList_GET_ITEM(commands, at);
        Py_ssize_t parts = PyTuple_GET_SIZE(command);
        for (Py_ssize_t place = 0; place < parts; place++) {
            PyObject *part = PyTuple_GET_ITEM(command, place);
            if (!PyBytes_CheckExact(part) || PyBytes_GET_SIZE(part) > PY_SSIZE_T_MAX - total) Py_RETURN_NONE;
            total += PyBytes_GET_SIZE(part);
        }
    }
    return PyLong_FromSsize_t(total);
}

PyDoc_STRVAR(measure_doc,
"measure(commands, prefix) -> int | None\n\n"
"How many bytes these hold, a list of tuples of bytes of which each second one begins with `prefix`; None where they are anything else.");

static PyObject *measure(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "measure takes commands and a prefix");
        return NULL;
    }
    return measure_of(given[0], given[1]);
}

PyDoc_STRVAR(measure_each_doc,
"measure_each(commands, prefixes) -> list | None\n\n"
"`measure` of each of a list of commands, with the prefix at its place in another; None where one of them is anything else.");

static PyObject *measure_each(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !are_as_many(given[0], given[1])) {
        PyErr_SetString(PyExc_TypeError, "measure_each takes a list of commands, and one of as many prefixes");
        return NULL;
    }
    Py_ssize_t size = PyList_GET_SIZE(given[0]);
    PyObject *found = PyList_New(size);
    for (Py_ssize_t at = 0; found != NULL && at < size; at++) {
        PyObject *own = measure_of(PyList_GET_ITEM(given[0], at), PyList_GET_ITEM(given[1], at));
        if (own == NULL || own == Py_None) {
            Py_DECREF(found);
            return own;
        }
        PyList_SET_ITEM(found, at, own);
    }
    return found;
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_O, encode_doc},
    FAST("keys", keys, keys_doc),
    FAST("keys_each", keys_each, keys_each_doc),
    FAST("measure", measure, measure_doc),
    FAST("measure_each", measure_each, measure_each_doc),
    {NULL, NULL, 0, NULL},
};

MAKE_PART(_wire, "taba.shard.servers._wire", begin_nothing, OF_EACH_INTERPRETER, "Commands as the bytes that a Redis or Valkey takes.")
