/* Commands as the bytes that a Redis or Valkey takes, many at once. Anything but bytes in them makes `encode` return None: then the caller
   has another way. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#define FORM 1 /* of what Python gives it and gets: see taba/parts.py */
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

static PyMethodDef methods[] = {
    {"encode", encode, METH_O, encode_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_wire", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__wire(void) {
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "FORM", FORM) < 0) Py_CLEAR(module);
    return module;
}
