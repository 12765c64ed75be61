/* An envelope of nothing but batches, taken apart in one pass over its bytes: taba/batch/envelope.py takes any apart, and says what is wrong
   with one. Both find the same (tests/test_entries.py); whatever is out of the ordinary makes the whole None. */

#include "../_part.h"
#include "_bytes.h"
#include "_named.h"

#define FORM 1 /* of what Python gives it and gets: see taba/parts.py */
#define NONCE_BYTES 8

/* What an envelope names, in the order in which it is given to Python. */
static const char *const NAMES[] = {"v", "agent", "host", "now", "store", "entries"};
enum { V, AGENT, HOST, NOW, STORE, ENTRIES, FIELDS };
static const char *const OF_ENTRY[] = {"batch", "follows", "nonce"};
enum { BATCH, FOLLOWS, NONCE, ENTRY_FIELDS };

/* Which of these names comes next; -1 for any other. */
static int take_name(Bytes *from, const char *const *names, int count) {
    const uint8_t *start;
    Py_ssize_t size;
    if (!take_text(from, &start, &size)) return -1;
    for (int at = 0; at < count; at++)
        if (strlen(names[at]) == (size_t)size && memcmp(names[at], start, (size_t)size) == 0) return at;
    return -1;
}

/* Have `entry` be a batch and what travels beside it. 1, or 0 where it is anything else, or -1 with an exception. */
static int take_entry(Bytes *from, PyObject *form, PyObject **entry) {
    if (take_map(from) != ENTRY_FIELDS) return 0;
    const uint8_t *batch = NULL, *nonce = NULL;
    Py_ssize_t batch_size = 0, nonce_size = 0;
    uint64_t follows = 0;
    unsigned seen = 0;
    for (int at = 0; at < ENTRY_FIELDS; at++) {
        int name = take_name(from, OF_ENTRY, ENTRY_FIELDS);
        if (name < 0 || seen >> name & 1) return 0;
        seen |= 1u << name;
        if (!(name == BATCH ? take_bin(from, &batch, &batch_size) : name == NONCE ? take_bin(from, &nonce, &nonce_size) : take_number(from, &follows)))
            return 0;
    }
    if (follows > INT64_MAX || nonce_size != NONCE_BYTES) return 0;
    PyObject *made[4] = {PyBytes_FromStringAndSize((const char *)batch, batch_size), PyLong_FromUnsignedLongLong(follows),
                         PyBytes_FromStringAndSize((const char *)nonce, nonce_size), PyBytes_FromStringAndSize(NULL, 0)};
    *entry = named(form, 4, made);
    return *entry == NULL ? -1 : 1;
}

/* Have `entries` be those that come next, at most so many. As above. */
static int take_entries(Bytes *from, Py_ssize_t most, PyObject *form, PyObject **entries) {
    Py_ssize_t count = take_array(from);
    if (count < 0 || count > most || count > from->end - from->at) return 0;
    if ((*entries = PyList_New(count)) == NULL) return -1;
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *entry = NULL;
        int done = take_entry(from, form, &entry);
        if (done <= 0) return done;
        PyList_SET_ITEM(*entries, at, entry);
    }
    return 1;
}

/* Have `found` be the value of what has this name. As above. */
static int take_value(Bytes *from, int name, PyObject *versions, Py_ssize_t most, PyObject *form, PyObject **found) {
    const uint8_t *start;
    Py_ssize_t size;
    uint64_t number;
    if (name == ENTRIES) return take_entries(from, most, form, found);
    if (name == V) {
        if (!take_number(from, &number)) return 0;
        int is_read = is_one_of(number, versions);
        if (is_read > 0) *found = Py_NewRef(Py_None);
        return is_read;
    }
    if (name == NOW) {
        if (from->end - from->at < 1 || from->at[0] != 0xcb || !take_big(from, 8, &number)) return 0;
        double now;
        memcpy(&now, &number, sizeof now);
        *found = PyFloat_FromDouble(now);
        return *found == NULL ? -1 : 1;
    }
    if (name == STORE && from->end - from->at >= 1 && from->at[0] == 0xc0) {
        from->at++;
        *found = Py_NewRef(Py_None);
        return 1;
    }
    if (!take_text(from, &start, &size)) return 0;
    if ((*found = PyUnicode_DecodeUTF8((const char *)start, size, NULL)) == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return -1;
        PyErr_Clear();
        return 0;
    }
    return 1;
}

PyDoc_STRVAR(read_doc,
"read(content, versions, most, form) -> (agent, host, now, store, entries) | None\n\n"
"What an envelope of one of these versions has: two texts, a float, a text or None, and a list of at most so many `form`s, each a batch with\n"
"what travels beside it. None where anything is out of the ordinary.");

static PyObject *read_envelope(PyObject *module, PyObject *const *given, Py_ssize_t number) {
    (void)module;
    if (number != 4 || !PyBytes_CheckExact(given[0])) {
        PyErr_SetString(PyExc_TypeError, "read takes the bytes of an envelope, versions, how many entries it may have, and a form");
        return NULL;
    }
    Py_ssize_t most = PyLong_AsSsize_t(given[2]);
    if (most == -1 && PyErr_Occurred()) return NULL;
    Bytes from = {.at = (const uint8_t *)PyBytes_AS_STRING(given[0])};
    from.end = from.at + PyBytes_GET_SIZE(given[0]);
    PyObject *found[FIELDS] = {NULL}, *result = NULL;
    int done = take_map(&from) == FIELDS;
    for (int at = 0; done > 0 && at < FIELDS; at++) {
        int name = take_name(&from, NAMES, FIELDS);
        /* the version first: with another one, what follows may be anything */
        done = name < 0 || found[name] != NULL || (at == 0) != (name == V) ? 0 : take_value(&from, name, given[1], most, given[3], &found[name]);
    }
    if (done > 0 && from.at == from.end) {
        result = PyTuple_Pack(5, found[AGENT], found[HOST], found[NOW], found[STORE], found[ENTRIES]);
    } else if (done >= 0) {
        result = Py_NewRef(Py_None);
    }
    for (int at = 0; at < FIELDS; at++) Py_XDECREF(found[at]);
    return result;
}

static PyMethodDef methods[] = {
    FAST("read", read_envelope, read_doc),
    {NULL, NULL, 0, NULL},
};

MAKE_PART(_entries, "taba.batch._entries", begin_nothing, OF_EACH_INTERPRETER, "Envelopes of nothing but batches, taken apart.")
