/* What a middleware does for each request, in as few calls as can be: the same as taba/client/metering.py.

   1. Here Python is called (the server, the application's route, what makes Tabs), and never within a record: those are the Tabs' own
      functions, each of which is whole before the next step.
   2. Whatever is called may run anything, this object's own methods too: what is called or read is held for as long.
   3. _exchange.h has what goes by over ASGI, _reply.h over WSGI. */

#ifndef TABA_METERING_H
#define TABA_METERING_H

#include <structmember.h>

#define MAX_LENGTH_DIGITS 15 /* of a length: metering.MAX_DIGITS */
#define SERIES 4 /* Tabs of one method, route and status: requests, seconds, bytes received, bytes sent */

/* --- Meter: requests of one application ---------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Tab *in_flight;
    PyObject *made;   /* (method, route, status): the Tabs of these */
    PyObject *failed; /* (route, error): counts what a route raised */
    PyObject *series; /* those that are at hand, by (method, route, status) */
    PyObject *words;
    PyObject *nothing; /* 0: the status of what has none */
    PyTypeObject *exchange, *step, *reply;
} Meter;

/* texts of messages and scopes */
#define WORDS(WORD)                                                                                                                     \
    WORD(CLOSE, "close")                                                                                                                \
    WORD(CONTENT_LENGTH, "CONTENT_LENGTH")                                                                                              \
    WORD(REQUEST_METHOD, "REQUEST_METHOD")                                                                                              \
    WORD(TYPE, "type")                                                                                                                  \
    WORD(BODY, "body")                                                                                                                  \
    WORD(MORE_BODY, "more_body")                                                                                                        \
    WORD(STATUS, "status")                                                                                                              \
    WORD(METHOD, "method")                                                                                                              \
    WORD(ROOT_PATH, "root_path")                                                                                                        \
    WORD(REQUEST, "http.request")                                                                                                       \
    WORD(DISCONNECT, "http.disconnect")                                                                                                 \
    WORD(RESPONSE_START, "http.response.start")                                                                                         \
    WORD(RESPONSE_BODY, "http.response.body")                                                                                           \
    WORD(PATHSEND, "http.response.pathsend")                                                                                            \
    WORD(ZEROCOPYSEND, "http.response.zerocopysend")

#define WORD_PLACE(name, text) name,
enum { WORDS(WORD_PLACE) WORDS_KNOWN };

static PyObject *
make_words(void)
{
#define WORD_TEXT(name, text) text,
    static const char *const texts[] = {WORDS(WORD_TEXT)};
    PyObject *words = PyTuple_New(WORDS_KNOWN);
    for (Py_ssize_t i = 0; words != NULL && i < WORDS_KNOWN; i++) {
        PyObject *word = PyUnicode_InternFromString(texts[i]);
        if (word == NULL)
            Py_CLEAR(words);
        else
            PyTuple_SET_ITEM(words, i, word);
    }
    return words;
}

static inline int
is_tab(PyObject *given)
{
    return Py_TYPE(given)->tp_dealloc == (destructor)tab_dealloc; /* one of the module's own types, none of which has another */
}

/* 1 once it is recorded, or its drop counted; 0 with an exception, of a signal handler */
static inline int
meter_record(Tab *tab, double value)
{
    PyObject *outcome = record_number(tab, value, NULL);
    Py_XDECREF(outcome);
    return outcome != NULL;
}

static PyObject *
meter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"in_flight", "made", "failed", NULL};
    PyObject *in_flight, *made, *failed;
    State *state = state_of(type);
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!OO:Meter", names, state->tab, &in_flight, &made, &failed))
        return NULL;
    PyObject *words = make_words(), *series = PyDict_New(), *nothing = PyLong_FromLong(0);
    Meter *self = words == NULL || series == NULL || nothing == NULL ? NULL : (Meter *)type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_XDECREF(nothing);
        Py_XDECREF(words);
        Py_XDECREF(series);
        return NULL;
    }
    Py_INCREF(in_flight);
    Py_INCREF(made);
    Py_INCREF(failed);
    Py_INCREF(state->exchange);
    Py_INCREF(state->step);
    Py_INCREF(state->reply);
    self->nothing = nothing;
    self->reply = state->reply;
    self->in_flight = (Tab *)in_flight;
    self->made = made;
    self->failed = failed;
    self->series = series;
    self->words = words;
    self->exchange = state->exchange;
    self->step = state->step;
    return (PyObject *)self;
}

static int
meter_traverse(Meter *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->in_flight);
    Py_VISIT(self->made);
    Py_VISIT(self->failed);
    Py_VISIT(self->series);
    Py_VISIT(self->exchange);
    Py_VISIT(self->step);
    Py_VISIT(self->reply);
    return 0; /* the words are texts */
}

static int
meter_clear(Meter *self)
{
    Py_CLEAR(self->made);
    Py_CLEAR(self->failed);
    return 0; /* the rest stays: who finds this Meter in a cycle that is being cleared may still call it */
}

static void
meter_dealloc(Meter *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    meter_clear(self);
    Py_XDECREF(self->in_flight);
    Py_XDECREF(self->series);
    Py_XDECREF(self->words);
    Py_XDECREF(self->exchange);
    Py_XDECREF(self->step);
    Py_XDECREF(self->reply);
    Py_XDECREF(self->nothing);
    type->tp_free(self);
    Py_DECREF(type);
}

/* One request is over, but for its place among those under way; 0 with an exception. */
static int
meter_measure(Meter *self, double began, PyObject *method, PyObject *route, PyObject *status, long long received, long long sent)
{
    PyObject *key = PyTuple_Pack(3, method, route, status);
    if (key == NULL)
        return 0;
    PyObject *series = PyDict_GetItemWithError(self->series, key);
    Py_XINCREF(series);
    Py_DECREF(key);
    if (series == NULL && !PyErr_Occurred()) {
        if (self->made == NULL)
            PyErr_SetString(PyExc_RuntimeError, "the interpreter ends");
        else
            series = PyObject_CallFunctionObjArgs(self->made, method, route, status, NULL);
    }
    if (series == NULL)
        return 0;
    int is_right = PyTuple_Check(series) && PyTuple_GET_SIZE(series) == SERIES;
    for (Py_ssize_t i = 0; is_right && i < SERIES; i++)
        is_right = is_tab(PyTuple_GET_ITEM(series, i));
    if (!is_right) {
        Py_DECREF(series);
        PyErr_SetString(PyExc_TypeError, "takes four Tabs of requests");
        return 0;
    }
    Tab *tabs[SERIES];
    for (Py_ssize_t i = 0; i < SERIES; i++)
        tabs[i] = (Tab *)PyTuple_GET_ITEM(series, i);
    int done = meter_record(tabs[0], 1.0) && meter_record(tabs[1], clock_seconds(CLOCK_MONOTONIC) - began) &&
               (received <= 0 || meter_record(tabs[2], (double)received)) && (sent < 0 || meter_record(tabs[3], (double)sent));
    Py_DECREF(series);
    return done;
}

/* Whether a request began before this process was forked: whatever becomes of it here, it is its parent's. */
static inline int
is_of_parent(Meter *self, double began)
{
    (void)port_ring(self->in_flight->port);
    return began < self->in_flight->port->born;
}

static PyObject *
meter_begin(Meter *self, PyObject *Py_UNUSED(ignored))
{
    if (!meter_record(self->in_flight, 1.0)) /* first: it finds out whether this process was forked, before which no request of its own began */
        return NULL;
    return PyFloat_FromDouble(clock_seconds(CLOCK_MONOTONIC));
}

static PyObject *
meter_end(Meter *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 6) {
        PyErr_SetString(PyExc_TypeError, "end() takes began, method, route, status, received, sent");
        return NULL;
    }
    double began = PyFloat_AsDouble(args[0]);
    long long received = PyErr_Occurred() ? 0 : PyLong_AsLongLong(args[4]);
    long long sent = PyErr_Occurred() ? 0 : PyLong_AsLongLong(args[5]);
    if (PyErr_Occurred())
        return NULL;
    if (is_of_parent(self, began))
        Py_RETURN_NONE;
    if (!meter_record(self->in_flight, -1.0) ||
        !meter_measure(self, began, args[1], args[2], args[3], received, sent))
        return NULL;
    Py_RETURN_NONE;
}

/* --- what requests of either kind need ------------------------------------------------------------------------------------------ */

#define THE(meter, word) PyTuple_GET_ITEM((meter)->words, word)

/* What a mapping has under a word: a new reference; NULL with an exception, or, where `or_nothing`, without one. */
static PyObject *
item_of(PyObject *mapping, PyObject *word, int or_nothing)
{
    PyObject *item;
    if (LIKELY(PyDict_CheckExact(mapping))) {
        item = PyDict_GetItemWithError(mapping, word);
        Py_XINCREF(item);
        if (item == NULL && !or_nothing && !PyErr_Occurred())
            PyErr_SetObject(PyExc_KeyError, word);
        return item;
    }
    if (!or_nothing)
        return PyObject_GetItem(mapping, word);
    item = PyObject_CallMethod(mapping, "get", "O", word);
    if (item == Py_None)
        Py_CLEAR(item);
    return item;
}

/* The exception that is set, which is taken. */
static PyObject *
taken_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *kind, *error, *trace;
    PyErr_Fetch(&kind, &error, &trace);
    PyErr_NormalizeException(&kind, &error, &trace);
    if (trace != NULL && error != NULL)
        PyException_SetTraceback(error, trace);
    Py_XDECREF(kind);
    Py_XDECREF(trace);
    return error;
#endif
}

/* Set an exception that was taken, as it was: PyErr_SetObject() would have it happen while another one is handled, and forget its own. */
static void
put_back(PyObject *error)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(Py_NewRef(error));
#else
    Py_INCREF(Py_TYPE(error));
    Py_INCREF(error);
    PyErr_Restore((PyObject *)Py_TYPE(error), error, PyException_GetTraceback(error));
#endif
}

/* What a route's function gave: its reference is passed on; what it raised is counted, and is none of the application's: None. So is what
   is no text. */
static PyObject *
route_or_none(Meter *meter, PyObject *route)
{
    if (LIKELY(route != NULL && (route == Py_None || PyUnicode_Check(route))))
        return route;
    if (route != NULL) {
        PyErr_Format(PyExc_TypeError, "a route is a text or None, not %.200s", Py_TYPE(route)->tp_name);
        Py_DECREF(route);
    }
    if (!PyErr_ExceptionMatches(PyExc_Exception) || meter->failed == NULL)
        return NULL;
    PyObject *error = taken_exception();
    PyObject *told = error == NULL ? NULL : PyObject_CallFunctionObjArgs(meter->failed, Py_None, error, NULL);
    Py_XDECREF(error);
    if (told == NULL)
        return NULL;
    Py_DECREF(told);
    Py_RETURN_NONE;
}

#define HELD (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE)

#include "_exchange.h"
#include "_reply.h"

/* --- the Meter's type --------------------------------------------------------------------------------------------------------- */

static PyMethodDef meter_methods[] = {
    {"begin", (PyCFunction)meter_begin, METH_NOARGS, "One more is under way; the clock for end()."},
    FAST("end", meter_end, "end(began, method, route, status, received, sent): one is over."),
    FAST("exchange", meter_exchange, "exchange(route, scope, receive, send): one more, over ASGI, is under way."),
    FAST("reply", meter_reply, "reply(route, environ, start_response, owner): one more, over WSGI, is under way."),
    END,
};
static PyMemberDef meter_members[] = {
    {"series", T_OBJECT_EX, offsetof(Meter, series), READONLY, "Tabs at hand, by method, route and status."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot meter_slots[] = {
    {Py_tp_doc, "Meter(in_flight, made, failed): measures requests."},
    {Py_tp_new, meter_new},
    {Py_tp_dealloc, meter_dealloc},
    {Py_tp_traverse, meter_traverse},
    {Py_tp_clear, meter_clear},
    {Py_tp_methods, meter_methods},
    {Py_tp_members, meter_members},
    {0, NULL},
};

static PyType_Spec meter_spec = {"taba.client._accelerator.Meter", sizeof(Meter), 0, HELD, meter_slots};

#endif
