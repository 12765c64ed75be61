/* What the batches that wait for a bucket have it read, and what of them is folded: `plan` of plain.py. */

#ifndef TABA_SERVER_FOLD_PLANNING_H
#define TABA_SERVER_FOLD_PLANNING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_forms.h"

#define FEW_FIELDS 16  /* of a block: so many are compared with each other, more are looked up */
#define MOST_NAME 256 /* characters of a Tab whose bucket is remembered: MAX_CACHED_NAME */

/* All of one Type. */
struct group {
    PyObject *type, *wire, *places, *fields, *blocks, *rows;
};

static void clear_groups(struct group *groups, int count) {
    for (int at = 0; at < count; at++) {
        Py_CLEAR(groups[at].type);
        Py_CLEAR(groups[at].wire);
        Py_CLEAR(groups[at].places);
        Py_CLEAR(groups[at].fields);
        Py_CLEAR(groups[at].blocks);
        Py_CLEAR(groups[at].rows);
    }
}

/* Put the numbers from 0 to before `count` into a list. */
static PyObject *numbers(Py_ssize_t count) {
    PyObject *found = PyList_New(count);
    for (Py_ssize_t at = 0; found != NULL && at < count; at++) {
        PyObject *number = PyLong_FromSsize_t(at);
        if (number == NULL) {
            Py_CLEAR(found);
        } else {
            PyList_SET_ITEM(found, at, number);
        }
    }
    return found;
}

/* Whether these are few, and each another. */
static int are_few(PyObject *fields) {
    Py_ssize_t count = PyList_GET_SIZE(fields);
    if (count > FEW_FIELDS) return 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *field = PyList_GET_ITEM(fields, at);
        if (!PyBytes_CheckExact(field)) return 0;
        for (Py_ssize_t before = 0; before < at; before++) {
            PyObject *other = PyList_GET_ITEM(fields, before);
            if (PyBytes_GET_SIZE(other) == PyBytes_GET_SIZE(field) &&
                memcmp(PyBytes_AS_STRING(other), PyBytes_AS_STRING(field), (size_t)PyBytes_GET_SIZE(field)) == 0)
                return 0;
        }
    }
    return 1;
}

/* Give a group its own list of fields and their places: of what it has of its first block so far. 0, or -1 with an exception. */
static int begin_places(struct group *group) {
    PyObject *taken = group->fields;
    if ((group->places = PyDict_New()) == NULL) return -1;
    if (taken == NULL) return (group->fields = PyList_New(0)) == NULL ? -1 : 0;
    if ((group->fields = PyList_GetSlice(taken, 0, PyList_GET_SIZE(taken))) == NULL) {
        group->fields = taken;
        return -1;
    }
    Py_DECREF(taken);
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(group->fields); at++) {
        PyObject *place = PyLong_FromSsize_t(at);
        int failed = place == NULL || PyDict_SetItem(group->places, PyList_GET_ITEM(group->fields, at), place) < 0;
        Py_XDECREF(place);
        if (failed) return -1;
    }
    return 0;
}

/* Take a block's fields into its group. 1, or 0 where it is out of the ordinary, or -1 with an exception. */
static int add_fields(struct group *group, PyObject *fields) {
    if (!PyList_CheckExact(fields)) return 0;
    if (group->fields == NULL && are_few(fields)) { /* as nearly always: the block's own, until there is another */
        group->fields = Py_NewRef(fields);
        return 1;
    }
    if (group->places == NULL && begin_places(group) < 0) return -1;
    Py_ssize_t count = PyList_GET_SIZE(fields), first = PyList_GET_SIZE(group->fields);
    int is_simple = first == 0 && group->rows == NULL;
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *field = PyList_GET_ITEM(fields, at);
        if (!PyBytes_CheckExact(field)) return 0;
        Py_ssize_t there = PyDict_GET_SIZE(group->places);
        PyObject *place = PyLong_FromSsize_t(there);
        if (place == NULL) return -1;
        PyObject *row = PyDict_SetDefault(group->places, field, place);
        Py_DECREF(place);
        if (row == NULL) return -1;
        int is_new = PyDict_GET_SIZE(group->places) > there;
        if (is_new && PyList_Append(group->fields, field) < 0) return -1;
        if (is_simple && !is_new) { /* until here each has been at its own place */
            if ((group->rows = numbers(at)) == NULL) return -1;
            is_simple = 0;
        }
        if (!is_simple) {
            if (group->rows == NULL && (group->rows = numbers(first)) == NULL) return -1;
            if (PyList_Append(group->rows, row) < 0) return -1;
        }
    }
    return 1;
}

/* What is being planned for a bucket. */
struct planned {
    PyObject *streams, *types, *moved;
    struct group groups[MOST_GROUPS];
    int count, is_own; /* groups; whether `moved` is no block's */
    unsigned long long events;
};

/* Take the Tabs of a block of a Type, if all of them live in the bucket and have that Type alone, with how many Events each has. As above. */
static int add_tabs(struct planned *planned, PyObject *moved, PyObject *wire, PyObject *homes, PyObject *bucket) {
    if (!PyDict_CheckExact(moved)) return 0;
    int is_first = planned->moved == NULL;
    if (is_first) {
        planned->moved = Py_NewRef(moved); /* a block's own, until there is another */
    } else if (!planned->is_own) {
        PyObject *own = PyDict_Copy(planned->moved);
        if (own == NULL) return -1;
        Py_SETREF(planned->moved, own);
        planned->is_own = 1;
    }
    PyObject *tab, *number;
    for (Py_ssize_t place = 0; PyDict_Next(moved, &place, &tab, &number);) {
        unsigned long long count = PyLong_AsUnsignedLongLong(number);
        if (count == (unsigned long long)-1 && PyErr_Occurred()) return -1;
        planned->events += count;
        if (!PyUnicode_CheckExact(tab) || PyUnicode_GET_LENGTH(tab) > MOST_NAME) return 0;
        PyObject *other = PyDict_GetItemWithError(planned->types, tab);
        if (other == NULL) {
            if (PyErr_Occurred()) return -1;
            PyObject *own = PyObject_GetItem(homes, tab);
            if (own == NULL) return -1;
            int is_here = PyObject_RichCompareBool(own, bucket, Py_EQ);
            Py_DECREF(own);
            if (is_here <= 0) return is_here;
            if (PyDict_SetItem(planned->types, tab, wire) < 0) return -1;
        } else if (other != wire) {
            int is_same = PyObject_RichCompareBool(other, wire, Py_EQ);
            if (is_same <= 0) return is_same;
        }
        if (is_first) continue;
        PyObject *before = PyDict_GetItemWithError(planned->moved, tab);
        if (before == NULL && PyErr_Occurred()) return -1;
        if (before != NULL) {
            count += PyLong_AsUnsignedLongLong(before);
            if (PyErr_Occurred()) return -1;
        }
        PyObject *now = PyLong_FromUnsignedLongLong(count);
        int failed = now == NULL || PyDict_SetItem(planned->moved, tab, now) < 0;
        Py_XDECREF(now);
        if (failed) return -1;
    }
    return 1;
}

/* Take a block. As above. */
static int add_block(struct planned *planned, PyObject *block, PyObject *bucket, PyObject *homes, PyObject *dumping) {
    int done = -1;
    if (!is_of(block, BLOCK_FIELDS)) return 0;
    PyObject *type = PyTuple_GET_ITEM(block, BLOCK_TYPE), *wire = PyObject_GetItem(dumping, type); /* the block, and so its Type, is the caller's */
    if (wire == NULL) return -1;
    if (!PyBytes_CheckExact(wire)) {
        done = 0; /* a Type that is folded another way */
        goto end;
    }
    struct group *group = NULL;
    for (int at = 0; at < planned->count && group == NULL; at++) {
        PyObject *other = planned->groups[at].type;
        int is_same = other == type ? 1 : PyObject_RichCompareBool(other, type, Py_EQ);
        if (is_same < 0) goto end;
        if (is_same) group = &planned->groups[at];
    }
    if (group == NULL) {
        if (planned->count == MOST_GROUPS) {
            done = 0;
            goto end;
        }
        group = &planned->groups[planned->count++];
        group->type = Py_NewRef(type);
        group->wire = Py_NewRef(wire);
        if ((group->blocks = PyList_New(0)) == NULL) goto end;
    }
    if ((done = add_tabs(planned, PyTuple_GET_ITEM(block, BLOCK_MOVED), wire, homes, bucket)) <= 0) goto end;
    if ((done = add_fields(group, PyTuple_GET_ITEM(block, BLOCK_FIELDS_OF))) <= 0) goto end;
    if (PyList_Append(group->blocks, block) < 0) done = -1;
end:
    Py_DECREF(wire);
    return done;
}

/* Whether it is None, or empty. As above. */
static int is_nothing(PyObject *found) {
    int is_true = found == Py_None ? 0 : PyObject_IsTrue(found);
    return is_true < 0 ? -1 : !is_true;
}

/* Take what waits. As above. */
static int add_waiting(struct planned *planned, PyObject *item, PyObject *bucket, PyObject *homes, PyObject *dumping,
                       PyObject *block_type) {
    int done;
    if (!is_of(item, WAITING_FIELDS) || !is_of(PyTuple_GET_ITEM(item, WAITING_BATCH), BATCH_FIELDS)) return 0;
    if ((done = is_nothing(PyTuple_GET_ITEM(item, WAITING_PART))) <= 0 || (done = is_nothing(PyTuple_GET_ITEM(item, WAITING_HEADER))) <= 0)
        return done;
    if ((done = is_nothing(PyTuple_GET_ITEM(item, WAITING_NONCE))) != 0) return done < 0 ? -1 : 0;
    /* the tuples hold these, and the caller them */
    PyObject *batch = PyTuple_GET_ITEM(item, WAITING_BATCH), *stream = PyTuple_GET_ITEM(batch, BATCH_STREAM);
    if ((done = is_nothing(PyTuple_GET_ITEM(batch, BATCH_MEANINGS))) <= 0 ||
        (done = is_nothing(PyTuple_GET_ITEM(batch, BATCH_BAD_MEANINGS))) <= 0)
        return done;
    if (!PyBytes_CheckExact(stream)) return 0;
    if (PyDict_SetItem(planned->streams, stream, Py_None) < 0) return -1;
    PyObject *parts = PyObject_GetAttr(PyTuple_GET_ITEM(batch, BATCH_COLUMNS), s_sections);
    if (parts == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return -1;
        PyErr_Clear(); /* a list of columns, which came another way */
        return 0;
    }
    if (!PyList_CheckExact(parts)) {
        done = 0;
        goto end;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(parts); at++) {
        PyObject *block = PyList_GET_ITEM(parts, at);
        if ((PyObject *)Py_TYPE(block) != block_type) {
            done = 0;
            goto end;
        }
        Py_INCREF(block);
        done = add_block(planned, block, bucket, homes, dumping);
        Py_DECREF(block);
        if (done <= 0) goto end;
    }
    done = 1;
end:
    Py_DECREF(parts);
    return done;
}

static PyObject *reads_of(struct planned *planned, PyObject *keys) {
    PyObject *reads = PyList_New(3), *key, *content;
    if (reads == NULL) return NULL;
    Py_ssize_t place = 0, at = 2, fields = 0;
    PyObject *made = command(s_hmget, PyTuple_GET_ITEM(keys, 0), PyDict_GET_SIZE(planned->streams));
    if (made == NULL) goto failed;
    PyList_SET_ITEM(reads, 0, made);
    while (PyDict_Next(planned->streams, &place, &key, &content)) PyTuple_SET_ITEM(made, at++, Py_NewRef(key));
    made = command(s_hmget, PyTuple_GET_ITEM(keys, 1), PyDict_GET_SIZE(planned->types));
    if (made == NULL) goto failed;
    PyList_SET_ITEM(reads, 1, made);
    for (place = 0, at = 2; PyDict_Next(planned->types, &place, &key, &content);) {
        PyObject *tab = PyUnicode_AsUTF8String(key);
        if (tab == NULL) goto failed;
        PyTuple_SET_ITEM(made, at++, tab);
    }
    for (int number = 0; number < planned->count; number++) fields += PyList_GET_SIZE(planned->groups[number].fields);
    made = command(s_hmget, PyTuple_GET_ITEM(keys, 2), fields);
    if (made == NULL) goto failed;
    PyList_SET_ITEM(reads, 2, made);
    at = 2;
    for (int number = 0; number < planned->count; number++) {
        PyObject *its = planned->groups[number].fields;
        for (Py_ssize_t row = 0; row < PyList_GET_SIZE(its); row++) PyTuple_SET_ITEM(made, at++, Py_NewRef(PyList_GET_ITEM(its, row)));
    }
    return reads;
failed:
    Py_DECREF(reads);
    return NULL;
}

static PyObject *result_of(struct planned *planned, PyObject *keys, PyObject *plan_form, PyObject *group_form) {
    PyObject *groups = PyList_New(planned->count), *times = PyList_New(0), *types = PyDict_Values(planned->types);
    if (groups == NULL || times == NULL || types == NULL) goto failed;
    for (int at = 0; at < planned->count; at++) {
        struct group *group = &planned->groups[at];
        for (Py_ssize_t number = 0; number < PyList_GET_SIZE(group->blocks); number++) {
            if (PyList_Append(times, PyTuple_GET_ITEM(PyList_GET_ITEM(group->blocks, number), BLOCK_TIMES)) < 0) goto failed;
        }
        PyObject *items[4] = {Py_NewRef(group->type), Py_NewRef(group->fields), Py_NewRef(group->blocks),
                              Py_NewRef(group->rows == NULL ? Py_None : group->rows)};
        PyObject *made = named(group_form, 4, items);
        if (made == NULL) goto failed;
        PyList_SET_ITEM(groups, at, made);
    }
    PyObject *reads = reads_of(planned, keys);
    PyObject *events = reads == NULL ? NULL : PyLong_FromUnsignedLongLong(planned->events);
    if (events == NULL) {
        Py_XDECREF(reads);
        goto failed;
    }
    PyObject *items[PLAN_FIELDS] = {reads, types, groups, events, Py_NewRef(planned->moved), times, Py_NewRef(Py_None)};
    return named(plan_form, PLAN_FIELDS, items);
failed:
    Py_XDECREF(groups);
    Py_XDECREF(times);
    Py_XDECREF(types);
    return NULL;
}

PyDoc_STRVAR(plan_doc,
"plan(bucket, waiting, homes, dumping, keys, forms) -> Plan | None\n\n"
"As `plan` of plain.py. `homes`: what by [] tells the bucket of a Tab; `keys`: the bucket's; `forms`: Plan, Group and Block.");

static PyObject *plan(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    (void)module;
    if (count != 6 || !PyList_CheckExact(given[1]) || !PyTuple_Check(given[4]) || PyTuple_GET_SIZE(given[4]) != 4 ||
        !PyTuple_Check(given[5]) || PyTuple_GET_SIZE(given[5]) != 3) {
        PyErr_SetString(PyExc_TypeError, "plan takes a bucket, a list of what waits, buckets of Tabs, Types, four keys and three forms");
        return NULL;
    }
    struct planned planned;
    memset(&planned, 0, sizeof planned);
    planned.streams = PyDict_New();
    planned.types = PyDict_New();
    PyObject *found = NULL;
    int done = -1;
    if (planned.streams != NULL && planned.types != NULL) {
        done = 1;
        for (Py_ssize_t at = 0; done > 0 && at < PyList_GET_SIZE(given[1]); at++) {
            PyObject *item = Py_NewRef(PyList_GET_ITEM(given[1], at));
            done = add_waiting(&planned, item, given[0], given[2], given[3], PyTuple_GET_ITEM(given[5], 2));
            Py_DECREF(item);
        }
        if (done > 0 && planned.count == 0) done = 0; /* batches of nothing */
        if (done > 0) found = result_of(&planned, given[4], PyTuple_GET_ITEM(given[5], 0), PyTuple_GET_ITEM(given[5], 1));
        if (done == 0) found = Py_NewRef(Py_None);
    }
    clear_groups(planned.groups, planned.count);
    Py_XDECREF(planned.streams);
    Py_XDECREF(planned.types);
    Py_XDECREF(planned.moved);
    return found;
}

#endif
