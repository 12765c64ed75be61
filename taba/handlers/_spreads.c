/* PercentileGroup's States, from the bytes of their main parts to those of the next, in one pass a State.

   1. What is here is done a second time: taba/handlers/percentile_group.py and taba/handlers/spread.py say what the bytes mean, and do all
      that this leaves alone. Both give the same bytes (tests/handlers/test_rows.py).
   2. Every byte of a dump is a stranger's: it is read only where the dump's own length says that it lies. A dump that is none, or one that is
      out of the ordinary, makes the whole call return None: then the arrays decide, and name who is at fault. Of this kind is a zero with a
      sign, too: which of two zeros numpy calls the lesser depends on the machine. */

#include "../_part.h"
#include "_binned.h"
#include "_spread_windows.h"

#define FORM 7                               /* of what Python gives it and gets: see taba/parts.py */

/* One State, and its events in the order of slots. */
typedef struct {
    State state;
    Sorted sorted;
    double room[];
} Room;

static void *make_room(Py_ssize_t events) {
    Room *room = PyMem_Malloc(sizeof *room + (size_t)events * 17 + 1);  /* for all events of a State: it may have all of them */
    if (room != NULL) room->sorted = (Sorted){.values = room->room, .codes = (int64_t *)(room->room + events), .runs = (uint8_t *)(room->room + 2 * events)};
    return room;
}

static int add_to_state(void *its, const uint8_t *dump, Py_ssize_t length, const Events *events) {
    Room *room = its;
    if (!read_state(dump, length, &room->state)) return 0;
    return add_events(&room->state, events->codes, events->times, events->values, events->count, events->now, &room->sorted);
}

static PyObject *write_room(void *room, const Frame *frame) {
    return write_state(&((Room *)room)->state, frame);
}

static int slots_of_room(const void *room) {
    return ((const Room *)room)->state.slots;
}

static const Kind KIND = {"O!y*y*y*diy*y*:fold", 1, make_room, add_to_state, write_room, slots_of_room};

/* A State of the edge, and the one to which it is added. */
typedef struct {
    State state, edge;
} Both;

static void *make_both(void) {
    return PyMem_Malloc(sizeof(Both));
}

static int64_t events_of(const State *state, const Slot *slot) {
    int64_t sum = 0;
    for (int bin = slot->first; bin < slot->first + slot->bins; bin++) sum += state->weights[bin];
    return sum;
}

static int read_edge(void *both, const uint8_t *dump, Py_ssize_t length, int64_t *count) {
    State *edge = &((Both *)both)->edge;
    if (!read_state(dump, length, edge) || edge->refused || edge->held || edge->old || edge->slots > MOST_RUNS || !edge->bins) return 0;
    if (!isfinite(edge->total)) return 0;
    for (int bin = 0; bin < edge->bins; bin++)
        if (edge->weights[bin] > UINT32_MAX) return 0;
    *count = 0;
    for (int place = 0; place < edge->slots; place++) {
        const Slot *slot = &edge->slot[place];
        if (!isfinite(slot->total) || !isfinite(slot->low) || !isfinite(slot->high)) return 0;
        if (is_zero_with_sign(slot->low) || is_zero_with_sign(slot->high)) return 0;
        *count += events_of(edge, slot);
    }
    return *count == edge->count;
}

static int add_edge(void *its, const uint8_t *dump, Py_ssize_t length, double now) {
    State *state = &((Both *)its)->state;
    const State *edge = &((Both *)its)->edge;
    const int64_t last = (int64_t)floor((now > 0.0 ? now : 0.0) / (double)WIDTHS[0]) * WIDTHS[0];
    const double oldest = since_of(now);
    int64_t before = -1;
    if (!read_state(dump, length, state)) return 0;
    state->count += edge->count;
    state->total += edge->total;
    for (int place = 0; place < edge->slots; place++) {
        const Slot *slot = &edge->slot[place];
        int64_t start = slot->start < last ? slot->start : last, events = events_of(edge, slot);
        if (slot->start > last) state->held += (uint64_t)events;
        if (start <= before) return 0;  /* two become one: in which order is the arrays' to know */
        before = start;
        if ((double)start < oldest) state->old += (uint64_t)events;
        if (!add_slot(state, start, edge, slot)) return 0;
    }
    return (double)state->slot[state->slots - 1].start <= now + MAX_AHEAD;
}

static PyObject *write_both(void *both, const Frame *frame) {
    return write_state(&((Both *)both)->state, frame);
}

static int slots_of_both(const void *both) {
    return ((const Both *)both)->state.slots;
}

static const Merging MERGING = {make_both, read_edge, add_edge, write_both, slots_of_both};

PyDoc_STRVAR(spill_doc,
"spill(dumps, archives, sketches, now, framed) -> (dumps, archives, sketches) | None\n\n"
"The main parts without the slots that leave their journals, and the archives and sketches with them. Before each of `dumps` stand\n"
"`framed` bytes, before each new one the same; before the others none.\n"
"None, where something is out of the ordinary: nothing is done then.");

static PyObject *spill(PyObject *module, PyObject *arguments) {
    PyObject *given[3], *made[3] = {NULL, NULL, NULL}, *result = NULL;
    double now;
    Py_ssize_t framed;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!O!O!dn:spill", &PyList_Type, &given[0], &PyList_Type, &given[1], &PyList_Type, &given[2], &now, &framed)) return NULL;
    Py_ssize_t total = PyList_GET_SIZE(given[0]);
    Spilling *spilling = PyMem_Malloc(sizeof *spilling);
    if (spilling == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (PyList_GET_SIZE(given[1]) != total || PyList_GET_SIZE(given[2]) != total || !is_a_time(now) || framed < 0) goto none;
    for (int part = 0; part < 3; part++) {
        made[part] = PyList_New(total);
        if (made[part] == NULL) goto done;
    }
    for (Py_ssize_t at = 0; at < total; at++) {
        const uint8_t *dump[3] = {NULL, NULL, NULL};
        Py_ssize_t length[3] = {0, 0, 0};
        Frame frame[3];
        int old[LEVELS] = {0, 0, 0};
        PyObject *archive = NULL, *sketch = NULL;
        for (int part = 0; part < 3; part++) {
            dump[part] = cut_frame(PyList_GET_ITEM(given[part], at), part ? 0 : framed, &frame[part], &length[part]);
            if (dump[part] == NULL) goto none;
        }
        if (!read_state(dump[0], length[0], &spilling->state) || !read_archive(dump[1], length[1], spilling, old)) goto none;
        if (!read_sketch(dump[2], length[2], &spilling->sketch)) goto none;
        int is_done = spill_state(spilling, old, now, &archive, &sketch);
        if (archive != NULL) PyList_SET_ITEM(made[1], at, archive);
        if (sketch != NULL) PyList_SET_ITEM(made[2], at, sketch);
        if (PyErr_Occurred()) goto done;
        if (!is_done) goto none;
        PyObject *one = write_state(&spilling->state, &frame[0]);
        if (one == NULL) goto done;
        PyList_SET_ITEM(made[0], at, one);
    }
    result = PyTuple_Pack(3, made[0], made[1], made[2]);
    goto done;
none:
    result = Py_NewRef(Py_None);
done:
    for (int part = 0; part < 3; part++) Py_XDECREF(made[part]);
    PyMem_Free(spilling);
    return result;
}

static PyMethodDef methods[] = {
    {"fold", fold, METH_VARARGS, fold_doc},
    FAST("edge", edge, EDGE_DOC),
    {"counted", counted_in, METH_O, COUNTED_DOC},
    {"merge", merge, METH_VARARGS, MERGE_DOC},
    {"spill", spill, METH_VARARGS, spill_doc},
    {"windows", windows, METH_VARARGS, windows_doc},
    {NULL, NULL, 0, NULL},
};

MAKE_PART(_spreads, "taba.handlers._spreads", begin, OF_ONE_INTERPRETER, "PercentileGroup's States, from bytes to bytes.")
