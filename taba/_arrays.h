/* Arrays that Python gives, looked at before they are read. */

#ifndef TABA_ARRAYS_H
#define TABA_ARRAYS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

/* A buffer as an array of `size` bytes each, aligned for them. */
static inline int
get_array(PyObject *object, Py_buffer *view, Py_ssize_t size, size_t alignment, int flags)
{
    if (PyObject_GetBuffer(object, view, flags) < 0)
        return -1;
    if (view->len % size != 0 || (uintptr_t)view->buf % alignment != 0) {
        PyBuffer_Release(view);
        PyErr_SetString(PyExc_ValueError, "an array of another size, or that is not aligned");
        return -1;
    }
    return 0;
}

/* The first `had` of them are needed no more. */
static inline void
release_arrays(Py_buffer *views, int had)
{
    while (had > 0)
        PyBuffer_Release(&views[--had]);
}

/* What a function returns that changed arrays, or raised: they are released. */
static inline PyObject *
end_arrays(Py_buffer *views, int had)
{
    release_arrays(views, had);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

#endif
