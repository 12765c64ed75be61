/* What a drain has in order, cut into Sections: a bucket's columns of one Type are one, and there are hundreds in a drain. */

#ifndef TABA_AGENT_SECTIONING_H
#define TABA_AGENT_SECTIONING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include "../_arrays.h"
#include "../batch/_named.h"
#include "_joining.h"

enum { SECTION_PLACES = 10 }; /* of a Section, see writing.py */

/* The list of this bucket's Sections, borrowed; made where there is none. */
static PyObject *
list_of(PyObject *packed, PyObject *bucket)
{
    PyObject *listed = PyDict_GetItemWithError(packed, bucket);
    if (listed != NULL && !PyList_Check(listed)) {
        PyErr_SetString(PyExc_TypeError, "Sections are in lists");
        return NULL;
    }
    if (listed == NULL && !PyErr_Occurred()) {
        listed = PyList_New(0);
        if (listed != NULL && PyDict_SetItem(packed, bucket, listed) < 0)
            Py_CLEAR(listed);
        Py_XDECREF(listed); /* the dict has it */
    }
    return listed;
}

/* Add this Section, which is taken, unless it is NULL, where there is an exception. */
static int
add_section(PyObject *packed, PyObject *bucket, PyObject *section)
{
    PyObject *its = section == NULL ? NULL : list_of(packed, bucket);
    int added = its == NULL ? -1 : PyList_Append(its, section);
    Py_XDECREF(section);
    return added;
}

PyDoc_STRVAR(cut_sections_doc,
             "cut_sections(packed, sections, keys, edges, rows, counts, times, values, fields, listed, form)\n--\n\n"
             "Add to `packed`, lists by bucket, a Section (`form`) of the columns from each of `edges` (int64) to the next, whose rows are from its\n"
             "one of `rows` (int64) on. Each has one of `keys` (int64), twice the number of its bucket and Type in `sections`, a list of pairs,\n"
             "and one more where its values are a list, which `listed(start, end)` gives, and one of `fields`, a list. `counts` (uint32): by\n"
             "column; `times` and `values` are views of the bytes of eight for each row, and so is what a Section has of them.");

static PyObject *
cut_sections(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    enum { PACKED, PAIRS, KEYS, EDGES, ROWS, COUNTED, ALL_TIMES, ALL_VALUES, JOINED, LISTED, FORM_OF, TAKEN };
    static const Py_ssize_t sizes[] = {8, 8, 8, 4};
    Py_buffer views[4];
    int had = 0;
    PyObject *none = NULL, *zero = NULL;
    if (nargs != TAKEN || !PyDict_Check(args[PACKED]) || !PyList_Check(args[PAIRS]) || !PyMemoryView_Check(args[ALL_TIMES]) ||
        !PyMemoryView_Check(args[ALL_VALUES]) || !PyList_Check(args[JOINED])) {
        PyErr_SetString(PyExc_TypeError, "cut_sections(packed, sections, keys, edges, rows, counts, times, values, fields, listed, form)");
        return NULL;
    }
    for (; had < 4; had++)
        if (get_array(args[KEYS + had], &views[had], sizes[had], (size_t)sizes[had], PyBUF_SIMPLE) < 0)
            goto done;
    const int64_t *keys = views[0].buf, *edges = views[1].buf, *rows = views[2].buf;
    Py_ssize_t total = views[0].len / 8, columns = views[3].len / 4;
    Py_ssize_t bytes = PyObject_Length(args[ALL_TIMES]);
    if (views[1].len / 8 != total + 1 || views[2].len != views[1].len || PyList_GET_SIZE(args[JOINED]) != total ||
        bytes != PyObject_Length(args[ALL_VALUES])) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    none = PyBytes_FromStringAndSize(NULL, 0);
    zero = PyLong_FromLong(0);
    if (none == NULL || zero == NULL)
        goto done;
    for (Py_ssize_t at = 0; at < total; at++) {
        int64_t start = edges[at], end = edges[at + 1], low = rows[at], high = rows[at + 1];
        if (at >= PyList_GET_SIZE(args[JOINED]) || start < 0 || start > end || end > columns || low < 0 || low > high || high > bytes / 8 || keys[at] < 0 ||
            keys[at] >> 1 >= PyList_GET_SIZE(args[PAIRS])) {
            PyErr_SetString(PyExc_ValueError, "beyond the columns, the rows or the sections");
            goto done;
        }
        PyObject *pair = PyList_GET_ITEM(args[PAIRS], (Py_ssize_t)(keys[at] >> 1));
        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "sections are pairs of bucket and Type");
            goto done;
        }
        bool is_listed = keys[at] & 1;
        PyObject *content = is_listed ? PyObject_CallFunction(args[LISTED], "LL", (long long)start, (long long)end)
                                      : PySequence_GetSlice(args[ALL_VALUES], (Py_ssize_t)(8 * low), (Py_ssize_t)(8 * high));
        PyObject *items[SECTION_PLACES] = {Py_NewRef(PyTuple_GET_ITEM(pair, 1)),
                                           PyLong_FromLongLong(end - start),
                                           Py_NewRef(PyList_GET_ITEM(args[JOINED], at)),
                                           PyBytes_FromStringAndSize((const char *)views[3].buf + 4 * start, (Py_ssize_t)(4 * (end - start))),
                                           PySequence_GetSlice(args[ALL_TIMES], (Py_ssize_t)(8 * low), (Py_ssize_t)(8 * high)),
                                           content,
                                           PyBool_FromLong(is_listed),
                                           Py_NewRef(none),
                                           Py_NewRef(zero),
                                           Py_NewRef(none)};
        if (add_section(args[PACKED], PyTuple_GET_ITEM(pair, 0), named(args[FORM_OF], SECTION_PLACES, items)) < 0)
            goto done;
    }
done:
    Py_XDECREF(none);
    Py_XDECREF(zero);
    return end_arrays(views, had);
}

PyDoc_STRVAR(cut_states_doc,
             "cut_states(packed, sections, numbers, edges, counts, least, greatest, dumps, fields, edge, form)\n--\n\n"
             "The same of States that were folded at the edge, in version `edge`: `numbers` (int64) are those of their columns' sections, all of\n"
             "them the same from each of `edges` (int64) to the next, for which `fields`, a list, has one. By column: how many events\n"
             "(`counts`, uint32), the times of the first and the last (`least`, `greatest`, floats), and the State (`dumps`, a list of bytes).");

static PyObject *
cut_states(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    enum { PACKED, PAIRS, NUMBERS, EDGES, COUNTED, FIRST, LAST, DUMPS, JOINED, ITS_EDGE, FORM_OF, TAKEN };
    static const Py_ssize_t sizes[] = {8, 8, 4, 8, 8};
    Py_buffer views[5];
    int had = 0;
    PyObject *none = NULL;
    if (nargs != TAKEN || !PyDict_Check(args[PACKED]) || !PyList_Check(args[PAIRS]) || !PyList_Check(args[DUMPS]) || !PyList_Check(args[JOINED])) {
        PyErr_SetString(PyExc_TypeError, "cut_states(packed, sections, numbers, edges, counts, least, greatest, dumps, fields, edge, form)");
        return NULL;
    }
    for (; had < 5; had++)
        if (get_array(args[NUMBERS + had], &views[had], sizes[had], (size_t)sizes[had], PyBUF_SIMPLE) < 0)
            goto done;
    const int64_t *numbers = views[0].buf, *edges = views[1].buf;
    const char *counts = views[2].buf, *least = views[3].buf, *greatest = views[4].buf;
    Py_ssize_t columns = views[0].len / 8, total = views[1].len / 8 - 1;
    if (views[2].len / 4 != columns || views[3].len / 8 != columns || views[4].len / 8 != columns || total != PyList_GET_SIZE(args[JOINED])) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    none = PyBytes_FromStringAndSize(NULL, 0);
    if (none == NULL)
        goto done;
    for (Py_ssize_t at = 0; at < total; at++) {
        int64_t start = edges[at], end = edges[at + 1];
        if (start < 0 || start >= end || end > columns || numbers[start] < 0 || numbers[start] >= PyList_GET_SIZE(args[PAIRS])) {
            PyErr_SetString(PyExc_ValueError, "beyond the columns, or the sections");
            goto done;
        }
        PyObject *pair = PyList_GET_ITEM(args[PAIRS], (Py_ssize_t)numbers[start]);
        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "sections are pairs of bucket and Type");
            goto done;
        }
        PyObject *items[SECTION_PLACES] = {Py_NewRef(PyTuple_GET_ITEM(pair, 1)),
                                           PyLong_FromLongLong(end - start),
                                           Py_NewRef(PyList_GET_ITEM(args[JOINED], at)),
                                           PyBytes_FromStringAndSize(counts + 4 * start, (Py_ssize_t)(4 * (end - start))),
                                           PyBytes_FromStringAndSize(least + 8 * start, (Py_ssize_t)(8 * (end - start))),
                                           joined_bins(args[DUMPS], (Py_ssize_t)start, (Py_ssize_t)end),
                                           PyBool_FromLong(0),
                                           Py_NewRef(none),
                                           Py_NewRef(args[ITS_EDGE]),
                                           PyBytes_FromStringAndSize(greatest + 8 * start, (Py_ssize_t)(8 * (end - start)))};
        if (add_section(args[PACKED], PyTuple_GET_ITEM(pair, 0), named(args[FORM_OF], SECTION_PLACES, items)) < 0)
            goto done;
    }
done:
    Py_XDECREF(none);
    return end_arrays(views, had);
}

#endif
