/* What of many buckets is folded in one go, by Type, and what of it each bucket writes: `gather` and `write` of plain.py. */

#ifndef TABA_SERVER_FOLD_DEALING_H
#define TABA_SERVER_FOLD_DEALING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdio.h>

#include "_forms.h"

#define GATHERED 7 /* lists of a Type: see `gather` of plain.py */
#define MOST_DIGITS 24

/* Append what blocks have to lists: of each its times and values, and all of its counts. */
static int add_blocks(PyObject *blocks, PyObject *times, PyObject *values, PyObject *counts) {
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(blocks); at++) {
        PyObject *block = PyList_GET_ITEM(blocks, at);
        if (PyList_Append(times, PyTuple_GET_ITEM(block, BLOCK_TIMES)) < 0 || PyList_Append(values, PyTuple_GET_ITEM(block, BLOCK_VALUES)) < 0 ||
            PyList_SetSlice(counts, PyList_GET_SIZE(counts), PyList_GET_SIZE(counts), PyTuple_GET_ITEM(block, BLOCK_COUNTS)) < 0)
            return -1;
    }
    return 0;
}

/* Append those of `list` from `begin` on, so many, to another. */
static int add_some(PyObject *to, PyObject *list, Py_ssize_t begin, Py_ssize_t count) {
    for (Py_ssize_t at = begin; at < begin + count; at++)
        if (PyList_Append(to, PyList_GET_ITEM(list, at)) < 0) return -1;
    return 0;
}

/* What is gathered of a Type, a list of GATHERED lists, in `found`: made where it is not there. Borrowed. */
static PyObject *gathered_of(PyObject *found, PyObject *type) {
    PyObject *lists = PyDict_GetItemWithError(found, type);
    if (lists != NULL || PyErr_Occurred()) return lists;
    if ((lists = PyList_New(GATHERED)) == NULL) return NULL;
    int failed = 0;
    for (Py_ssize_t at = 0; at < GATHERED; at++) {
        PyObject *own = PyList_New(0);
        if (own == NULL) failed = 1;
        PyList_SET_ITEM(lists, at, own == NULL ? Py_NewRef(Py_None) : own);
    }
    failed = failed || PyDict_SetItem(found, type, lists) < 0;
    Py_DECREF(lists);
    return failed ? NULL : lists;
}

PyDoc_STRVAR(gather_doc, "gather(plain) -> dict\n\nAs `gather` of plain.py.");

static PyObject *gather(PyObject *module, PyObject *plain) {
    (void)module;
    if (!are_plain(plain)) {
        PyErr_SetString(PyExc_TypeError, "gather takes a list of Plain");
        return NULL;
    }
    PyObject *found = PyDict_New();
    for (Py_ssize_t at = 0; found != NULL && at < PyList_GET_SIZE(plain); at++) {
        PyObject *one = PyList_GET_ITEM(plain, at), *contents = PyTuple_GET_ITEM(one, PLAIN_CONTENTS);
        PyObject *groups = PyTuple_GET_ITEM(PyTuple_GET_ITEM(one, PLAIN_PLAN), PLAN_GROUPS);
        Py_ssize_t begin = 0;
        for (Py_ssize_t number = 0; number < PyList_GET_SIZE(groups); number++) {
            PyObject *group = PyList_GET_ITEM(groups, number), *lists = gathered_of(found, PyTuple_GET_ITEM(group, GROUP_TYPE));
            if (lists == NULL) goto failed;
            PyObject *all = PyList_GET_ITEM(lists, 2), *first = PyLong_FromSsize_t(PyList_GET_SIZE(all));
            int is_done = first != NULL && PyList_Append(PyList_GET_ITEM(lists, 3), first) == 0;
            Py_XDECREF(first);
            Py_ssize_t size = PyList_GET_SIZE(PyTuple_GET_ITEM(group, GROUP_FIELDS_OF));
            if (!is_done || PyList_Append(PyList_GET_ITEM(lists, 0), PyTuple_GET_ITEM(one, PLAIN_BUCKET)) < 0 ||
                PyList_Append(PyList_GET_ITEM(lists, 1), group) < 0 || add_some(all, contents, begin, size) < 0 ||
                add_blocks(PyTuple_GET_ITEM(group, GROUP_BLOCKS), PyList_GET_ITEM(lists, 4), PyList_GET_ITEM(lists, 5),
                           PyList_GET_ITEM(lists, 6)) < 0)
                goto failed;
            begin += size;
        }
    }
    return found;
failed:
    Py_DECREF(found);
    return NULL;
}

/* What is written of a Type, and how far that is dealt out. */
struct dealt {
    PyObject *type, *contents, *further;
    Py_ssize_t place, begin;
};

static PyObject *wrong(void) {
    PyErr_SetString(PyExc_TypeError, "write takes a list of Plain, contents and further ones by Type, fields by bucket, a function and an Outcome");
    return NULL;
}

/* Which of `dealt` is of `type`; `count` where none is, -1 with an exception. */
static Py_ssize_t dealt_of(struct dealt *dealt, Py_ssize_t count, PyObject *type) {
    for (Py_ssize_t at = 0; at < count; at++) {
        int is_same = dealt[at].type == type ? 1 : PyObject_RichCompareBool(dealt[at].type, type, Py_EQ);
        if (is_same) return is_same < 0 ? -1 : at;
    }
    return count;
}

/* The command that writes the States of these groups, and how far `dealt` is then; NULL without an exception where a Type is not in it. */
static PyObject *states_of(PyObject *key, PyObject *groups, struct dealt *dealt, Py_ssize_t count) {
    Py_ssize_t parts = 0, size = PyList_GET_SIZE(groups);
    struct dealt before[MOST_GROUPS];
    PyObject *further[MOST_GROUPS];
    Py_ssize_t of[MOST_GROUPS];
    int are_all = 1;
    if (size > MOST_GROUPS) return wrong();
    for (Py_ssize_t number = 0; number < size; number++) {
        PyObject *group = PyList_GET_ITEM(groups, number);
        Py_ssize_t rows = PyList_GET_SIZE(PyTuple_GET_ITEM(group, GROUP_FIELDS_OF));
        if ((of[number] = dealt_of(dealt, count, PyTuple_GET_ITEM(group, GROUP_TYPE))) < 0) return NULL;
        if (of[number] == count) {
            are_all = 0;
            continue;
        }
        struct dealt *its = &dealt[of[number]];
        before[number] = *its;
        if (its->begin > PyList_GET_SIZE(its->contents) - rows) return wrong();
        further[number] = NULL;
        if (PyDict_GET_SIZE(its->further)) {
            PyObject *place = PyLong_FromSsize_t(its->place);
            if (place == NULL) return NULL;
            further[number] = PyDict_GetItemWithError(its->further, place);
            Py_DECREF(place);
            if (further[number] == NULL && PyErr_Occurred()) return NULL;
            if (further[number] != NULL && !PyList_CheckExact(further[number])) return wrong();
        }
        parts += 2 * rows + (further[number] == NULL ? 0 : PyList_GET_SIZE(further[number]));
        its->place++;
        its->begin += rows;
    }
    if (!are_all) return NULL;
    PyObject *made = command(s_hset, key, parts);
    if (made == NULL) return NULL;
    Py_ssize_t place = 2;
    for (Py_ssize_t number = 0; number < size; number++) {
        PyObject *fields = PyTuple_GET_ITEM(PyList_GET_ITEM(groups, number), GROUP_FIELDS_OF);
        for (Py_ssize_t row = 0; row < PyList_GET_SIZE(fields); row++) {
            PyTuple_SET_ITEM(made, place++, Py_NewRef(PyList_GET_ITEM(fields, row)));
            PyTuple_SET_ITEM(made, place++, Py_NewRef(PyList_GET_ITEM(before[number].contents, before[number].begin + row)));
        }
        for (Py_ssize_t row = 0; further[number] != NULL && row < PyList_GET_SIZE(further[number]); row++)
            PyTuple_SET_ITEM(made, place++, Py_NewRef(PyList_GET_ITEM(further[number], row)));
    }
    return made;
}

/* A command of a name and a key, with all of a list behind them. */
static PyObject *command_of(PyObject *name, PyObject *key, PyObject *list) {
    PyObject *made = command(name, key, PyList_GET_SIZE(list));
    for (Py_ssize_t at = 0; made != NULL && at < PyList_GET_SIZE(list); at++) PyTuple_SET_ITEM(made, 2 + at, Py_NewRef(PyList_GET_ITEM(list, at)));
    return made;
}

/* The command that counts the Events of a Plan. */
static PyObject *count_of(PyObject *key, PyObject *number) {
    unsigned long long events = PyLong_AsUnsignedLongLong(number);
    if (events == (unsigned long long)-1 && PyErr_Occurred()) return NULL;
    PyObject *made = command(s_hincrby, key, 2);
    if (made == NULL) return NULL;
    char digits[MOST_DIGITS];
    PyTuple_SET_ITEM(made, 2, Py_NewRef(s_folded));
    PyTuple_SET_ITEM(made, 3, PyBytes_FromStringAndSize(digits, snprintf(digits, sizeof digits, "%llu", events)));
    if (PyTuple_GET_ITEM(made, 3) == NULL) Py_CLEAR(made);
    return made;
}

/* Append what is new to a list, whose reference it takes. */
static int add(PyObject *list, PyObject *made) {
    int failed = made == NULL || PyList_Append(list, made) < 0;
    Py_XDECREF(made);
    return failed ? -1 : 0;
}

/* The commands of a bucket; NULL without an exception where a Type of it was not folded. `emptied`: the fields that go. */
static PyObject *commands_of(PyObject *plain, PyObject *keys, struct dealt *dealt, Py_ssize_t count, PyObject *emptied) {
    PyObject *plan = PyTuple_GET_ITEM(plain, PLAIN_PLAN);
    PyObject *states = states_of(PyTuple_GET_ITEM(keys, 2), PyTuple_GET_ITEM(plan, PLAN_GROUPS), dealt, count);
    if (states == NULL) return NULL;
    PyObject *commands = PyList_New(0);
    if (commands == NULL || add(commands, command_of(s_hset, PyTuple_GET_ITEM(keys, 0), PyTuple_GET_ITEM(plain, PLAIN_MARKS))) < 0) {
        Py_DECREF(states);
        Py_XDECREF(commands);
        return NULL;
    }
    if (add(commands, states) < 0 || (emptied != NULL && add(commands, command_of(s_hdel, PyTuple_GET_ITEM(keys, 2), emptied)) < 0) ||
        add(commands, count_of(PyTuple_GET_ITEM(keys, 3), PyTuple_GET_ITEM(plan, PLAN_EVENTS))) < 0)
        Py_CLEAR(commands);
    return commands;
}

PyDoc_STRVAR(write_doc,
"write(plain, written, emptied, keys, outcome) -> dict\n\n"
"As `write` of plain.py. `keys`: what gives those of a bucket; `outcome`: one that says nothing of what was folded, of its class.");

static PyObject *write_all(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    (void)module;
    if (count != 5 || !are_plain(given[0]) || !PyDict_CheckExact(given[1]) || !PyDict_CheckExact(given[2]) || !is_of(given[4], OUTCOME_FIELDS))
        return wrong();
    Py_ssize_t types = PyDict_GET_SIZE(given[1]), at = 0;
    PyObject *found = NULL, *type, *its;
    struct dealt *dealt = PyMem_Calloc((size_t)types + 1, sizeof *dealt);
    if (dealt == NULL) return PyErr_NoMemory();
    for (Py_ssize_t place = 0; PyDict_Next(given[1], &place, &type, &its); at++) {
        if (!is_of(its, 2) || !PyList_CheckExact(PyTuple_GET_ITEM(its, 0)) || !PyDict_CheckExact(PyTuple_GET_ITEM(its, 1))) {
            wrong();
            goto end;
        }
        dealt[at] = (struct dealt){type, PyTuple_GET_ITEM(its, 0), PyTuple_GET_ITEM(its, 1), 0, 0};
    }
    found = PyDict_New();
    for (at = 0; found != NULL && at < PyList_GET_SIZE(given[0]); at++) {
        PyObject *plain = PyList_GET_ITEM(given[0], at), *plan = PyTuple_GET_ITEM(plain, PLAIN_PLAN);
        PyObject *bucket = PyTuple_GET_ITEM(plain, PLAIN_BUCKET), *emptied = PyDict_GetItemWithError(given[2], bucket);
        if ((emptied == NULL && PyErr_Occurred()) || (emptied != NULL && !PyList_CheckExact(emptied) && wrong() == NULL)) goto failed;
        PyObject *keys = PyObject_CallOneArg(given[3], bucket);
        if (keys == NULL || (!is_of(keys, 4) && wrong() == NULL)) {
            Py_XDECREF(keys);
            goto failed;
        }
        PyObject *commands = commands_of(plain, keys, dealt, types, emptied);
        Py_DECREF(keys);
        if (commands == NULL && PyErr_Occurred()) goto failed;
        if (commands == NULL) continue;
        PyObject *items[OUTCOME_FIELDS];
        for (Py_ssize_t place = 0; place < OUTCOME_FIELDS; place++) items[place] = PyTuple_GET_ITEM(given[4], place);
        items[OUTCOME_VERDICTS] = PyTuple_GET_ITEM(plain, PLAIN_VERDICTS);
        items[OUTCOME_FOLDED] = PyTuple_GET_ITEM(plan, PLAN_EVENTS);
        items[OUTCOME_TIMES] = PyTuple_GET_ITEM(plan, PLAN_TIMES);
        items[OUTCOME_MOVED] = PyTuple_GET_ITEM(plan, PLAN_MOVED);
        for (Py_ssize_t place = 0; place < OUTCOME_FIELDS; place++)
            if (place != OUTCOME_COMMANDS) Py_INCREF(items[place]);
        items[OUTCOME_COMMANDS] = commands;
        PyObject *outcome = named((PyObject *)Py_TYPE(given[4]), OUTCOME_FIELDS, items);
        int failed = outcome == NULL || PyDict_SetItem(found, bucket, outcome) < 0;
        Py_XDECREF(outcome);
        if (failed) goto failed;
    }
    goto end;
failed:
    Py_CLEAR(found);
end:
    PyMem_Free(dealt);
    return found;
}

#endif
