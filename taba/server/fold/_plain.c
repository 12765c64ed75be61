/* What is done for each ordinary bucket of a cycle: `plan`, `judge`, `gather` and `write` of plain.py, which says what they take and give. Where
   anything is out of the ordinary, `plan` and `judge` return None, and Fold decides; they may do so where Python would go on. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "../../_part.h"
#include "../../batch/_named.h"

#define FORM 3           /* of what Python gives it and gets: see taba/parts.py */
#define MOST_GROUPS 32   /* Types of one bucket's batches */
#define MOST_STREAMS 64  /* of one bucket's batches */
#define MOST_NAME 256    /* characters of a Tab whose bucket is remembered: MAX_CACHED_NAME */
#define MARK_BYTES 20    /* nonce (8), number (uint64), age (uint32) */
#define NONCE_BYTES 8
#define FRAME_BYTES 6    /* before each State */
#define MOST_DIGITS 24
#define MOST_NUMBER (UINT64_MAX >> 1)
#define GATHERED 7 /* lists of a Type: see `gather` of plain.py */

/* Where things are in NamedTuples of plain.py and cycle.py. */
enum { PLAN_READS, PLAN_TYPES, PLAN_GROUPS, PLAN_EVENTS, PLAN_MOVED, PLAN_TIMES, PLAN_FIELDS };
enum { GROUP_TYPE, GROUP_FIELDS_OF, GROUP_BLOCKS, GROUP_ROWS, GROUP_FIELDS };
enum { PLAIN_BUCKET, PLAIN_PLAN, PLAIN_CONTENTS, PLAIN_MARKS, PLAIN_VERDICTS, PLAIN_FIELDS };
enum { OUTCOME_COMMANDS, OUTCOME_VERDICTS, OUTCOME_FOLDED, OUTCOME_TIMES = 5, OUTCOME_MOVED = 9, OUTCOME_FIELDS = 12 };

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "marks are little-endian"
#endif

static PyObject *s_batch, *s_header, *s_part, *s_nonce, *s_meanings, *s_bad_meanings, *s_stream, *s_columns, *s_sections, *s_type, *s_fields;
static PyObject *s_values, *s_counts, *s_hdel;
static PyObject *s_moved, *s_times, *s_number, *s_follows, *s_hmget, *s_hset, *s_hincrby, *s_folded, *s_applied, *s_empty;

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

/* Take a block's fields into its group. 1, or 0 where it is out of the ordinary, or -1 with an exception. */
static int add_fields(struct group *group, PyObject *fields) {
    if (!PyList_CheckExact(fields)) return 0;
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
static int add_tabs(struct planned *planned, PyObject *moved, PyObject *wire, PyObject *home, PyObject *bucket, PyObject *buckets) {
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
        PyObject *known = PyDict_GetItemWithError(planned->types, tab);
        if (known == NULL) {
            if (PyErr_Occurred()) return -1;
            PyObject *given[2] = {tab, buckets};
            PyObject *own = PyObject_Vectorcall(home, given, 2, NULL);
            if (own == NULL) return -1;
            int is_here = PyObject_RichCompareBool(own, bucket, Py_EQ);
            Py_DECREF(own);
            if (is_here <= 0) return is_here;
            if (PyDict_SetItem(planned->types, tab, wire) < 0) return -1;
        } else if (known != wire) {
            int is_same = PyObject_RichCompareBool(known, wire, Py_EQ);
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
static int add_block(struct planned *planned, PyObject *block, PyObject *bucket, PyObject *buckets, PyObject *dumping, PyObject *home) {
    int done = -1;
    PyObject *fields = NULL, *moved = NULL, *wire = NULL, *type = PyObject_GetAttr(block, s_type);
    if (type == NULL || (wire = PyObject_GetItem(dumping, type)) == NULL) goto end;
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
        group->places = PyDict_New();
        group->fields = PyList_New(0);
        group->blocks = PyList_New(0);
        if (group->places == NULL || group->fields == NULL || group->blocks == NULL) goto end;
    }
    if ((fields = PyObject_GetAttr(block, s_fields)) == NULL || (moved = PyObject_GetAttr(block, s_moved)) == NULL) goto end;
    if ((done = add_tabs(planned, moved, wire, home, bucket, buckets)) <= 0) goto end;
    if ((done = add_fields(group, fields)) <= 0) goto end;
    if (PyList_Append(group->blocks, block) < 0) done = -1;
end:
    Py_XDECREF(type);
    Py_XDECREF(wire);
    Py_XDECREF(fields);
    Py_XDECREF(moved);
    return done;
}

/* Whether an attribute is None, or empty. As above. */
static int has_nothing(PyObject *of, PyObject *name) {
    PyObject *found = PyObject_GetAttr(of, name);
    if (found == NULL) return -1;
    int is_true = found == Py_None ? 0 : PyObject_IsTrue(found);
    Py_DECREF(found);
    return is_true < 0 ? -1 : !is_true;
}

/* Take what waits. As above. */
static int add_waiting(struct planned *planned, PyObject *item, PyObject *bucket, PyObject *buckets, PyObject *dumping, PyObject *home,
                       PyObject *block_type) {
    int done;
    if ((done = has_nothing(item, s_part)) <= 0 || (done = has_nothing(item, s_header)) <= 0) return done;
    if ((done = has_nothing(item, s_nonce)) != 0) return done < 0 ? -1 : 0;
    PyObject *batch = PyObject_GetAttr(item, s_batch), *stream = NULL, *columns = NULL, *parts = NULL;
    done = -1;
    if (batch == NULL) goto end;
    if ((done = has_nothing(batch, s_meanings)) <= 0 || (done = has_nothing(batch, s_bad_meanings)) <= 0) goto end;
    done = -1;
    if ((stream = PyObject_GetAttr(batch, s_stream)) == NULL || (columns = PyObject_GetAttr(batch, s_columns)) == NULL) goto end;
    if (!PyBytes_CheckExact(stream)) {
        done = 0;
        goto end;
    }
    if (PyDict_SetItem(planned->streams, stream, Py_None) < 0) goto end;
    if ((parts = PyObject_GetAttr(columns, s_sections)) == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) goto end;
        PyErr_Clear(); /* a list of columns, which came another way */
        done = 0;
        goto end;
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
        done = add_block(planned, block, bucket, buckets, dumping, home);
        Py_DECREF(block);
        if (done <= 0) goto end;
    }
    done = 1;
end:
    Py_XDECREF(batch);
    Py_XDECREF(stream);
    Py_XDECREF(columns);
    Py_XDECREF(parts);
    return done;
}

/* A command of a name, a key and what follows. */
static PyObject *command(PyObject *name, PyObject *key, Py_ssize_t more) {
    PyObject *made = PyTuple_New(2 + more);
    if (made == NULL) return NULL;
    PyTuple_SET_ITEM(made, 0, Py_NewRef(name));
    PyTuple_SET_ITEM(made, 1, Py_NewRef(key));
    return made;
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
            PyObject *its = PyObject_GetAttr(PyList_GET_ITEM(group->blocks, number), s_times);
            int failed = its == NULL || PyList_Append(times, its) < 0;
            Py_XDECREF(its);
            if (failed) goto failed;
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
    PyObject *items[6] = {reads, types, groups, events, Py_NewRef(planned->moved), times};
    return named(plan_form, 6, items);
failed:
    Py_XDECREF(groups);
    Py_XDECREF(times);
    Py_XDECREF(types);
    return NULL;
}

PyDoc_STRVAR(plan_doc,
"plan(bucket, waiting, buckets, dumping, home, keys, forms) -> Plan | None\n\n"
"As `plan` of plain.py. `home`: what tells the bucket of a Tab; `keys`: the bucket's; `forms`: Plan, Group and Block.");

static PyObject *plan(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    (void)module;
    if (count != 7 || !PyList_CheckExact(given[1]) || !PyTuple_Check(given[5]) || PyTuple_GET_SIZE(given[5]) != 4 ||
        !PyTuple_Check(given[6]) || PyTuple_GET_SIZE(given[6]) != 3) {
        PyErr_SetString(PyExc_TypeError, "plan takes a bucket, a list of what waits, buckets, Types, a function, four keys and three forms");
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
            done = add_waiting(&planned, item, given[0], given[2], given[3], given[4], PyTuple_GET_ITEM(given[6], 2));
            Py_DECREF(item);
        }
        if (done > 0 && planned.count == 0) done = 0; /* batches of nothing */
        if (done > 0) found = result_of(&planned, given[5], PyTuple_GET_ITEM(given[6], 0), PyTuple_GET_ITEM(given[6], 1));
        if (done == 0) found = Py_NewRef(Py_None);
    }
    clear_groups(planned.groups, planned.count);
    Py_XDECREF(planned.streams);
    Py_XDECREF(planned.types);
    Py_XDECREF(planned.moved);
    return found;
}

struct mark {
    unsigned char nonce[NONCE_BYTES];
    uint64_t number;
    uint32_t age;
    int is_moved;
};

/* Read a number of an attribute. 1, or 0 where it is none that is ordinary, or -1 with an exception. */
static int number_of(PyObject *of, PyObject *name, uint64_t *found) {
    PyObject *number = PyObject_GetAttr(of, name);
    if (number == NULL) return -1;
    int overflow = 0;
    long long value = PyLong_CheckExact(number) ? PyLong_AsLongLongAndOverflow(number, &overflow) : -1;
    Py_DECREF(number);
    if (value == -1 && PyErr_Occurred()) return -1;
    if (overflow || value < 0) return 0;
    *found = (uint64_t)value;
    return 1;
}

/* Have a batch move the mark of its stream, which it follows. As above. */
static int apply(PyObject *item, PyObject *read, struct mark *marks, Py_ssize_t streams, uint32_t age, uint64_t *applied) {
    PyObject *nonce = NULL, *stream = NULL, *batch = PyObject_GetAttr(item, s_batch);
    uint64_t follows = 0, number = 0;
    int done = -1;
    if (batch == NULL || (nonce = PyObject_GetAttr(item, s_nonce)) == NULL || (stream = PyObject_GetAttr(batch, s_stream)) == NULL) goto end;
    if ((done = number_of(item, s_follows, &follows)) <= 0 || (done = number_of(batch, s_number, &number)) <= 0) goto end;
    done = 0;
    if (!PyBytes_CheckExact(nonce) || PyBytes_GET_SIZE(nonce) != NONCE_BYTES || !PyBytes_CheckExact(stream)) goto end;
    for (Py_ssize_t at = 0; at < streams; at++) {
        PyObject *other = PyTuple_GET_ITEM(read, 2 + at);
        if (PyBytes_GET_SIZE(other) != PyBytes_GET_SIZE(stream) ||
            memcmp(PyBytes_AS_STRING(other), PyBytes_AS_STRING(stream), (size_t)PyBytes_GET_SIZE(stream)) != 0)
            continue;
        struct mark *mark = &marks[at];
        if (memcmp(mark->nonce, PyBytes_AS_STRING(nonce), NONCE_BYTES) != 0 || number <= mark->number || follows != mark->number) break;
        mark->number = *applied = number;
        if (age > mark->age) mark->age = age;
        mark->is_moved = 1;
        done = 1;
        break;
    }
end:
    Py_XDECREF(batch);
    Py_XDECREF(nonce);
    Py_XDECREF(stream);
    return done;
}

/* The marks as they are then, and the verdicts, of what waits for a bucket; None where that is not ordinary. `read`: the command that read
   marks; `wanted`: the Types of Tabs; the next three: what was read; `form`: Verdict. */
static int judge_one(PyObject *waiting, PyObject *read, PyObject *wanted, PyObject *kept, PyObject *types, PyObject *contents, uint32_t age,
                     PyObject *form, PyObject **written, PyObject **verdicts) {
    if (!PyList_CheckExact(kept) || !PyList_CheckExact(types) || !PyList_CheckExact(contents)) return 0;
    Py_ssize_t streams = PyTuple_GET_SIZE(read) - 2, tabs = PyList_GET_SIZE(wanted), batches = PyList_GET_SIZE(waiting);
    if (streams < 1 || streams > MOST_STREAMS || PyList_GET_SIZE(kept) != streams || PyList_GET_SIZE(types) != tabs) return 0;
    for (Py_ssize_t at = 0; at < tabs; at++) {
        PyObject *type = PyList_GET_ITEM(types, at), *want = PyList_GET_ITEM(wanted, at);
        if (!PyBytes_CheckExact(type) || !PyBytes_CheckExact(want) || PyBytes_GET_SIZE(type) != PyBytes_GET_SIZE(want) ||
            memcmp(PyBytes_AS_STRING(type), PyBytes_AS_STRING(want), (size_t)PyBytes_GET_SIZE(want)) != 0)
            return 0;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(contents); at++) {
        PyObject *content = PyList_GET_ITEM(contents, at);
        if (!PyBytes_CheckExact(content) || PyBytes_GET_SIZE(content) < FRAME_BYTES) return 0;
    }
    struct mark marks[MOST_STREAMS];
    for (Py_ssize_t at = 0; at < streams; at++) {
        PyObject *content = PyList_GET_ITEM(kept, at);
        if (!PyBytes_CheckExact(content) || PyBytes_GET_SIZE(content) != MARK_BYTES || !PyBytes_CheckExact(PyTuple_GET_ITEM(read, 2 + at)))
            return 0;
        const char *bytes = PyBytes_AS_STRING(content);
        memcpy(marks[at].nonce, bytes, NONCE_BYTES);
        memcpy(&marks[at].number, bytes + NONCE_BYTES, sizeof marks[at].number);
        memcpy(&marks[at].age, bytes + NONCE_BYTES + sizeof marks[at].number, sizeof marks[at].age);
        marks[at].is_moved = 0;
        if (marks[at].number > MOST_NUMBER) return 0;
    }
    int done = -1;
    if ((*verdicts = PyList_New(batches)) == NULL) return -1;
    for (Py_ssize_t at = 0; at < batches; at++) {
        uint64_t applied = 0;
        if ((done = apply(PyList_GET_ITEM(waiting, at), read, marks, streams, age, &applied)) <= 0) goto end;
        done = -1;
        PyObject *items[3] = {Py_NewRef(s_applied), PyLong_FromUnsignedLongLong(applied), Py_NewRef(s_empty)};
        PyObject *verdict = named(form, 3, items);
        if (verdict == NULL) goto end;
        PyList_SET_ITEM(*verdicts, at, verdict);
    }
    if ((*written = PyList_New(0)) == NULL) goto end;
    for (Py_ssize_t at = 0; at < streams; at++) {
        if (!marks[at].is_moved) continue;
        PyObject *content = PyBytes_FromStringAndSize(NULL, MARK_BYTES);
        if (content == NULL) goto end;
        char *bytes = PyBytes_AS_STRING(content);
        memcpy(bytes, marks[at].nonce, NONCE_BYTES);
        memcpy(bytes + NONCE_BYTES, &marks[at].number, sizeof marks[at].number);
        memcpy(bytes + NONCE_BYTES + sizeof marks[at].number, &marks[at].age, sizeof marks[at].age);
        int is_done = PyList_Append(*written, PyTuple_GET_ITEM(read, 2 + at)) == 0 && PyList_Append(*written, content) == 0;
        Py_DECREF(content);
        if (!is_done) goto end;
    }
    done = 1;
end:
    if (done <= 0) {
        Py_CLEAR(*verdicts);
        Py_CLEAR(*written);
    }
    return done;
}

/* Whether it is a NamedTuple of so many. */
static int is_of(PyObject *form, Py_ssize_t count) { return PyTuple_Check(form) && PyTuple_GET_SIZE(form) == count; }

PyDoc_STRVAR(judge_doc,
"judge(waiting, plans, replies, age, forms) -> list\n\n"
"As `judge` of plain.py. `forms`: Verdict and Plain.");

static PyObject *judge(PyObject *module, PyObject *const *given, Py_ssize_t count) {
    (void)module;
    if (count != 5 || !PyDict_CheckExact(given[0]) || !PyDict_CheckExact(given[1]) || !PyDict_CheckExact(given[2]) ||
        !PyTuple_CheckExact(given[4]) || PyTuple_GET_SIZE(given[4]) != 2) {
        PyErr_SetString(PyExc_TypeError, "judge takes what waits, Plans and replies by bucket, an age, and two forms");
        return NULL;
    }
    unsigned long age = PyLong_AsUnsignedLong(given[3]);
    if (age == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    PyObject *found = PyList_New(0), *bucket, *replies;
    if (found == NULL || age > UINT32_MAX) return found;
    for (Py_ssize_t place = 0; PyDict_Next(given[2], &place, &bucket, &replies);) {
        PyObject *waiting = PyDict_GetItemWithError(given[0], bucket), *plan = PyDict_GetItemWithError(given[1], bucket);
        if (PyErr_Occurred()) goto failed;
        if (plan == NULL || plan == Py_None || waiting == NULL) continue;
        if (!is_of(plan, PLAN_FIELDS) || !PyList_CheckExact(waiting) || !PyList_CheckExact(PyTuple_GET_ITEM(plan, PLAN_READS)) ||
            PyList_GET_SIZE(PyTuple_GET_ITEM(plan, PLAN_READS)) < 1 || !PyList_CheckExact(PyTuple_GET_ITEM(plan, PLAN_TYPES)) ||
            !PyTuple_CheckExact(PyList_GET_ITEM(PyTuple_GET_ITEM(plan, PLAN_READS), 0)) || !PyList_CheckExact(replies) ||
            PyList_GET_SIZE(replies) != 3) {
            PyErr_SetString(PyExc_TypeError, "judge takes Plans as they were made, and a list of replies to what each reads");
            goto failed;
        }
        PyObject *written = NULL, *verdicts = NULL, *contents = PyList_GET_ITEM(replies, 2);
        int done = judge_one(waiting, PyList_GET_ITEM(PyTuple_GET_ITEM(plan, PLAN_READS), 0), PyTuple_GET_ITEM(plan, PLAN_TYPES),
                             PyList_GET_ITEM(replies, 0), PyList_GET_ITEM(replies, 1), contents, (uint32_t)age,
                             PyTuple_GET_ITEM(given[4], 0), &written, &verdicts);
        if (done < 0) goto failed;
        if (done == 0) continue;
        PyObject *items[PLAIN_FIELDS] = {Py_NewRef(bucket), Py_NewRef(plan), Py_NewRef(contents), written, verdicts};
        PyObject *plain = named(PyTuple_GET_ITEM(given[4], 1), PLAIN_FIELDS, items);
        if (plain == NULL || PyList_Append(found, plain) < 0) {
            Py_XDECREF(plain);
            goto failed;
        }
        Py_DECREF(plain);
    }
    return found;
failed:
    Py_DECREF(found);
    return NULL;
}

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
            fields += PyList_GET_SIZE(PyTuple_GET_ITEM(group, GROUP_FIELDS_OF));
        }
        if (fields != PyList_GET_SIZE(PyTuple_GET_ITEM(one, PLAIN_CONTENTS))) return 0;
    }
    return 1;
}

/* Append the attributes of blocks to lists: of each its times and values, and all of its counts. */
static int add_blocks(PyObject *blocks, PyObject *times, PyObject *values, PyObject *counts) {
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(blocks); at++) {
        PyObject *block = PyList_GET_ITEM(blocks, at), *its = PyObject_GetAttr(block, s_times);
        int failed = its == NULL || PyList_Append(times, its) < 0;
        Py_XDECREF(its);
        if (failed) return -1;
        its = PyObject_GetAttr(block, s_values);
        failed = its == NULL || PyList_Append(values, its) < 0;
        Py_XDECREF(its);
        if (failed) return -1;
        its = PyObject_GetAttr(block, s_counts);
        failed = its == NULL || PyList_SetSlice(counts, PyList_GET_SIZE(counts), PyList_GET_SIZE(counts), its) < 0;
        Py_XDECREF(its);
        if (failed) return -1;
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

static PyMethodDef methods[] = {
    FAST("plan", plan, plan_doc),
    FAST("judge", judge, judge_doc),
    {"gather", gather, METH_O, gather_doc},
    FAST("write", write_all, write_doc),
    {NULL, NULL, 0, NULL},
};

static int make_words(void) {
    struct {
        PyObject **word;
        const char *text;
    } words[] = {
        {&s_batch, "batch"},   {&s_header, "header"}, {&s_part, "part"},       {&s_nonce, "nonce"},     {&s_meanings, "meanings"},
        {&s_stream, "stream"}, {&s_columns, "columns"}, {&s_sections, "sections"},  {&s_type, "type"},       {&s_bad_meanings, "bad_meanings"},
        {&s_fields, "fields"}, {&s_moved, "moved"},   {&s_times, "times"},     {&s_number, "number"},
        {&s_follows, "follows"}, {&s_applied, "applied"}, {&s_empty, ""},       {&s_values, "values"},   {&s_counts, "counts"},
    };
    for (size_t at = 0; at < sizeof words / sizeof *words; at++)
        if ((*words[at].word = PyUnicode_InternFromString(words[at].text)) == NULL) return -1;
    s_hmget = PyBytes_FromString("HMGET");
    s_hset = PyBytes_FromString("HSET");
    s_hincrby = PyBytes_FromString("HINCRBY");
    s_hdel = PyBytes_FromString("HDEL");
    s_folded = PyBytes_FromString("folded");
    return s_hmget != NULL && s_hset != NULL && s_hincrby != NULL && s_hdel != NULL && s_folded != NULL ? 0 : -1;
}

MAKE_PART(_plain, "taba.server.fold._plain", make_words, OF_ONE_INTERPRETER, "What is done for each ordinary bucket of a cycle.")
