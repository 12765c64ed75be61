/* Of Types whose values go into bins: the functions `fold` and `edge` of a part, and how it begins. The part says by KIND how one State is
   folded, and by MERGING how two become one. */

#ifndef TABA_HANDLERS_BINNED_H
#define TABA_HANDLERS_BINNED_H

#include "_folds.h"

static const Kind KIND; /* whoever includes this defines them */
static const Merging MERGING;

PyDoc_STRVAR(fold_doc,
"fold(dumps, rows, times, values, now, version, frame, codes) -> (dumps, slots) | None\n\n"
"The main parts with these events added, each behind `frame`, and how many slots the journal of each has (int32). `rows` (int64) are in\n"
"order, `codes` (int64) those of the `values`; of none they are made here. With a `version` that is not 0, each of `dumps` stands behind a\n"
"frame, which has to say that one. None, where something is out of the ordinary, or numpy has to say a code: nothing is done then.");

static PyObject *fold(PyObject *module, PyObject *arguments) {
    (void)module;
    return fold_all(arguments, &KIND);
}

static PyObject *edge(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    return edge_all(args, nargs, &KIND);
}

static PyObject *counted_in(PyObject *module, PyObject *dumps) {
    (void)module;
    return counted_all(dumps, &MERGING);
}

static PyObject *merge(PyObject *module, PyObject *arguments) {
    (void)module;
    return merge_all(arguments, &MERGING);
}

static int begin(void) {
    begin_codes();
    return check_byte_order();
}

#endif
