/* Whether batches follow their marks, which move, and all else that was read is ordinary: `judge` of plain.py. */

#ifndef TABA_SERVER_FOLD_JUDGING_H
#define TABA_SERVER_FOLD_JUDGING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "_forms.h"

#define MOST_STREAMS 64 /* of one bucket's batches */
#define MARK_BYTES 20   /* nonce (8), number (uint64), age (uint32) */
#define NONCE_BYTES 8
#define FRAME_BYTES 6 /* before each State */
#define MOST_NUMBER (UINT64_MAX >> 1)

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "marks are little-endian"
#endif

struct mark {
    unsigned char nonce[NONCE_BYTES];
    uint64_t number;
    uint32_t age;
    int is_moved;
};

/* Read a number. 1, or 0 where it is none that is ordinary, or -1 with an exception. */
static int number_of(PyObject *number, uint64_t *found) {
    int overflow = 0;
    long long value = PyLong_CheckExact(number) ? PyLong_AsLongLongAndOverflow(number, &overflow) : -1;
    if (value == -1 && PyErr_Occurred()) return -1;
    if (overflow || value < 0) return 0;
    *found = (uint64_t)value;
    return 1;
}

/* Have a batch move the mark of its stream, which it follows. As above. */
static int apply(PyObject *item, PyObject *read, struct mark *marks, Py_ssize_t streams, uint32_t age, uint64_t *applied) {
    if (!is_of(item, WAITING_FIELDS) || !is_of(PyTuple_GET_ITEM(item, WAITING_BATCH), BATCH_FIELDS)) return 0;
    PyObject *batch = PyTuple_GET_ITEM(item, WAITING_BATCH), *nonce = PyTuple_GET_ITEM(item, WAITING_NONCE);
    PyObject *stream = PyTuple_GET_ITEM(batch, BATCH_STREAM);
    uint64_t follows = 0, number = 0;
    int done;
    if ((done = number_of(PyTuple_GET_ITEM(item, WAITING_FOLLOWS), &follows)) <= 0) return done;
    if ((done = number_of(PyTuple_GET_ITEM(batch, BATCH_NUMBER), &number)) <= 0) return done;
    if (!PyBytes_CheckExact(nonce) || PyBytes_GET_SIZE(nonce) != NONCE_BYTES || !PyBytes_CheckExact(stream)) return 0;
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
        return 1;
    }
    return 0;
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

#endif
