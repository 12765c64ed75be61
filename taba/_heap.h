/* How much of what a process freed the C library keeps: what it gives back it has again page by page, each of which the system clears. */

#ifndef TABA_HEAP_H
#define TABA_HEAP_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>
#include <stdbool.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

PyDoc_STRVAR(keep_heap_doc,
             "keep_heap(most, block)\n--\n\n"
             "From now on this process keeps up to `most` bytes that are free at the end of its heap, and has blocks of less than `block` bytes\n"
             "there. Returns whether its C library can be told.");

static PyObject *
keep_heap(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "keep_heap(most, block)");
        return NULL;
    }
    long most = PyLong_AsLong(args[0]), block = PyErr_Occurred() ? 0 : PyLong_AsLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    if (most < 0 || block < 0 || most > INT_MAX || block > INT_MAX) {
        PyErr_SetString(PyExc_ValueError, "beyond all bounds");
        return NULL;
    }
#ifdef __GLIBC__
    bool is_told = mallopt(M_TRIM_THRESHOLD, (int)most) == 1 && mallopt(M_MMAP_THRESHOLD, (int)block) == 1;
#else
    bool is_told = false;
#endif
    return PyBool_FromLong(is_told);
}

#endif
