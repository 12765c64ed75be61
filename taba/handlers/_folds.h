/* The frame of a fold in C: what Python gives, State after State, and what it gets; each part says by a Kind how one State is folded.

   Nothing of the ordinary makes the whole None: then the arrays decide, and name who is at fault. */

#ifndef TABA_HANDLERS_FOLDS_H
#define TABA_HANDLERS_FOLDS_H

#include "_codes.h"
#include "_dumps.h"

#define FRAME_BYTES 6    /* before what the store keeps: the version and the age */

/* What stands before a dump that is made. */
typedef struct {
    const uint8_t *bytes;
    Py_ssize_t length;
} Frame;

/* Events of one State, in order. */
typedef struct {
    const double *times, *values;
    const int64_t *codes;    /* of the values' bins; NULL where the Kind has none */
    Py_ssize_t count;
    double now;
} Events;

/* How States of one kind are folded, one after the other in one room. */
typedef struct {
    const char *format;                                                   /* of PyArg_ParseTuple */
    int has_codes;
    void *(*make)(Py_ssize_t events);                                     /* room for one State and so many events, or NULL */
    int (*add)(void *room, const uint8_t *dump, Py_ssize_t length, const Events *events);  /* false for what is out of the ordinary */
    PyObject *(*write)(void *room, const Frame *frame);
    int (*slots)(const void *room);
} Kind;

/* The dump in `content`, behind a frame that says this version, unless that is 0; NULL where there is none. */
static inline const uint8_t *unframed(PyObject *content, int version, Py_ssize_t *length) {
    if (!PyBytes_Check(content)) return NULL;
    const uint8_t *dump = (const uint8_t *)PyBytes_AS_STRING(content);
    *length = PyBytes_GET_SIZE(content);
    if (version == 0) return dump;
    if (*length <= FRAME_BYTES || (dump[0] | dump[1] << 8) != version) return NULL;
    *length -= FRAME_BYTES;
    return dump + FRAME_BYTES;
}

/* Bytes for a dump of this length behind its frame, all 0, or NULL with an exception. */
static inline PyObject *make_dump(const Frame *frame, Py_ssize_t length, uint8_t **dump) {
    PyObject *made = PyBytes_FromStringAndSize(NULL, frame->length + length);
    if (made == NULL) return NULL;
    uint8_t *start = (uint8_t *)PyBytes_AS_STRING(made);
    memcpy(start, frame->bytes, (size_t)frame->length);
    *dump = start + frame->length;
    memset(*dump, 0, (size_t)length);
    return made;
}

static inline int is_a_time(double now) {
    return isfinite(now) && fabs(now) <= 1e12;
}

/* False where numpy has to say one of them. */
static inline int codes_of(const double *values, Py_ssize_t count, int64_t *codes) {
    for (Py_ssize_t place = 0; place < count; place++) {
        int32_t code = code_of(values[place]);
        if (SELDOM(code == UNSURE)) return 0;
        codes[place] = code;
    }
    return 1;
}

static inline PyObject *fold_all(PyObject *arguments, const Kind *kind) {
    PyObject *dumps, *made = NULL, *slots = NULL, *result = NULL;
    Py_buffer rows, codes, times, values, frame;
    double now;
    int version;
    void *room = NULL;
    int64_t *made_codes = NULL;
    if (!(kind->has_codes ? PyArg_ParseTuple(arguments, kind->format, &PyList_Type, &dumps, &rows, &times, &values, &now, &version, &frame, &codes)
                          : PyArg_ParseTuple(arguments, kind->format, &PyList_Type, &dumps, &rows, &times, &values, &now, &version, &frame)))
        return NULL;
    if (!kind->has_codes) codes = (Py_buffer){.len = rows.len};
    const Frame before = {.bytes = frame.buf, .length = frame.len};
    const int64_t *row = rows.buf;
    Py_ssize_t total = PyList_GET_SIZE(dumps), count = rows.len / 8, place = 0;
    if (((uintptr_t)rows.buf | (uintptr_t)codes.buf | (uintptr_t)times.buf | (uintptr_t)values.buf) % 8) goto none;
    const int makes_codes = kind->has_codes && codes.len == 0;
    if ((codes.len != rows.len && !makes_codes) || times.len != rows.len || values.len != rows.len || rows.len % 8 || !is_a_time(now)) goto none;
    room = kind->make(count);
    if (makes_codes) made_codes = PyMem_Malloc((size_t)count * sizeof *made_codes + 1);  /* for all events of a State, as the room */
    if (room == NULL || (makes_codes && made_codes == NULL)) {
        PyErr_NoMemory();
        goto done;
    }
    made = PyList_New(total);
    slots = PyBytes_FromStringAndSize(NULL, total * (Py_ssize_t)sizeof(int32_t));
    if (made == NULL || slots == NULL) goto done;
    Events events = {.now = now};
    for (Py_ssize_t at = 0; at < total; at++) {
        Py_ssize_t length, begin = place;
        const uint8_t *dump = unframed(PyList_GET_ITEM(dumps, at), version, &length);
        if (dump == NULL) goto none;
        while (place < count && row[place] == at) place++;
        if (place == begin) goto none;
        events.times = (const double *)times.buf + begin;
        events.values = (const double *)values.buf + begin;
        events.count = place - begin;
        if (makes_codes) {
            if (!codes_of(events.values, events.count, made_codes)) goto none;
            events.codes = made_codes;
        } else if (kind->has_codes) {
            events.codes = (const int64_t *)codes.buf + begin;
        }
        if (!kind->add(room, dump, length, &events)) goto none;
        PyObject *one = kind->write(room, &before);
        if (one == NULL) goto done;
        PyList_SET_ITEM(made, at, one);
        int32_t its = kind->slots(room);
        memcpy(PyBytes_AS_STRING(slots) + at * (Py_ssize_t)sizeof its, &its, sizeof its);
    }
    if (place != count) goto none;  /* rows that are none, or not in order */
    result = PyTuple_Pack(2, made, slots);
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    Py_XDECREF(made);
    Py_XDECREF(slots);
    PyMem_Free(room);
    PyMem_Free(made_codes);
    PyBuffer_Release(&rows);
    if (kind->has_codes) PyBuffer_Release(&codes);
    PyBuffer_Release(&times);
    PyBuffer_Release(&values);
    PyBuffer_Release(&frame);
    return result;
}

#define EDGE_DOC                                                                                                                     \
"edge(starts, times, values) -> [dump, \xe2\x80\xa6] | None\n\n"                                                                          \
"Fresh States of columns that stand one after the other: the events of each from its one of `starts` (int64) to the next, of which the\n" \
"last is the end. As of the greatest of its own times each; none of them span a day. None, where something is out of the ordinary."

/* As EDGE_DOC says. */
static inline PyObject *edge_all(PyObject *const *args, Py_ssize_t nargs, const Kind *kind) {
    Py_buffer views[3];
    int had = 0;
    void *room = NULL;
    int64_t *codes = NULL;
    PyObject *made = NULL, *result = NULL;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "edge(starts, times, values)");
        return NULL;
    }
    for (; had < 3; had++) {
        if (PyObject_GetBuffer(args[had], &views[had], PyBUF_SIMPLE) < 0) goto done;
        if (views[had].len % 8 || (uintptr_t)views[had].buf % 8) {
            had++;
            goto none;
        }
    }
    const int64_t *starts = views[0].buf;
    const double *times = views[1].buf, *values = views[2].buf;
    Py_ssize_t total = views[0].len / 8 - 1, count = views[1].len / 8, most = 0;
    if (total < 0 || views[2].len != views[1].len) goto none;
    for (Py_ssize_t at = 0; at < total; at++) {
        if (starts[at] < 0 || starts[at + 1] <= starts[at] || starts[at + 1] > count) goto none;
        if (starts[at + 1] - starts[at] > most) most = (Py_ssize_t)(starts[at + 1] - starts[at]);
    }
    room = kind->make(most);
    codes = PyMem_Malloc((size_t)most * sizeof *codes + 1);
    if (room == NULL || codes == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    made = PyList_New(total);
    if (made == NULL) goto done;
    for (Py_ssize_t at = 0; at < total; at++) {
        Py_ssize_t begin = (Py_ssize_t)starts[at], its = (Py_ssize_t)(starts[at + 1] - starts[at]);
        const Extent when = extent_of(times + begin, its);
        const double now = when.high;
        if (!codes_of(values + begin, its, codes)) goto none;
        const Events events = {.times = times + begin, .values = values + begin, .codes = codes, .count = its, .now = now};
        if (!when.are_finite || !is_a_time(now) || !kind->add(room, (const uint8_t *)"", 0, &events)) goto none;
        PyObject *one = kind->write(room, &(const Frame){.bytes = (const uint8_t *)"", .length = 0});
        if (one == NULL) goto done;
        PyList_SET_ITEM(made, at, one);
    }
    result = Py_NewRef(made);
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    Py_XDECREF(made);
    PyMem_Free(codes);
    PyMem_Free(room);
    while (had > 0) PyBuffer_Release(&views[--had]);
    return result;
}

/* How a State that was folded at the edge is added to another one, in one room for both. */
typedef struct {
    void *(*make)(void);                                                  /* the room, or NULL */
    int (*read)(void *room, const uint8_t *dump, Py_ssize_t length, int64_t *count);  /* that of the edge, and how many events it holds */
    int (*add)(void *room, const uint8_t *dump, Py_ssize_t length, double now);       /* it to this one; both false as a Kind's `add` */
    PyObject *(*write)(void *room, const Frame *frame);
    int (*slots)(const void *room);
} Merging;

#define COUNTED_DOC                                                                                                                  \
"counted(dumps) -> counts | None\n\n"                                                                                                 \
"How many events each of these States that were folded at the edge holds (int64). None, where one is out of the ordinary, or was not."

static inline int read_edge_of(const Merging *merging, void *room, PyObject *content, int64_t *count) {
    return PyBytes_Check(content) && merging->read(room, (const uint8_t *)PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content), count);
}

/* As COUNTED_DOC says. */
static inline PyObject *counted_all(PyObject *dumps, const Merging *merging) {
    if (!PyList_Check(dumps)) {
        PyErr_SetString(PyExc_TypeError, "counted(list)");
        return NULL;
    }
    Py_ssize_t total = PyList_GET_SIZE(dumps);
    PyObject *counts = PyBytes_FromStringAndSize(NULL, total * (Py_ssize_t)sizeof(int64_t));
    void *room = merging->make();
    if (counts == NULL || room == NULL) {
        Py_CLEAR(counts);
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t at = 0; at < total; at++) {
        int64_t count;
        if (!read_edge_of(merging, room, PyList_GET_ITEM(dumps, at), &count)) {
            Py_SETREF(counts, Py_NewRef(Py_None));
            break;
        }
        memcpy(PyBytes_AS_STRING(counts) + at * (Py_ssize_t)sizeof count, &count, sizeof count);
    }
done:
    PyMem_Free(room);
    return counts;
}

#define MERGE_DOC                                                                                                                    \
"merge(dumps, edges, now, version, frame) -> (dumps, slots) | None\n\n"                                                               \
"As `fold`, but to each of `dumps` one State is added that was folded at the edge, of as many `edges`."

/* As MERGE_DOC says. */
static inline PyObject *merge_all(PyObject *arguments, const Merging *merging) {
    PyObject *dumps, *edges, *made = NULL, *slots = NULL, *result = NULL;
    Py_buffer frame;
    double now;
    int version;
    void *room = NULL;
    if (!PyArg_ParseTuple(arguments, "O!O!diy*:merge", &PyList_Type, &dumps, &PyList_Type, &edges, &now, &version, &frame)) return NULL;
    const Frame before = {.bytes = frame.buf, .length = frame.len};
    Py_ssize_t total = PyList_GET_SIZE(dumps);
    if (PyList_GET_SIZE(edges) != total || !is_a_time(now)) goto none;
    room = merging->make();
    if (room == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    made = PyList_New(total);
    slots = PyBytes_FromStringAndSize(NULL, total * (Py_ssize_t)sizeof(int32_t));
    if (made == NULL || slots == NULL) goto done;
    for (Py_ssize_t at = 0; at < total; at++) {
        Py_ssize_t length;
        int64_t count;
        const uint8_t *dump = unframed(PyList_GET_ITEM(dumps, at), version, &length);
        if (dump == NULL || !read_edge_of(merging, room, PyList_GET_ITEM(edges, at), &count) || !merging->add(room, dump, length, now)) goto none;
        PyObject *one = merging->write(room, &before);
        if (one == NULL) goto done;
        PyList_SET_ITEM(made, at, one);
        int32_t its = merging->slots(room);
        memcpy(PyBytes_AS_STRING(slots) + at * (Py_ssize_t)sizeof its, &its, sizeof its);
    }
    result = PyTuple_Pack(2, made, slots);
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    Py_XDECREF(made);
    Py_XDECREF(slots);
    PyMem_Free(room);
    PyBuffer_Release(&frame);
    return result;
}

/* The frame of `content` of so many bytes, and the dump behind it; NULL where there is none. */
static inline const uint8_t *cut_frame(PyObject *content, Py_ssize_t bytes, Frame *frame, Py_ssize_t *length) {
    if (!PyBytes_Check(content) || PyBytes_GET_SIZE(content) < bytes) return NULL;
    *frame = (Frame){.bytes = (const uint8_t *)PyBytes_AS_STRING(content), .length = bytes};
    *length = PyBytes_GET_SIZE(content) - bytes;
    return frame->bytes + bytes;
}

static const Frame NO_FRAME = {.bytes = (const uint8_t *)"", .length = 0};

#endif
