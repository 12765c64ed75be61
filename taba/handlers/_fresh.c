/* What is folded at the edge, counted: `taba/handlers/fresh.py` says what for, and does the same in numpy where this was not built.

   Every number of a row and every code is compared before it is used; nothing here keeps anything or gives up the GIL. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#include "../_arrays.h"
#include "../_part.h"

#define FORM 1 /* of what Python gives it and gets: see taba/parts.py */
#define CODE_BITS 16
#define CODES (1 << CODE_BITS)
#define HALF (CODES / 2)
#define WORDS (CODES / 64)

/* `wanted` arrays of words of 8 bytes, the first `given` of them only read; how many were had. */
static int
get_arrays(PyObject *const *args, Py_buffer *views, int wanted, int given)
{
    for (int had = 0; had < wanted; had++)
        if (get_array(args[had], &views[had], 8, 8, had < given ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0)
            return had;
    return wanted;
}

static PyObject *
done(Py_buffer *views, int had, Py_ssize_t found)
{
    release_arrays(views, had);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(found);
}

PyDoc_STRVAR(figures_doc,
             "figures(rows, values, total, low, high)\n--\n\n"
             "Add each of `values` (float64) to `total` of its row (int64), and let `low` and `high` of it be no greater and no less.");

static PyObject *
figures(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    Py_buffer views[5];
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "figures(rows, values, total, low, high)");
        return NULL;
    }
    int had = get_arrays(args, views, 5, 2);
    if (PyErr_Occurred())
        return done(views, had, 0);
    const int64_t *rows = views[0].buf;
    const double *values = views[1].buf;
    double *total = views[2].buf, *low = views[3].buf, *high = views[4].buf;
    Py_ssize_t events = views[0].len / 8;
    uint64_t room = (uint64_t)views[2].len / 8;
    if (views[1].len != views[0].len || views[3].len != views[2].len || views[4].len != views[2].len) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        return done(views, had, 0);
    }
    for (Py_ssize_t at = 0; at < events; at++) {
        uint64_t row = (uint64_t)rows[at];
        if (row >= room) {
            PyErr_SetString(PyExc_ValueError, "a row beyond all");
            break;
        }
        double value = values[at];
        total[row] += value;
        low[row] = low[row] < value ? low[row] : value; /* of equals the later, as numpy's */
        high[row] = high[row] > value ? high[row] : value;
    }
    return done(views, had, 0);
}

PyDoc_STRVAR(bins_doc,
             "bins(rows, codes, keys, counts)\n--\n\n"
             "How many `keys` there are, and in `counts` how often each: a key is row << 16 | code + 32,768 (all int64). The rows' numbers\n"
             "fall nowhere; -1 where they do.");

static PyObject *
bins(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    Py_buffer views[4];
    if (nargs != 4) {
        PyErr_SetString(PyExc_TypeError, "bins(rows, codes, keys, counts)");
        return NULL;
    }
    int had = get_arrays(args, views, 4, 2);
    if (PyErr_Occurred())
        return done(views, had, 0);
    const int64_t *rows = views[0].buf, *codes = views[1].buf;
    int64_t *keys = views[2].buf, *counts = views[3].buf;
    Py_ssize_t events = views[0].len / 8, found = 0;
    if (views[1].len != views[0].len || views[2].len < views[0].len || views[3].len < views[0].len) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        return done(views, had, 0);
    }
    uint32_t *table = PyMem_Calloc(CODES, sizeof(uint32_t));
    uint64_t *there = PyMem_Calloc(WORDS, sizeof(uint64_t)); /* which of the table are not 0 */
    if (table == NULL || there == NULL || events > UINT32_MAX) {
        PyErr_NoMemory();
        goto end;
    }
    for (Py_ssize_t at = 0; at < events;) {
        int64_t row = rows[at];
        if (row < 0 || row >= (int64_t)1 << 40) {
            PyErr_SetString(PyExc_ValueError, "a row beyond all");
            goto end;
        }
        uint64_t first = WORDS, last = 0;
        for (; at < events && rows[at] == row; at++) {
            uint64_t code = (uint64_t)codes[at] + HALF;
            if (code >= CODES) {
                PyErr_SetString(PyExc_ValueError, "a code beyond all");
                goto end;
            }
            if (table[code]++ == 0) {
                uint64_t word = code / 64;
                there[word] |= (uint64_t)1 << code % 64;
                first = word < first ? word : first;
                last = word > last ? word : last;
            }
        }
        if (at < events && rows[at] < row) {
            found = -1;
            goto end;
        }
        for (uint64_t word = first; word <= last; word++)
            for (uint64_t left = there[word]; left != 0; left &= left - 1) {
                uint64_t code = word * 64 + (uint64_t)__builtin_ctzll(left);
                keys[found] = (row << CODE_BITS) + (int64_t)code;
                counts[found++] = table[code];
                table[code] = 0;
            }
        for (uint64_t word = first; word <= last; word++)
            there[word] = 0;
    }
end:
    PyMem_Free(table);
    PyMem_Free(there);
    return done(views, had, found);
}

static PyMethodDef methods[] = {
    FAST("figures", figures, figures_doc),
    FAST("bins", bins, bins_doc),
    {NULL, NULL, 0, NULL},
};

MAKE_PART(_fresh, "taba.handlers._fresh", begin_nothing, OF_EACH_INTERPRETER, "What is folded at the edge, counted.")
