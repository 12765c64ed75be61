/* One request over ASGI, as taba/client/metering.py has it: part of _metering.h.

   A Step is a coroutine to whoever awaits it, of the server's own awaitable: nothing of it happens before it is awaited. */

#ifndef TABA_EXCHANGE_H
#define TABA_EXCHANGE_H

/* --- Exchange: one request over ASGI ------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Meter *meter;
    PyObject *route_of, *scope, *root, *receive, *send;
    PyObject *status;
    double began;
    long long received, sent;
    char is_over, is_gone;
} Exchange;

typedef struct {
    PyObject_HEAD
    Exchange *exchange;
    PyObject *message; /* that is sent; NULL where one is received */
    PyObject *inner;   /* what the server gave to be awaited, once it was asked */
    PyObject *before;  /* the status before a message that says another */
    char is_last, is_refused, is_running, is_done;
} Step;

static inline int
is_word(PyObject *given, PyObject *word)
{
    return given == word || (PyUnicode_Check(given) && PyUnicode_Compare(given, word) == 0);
}

/* How long what lies under `body` is; 0 for nothing, -1 with an exception. */
static Py_ssize_t
body_length(Meter *meter, PyObject *message)
{
    PyObject *body = item_of(message, THE(meter, BODY), 1);
    if (body == NULL)
        return PyErr_Occurred() ? -1 : 0;
    Py_ssize_t length = PyBytes_CheckExact(body) ? PyBytes_GET_SIZE(body) : PyObject_IsTrue(body);
    if (length == 1 && !PyBytes_CheckExact(body))
        length = PyObject_Size(body);
    Py_DECREF(body);
    return length;
}

static PyObject *
meter_exchange(Meter *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "exchange() takes route, scope, receive, send");
        return NULL;
    }
    PyObject *root = item_of(args[1], THE(self, ROOT_PATH), 1);
    if (root == Py_None)
        Py_CLEAR(root);
    if (root == NULL && !PyErr_Occurred())
        root = PyUnicode_FromString("");
    Exchange *exchange = root == NULL ? NULL : (Exchange *)self->exchange->tp_alloc(self->exchange, 0);
    if (exchange == NULL) {
        Py_XDECREF(root);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        Py_INCREF(args[i]);
    Py_INCREF(self);
    exchange->meter = self;
    exchange->route_of = args[0];
    exchange->scope = args[1];
    exchange->receive = args[2];
    exchange->send = args[3];
    exchange->root = root;
    Py_INCREF(self->nothing);
    exchange->status = self->nothing;
    if (!meter_record(self->in_flight, 1.0))
        Py_CLEAR(exchange);
    else
        exchange->began = clock_seconds(CLOCK_MONOTONIC); /* see meter_begin */
    return (PyObject *)exchange;
}

static int
exchange_traverse(Exchange *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->meter);
    Py_VISIT(self->route_of);
    Py_VISIT(self->scope);
    Py_VISIT(self->root);
    Py_VISIT(self->receive);
    Py_VISIT(self->send);
    Py_VISIT(self->status);
    return 0;
}

/* No tp_clear: what it refers to never changes but for the status, so a cycle goes by way of something else, such as the scope. */
static void
exchange_dealloc(Exchange *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->meter);
    Py_XDECREF(self->route_of);
    Py_XDECREF(self->scope);
    Py_XDECREF(self->root);
    Py_XDECREF(self->receive);
    Py_XDECREF(self->send);
    Py_XDECREF(self->status);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
exchange_route(Exchange *self, PyObject *Py_UNUSED(ignored))
{
    return route_or_none(self->meter, PyObject_CallFunctionObjArgs(self->route_of, self->scope, self->root, NULL));
}

/* The request is over; 0 with an exception. */
static int
exchange_is_ended(Exchange *self)
{
    self->is_over = 1;
    if (is_of_parent(self->meter, self->began))
        return 1;
    if (!meter_record(self->meter->in_flight, -1.0))
        return 0;
    PyObject *method = item_of(self->scope, THE(self->meter, METHOD), 0);
    PyObject *route = method == NULL ? NULL : exchange_route(self, NULL);
    PyObject *status = self->status;
    Py_INCREF(status);
    int done = route != NULL && meter_measure(self->meter, self->began, method, route, status, self->received, self->sent);
    Py_DECREF(status);
    Py_XDECREF(route);
    Py_XDECREF(method);
    return done;
}

static PyObject *
exchange_end(Exchange *self, PyObject *instead)
{
    if (self->is_over)
        Py_RETURN_NONE;
    PyObject *status = self->status;
    Py_INCREF(status);
    int has_status = PyObject_IsTrue(status);
    Py_DECREF(status);
    if (has_status == 0) {
        status = self->status;
        Py_INCREF(instead);
        self->status = instead;
        Py_DECREF(status);
    }
    if (has_status < 0 || !exchange_is_ended(self))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
make_step(Exchange *exchange, PyObject *message)
{
    PyTypeObject *type = exchange->meter->step;
    Step *step = (Step *)type->tp_alloc(type, 0);
    if (step != NULL) {
        Py_INCREF(exchange);
        Py_XINCREF(message);
        step->exchange = exchange;
        step->message = message;
    }
    return (PyObject *)step;
}

static PyObject *
exchange_receive(Exchange *self, PyObject *Py_UNUSED(ignored))
{
    return make_step(self, NULL);
}

static PyObject *
exchange_send(Exchange *self, PyObject *message)
{
    return make_step(self, message);
}

/* --- Step: one message, on its way --------------------------------------------------------------------------------------------- */

static int
step_traverse(Step *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->exchange);
    Py_VISIT(self->message);
    Py_VISIT(self->inner);
    Py_VISIT(self->before);
    return 0;
}

static int
step_clear(Step *self)
{
    self->is_done = 1;
    Py_CLEAR(self->inner);
    return 0; /* the rest never changes: a cycle goes by way of what is awaited, or of something else */
}

static void
step_dealloc(Step *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->inner);
    Py_XDECREF(self->exchange);
    Py_XDECREF(self->message);
    Py_XDECREF(self->before);
    type->tp_free(self);
    Py_DECREF(type);
}

/* What `await` makes of a value: a new reference to what takes send(). */
static PyObject *
awaited(PyObject *given)
{
    PyAsyncMethods *methods = Py_TYPE(given)->tp_as_async;
    if (PyCoro_CheckExact(given)) {
        Py_INCREF(given);
        return given;
    }
    if (methods != NULL && methods->am_await != NULL) {
        PyObject *steps = methods->am_await(given);
        if (steps == NULL || PyIter_Check(steps))
            return steps;
        Py_DECREF(steps);
    } else if (PyGen_CheckExact(given)) { /* of types.coroutine() */
        PyObject *code = PyObject_GetAttrString(given, "gi_code");
        int is_awaitable = code != NULL && PyCode_Check(code) && ((PyCodeObject *)code)->co_flags & CO_ITERABLE_COROUTINE;
        Py_XDECREF(code);
        if (is_awaitable) {
            Py_INCREF(given);
            return given;
        }
        PyErr_Clear();
    }
    return PyErr_Format(PyExc_TypeError, "object %.200s can't be used in 'await' expression", Py_TYPE(given)->tp_name);
}

/* What a message that is to be sent says; 0 with an exception. */
static int
step_says(Step *self)
{
    Exchange *exchange = self->exchange;
    Meter *meter = exchange->meter;
    PyObject *kind = item_of(self->message, THE(meter, TYPE), 0);
    if (kind == NULL)
        return 0;
    if (is_word(kind, THE(meter, RESPONSE_BODY))) {
        Py_ssize_t length = body_length(meter, self->message);
        PyObject *more = length < 0 ? NULL : item_of(self->message, THE(meter, MORE_BODY), 1);
        if (length > 0)
            exchange->sent += length;
        int has_more = more == NULL ? 0 : PyObject_IsTrue(more);
        Py_XDECREF(more);
        self->is_last = has_more == 0;
    } else if (is_word(kind, THE(meter, RESPONSE_START))) {
        PyObject *status = item_of(self->message, THE(meter, STATUS), 0);
        if (status != NULL) {
            self->before = exchange->status;
            exchange->status = status;
        }
    } else if (is_word(kind, THE(meter, PATHSEND)) || is_word(kind, THE(meter, ZEROCOPYSEND))) {
        exchange->sent = -1; /* the server knows how much it was */
    }
    Py_DECREF(kind);
    return !PyErr_Occurred();
}

/* The server did not take a message, with the exception that is set. */
static void
step_failed(Step *self)
{
    self->is_done = 1;
    if (self->message == NULL || (self->inner == NULL && !self->is_refused))
        return;
    Exchange *exchange = self->exchange;
    if (PyErr_ExceptionMatches(PyExc_OSError)) {
        exchange->is_gone = 1; /* so says a server: what the application makes of it is no failure of its own */
    } else if (self->before != NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyObject *status = exchange->status;
        exchange->status = self->before;
        self->before = status; /* let go of with the Step: nothing runs here while an exception is set */
    }
}

/* The server took, or gave, a message; 0 with an exception. */
static int
step_ended(Step *self, PyObject *result)
{
    Exchange *exchange = self->exchange;
    self->is_done = 1;
    if (self->message != NULL) /* what the application does behind its last one makes nobody wait */
        return !self->is_last || exchange->is_over || exchange->is_gone || exchange_is_ended(exchange);
    Meter *meter = exchange->meter;
    PyObject *kind = item_of(result, THE(meter, TYPE), 0);
    if (kind == NULL)
        return 0;
    int is_right = 1;
    if (is_word(kind, THE(meter, REQUEST))) {
        Py_ssize_t length = body_length(meter, result);
        is_right = length >= 0;
        if (length > 0)
            exchange->received += length;
    } else if (is_word(kind, THE(meter, DISCONNECT))) {
        exchange->is_gone = 1;
    }
    Py_DECREF(kind);
    return is_right && !PyErr_Occurred();
}

/* Ask the server for what is to be awaited; 0 with an exception. */
static int
step_begins(Step *self)
{
    Exchange *exchange = self->exchange;
    if (self->message != NULL && !step_says(self))
        return 0;
    PyObject *given = self->message == NULL ? PyObject_CallNoArgs(exchange->receive) : PyObject_CallOneArg(exchange->send, self->message);
    PyObject *steps = given == NULL ? NULL : awaited(given);
    Py_XDECREF(given);
    self->inner = steps;
    if (steps == NULL) {
        self->is_refused = 1; /* a send() that raises at once, or gives nothing to await, did not take it, either */
        return 0;
    }
    return 1;
}

/* 1 where it may go on; 0 with an exception. */
static int
step_may_run(Step *self)
{
    if (self->is_running)
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
    else if (self->is_done)
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    return !self->is_running && !self->is_done;
}

/* What became of it: a value on the way, or the end, with the result, or an exception. */
static PySendResult
step_outcome(Step *self, PySendResult how, PyObject **result)
{
    if (how == PYGEN_NEXT)
        return how;
    if (how == PYGEN_ERROR) {
        step_failed(self);
        return how;
    }
    if (step_ended(self, *result))
        return how;
    Py_CLEAR(*result);
    return PYGEN_ERROR;
}

static PySendResult
step_send(Step *self, PyObject *value, PyObject **result)
{
    *result = NULL;
    if (!step_may_run(self))
        return PYGEN_ERROR;
    PySendResult how = PYGEN_ERROR;
    self->is_running = 1;
    if (self->inner != NULL || step_begins(self)) {
        PyObject *inner = self->inner;
        Py_INCREF(inner);
        how = PyIter_Send(inner, value, result);
        Py_DECREF(inner);
    }
    self->is_running = 0;
    return step_outcome(self, how, result);
}

/* As Python's callers have it: an end is StopIteration. */
static PyObject *
step_returned(PySendResult how, PyObject *result, int is_next)
{
    if (how == PYGEN_NEXT || how == PYGEN_ERROR)
        return result;
    if (result != Py_None) {
        PyObject *error = PyObject_CallOneArg(PyExc_StopIteration, result);
        if (error != NULL)
            PyErr_SetObject(PyExc_StopIteration, error);
        Py_XDECREF(error);
    } else if (!is_next) {
        PyErr_SetNone(PyExc_StopIteration);
    }
    Py_DECREF(result);
    return NULL;
}

static PyObject *
step_iternext(Step *self)
{
    PyObject *result;
    PySendResult how = step_send(self, Py_None, &result);
    return step_returned(how, result, 1);
}

static PyObject *
step_python_send(Step *self, PyObject *value)
{
    PyObject *result;
    PySendResult how = step_send(self, value, &result);
    return step_returned(how, result, 0);
}

/* Raise what throw() was given. */
static void
raise_given(PyObject *args)
{
    PyObject *kind = NULL, *value = NULL, *trace = NULL;
    if (!PyArg_UnpackTuple(args, "throw", 1, 3, &kind, &value, &trace))
        return;
    if (PyExceptionInstance_Check(kind))
        PyErr_SetObject((PyObject *)Py_TYPE(kind), kind);
    else if (PyExceptionClass_Check(kind))
        PyErr_SetObject(kind, value == Py_None ? NULL : value);
    else
        PyErr_SetString(PyExc_TypeError, "throw() takes an exception");
}

static PyObject *
step_throw(Step *self, PyObject *args)
{
    if (!step_may_run(self))
        return NULL;
    PySendResult how = PYGEN_ERROR;
    PyObject *inner = self->inner, *result = NULL, *method = NULL;
    if (inner == NULL) { /* it never began */
        raise_given(args);
        self->is_done = 1;
        return NULL;
    }
    Py_INCREF(inner);
    self->is_running = 1;
    if ((method = PyObject_GetAttrString(inner, "throw")) == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError)) { /* an iterator that is told nothing */
            PyErr_Clear();
            raise_given(args);
        }
    } else if ((result = PyObject_Call(method, args, NULL)) != NULL) {
        how = PYGEN_NEXT;
    } else if (PyErr_ExceptionMatches(PyExc_StopIteration)) {
        PyObject *error = taken_exception();
        result = error == NULL ? NULL : PyObject_GetAttrString(error, "value");
        Py_XDECREF(error);
        how = result == NULL ? PYGEN_ERROR : PYGEN_RETURN;
    }
    Py_XDECREF(method);
    Py_DECREF(inner);
    self->is_running = 0;
    how = step_outcome(self, how, &result);
    return step_returned(how, result, 0);
}

static PyObject *
step_close(Step *self, PyObject *Py_UNUSED(ignored))
{
    if (self->is_running) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return NULL;
    }
    PyObject *inner = self->is_done ? NULL : self->inner, *closed = NULL;
    self->is_done = 1;
    if (inner == NULL)
        Py_RETURN_NONE;
    Py_INCREF(inner);
    PyObject *method = PyObject_GetAttrString(inner, "close");
    if (method != NULL)
        closed = PyObject_CallNoArgs(method);
    else if (PyErr_ExceptionMatches(PyExc_AttributeError)) { /* an iterator that is not told */
        PyErr_Clear();
        Py_INCREF(Py_None);
        closed = Py_None;
    }
    Py_XDECREF(method);
    Py_DECREF(inner);
    if (closed == NULL)
        step_failed(self);
    return closed;
}

static PyObject *
step_self(PyObject *self)
{
    Py_INCREF(self);
    return self;
}

/* --- the types, of which Python makes none itself ------------------------------------------------------------------------------ */

static PyMethodDef exchange_methods[] = {
    {"receive", (PyCFunction)exchange_receive, METH_NOARGS, "As the server's."},
    {"send", (PyCFunction)exchange_send, METH_O, "As the server's."},
    {"route", (PyCFunction)exchange_route, METH_NOARGS, "The template of the route that took it, or None."},
    {"end", (PyCFunction)exchange_end, METH_O, "end(instead): it is over, with this status where the application gave none."},
    END,
};
static PyMemberDef exchange_members[] = {
    {"status", T_OBJECT_EX, offsetof(Exchange, status), READONLY, "Of the response, as far as there is one."},
    {"is_over", T_BOOL, offsetof(Exchange, is_over), READONLY, "Whether it is."},
    {"is_gone", T_BOOL, offsetof(Exchange, is_gone), 0, "Whether the client is."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot exchange_slots[] = {
    {Py_tp_doc, "One request over ASGI, under way."},
    {Py_tp_dealloc, exchange_dealloc},
    {Py_tp_traverse, exchange_traverse},
    {Py_tp_methods, exchange_methods},
    {Py_tp_members, exchange_members},
    {0, NULL},
};

static PyMethodDef step_methods[] = {
    {"send", (PyCFunction)step_python_send, METH_O, "As a coroutine's."},
    {"throw", (PyCFunction)step_throw, METH_VARARGS, "As a coroutine's."},
    {"close", (PyCFunction)step_close, METH_NOARGS, "As a coroutine's."},
    END,
};
static PyType_Slot step_slots[] = {
    {Py_tp_doc, "One message, on its way: a coroutine."},
    {Py_tp_dealloc, step_dealloc},
    {Py_tp_traverse, step_traverse},
    {Py_tp_clear, step_clear},
    {Py_am_await, step_self},
    {Py_am_send, step_send},
    {Py_tp_iter, step_self},
    {Py_tp_iternext, step_iternext},
    {Py_tp_methods, step_methods},
    {0, NULL},
};

static PyType_Spec exchange_spec = {
    "taba.client._accelerator.Exchange", sizeof(Exchange), 0, HELD | Py_TPFLAGS_DISALLOW_INSTANTIATION, exchange_slots,
};
static PyType_Spec step_spec = {
    "taba.client._accelerator.Step", sizeof(Step), 0, HELD | Py_TPFLAGS_DISALLOW_INSTANTIATION, step_slots,
};

#endif
