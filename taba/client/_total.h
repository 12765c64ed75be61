/* A sum that its process reads, each step of which is a record too: for those whose own numbers are to stay where they are. */

#ifndef TABA_TOTAL_H
#define TABA_TOTAL_H

typedef struct {
    PyObject_HEAD
    Tab *tab;
    double value;
} Total;

static PyObject *
total_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tab", NULL};
    PyObject *tab;
    State *state = state_of(type);
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "O!:Total", names, state->tab, &tab))
        return NULL;
    Total *self = (Total *)type->tp_alloc(type, 0);
    if (self != NULL) {
        Py_INCREF(tab);
        self->tab = (Tab *)tab;
    }
    return (PyObject *)self;
}

static int
total_traverse(Total *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->tab);
    return 0;
}

/* No tp_clear: its Tab never changes, and refers to no Total. */
static void
total_dealloc(Total *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->tab);
    type->tp_free(self);
    Py_DECREF(type);
}

/* What a float is after this is added: as Python adds them, so whatever it refuses is refused. */
static PyObject *
total_inc(Total *self, PyObject *amount)
{
    double n;
    if (LIKELY(PyFloat_CheckExact(amount))) {
        n = PyFloat_AS_DOUBLE(amount);
    } else if (PyLong_CheckExact(amount)) {
        n = PyLong_AsDouble(amount);
    } else {
        PyObject *zero = PyFloat_FromDouble(0.0), *sum = zero == NULL ? NULL : PyNumber_Add(zero, amount);
        Py_XDECREF(zero);
        n = sum == NULL ? -1.0 : PyFloat_AsDouble(sum);
        Py_XDECREF(sum);
    }
    if (n == -1.0 && PyErr_Occurred())
        return NULL;
    self->value += n; /* one step: whoever has the GIL */
    return record_number(self->tab, n, NULL);
}

static PyMethodDef total_methods[] = {
    {"inc", (PyCFunction)total_inc, METH_O, "inc(amount): so much more."},
    END,
};
static PyMemberDef total_members[] = {
    {"value", T_DOUBLE, offsetof(Total, value), 0, "The sum."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot total_slots[] = {
    {Py_tp_doc, "Total(tab): a sum, each step of which is a record too."},
    {Py_tp_new, total_new},
    {Py_tp_dealloc, total_dealloc},
    {Py_tp_traverse, total_traverse},
    {Py_tp_methods, total_methods},
    {Py_tp_members, total_members},
    {0, NULL},
};
static PyType_Spec total_spec = {"taba.client._accelerator.Total", sizeof(Total), 0, HELD, total_slots};

#endif
