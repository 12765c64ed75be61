/* What all of `_plain.c` speaks of: the NamedTuples of plain.py and cycle.py, the names of attributes, and commands. */

#ifndef TABA_SERVER_FOLD_FORMS_H
#define TABA_SERVER_FOLD_FORMS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../../batch/_named.h"

#define MOST_GROUPS 32 /* Types of one bucket's batches */

/* Where things are in NamedTuples of plain.py, cycle.py and the batches. */
enum { PLAN_READS, PLAN_TYPES, PLAN_GROUPS, PLAN_EVENTS, PLAN_MOVED, PLAN_TIMES, PLAN_BESIDES, PLAN_FIELDS };
enum { GROUP_TYPE, GROUP_FIELDS_OF, GROUP_BLOCKS, GROUP_ROWS, GROUP_FIELDS };
enum { BLOCK_TYPE, BLOCK_FIELDS_OF, BLOCK_COUNTS, BLOCK_TIMES, BLOCK_VALUES, BLOCK_MOVED, BLOCK_FIELDS = 7 };
enum { PLAIN_BUCKET, PLAIN_PLAN, PLAIN_CONTENTS, PLAIN_MARKS, PLAIN_VERDICTS, PLAIN_FIELDS };
enum { WAITING_FOLLOWS, WAITING_BATCH, WAITING_NONCE = 3, WAITING_PART, WAITING_HEADER, WAITING_FIELDS = 7 };
enum { BATCH_STREAM, BATCH_NUMBER = 2, BATCH_COLUMNS, BATCH_MEANINGS, BATCH_BAD_MEANINGS, BATCH_FIELDS = 7 };
enum { OUTCOME_COMMANDS, OUTCOME_VERDICTS, OUTCOME_FOLDED, OUTCOME_TIMES = 5, OUTCOME_MOVED = 9, OUTCOME_FIELDS = 12 };

static PyObject *s_sections, *s_hmget, *s_hset, *s_hdel, *s_hincrby, *s_folded, *s_applied, *s_empty;

/* Whether it is a NamedTuple of so many. */
static int is_of(PyObject *form, Py_ssize_t count) { return PyTuple_Check(form) && PyTuple_GET_SIZE(form) == count; }

/* Whether all of `plain` is Plain, with Plans, groups and contents as they were made. */
static int are_plain(PyObject *plain) {
    if (!PyList_CheckExact(plain)) return 0;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(plain); at++) {
        PyObject *one = PyList_GET_ITEM(plain, at);
        if (!is_of(one, PLAIN_FIELDS) || !is_of(PyTuple_GET_ITEM(one, PLAIN_PLAN), PLAN_FIELDS) ||
            !PyList_CheckExact(PyTuple_GET_ITEM(one, PLAIN_CONTENTS)) || !PyList_CheckExact(PyTuple_GET_ITEM(one, PLAIN_MARKS)))
            return 0;
        PyObject *groups = PyTuple_GET_ITEM(PyTuple_GET_ITEM(one, PLAIN_PLAN), PLAN_GROUPS);
        if (!PyList_CheckExact(groups)) return 0;
        Py_ssize_t fields = 0;
        for (Py_ssize_t number = 0; number < PyList_GET_SIZE(groups); number++) {
            PyObject *group = PyList_GET_ITEM(groups, number);
            if (!is_of(group, GROUP_FIELDS) || !PyList_CheckExact(PyTuple_GET_ITEM(group, GROUP_FIELDS_OF)) ||
                !PyList_CheckExact(PyTuple_GET_ITEM(group, GROUP_BLOCKS)))
                return 0;
            PyObject *blocks = PyTuple_GET_ITEM(group, GROUP_BLOCKS);
            for (Py_ssize_t place = 0; place < PyList_GET_SIZE(blocks); place++)
                if (!is_of(PyList_GET_ITEM(blocks, place), BLOCK_FIELDS)) return 0;
            fields += PyList_GET_SIZE(PyTuple_GET_ITEM(group, GROUP_FIELDS_OF));
        }
        if (fields != PyList_GET_SIZE(PyTuple_GET_ITEM(one, PLAIN_CONTENTS))) return 0;
    }
    return 1;
}

static int make_words(void) {
    struct {
        PyObject **word;
        const char *text;
    } words[] = {{&s_sections, "sections"}, {&s_applied, "applied"}, {&s_empty, ""}};
    for (size_t at = 0; at < sizeof words / sizeof *words; at++)
        if ((*words[at].word = PyUnicode_InternFromString(words[at].text)) == NULL) return -1;
    s_hmget = PyBytes_FromString("HMGET");
    s_hset = PyBytes_FromString("HSET");
    s_hincrby = PyBytes_FromString("HINCRBY");
    s_hdel = PyBytes_FromString("HDEL");
    s_folded = PyBytes_FromString("folded");
    return s_hmget != NULL && s_hset != NULL && s_hincrby != NULL && s_hdel != NULL && s_folded != NULL ? 0 : -1;
}

/* A command of a name, a key and what follows. */
static PyObject *command(PyObject *name, PyObject *key, Py_ssize_t more) {
    PyObject *made = PyTuple_New(2 + more);
    if (made == NULL) return NULL;
    PyTuple_SET_ITEM(made, 0, Py_NewRef(name));
    PyTuple_SET_ITEM(made, 1, Py_NewRef(key));
    return made;
}

#endif
