/* NamedTuples of Python's, made in C. */

#ifndef TABA_BATCH_NAMED_H
#define TABA_BATCH_NAMED_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* A NamedTuple of `form`, of these items, whose references it takes; NULL where one of them is, or with an exception. */
static inline PyObject *named(PyObject *form, Py_ssize_t count, PyObject **items) {
    PyObject *made = NULL;
    if (!PyType_Check(form) || !PyType_IsSubtype((PyTypeObject *)form, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "a form is a NamedTuple");
    } else if (!PyErr_Occurred()) {
        made = ((PyTypeObject *)form)->tp_alloc((PyTypeObject *)form, count);
#if PY_VERSION_HEX >= 0x030E0000
        if (made != NULL) ((PyTupleObject *)made)->ob_hash = -1; /* not known yet: what is allocated says 0, which would be its hash */
#endif
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        if (made != NULL) {
            PyTuple_SET_ITEM(made, at, items[at]);
        } else {
            Py_XDECREF(items[at]);
        }
    }
    return made;
}

#endif
