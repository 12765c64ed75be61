/* One request over WSGI, as taba/client/metering.py has it: part of _metering.h. What is rare of it, its owner does. */

#ifndef TABA_REPLY_H
#define TABA_REPLY_H

/* --- Reply: one request over WSGI ---------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Meter *meter;
    PyObject *route_of, *environ, *start_response, *owner;
    PyObject *route, *status, *headers; /* as of the last response that the server took */
    PyObject *write, *body, *steps;
    double began;
    long long sent;
    char is_over;
} Reply;

static PyObject *
meter_reply(Meter *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4 || !PyDict_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "reply() takes route, environ (a dictionary), start_response, owner");
        return NULL;
    }
    Reply *reply = (Reply *)self->reply->tp_alloc(self->reply, 0);
    if (reply == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++)
        Py_INCREF(args[i]);
    Py_INCREF(self);
    Py_INCREF(Py_None);
    Py_INCREF(self->nothing);
    Py_INCREF(self->nothing);
    reply->meter = self;
    reply->route_of = args[0];
    reply->environ = args[1];
    reply->start_response = args[2];
    reply->owner = args[3];
    reply->route = Py_None;
    reply->status = reply->headers = self->nothing;
    if (!meter_record(self->in_flight, 1.0))
        Py_CLEAR(reply);
    else
        reply->began = clock_seconds(CLOCK_MONOTONIC); /* see meter_begin */
    return (PyObject *)reply;
}

static int
reply_traverse(Reply *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->meter);
    Py_VISIT(self->route_of);
    Py_VISIT(self->environ);
    Py_VISIT(self->start_response);
    Py_VISIT(self->owner);
    Py_VISIT(self->route);
    Py_VISIT(self->status);
    Py_VISIT(self->headers);
    Py_VISIT(self->write);
    Py_VISIT(self->body);
    Py_VISIT(self->steps);
    return 0;
}

static int
reply_clear(Reply *self)
{
    Py_CLEAR(self->write);
    Py_CLEAR(self->steps);
    Py_CLEAR(self->body);
    return 0; /* the rest is never NULL: who finds this Reply in a cycle that is being cleared may still call it */
}

static void
reply_dealloc(Reply *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    reply_clear(self);
    Py_XDECREF(self->meter);
    Py_XDECREF(self->route_of);
    Py_XDECREF(self->environ);
    Py_XDECREF(self->start_response);
    Py_XDECREF(self->owner);
    Py_XDECREF(self->route);
    Py_XDECREF(self->status);
    Py_XDECREF(self->headers);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Put a value, whose reference is taken, in a place of a Reply. */
static inline void
replace(PyObject **place, PyObject *value)
{
    PyObject *before = *place;
    *place = value;
    Py_XDECREF(before);
}

/* The route's template, or None; what it raises, or gives that is no text, is counted, and is none of the application's. */
static PyObject *
reply_asked(Reply *self, PyObject *Py_UNUSED(ignored))
{
    return route_or_none(self->meter, PyObject_CallOneArg(self->route_of, self->environ));
}

static PyObject *
reply_written(Reply *self, PyObject *content)
{
    Py_ssize_t length = PyObject_Size(content);
    if (length < 0)
        return NULL;
    self->sent += length;
    if (self->write == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "there is no response yet");
        return NULL;
    }
    PyObject *write = self->write;
    Py_INCREF(write);
    PyObject *outcome = PyObject_CallOneArg(write, content);
    Py_DECREF(write);
    return outcome;
}

static PyMethodDef reply_written_method = {"written", (PyCFunction)reply_written, METH_O, "As the server's write()."};

static PyObject *
reply_start(Reply *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    static const char *const known[] = {"status", "headers", "exc_info"};
    PyObject *found[3] = {NULL, NULL, NULL};
    if (count > 3) {
        PyErr_SetString(PyExc_TypeError, "start_response() takes status, headers, exc_info");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        found[i] = args[i];
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        int which = 0;
        while (which < 3 && PyUnicode_CompareWithASCIIString(name, known[which]) != 0)
            which++;
        if (which == 3 || found[which] != NULL)
            return PyErr_Format(PyExc_TypeError, "start_response() got '%U', which it does not take, or twice", name);
        found[which] = args[count + i];
    }
    if (found[0] == NULL || found[1] == NULL) {
        PyErr_SetString(PyExc_TypeError, "start_response() takes status and headers");
        return NULL;
    }
    PyObject *route = reply_asked(self, NULL); /* now: frameworks forget it at the end */
    if (route == NULL)
        return NULL;
    replace(&self->route, route);
    int has_error = found[2] != NULL && found[2] != Py_None;
    PyObject *start = self->start_response;
    PyObject *write = PyObject_Vectorcall(start, found, has_error ? 3 : 2, NULL);
    if (write == NULL)
        return NULL;
    replace(&self->write, write);
    Py_INCREF(found[0]); /* which the server took: with another one on its way it raises */
    replace(&self->status, found[0]);
    Py_INCREF(found[1]);
    replace(&self->headers, found[1]);
    return PyCFunction_New(&reply_written_method, (PyObject *)self);
}

/* What a Content-Length says: -1 where it says nothing that is a length. */
static long long
length_of(PyObject *text)
{
    if (!PyUnicode_Check(text) || !PyUnicode_IS_ASCII(text))
        return -1;
    Py_ssize_t digits = PyUnicode_GET_LENGTH(text);
    const Py_UCS1 *content = PyUnicode_1BYTE_DATA(text);
    long long length = 0;
    if (digits == 0 || digits > MAX_LENGTH_DIGITS)
        return -1;
    for (Py_ssize_t i = 0; i < digits; i++) {
        if (content[i] < '0' || content[i] > '9')
            return -1;
        length = 10 * length + content[i] - '0';
    }
    return length;
}

static PyObject *
reply_end(Reply *self, PyObject *Py_UNUSED(ignored))
{
    if (self->is_over)
        Py_RETURN_NONE;
    self->is_over = 1;
    if (is_of_parent(self->meter, self->began))
        Py_RETURN_NONE;
    if (!meter_record(self->meter->in_flight, -1.0))
        return NULL;
    Meter *meter = self->meter;
    PyObject *given = item_of(self->environ, THE(meter, CONTENT_LENGTH), 1);
    PyObject *method = PyErr_Occurred() ? NULL : item_of(self->environ, THE(meter, REQUEST_METHOD), 1);
    if (method == NULL && !PyErr_Occurred())
        method = PyUnicode_FromString("");
    /* of a body in pieces nobody knows */
    long long received = given == NULL || (PyUnicode_Check(given) && PyUnicode_GET_LENGTH(given) == 0) ? 0 : length_of(given);
    Py_XDECREF(given);
    if (method == NULL)
        return NULL;
    PyObject *route = self->route, *status = self->status;
    Py_INCREF(route);
    Py_INCREF(status);
    int done = meter_measure(meter, self->began, method, route, status, received, self->sent);
    Py_DECREF(route);
    Py_DECREF(status);
    Py_DECREF(method);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

/* failed(reply, error) of the owner, of the exception that is set, which stays. */
static void
reply_failed(Reply *self)
{
    PyObject *error = taken_exception();
    PyObject *told = error == NULL ? NULL : PyObject_CallMethod(self->owner, "failed", "OO", self, error);
    if (told != NULL)
        put_back(error);
    Py_XDECREF(told);
    Py_XDECREF(error);
}

static PyObject *
reply_watch(Reply *self, PyObject *body)
{
    Py_INCREF(body);
    replace(&self->body, body);
    Py_INCREF(self);
    return (PyObject *)self;
}

static PyObject *
reply_iternext(Reply *self)
{
    if (self->steps == NULL) {
        PyObject *body = self->body == NULL ? Py_None : self->body;
        Py_INCREF(body);
        PyObject *steps = PyObject_GetIter(body);
        Py_DECREF(body);
        if (steps == NULL) {
            reply_failed(self);
            return NULL;
        }
        replace(&self->steps, steps);
    }
    PyObject *steps = self->steps;
    Py_INCREF(steps);
    PyObject *content = NULL;
    if (Py_EnterRecursiveCall(" in the steps of a body") == 0) { /* which may be this Reply, by whatever way it came to the application */
        content = Py_TYPE(steps)->tp_iternext(steps);
        Py_LeaveRecursiveCall();
    }
    Py_DECREF(steps);
    if (content == NULL) {
        if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_StopIteration)) {
            reply_failed(self);
            return NULL;
        }
        PyErr_Clear();
        Py_XDECREF(reply_end(self, NULL));
        return NULL;
    }
    Py_ssize_t length = PyBytes_CheckExact(content) ? PyBytes_GET_SIZE(content) : PyObject_Size(content);
    if (length < 0) {
        Py_DECREF(content);
        reply_failed(self);
        return NULL;
    }
    self->sent += length;
    return content;
}

/* What an object has under a name, or NULL where it has none, without an exception; -1 with one. */
static inline int
attribute_of(PyObject *object, PyObject *name, PyObject **found)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyObject_GetOptionalAttr(object, name, found);
#else
    return _PyObject_LookupAttr(object, name, found);
#endif
}

static PyObject *
reply_close(Reply *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *body = self->body, *close = NULL, *closed = NULL;
    if (body == NULL)
        Py_RETURN_NONE;
    Py_INCREF(body);
    if (attribute_of(body, THE(self->meter, CLOSE), &close) >= 0 && close != NULL) {
        closed = PyObject_CallNoArgs(close);
        Py_DECREF(close);
        Py_XDECREF(closed);
    }
    Py_DECREF(body);
    PyObject *error = PyErr_Occurred() ? taken_exception() : NULL;
    if (error != NULL || !self->is_over) { /* what is rare is Python's */
        PyObject *told = PyObject_CallMethod(self->owner, "stopped", "OO", self, error == NULL ? Py_None : error);
        if (told == NULL) {
            Py_XDECREF(error);
            return NULL;
        }
        Py_DECREF(told);
    }
    if (error != NULL) {
        put_back(error);
        Py_DECREF(error);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* --- the type, of which Python makes none itself ------------------------------------------------------------------------------- */

static PyObject *
reply_answers(Reply *self, PyObject *args)
{
    PyObject *status, *route;
    if (!PyArg_ParseTuple(args, "OO:answers", &status, &route))
        return NULL;
    Py_INCREF(status);
    replace(&self->status, status);
    Py_INCREF(route);
    replace(&self->route, route);
    Py_RETURN_NONE;
}

static PyMethodDef reply_methods[] = {
    METHOD("start", reply_start, "start(status, headers, exc_info=None): as the server's start_response()."),
    {"asked", (PyCFunction)reply_asked, METH_NOARGS, "The template of the route that takes it, or None."},
    {"written", (PyCFunction)reply_written, METH_O, "As the server's write()."},
    {"watch", (PyCFunction)reply_watch, METH_O, "watch(body): itself, as this body on its way to the server."},
    {"answers", (PyCFunction)reply_answers, METH_VARARGS, "answers(status, route): what the server does instead of the application."},
    {"end", (PyCFunction)reply_end, METH_NOARGS, "It is over."},
    {"close", (PyCFunction)reply_close, METH_NOARGS, "The server is done with it."},
    END,
};
static PyMemberDef reply_members[] = {
    {"route", T_OBJECT_EX, offsetof(Reply, route), READONLY, "The template of the route that took it, or None."},
    {"status", T_OBJECT_EX, offsetof(Reply, status), READONLY, "The line that the server took; 0 before."},
    {"headers", T_OBJECT_EX, offsetof(Reply, headers), READONLY, "Of the response."},
    {"environ", T_OBJECT_EX, offsetof(Reply, environ), READONLY, "The request."},
    {"sent", T_LONGLONG, offsetof(Reply, sent), 0, "Bytes of the body, as far as it is sent; -1 where nobody knows."},
    {"is_over", T_BOOL, offsetof(Reply, is_over), READONLY, "Whether it is."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot reply_slots[] = {
    {Py_tp_doc, "One request over WSGI, under way."},
    {Py_tp_dealloc, reply_dealloc},
    {Py_tp_traverse, reply_traverse},
    {Py_tp_clear, reply_clear},
    {Py_tp_iter, step_self},
    {Py_tp_iternext, reply_iternext},
    {Py_tp_methods, reply_methods},
    {Py_tp_members, reply_members},
    {0, NULL},
};

static PyType_Spec reply_spec = {
    "taba.client._accelerator.Reply", sizeof(Reply), 0, HELD | Py_TPFLAGS_DISALLOW_INSTANTIATION, reply_slots,
};

#endif
