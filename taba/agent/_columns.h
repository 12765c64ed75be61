/* What the columns of a drain have in them, in one pass: for the Agent's edge, which says what may be folded. */

#ifndef TABA_AGENT_COLUMNS_H
#define TABA_AGENT_COLUMNS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include "../_arrays.h"

PyDoc_STRVAR(measure_doc,
             "measure(starts, times, values, most_time, most_span, most_value, chosen, least, greatest, totals, lows)\n--\n\n"
             "Of each column that is `chosen` (bool) its first and last time, what its values sum up to, one after the other, and the least\n"
             "of them. It is chosen no more where a time is not from 0 to `most_time`, they span more than `most_span`, or a value is no float\n"
             "up to `most_value` either way. `starts` (int64): where each begins, and behind the last the end; a column has one event at least.");

enum { STARTS, TIMES_OF, VALUES_OF, CHOSEN, LEAST, GREATEST, TOTALS, LOWS, MEASURED };

static PyObject *
measure(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    static const int places[MEASURED] = {0, 1, 2, 6, 7, 8, 9, 10};
    Py_buffer views[MEASURED];
    double bounds[3];
    int had = 0;
    if (nargs != 11) {
        PyErr_SetString(PyExc_TypeError, "measure takes 11 arguments");
        return NULL;
    }
    for (int at = 0; at < 3; at++) {
        bounds[at] = PyFloat_AsDouble(args[3 + at]);
        if (bounds[at] == -1.0 && PyErr_Occurred())
            return NULL;
    }
    for (; had < MEASURED; had++) {
        size_t size = had == CHOSEN ? 1 : 8;
        if (get_array(args[places[had]], &views[had], (Py_ssize_t)size, size, had < CHOSEN ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0)
            goto done;
    }
    const int64_t *starts = views[STARTS].buf;
    const double *times = views[TIMES_OF].buf, *values = views[VALUES_OF].buf;
    uint8_t *chosen = views[CHOSEN].buf;
    double *least = views[LEAST].buf, *greatest = views[GREATEST].buf, *totals = views[TOTALS].buf, *lows = views[LOWS].buf;
    Py_ssize_t columns = views[CHOSEN].len, events = views[TIMES_OF].len / 8;
    bool fits = views[STARTS].len / 8 == columns + 1 && views[VALUES_OF].len == views[TIMES_OF].len;
    for (int at = LEAST; at < MEASURED; at++)
        fits = fits && views[at].len / 8 == columns;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    for (Py_ssize_t column = 0; column < columns; column++) {
        if (starts[column] < 0 || starts[column + 1] <= starts[column] || starts[column + 1] > events) {
            PyErr_SetString(PyExc_ValueError, "a column beyond the events, or without any");
            goto done;
        }
        if (!chosen[column])
            continue;
        int64_t at = starts[column], end = starts[column + 1];
        double first = times[at], last = times[at], low = values[at], high = values[at], total = 0.0, odd = 0.0;
        for (; at < end; at++) {
            double time = times[at], value = values[at];
            first = time < first ? time : first;
            last = time > last ? time : last;
            low = value < low ? value : low;
            high = value > high ? value : high;
            total += value;
            odd += (time - time) + (value - value); /* NaN where one is NaN or infinite, which no comparison tells of */
        }
        chosen[column] = odd == 0.0 && first >= 0.0 && last <= bounds[0] && last - first <= bounds[1] && low >= -bounds[2] && high <= bounds[2];
        least[column] = first;
        greatest[column] = last;
        totals[column] = total;
        lows[column] = low;
    }
done:
    return end_arrays(views, had);
}

PyDoc_STRVAR(sum_up_doc,
             "sum_up(starts, values, totals, lows)\n--\n\n"
             "What the values of each column sum up to, one after the other, and the least of them. False where a value or a sum is not\n"
             "finite: then the others mean nothing. `starts` (int64) as in `measure`.");

static PyObject *
sum_up(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    Py_buffer views[4];
    int had = 0;
    bool is_finite = true;
    if (nargs != 4) {
        PyErr_SetString(PyExc_TypeError, "sum_up(starts, values, totals, lows)");
        return NULL;
    }
    for (; had < 4; had++)
        if (get_array(args[had], &views[had], 8, 8, had < 2 ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0)
            goto done;
    const int64_t *starts = views[0].buf;
    const double *values = views[1].buf;
    double *totals = views[2].buf, *lows = views[3].buf;
    Py_ssize_t columns = views[0].len / 8 - 1, events = views[1].len / 8;
    if (columns < 0 || views[2].len / 8 != columns || views[3].len / 8 != columns) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    for (Py_ssize_t column = 0; column < columns; column++) {
        int64_t at = starts[column], end = starts[column + 1];
        if (at < 0 || end <= at || end > events) {
            PyErr_SetString(PyExc_ValueError, "a column beyond the events, or without any");
            goto done;
        }
        double total = 0.0, low = values[at], odd = 0.0;
        for (; at < end; at++) {
            double value = values[at];
            total += value;
            low = value < low ? value : low;
            odd += value - value;
        }
        is_finite = is_finite && odd == 0.0 && total - total == 0.0;
        totals[column] = total;
        lows[column] = low;
    }
done:
    release_arrays(views, had);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(is_finite);
}

#endif
