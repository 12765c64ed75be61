/* Shared memory as Python has it, without a descriptor: part of _accelerator.c. */

#ifndef TABA_MAPPING_H
#define TABA_MAPPING_H

/* --- Mapping: shared memory without a descriptor ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    uint8_t *base;
    size_t size;
    Py_ssize_t exports; /* views of it, and Ports that record into it */
} Mapping;

static PyObject *
mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "size", NULL};
    int fd;
    Py_ssize_t size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "in:Mapping", names, &fd, &size))
        return NULL;
    if (size <= 0 || size > MAX_RING_BYTES)
        return PyErr_Format(PyExc_ValueError, "a mapping of %zd bytes: takes 1 to %d", size, MAX_RING_BYTES);
    void *base = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    Mapping *self = (Mapping *)type->tp_alloc(type, 0);
    if (self == NULL) {
        munmap(base, (size_t)size);
        return NULL;
    }
    self->base = base;
    self->size = (size_t)size;
    return (PyObject *)self;
}

static void
mapping_dealloc(Mapping *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (self->base != NULL)
        munmap(self->base, self->size);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
mapping_getbuffer(Mapping *self, Py_buffer *view, int flags)
{
    if (self->base == NULL) {
        view->obj = NULL;
        PyErr_SetString(PyExc_BufferError, "the mapping is closed");
        return -1;
    }
    if (PyBuffer_FillInfo(view, (PyObject *)self, self->base, (Py_ssize_t)self->size, 0, flags) < 0)
        return -1;
    self->exports++;
    return 0;
}

static void
mapping_releasebuffer(Mapping *self, Py_buffer *Py_UNUSED(view))
{
    self->exports--;
}

static PyObject *
mapping_close(Mapping *self, PyObject *Py_UNUSED(ignored))
{
    if (self->exports > 0) {
        PyErr_SetString(PyExc_BufferError, "the mapping is in use");
        return NULL;
    }
    if (self->base != NULL)
        munmap(self->base, self->size);
    self->base = NULL;
    Py_RETURN_NONE;
}

static PyMethodDef mapping_methods[] = {
    {"close", (PyCFunction)mapping_close, METH_NOARGS, "Unmap; BufferError while a memoryview or a Port uses it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot mapping_slots[] = {
    {Py_tp_doc, "Mapping(fd, size): shared memory, mapped until the object dies; keeps no descriptor."},
    {Py_tp_new, mapping_new},
    {Py_tp_dealloc, mapping_dealloc},
    {Py_tp_methods, mapping_methods},
    {Py_bf_getbuffer, mapping_getbuffer},
    {Py_bf_releasebuffer, mapping_releasebuffer},
    {0, NULL},
};

static PyType_Spec mapping_spec = {
    "taba.client._accelerator.Mapping", sizeof(Mapping), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, mapping_slots,
};

#endif
