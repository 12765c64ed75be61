/* The States of Gauge, ExpiryGauge and UpDown, from bytes to bytes, where all of an Event's values are floats.

   1. What is here is done a second time, by the Handlers' own `fold`, which does all that this leaves alone. Both give the same bytes
      (tests/handlers/test_latest.py).
   2. A State is msgpack. Only of the shapes below is it read here, which the Handlers themselves write and which are all that has this
      length; anything else makes the whole call return None. */

#include "../_part.h"
#include "_folds.h"

#define FORM 1               /* of what Python gives it and gets: see taba/parts.py */
#define HOLD_SECONDS 86400.0 /* of a value that says nothing of its own */
#define MOST_VALUES 3
#define MOST_BYTES (2 + 9 * MOST_VALUES)

typedef struct {
    uint8_t dump[MOST_BYTES];
    Py_ssize_t length;
} State;

static double load_float(const uint8_t *from) {
    uint64_t bits = 0;
    double found;
    for (int place = 0; place < 8; place++) bits = bits << 8 | from[place];
    memcpy(&found, &bits, 8);
    return found;
}

static uint8_t *store_float(uint8_t *to, double item) {
    uint64_t bits;
    memcpy(&bits, &item, 8);
    *to++ = 0xcb;
    for (int place = 7; place >= 0; place--) *to++ = (uint8_t)(bits >> 8 * place);
    return to;
}

/* The bytes of a float, nil, a truth or a small number, which is written in no other way; 0 for anything else. */
static Py_ssize_t value_bytes(const uint8_t *from, Py_ssize_t left) {
    if (left < 1) return 0;
    if (from[0] == 0xcb) return left >= 9 ? 9 : 0;
    return from[0] < 0x80 || from[0] >= 0xe0 || from[0] == 0xc0 || from[0] == 0xc2 || from[0] == 0xc3;
}

/* A value, the time that it has, and `further` floats; or nil. False for anything else. */
static int add_latest(State *state, const uint8_t *dump, Py_ssize_t length, const Events *events, int further) {
    double time = -Py_HUGE_VAL, value = 0.0;
    if (length != 1 || dump[0] != 0xc0) {
        if (length < 1 || length > MOST_BYTES || dump[0] != (0x92 | further)) return 0;
        Py_ssize_t size = value_bytes(dump + 1, length - 1);
        if (!size || length != 1 + size + 9 * (1 + further)) return 0;
        for (Py_ssize_t at = 1 + size; at < length; at += 9)
            if (dump[at] != 0xcb) return 0;
        time = load_float(dump + 1 + size + 1);
        if (time > events->now) time = -Py_HUGE_VAL;
    }
    int is_new = 0;
    for (Py_ssize_t at = 0; at < events->count; at++) {
        double own = events->times[at] <= events->now ? events->times[at] : events->now;  /* NaN is held as well */
        if (own >= time) {
            time = own;
            value = events->values[at];
            is_new = 1;
        }
    }
    if (!is_new) {
        memcpy(state->dump, dump, (size_t)length);
        state->length = length;
        return 1;
    }
    state->dump[0] = (uint8_t)(0x92 | further);
    uint8_t *end = store_float(store_float(state->dump + 1, value), time);
    if (further) end = store_float(end, HOLD_SECONDS);
    state->length = end - state->dump;
    return 1;
}

static int add_to_gauge(void *state, const uint8_t *dump, Py_ssize_t length, const Events *events) {
    return add_latest(state, dump, length, events, 0);
}

static int add_to_expiring(void *state, const uint8_t *dump, Py_ssize_t length, const Events *events) {
    return add_latest(state, dump, length, events, 1);
}

/* What was posted, how many of it were no numbers, and no ring. */
static int add_to_updown(void *its, const uint8_t *dump, Py_ssize_t length, const Events *events) {
    State *state = its;
    if (length != 12 || dump[0] != 0x93 || dump[1] != 0xcb || dump[10] >= 0x80 || dump[11] != 0x80) return 0;
    double base = load_float(dump + 2);
    int refused = dump[10];
    for (Py_ssize_t at = 0; at < events->count; at++) {
        if (isfinite(events->values[at])) base += events->values[at];
        else if (++refused == 0x80) return 0;
    }
    state->dump[0] = 0x93;
    uint8_t *end = store_float(state->dump + 1, base);
    *end++ = (uint8_t)refused;
    *end++ = 0x80;
    state->length = end - state->dump;
    return 1;
}

static void *make_room(Py_ssize_t events) {
    (void)events;
    return PyMem_Malloc(sizeof(State));
}

static PyObject *write_room(void *room, const Frame *frame) {
    const State *state = room;
    uint8_t *dump;
    PyObject *made = make_dump(frame, state->length, &dump);
    if (made != NULL) memcpy(dump, state->dump, (size_t)state->length);
    return made;
}

static int no_slots(const void *room) {
    (void)room;
    return 0;
}

static const Kind GAUGES = {"O!y*y*y*diy*:gauges", 0, make_room, add_to_gauge, write_room, no_slots};
static const Kind EXPIRING = {"O!y*y*y*diy*:expiring", 0, make_room, add_to_expiring, write_room, no_slots};
static const Kind UPDOWNS = {"O!y*y*y*diy*:updowns", 0, make_room, add_to_updown, write_room, no_slots};

PyDoc_STRVAR(fold_doc,
"(dumps, rows, times, values, now, version, frame) -> (dumps, slots) | None\n\n"
"The States with these events added, each behind `frame`. `rows` (int64) are in order. With a `version` that is not 0, each of `dumps`\n"
"stands behind a frame, which has to say that one. None, where something is out of the ordinary: nothing is done then.");

static PyObject *gauges(PyObject *module, PyObject *arguments) {
    (void)module;
    return fold_all(arguments, &GAUGES);
}

static PyObject *expiring(PyObject *module, PyObject *arguments) {
    (void)module;
    return fold_all(arguments, &EXPIRING);
}

static PyObject *updowns(PyObject *module, PyObject *arguments) {
    (void)module;
    return fold_all(arguments, &UPDOWNS);
}

static PyMethodDef methods[] = {
    {"gauges", gauges, METH_VARARGS, fold_doc},
    {"expiring", expiring, METH_VARARGS, fold_doc},
    {"updowns", updowns, METH_VARARGS, fold_doc},
    {NULL, NULL, 0, NULL},
};

MAKE_PART(_latest, "taba.handlers._latest", check_byte_order, OF_EACH_INTERPRETER, "The States of Gauge, ExpiryGauge and UpDown, from bytes to bytes.")
