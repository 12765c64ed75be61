/* The floor of a record: an empty call that takes one argument, as `record` does, and reads the coarse clock. Nothing is kept.

   The flags are those of the accelerator. Built by floor.py where there is a compiler. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <time.h>

static volatile long long seen; /* so that no compiler leaves the clock out */

static PyObject *record(PyObject *module, PyObject *const *arguments, Py_ssize_t count, PyObject *names)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    seen = now.tv_nsec;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"record", (PyCFunction)(void (*)(void))record, METH_FASTCALL | METH_KEYWORDS, "Reads the coarse clock."}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "floor", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_floor(void)
{
    return PyModule_Create(&definition);
}
