/* Sections of a batch of which nothing is amiss, all of floats, taken apart in one pass over their bytes.

   1. What is here is done a second time: taba/batch/reading.py takes any section apart, says what is wrong with it, and does all that this
      leaves alone. Both find the same (tests/test_sections.py).
   2. Every byte is a stranger's: it is read only where the section's own length says that it lies. Whatever is out of the ordinary, a Client
      that may be none too, makes the whole None. Whether a Tab may be one is not asked here: of each that there is the caller asks once. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define FORM 1 /* of what Python gives it and gets: see taba/parts.py */
#define MOST_CLIENT 200
#define MOST_TYPE 64
#define MOST_EVENTS (UINT64_C(1) << 32) /* of a section that is taken apart here: sums of counts stay far from what a word holds */

typedef struct {
    const uint8_t *at, *end;
} Bytes;

/* A bin, or a text of at most MOST_TYPE bytes where `is_text`; false for anything else. */
static int take(Bytes *from, int is_text, const uint8_t **start, Py_ssize_t *size) {
    Py_ssize_t left = from->end - from->at, head;
    if (left < 1) return 0;
    uint8_t first = from->at[0];
    if (is_text) {
        if (first < 0xa0 || first > 0xbf) {
            if (first != 0xd9 || left < 2) return 0;
            head = 2;
            *size = from->at[1];
        } else {
            head = 1;
            *size = first & 31;
        }
        if (*size > MOST_TYPE) return 0;
    } else {
        head = first == 0xc4 ? 2 : first == 0xc5 ? 3 : first == 0xc6 ? 5 : 0;
        if (!head || left < head) return 0;
        *size = 0;
        for (Py_ssize_t place = 1; place < head; place++) *size = *size << 8 | from->at[place];
    }
    if (left - head < *size) return 0;
    *start = from->at + head;
    from->at += head + *size;
    return 1;
}

/* How many items an array has, or -1. */
static Py_ssize_t take_array(Bytes *from) {
    Py_ssize_t left = from->end - from->at, head, count = 0;
    if (left < 1) return -1;
    uint8_t first = from->at[0];
    if (first >= 0x90 && first <= 0x9f) {
        from->at++;
        return first & 15;
    }
    head = first == 0xdc ? 3 : first == 0xdd ? 5 : 0;
    if (!head || left < head) return -1;
    for (Py_ssize_t place = 1; place < head; place++) count = count << 8 | from->at[place];
    from->at += head;
    return count;
}

static int is_client_char(uint8_t one) {
    return (one >= 'a' && one <= 'z') || (one >= 'A' && one <= 'Z') || (one >= '-' && one <= ':') || one == '_' || one == '@' || one == '+';
}

/* Whether this may be a client id in a batch: as taba.names.check_sender. */
static int is_client(const uint8_t *text, Py_ssize_t size) {
    if (size < 1 || size > MOST_CLIENT) return 0;
    for (Py_ssize_t place = 0; place < size; place++)
        if (!is_client_char(text[place])) return 0;
    if (text[0] == '_') return size == 9 && memcmp(text, "_overflow", 9) == 0;
    return size < 5 || memcmp(text, "taba.", 5) != 0;
}

/* The number of this Tab among `tabs`, a list, and `known`, a dict of the same; -1 with an exception. */
static Py_ssize_t number_of(PyObject *tabs, PyObject *known, const uint8_t *text, Py_ssize_t size) {
    PyObject *name = PyBytes_FromStringAndSize((const char *)text, size);
    if (name == NULL) return -1;
    PyObject *number = PyDict_GetItemWithError(known, name);
    Py_ssize_t found = -1;
    if (number != NULL) {
        found = PyLong_AsSsize_t(number);
    } else if (!PyErr_Occurred()) {
        found = PyList_GET_SIZE(tabs);
        number = PyLong_FromSsize_t(found);
        if (number == NULL || PyDict_SetItem(known, name, number) < 0 || PyList_Append(tabs, name) < 0) found = -1;
        Py_XDECREF(number);
    }
    Py_DECREF(name);
    return found;
}

PyDoc_STRVAR(read_doc,
"read(packed, most) -> (type, fields, counts, times, values, tabs, moved, places) | None\n\n"
"What a section of at most so many columns has: its Type as text, a list of its fields, a tuple of how many rows each has, times and values\n"
"as bytes, a list of its Tabs as bytes, each once, a list of how many rows each of these has, and for each column which of them is its own\n"
"(bytes of int32).\n"
"None where anything is out of the ordinary.");

static PyObject *read_section(PyObject *module, PyObject *const *given, Py_ssize_t number) {
    (void)module;
    if (number != 2 || !PyBytes_CheckExact(given[0])) {
        PyErr_SetString(PyExc_TypeError, "read takes the bytes of a section, and how many columns it may have");
        return NULL;
    }
    Py_ssize_t most = PyLong_AsSsize_t(given[1]), size;
    if (most == -1 && PyErr_Occurred()) return NULL;
    Bytes from = {.at = (const uint8_t *)PyBytes_AS_STRING(given[0])};
    from.end = from.at + PyBytes_GET_SIZE(given[0]);
    const uint8_t *start;
    PyObject *type = NULL, *fields = NULL, *counts = NULL, *tabs = NULL, *known = NULL, *places = NULL, *moved = NULL, *result = NULL;
    uint64_t *of_tab = NULL;
    if (take_array(&from) != 5 || !take(&from, 1, &start, &size)) Py_RETURN_NONE;
    type = PyUnicode_DecodeUTF8((const char *)start, size, NULL);
    if (type == NULL) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    Py_ssize_t columns = take_array(&from);
    if (columns < 1 || columns > most || columns > from.end - from.at) goto none;
    fields = PyList_New(columns);
    counts = PyTuple_New(columns);
    tabs = PyList_New(0);
    known = PyDict_New();
    places = PyBytes_FromStringAndSize(NULL, columns * (Py_ssize_t)sizeof(int32_t));
    if (fields == NULL || counts == NULL || tabs == NULL || known == NULL || places == NULL) goto done;
    const uint8_t *tab = NULL;
    Py_ssize_t tab_size = -1, place = -1;
    for (Py_ssize_t at = 0; at < columns; at++) {
        if (!take(&from, 0, &start, &size)) goto none;
        PyObject *field = PyBytes_FromStringAndSize((const char *)start, size);
        if (field == NULL) goto done;
        PyList_SET_ITEM(fields, at, field);
        const uint8_t *nul = size ? memchr(start, 0, (size_t)size) : NULL;
        if (nul == NULL || !is_client(nul + 1, size - (nul - start) - 1)) goto none;
        if (tab_size != nul - start || memcmp(tab, start, (size_t)tab_size) != 0) {
            tab = start;
            tab_size = nul - start;
            place = number_of(tabs, known, tab, tab_size);
            if (place < 0) goto done;
        }
        const int32_t own = (int32_t)place;
        memcpy(PyBytes_AS_STRING(places) + at * (Py_ssize_t)sizeof own, &own, sizeof own);
    }
    if (!take(&from, 0, &start, &size) || size != 4 * columns) goto none;
    uint64_t events = 0;
    Py_ssize_t different = PyList_GET_SIZE(tabs);
    of_tab = PyMem_Calloc((size_t)different, sizeof *of_tab);
    moved = PyList_New(different);
    if (of_tab == NULL || moved == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t at = 0; at < columns; at++) {
        const uint8_t *its = start + 4 * at;
        uint32_t count = (uint32_t)its[0] | (uint32_t)its[1] << 8 | (uint32_t)its[2] << 16 | (uint32_t)its[3] << 24;
        if (!count) goto none;
        events += count;
        int32_t own;
        memcpy(&own, PyBytes_AS_STRING(places) + at * (Py_ssize_t)sizeof own, sizeof own);
        of_tab[own] += count;
        PyObject *one = PyLong_FromUnsignedLong(count);
        if (one == NULL) goto done;
        PyTuple_SET_ITEM(counts, at, one);
    }
    const uint8_t *times, *values;
    Py_ssize_t times_size, values_size;
    if (events >= MOST_EVENTS || !take(&from, 0, &times, &times_size) || !take(&from, 0, &values, &values_size) || from.at != from.end) goto none;
    if ((uint64_t)times_size != 8 * events || values_size != times_size) goto none;
    for (Py_ssize_t at = 0; at < different; at++) {
        PyObject *one = PyLong_FromUnsignedLongLong(of_tab[at]);
        if (one == NULL) goto done;
        PyList_SET_ITEM(moved, at, one);
    }
    result = Py_BuildValue("(OOOy#y#OOO)", type, fields, counts, (const char *)times, times_size, (const char *)values, values_size, tabs, moved,
                           places);
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    Py_XDECREF(type);
    Py_XDECREF(fields);
    Py_XDECREF(counts);
    Py_XDECREF(tabs);
    Py_XDECREF(known);
    Py_XDECREF(places);
    Py_XDECREF(moved);
    PyMem_Free(of_tab);
    return result;
}

static PyMethodDef methods[] = {
    {"read", (PyCFunction)(void (*)(void))read_section, METH_FASTCALL, read_doc},
    {NULL, NULL, 0, NULL},
};

static int set_form(PyObject *module) {
    return PyModule_AddIntConstant(module, "FORM", FORM);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, set_form},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "taba.batch._sections", .m_methods = methods, .m_slots = slots};

PyMODINIT_FUNC PyInit__sections(void) {
    return PyModuleDef_Init(&definition);
}
