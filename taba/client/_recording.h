/* One value of any kind, as a record in the ring of a Tab's Port or as a drop that is counted: part of _accelerator.c.

   Nothing here gives up the GIL between the reservation and the commit of a record, or calls Python in between: records come from one
   producer at a time, and an exception never finds one half written. */

#ifndef TABA_RECORDING_H
#define TABA_RECORDING_H

#define MAX_TRIES 4         /* a look at the ring after each; more means that somebody fills it as fast as it is drained */
/* what became of a look for room where it is no reason for a drop */
enum { ROOM = -1, RAISED = -2 };

/* --- recording ----------------------------------------------------------------------------------------------------------------- */

/* ROOM (look again), the reason for a drop, or RAISED: by a signal handler, say, never because of Taba. */
static int
ask(Tab *tab, int why)
{
    Port *port = tab->port;
    if (port->attend == NULL) /* the interpreter is being torn down */
        return EXHAUSTED;
    PyObject *answer = PyObject_CallFunction(port->attend, "Oi", tab, why);
    int reason = ROOM;
    if (answer != NULL && answer != Py_None) {
        reason = (int)PyLong_AsLong(answer);
        if (PyErr_Occurred())
            Py_CLEAR(answer);
    }
    if (answer == NULL) {
        /* no memory, no stack, or modules that are no longer there: the event is dropped, as when nobody reads */
        if (!PyErr_ExceptionMatches(PyExc_MemoryError) && !PyErr_ExceptionMatches(PyExc_RecursionError) && !IS_FINALIZING())
            return RAISED;
        PyErr_Clear();
        return EXHAUSTED;
    }
    Py_DECREF(answer);
    return reason >= 0 && reason < MAX_DROP_REASONS ? reason : ROOM;
}

static int
full(Tab *tab, int reason)
{
    return producer_look_is_due(&tab->port->ring) ? ask(tab, reason) : reason;
}

/* ROOM for a record of the Tab, the reason for a drop, or RAISED. */
static int
find_room(Tab *tab)
{
    Port *port = tab->port;
    for (int tries = 0; tries < MAX_TRIES; tries++) {
        Producer *ring = port_ring(port);
        int answer;
        if (tab->generation != port->generation) /* equal only while there is a ring */
            answer = ask(tab, NO_PLACE);
        else if (producer_is_retired(ring))
            answer = ask(tab, RETIRED);
        else if (tab->id == NO_TAB)
            return DIRECTORY_FULL;
        else if (!producer_finds_room(ring))
            answer = full(tab, RING_FULL);
        else if (LIKELY(!port->is_reading))
            return ROOM;
        else {
            port_look_each_time(port);
            if (!port_reading_is_due(port))
                return ROOM;
            answer = ask(tab, DUE);
        }
        if (answer != ROOM)
            return answer;
    }
    return RING_FULL;
}

static inline int
has_room(Tab *tab)
{
    Port *port = tab->port;
    if (LIKELY(tab->generation == port->generation && producer_has_room(&port->ring) && tab->id != NO_TAB &&
               atomic_load_explicit(port->guard, memory_order_relaxed) && !producer_is_retired(&port->ring)))
        return ROOM;
    return find_room(tab);
}

/* No record was written, for this reason: counted here. */
static PyObject *
dropped(Tab *tab, int reason)
{
    if (reason == RAISED)
        return NULL;
    producer_count(port_ring(tab->port), (unsigned)reason, 1);
    Py_RETURN_NONE;
}

/* No record was written of a number: where the Tab sums, the sum has it all the same, and says so in its cell where there is one. */
static PyObject *
dropped_number(Tab *tab, int reason, double value)
{
    if (!tab->is_kept || reason == RAISED || !isfinite(value))
        return dropped(tab, reason);
    Producer *ring = port_ring(tab->port);
    tab_keep(tab, value);
    if (tab->cell == 0 || tab->generation != tab->port->generation || producer_is_retired(ring))
        return dropped(tab, reason);
    producer_owe(ring, tab->cell, value);
    Py_RETURN_NONE;
}

/* An object of another type as an exact int or float, where it says that it is one, such as numpy's scalars and Decimal: its own code runs.
   NULL where it says nothing or fails; with an exception set only for what is no Exception, such as KeyboardInterrupt. */
static PyObject *
as_number(PyObject *value)
{
    PyNumberMethods *methods = Py_TYPE(value)->tp_as_number;
    PyObject *number = NULL;
    if (methods != NULL && methods->nb_index != NULL)
        number = PyNumber_Index(value);
    for (int tries = 0; number == NULL && tries < 2; tries++) {
        if (PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_Exception))
                return NULL;
            PyErr_Clear();
        }
        if (tries == 0 && methods != NULL && methods->nb_float != NULL)
            number = PyNumber_Float(value);
    }
    return number;
}

/* Whether it is of a type of its own that has numbers to give; bool is a built-in. */
static inline int
says_number(PyObject *value)
{
    PyNumberMethods *methods = Py_TYPE(value)->tp_as_number;
    return methods != NULL && (methods->nb_index != NULL || methods->nb_float != NULL) && !PyBool_Check(value);
}

/* A number from 0 to MAX_TIME; else -1, perhaps with an exception. */
static double
given_time(PyObject *given)
{
    double seconds = -1;
    PyObject *number = NULL;
    if (!PyFloat_Check(given) && !PyLong_Check(given))
        given = number = as_number(given);
    if (given == NULL)
        return -1;
    if (PyFloat_Check(given)) {
        seconds = PyFloat_AS_DOUBLE(given);
    } else if (!PyBool_Check(given)) {
        seconds = PyLong_AsDouble(given);
        if (PyErr_Occurred()) {
            PyErr_Clear();
            seconds = -1;
        }
    }
    Py_XDECREF(number);
    return seconds >= 0 && seconds <= MAX_TIME ? seconds : -1; /* -1 also for what is not a number */
}

/* ROOM and the time, the reason for a drop, or RAISED. */
static inline int
time_of(Tab *tab, PyObject *given, double *time)
{
    if (LIKELY(given == NULL || given == Py_None)) {
        *time = clock_seconds(tab->clock);
        return ROOM;
    }
    *time = given_time(given);
    return *time >= 0 ? ROOM : PyErr_Occurred() ? RAISED : BAD_TIME;
}

/* There is room. */
static inline PyObject *
commit_number(Tab *tab, double time, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, 8);
    producer_commit(&tab->port->ring, tab->id, time, bits, 0);
    if (tab->is_kept)
        tab_keep(tab, value);
    Py_RETURN_NONE;
}

static inline PyObject *
record_number(Tab *tab, double value, PyObject *given)
{
    double time;
    int room = time_of(tab, given, &time);
    if (!LIKELY(room == ROOM))
        return dropped(tab, room);
    room = has_room(tab);
    if (!LIKELY(room == ROOM))
        return dropped_number(tab, room, value);
    return commit_number(tab, time, value);
}

static PyObject *
record_bytes(Tab *tab, PyObject *value, PyObject *given)
{
    double time;
    if (tab->is_kept && !tab->is_healing) { /* a Gauge, and no number that a float holds exactly */
        double large = PyLong_Check(value) && !PyBool_Check(value) ? PyLong_AsDouble(value) : 0;
        if (PyErr_Occurred()) { /* beyond all floats */
            PyErr_Clear();
            large = 0;
        }
        tab_keep(tab, large);
    }
    int room = time_of(tab, given, &time);
    Producer *ring = &tab->port->ring;
    for (int tries = 0; room == ROOM && tries < MAX_TRIES; tries++) {
        if ((room = has_room(tab)) != ROOM)
            break;
        Writer out = {ring->byte_ring, ring->byte_ring_bytes, ring->byte_head, 0, ring->max_value, 0};
        for (int reads = 0; reads < 2; reads++) {
            out.room = producer_byte_room(ring);
            out.length = 0;
            int reason = put_value(&out, value, 0);
            if (reason != DONE)
                return dropped(tab, reason);
            if (LIKELY(out.length <= out.room)) {
                producer_commit_bytes(ring, tab->id, time, out.length);
                Py_RETURN_NONE;
            }
            producer_read_byte_tail(ring);
        }
        room = full(tab, BYTES_FULL);
    }
    return dropped(tab, room == ROOM ? BYTES_FULL : room);
}

static PyObject *
record_value(Tab *tab, PyObject *value, PyObject *given)
{
    if (PyFloat_Check(value))
        return record_number(tab, PyFloat_AS_DOUBLE(value), given);
    if (PyLong_Check(value) && !PyBool_Check(value)) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (!overflow && number >= -MAX_EXACT_INT && number <= MAX_EXACT_INT)
            return record_number(tab, (double)number, given);
        if (tab->is_healing) { /* it adds up numbers, as floats */
            double large = PyLong_AsDouble(value);
            if (!PyErr_Occurred())
                return record_number(tab, large, given);
            PyErr_Clear();
            return dropped(tab, VALUE_TYPE);
        }
    } else if (!PyUnicode_CheckExact(value) && says_number(value)) {
        PyObject *number = as_number(value);
        if (number == NULL)
            return dropped(tab, PyErr_Occurred() ? RAISED : VALUE_TYPE);
        PyObject *outcome = record_value(tab, number, given);
        Py_DECREF(number);
        return outcome;
    }
    return record_bytes(tab, value, given);
}

#endif
