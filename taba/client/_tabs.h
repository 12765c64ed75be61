/* What applications have in hand: a Tab of each kind, its methods' arguments, its labels: part of _accelerator.c. */

#ifndef TABA_TABS_H
#define TABA_TABS_H

/* --- Tabs: arguments ----------------------------------------------------------------------------------------------------------- */

/* A value, called `first`, and `time`, each by place or by name; 0 after a TypeError. */
static int
arguments(const char *first, PyObject *const *args, Py_ssize_t count, PyObject *names, PyObject **value, PyObject **time)
{
    PyObject *found[2] = {NULL, NULL};
    if (count > 2) {
        PyErr_Format(PyExc_TypeError, "takes %s and time, %zd were given", first, count);
        return 0;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        found[i] = args[i];
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        int which = PyUnicode_CompareWithASCIIString(name, "time") == 0    ? 1
                    : PyUnicode_CompareWithASCIIString(name, first) == 0 ? 0
                                                                           : -1;
        if (which < 0 || found[which] != NULL) {
            PyErr_Format(PyExc_TypeError, which < 0 ? "got an unexpected keyword argument '%U'" : "got '%U' twice", name);
            return 0;
        }
        found[which] = args[count + i];
    }
    *value = found[0];
    *time = found[1];
    return 1;
}

/* record(), observe(), set() */
static PyObject *
tab_record(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *value = count == 1 ? args[0] : NULL, *time = NULL;
    if (!LIKELY(count == 1 && names == NULL) && !arguments("value", args, count, names, &value, &time))
        return NULL;
    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "takes a value");
        return NULL;
    }
    return record_value(self, value, time);
}

static PyObject *
tab_inc(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *value = count == 1 ? args[0] : NULL, *time = NULL;
    if (!LIKELY(count <= 1 && names == NULL) && !arguments("n", args, count, names, &value, &time))
        return NULL;
    return value == NULL ? record_number(self, 1.0, time) : record_value(self, value, time);
}

static PyObject *
tab_dec(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *value = count == 1 ? args[0] : NULL, *time = NULL;
    if (!LIKELY(count <= 1 && names == NULL) && !arguments("n", args, count, names, &value, &time))
        return NULL;
    if (value == NULL)
        return record_number(self, -1.0, time);
    if (PyFloat_Check(value))
        return record_number(self, -PyFloat_AS_DOUBLE(value), time);
    PyObject *number = NULL, *negative;
    if (!PyLong_Check(value)) {
        number = says_number(value) ? as_number(value) : NULL;
        value = number;
    }
    if (value == NULL || PyBool_Check(value))
        return dropped(self, PyErr_Occurred() ? RAISED : VALUE_TYPE);
    /* the number type's own, whatever a subclass says */
    negative = (PyFloat_Check(value) ? &PyFloat_Type : &PyLong_Type)->tp_as_number->nb_negative(value);
    Py_XDECREF(number);
    if (negative == NULL) { /* no memory */
        PyErr_Clear();
        return dropped(self, EXHAUSTED);
    }
    PyObject *outcome = record_value(self, negative, time);
    Py_DECREF(negative);
    return outcome;
}

/* inc() and dec() of a Gauge: the number that this process set last, and so much more. No code runs between it and the record. */
static PyObject *
gauge_change(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names, double sign)
{
    PyObject *value = count == 1 ? args[0] : NULL, *given = NULL, *number = NULL;
    if (!LIKELY(count <= 1 && names == NULL) && !arguments("n", args, count, names, &value, &given))
        return NULL;
    double n = 1.0, time;
    if (value != NULL) {
        if (!PyFloat_Check(value) && !PyLong_Check(value))
            value = number = says_number(value) ? as_number(value) : NULL;
        if (value == NULL || PyBool_Check(value))
            return dropped(self, PyErr_Occurred() ? RAISED : VALUE_TYPE);
        n = PyFloat_Check(value) ? PyFloat_AS_DOUBLE(value) : PyLong_AsDouble(value);
        Py_XDECREF(number);
        if (PyErr_Occurred()) { /* beyond all floats */
            PyErr_Clear();
            return dropped(self, VALUE_TYPE);
        }
    }
    int room = time_of(self, given, &time);
    if (room != ROOM)
        return dropped(self, room);
    room = has_room(self);
    double changed = *tab_net(self) + sign * n;
    return LIKELY(room == ROOM) ? commit_number(self, time, changed) : dropped_number(self, room, changed);
}

static PyObject *
gauge_inc(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    return gauge_change(self, args, count, names, 1.0);
}

static PyObject *
gauge_dec(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    return gauge_change(self, args, count, names, -1.0);
}

static PyObject *
gauge_set_function(Tab *self, PyObject *function)
{
    if (self->port->follow == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter ends");
        return NULL;
    }
    return PyObject_CallFunctionObjArgs(self->port->follow, self, function, NULL);
}

/* --- Tabs: labels -------------------------------------------------------------------------------------------------------------- */

static inline Labelled *
labelled_place(Tab *self, PyObject *names, PyObject *const *values, Py_ssize_t count)
{
    uintptr_t mixed = (uintptr_t)names >> 4;
    for (Py_ssize_t i = 0; i < count; i++)
        mixed = mixed * 31 + ((uintptr_t)values[i] >> 4);
    return &self->labelled[(mixed ^ mixed >> 7) & (CACHED_LABELS - 1)];
}

static void
forget_labelled(Labelled *place)
{
    Py_CLEAR(place->names);
    Py_CLEAR(place->tab);
    for (int i = 0; i < MAX_CACHED_LABELS; i++)
        Py_CLEAR(place->values[i]);
}

/* The same objects find the same Tab: of exact types that never change, and held here, so that none takes another's address. */
static PyObject *
tab_labels(Tab *self, PyObject *const *args, Py_ssize_t positional, PyObject *names)
{
    Py_ssize_t count = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    if (positional > 0) {
        PyErr_SetString(PyExc_TypeError, "labels() takes labels by name, such as route=\"/cart\"");
        return NULL;
    }
    Labelled *place = NULL;
    if (LIKELY(self->labelled != NULL && count > 0 && count <= MAX_CACHED_LABELS)) {
        place = labelled_place(self, names, args, count);
        if (place->names == names) {
            Py_ssize_t same = 0;
            while (same < count && place->values[same] == args[same])
                same++;
            if (LIKELY(same == count)) {
                Py_INCREF(place->tab);
                return place->tab;
            }
        }
    }
    if (self->port->label == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter ends");
        return NULL;
    }
    PyObject *labels = PyDict_New();
    int is_plain = 1;
    for (Py_ssize_t i = 0; labels != NULL && i < count; i++) {
        PyTypeObject *type = Py_TYPE(args[i]);
        is_plain = is_plain && (type == &PyUnicode_Type || type == &PyLong_Type || type == &PyBool_Type);
        if (PyDict_SetItem(labels, PyTuple_GET_ITEM(names, i), args[i]) < 0)
            Py_CLEAR(labels);
    }
    if (labels == NULL)
        return NULL;
    PyObject *tab = PyObject_CallFunctionObjArgs(self->port->label, self, labels, NULL);
    Py_DECREF(labels);
    if (tab == NULL || !is_plain || count == 0 || count > MAX_CACHED_LABELS)
        return tab;
    if (self->labelled == NULL && (self->labelled = PyMem_Calloc(CACHED_LABELS, sizeof(Labelled))) == NULL)
        return tab; /* it is found the slow way */
    Labelled fresh = {names, {NULL}, tab};
    Py_INCREF(names);
    Py_INCREF(tab);
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_INCREF(args[i]);
        fresh.values[i] = args[i];
    }
    place = labelled_place(self, names, args, count);
    Labelled old = *place;
    *place = fresh; /* before anything of the old one is let go, which may run code */
    forget_labelled(&old);
    return tab;
}

/* --- Tabs: the types ----------------------------------------------------------------------------------------------------------- */

static PyObject *
tab_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"port", "name", "type", "is_coarse", "is_healing", NULL};
    PyObject *port, *name, *tab_type;
    int is_coarse, is_healing;
    State *state = state_of(type);
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!UUpp:Tab", names, state->port, &port, &name, &tab_type,
                                                      &is_coarse, &is_healing))
        return NULL;
    Tab *self = (Tab *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->id = NO_TAB;
    self->clock = is_coarse ? CLOCK_REALTIME_COARSE : CLOCK_REALTIME;
    self->is_healing = is_healing;
    self->is_kept = is_healing || type == state->gauge;
    Py_INCREF(port);
    Py_INCREF(name);
    Py_INCREF(tab_type);
    self->port = (Port *)port;
    self->name = name;
    self->type = tab_type;
    return (PyObject *)self;
}

static int
tab_traverse(Tab *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->port);
    for (int i = 0; self->labelled != NULL && i < CACHED_LABELS; i++)
        Py_VISIT(self->labelled[i].tab); /* the rest are texts and numbers */
    return 0;
}

static int
tab_clear(Tab *self)
{
    /* the Port stays: who finds this Tab in a cycle that is being cleared may still record */
    Labelled *labelled = self->labelled;
    self->labelled = NULL;
    for (int i = 0; labelled != NULL && i < CACHED_LABELS; i++)
        forget_labelled(&labelled[i]);
    PyMem_Free(labelled);
    return 0;
}

static void
tab_dealloc(Tab *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    tab_clear(self);
    Py_XDECREF(self->port);
    Py_XDECREF(self->name);
    Py_XDECREF(self->type);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
tab_repr(Tab *self)
{
    return PyUnicode_FromFormat("<Tab %U %U>", self->type, self->name);
}

static PyObject *
tab_name(Tab *self, void *Py_UNUSED(closure))
{
    Py_INCREF(self->name);
    return self->name;
}

static PyObject *
tab_type(Tab *self, void *Py_UNUSED(closure))
{
    Py_INCREF(self->type);
    return self->type;
}

static PyObject *
tab_is_healing(Tab *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->is_healing);
}

static PyObject *
tab_get_net(Tab *self, void *Py_UNUSED(closure))
{
    (void)port_ring(self->port);
    return PyFloat_FromDouble(*tab_net(self));
}

static PyObject *
tab_time(Tab *self, PyObject *Py_UNUSED(ignored))
{
    State *state = state_of(Py_TYPE(self));
    return state == NULL ? NULL : PyObject_CallOneArg(state->timer, (PyObject *)self);
}

static PyObject *
tab_track(Tab *self, PyObject *Py_UNUSED(ignored))
{
    State *state = state_of(Py_TYPE(self));
    return state == NULL ? NULL : PyObject_CallOneArg(state->track, (PyObject *)self);
}

static PyObject *
tab_count_exceptions(Tab *self, PyObject *args, PyObject *kwargs)
{
    State *state = state_of(Py_TYPE(self));
    PyObject *first = state == NULL ? NULL : PyTuple_Pack(1, self);
    PyObject *all = first == NULL ? NULL : PySequence_Concat(first, args);
    PyObject *made = all == NULL ? NULL : PyObject_Call(state->exceptions, all, kwargs);
    Py_XDECREF(first);
    Py_XDECREF(all);
    return made;
}

static PyObject *
tab_born(Tab *self, void *Py_UNUSED(closure))
{
    (void)port_ring(self->port); /* it may be found out only now */
    return PyFloat_FromDouble(self->port->born);
}

static PyGetSetDef tab_getset[] = {
    {"born", (getter)tab_born, NULL, "When this process was forked, in seconds of perf_counter(); 0 where it was not.", NULL},
    {"name", (getter)tab_name, NULL, "The canonical name.", NULL},
    {"type", (getter)tab_type, NULL, "The Type.", NULL},
    {"is_healing", (getter)tab_is_healing, NULL, "Whether what a process added is gone when it dies.", NULL},
    {"net", (getter)tab_get_net, NULL, "Of a Tab that heals the sum of what this process recorded; of a Gauge the last number.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define METHOD(name, function, doc) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL | METH_KEYWORDS, doc}
#define END {NULL, NULL, 0, NULL}

static PyMethodDef tab_methods[] = {
    METHOD("record", tab_record, "record(value, time=None): record one Event; time in Unix seconds, now if None."),
    METHOD("labels", tab_labels, "labels(key=value, ...): the Tab of this name with these labels too; the same object each time."),
    END,
};
static PyMethodDef counter_methods[] = {
    METHOD("inc", tab_inc, "inc(n=1, time=None): count n."),
    {"count_exceptions", (PyCFunction)(void (*)(void))tab_count_exceptions, METH_VARARGS | METH_KEYWORDS,
     "count_exceptions(kinds=Exception): `with tab.count_exceptions(): ...`, or a decorator: one for each that passes."},
    END,
};
static PyMethodDef percentile_methods[] = {
    METHOD("observe", tab_record, "observe(value, time=None): record one value."),
    {"time", (PyCFunction)tab_time, METH_NOARGS, "A Timer: `with tab.time(): ...`, or a decorator."},
    END,
};
static PyMethodDef gauge_methods[] = {
    METHOD("set", tab_record, "set(value, time=None): the value from now on."),
    METHOD("inc", gauge_inc, "inc(n=1, time=None): n more than the number that this process set last."),
    METHOD("dec", gauge_dec, "dec(n=1, time=None): n less than the number that this process set last."),
    {"set_function", (PyCFunction)gauge_set_function, METH_O,
     "set_function(function): what it returns is the value, read once a second while this process records; None for no function."},
    END,
};
static PyMethodDef updown_methods[] = {
    METHOD("inc", tab_inc, "inc(n=1, time=None): n more."),
    METHOD("dec", tab_dec, "dec(n=1, time=None): n fewer."),
    {"track", (PyCFunction)tab_track, METH_NOARGS, "A Track: `with tab.track(): ...`, or a decorator: one more, until it ends."},
    END,
};

static PyType_Slot tab_slots[] = {
    {Py_tp_doc, "A named series of any Type."},
    {Py_tp_methods, tab_methods},
    {Py_tp_new, tab_new},
    {Py_tp_dealloc, tab_dealloc},
    {Py_tp_traverse, tab_traverse},
    {Py_tp_clear, tab_clear},
    {Py_tp_repr, tab_repr},
    {Py_tp_getset, tab_getset},
    {0, NULL},
};

static PyType_Spec tab_spec = {
    "taba.client._accelerator.Tab",
    sizeof(Tab),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    tab_slots,
};

static const struct {
    const char *name, *full_name, *doc;
    PyMethodDef *methods;
} kinds[] = {
    {"Counter", "taba.client._accelerator.Counter", "Counts.", counter_methods},
    {"Percentile", "taba.client._accelerator.Percentile", "Percentiles of values.", percentile_methods},
    {"Gauge", "taba.client._accelerator.Gauge", "The last value.", gauge_methods},
    {"UpDown", "taba.client._accelerator.UpDown", "A number that goes up and down.", updown_methods},
};

#endif
