/* The C accelerator of the ring's producer: the same records as taba/client/pure.py, in a few nanoseconds.

   1. The layout is taba/ring.py's; sizes and offsets that both need stand there too, and a test compares them.
   2. Nothing here releases the GIL between the reservation and the commit of a record, or calls Python in between: with the GIL,
      records come from one producer at a time, and an exception never finds one half written. (A build without the GIL does not
      load this module: see producer.py.)
   3. What is rare is Python's: a Tab without a place in the ring, a ring that is full, retired or the parent's. `attend` decides, and
      says whether to try again.
   4. State is the Port's, one per interpreter. There is no global state. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the ring is little-endian"
#endif

enum {
    DROPS_OFFSET = 640,
    TAIL_OFFSET = 1024,
    BYTE_TAIL_OFFSET = 1032,
    RETIRED_OFFSET = 1040,
    DROP_PLACES = 16,
    MAX_DEPTH = 32, /* bounds.MAX_VALUE_DEPTH */
    FLAG_BYTES = 1,
};

/* indexes of ring.DROP_REASONS */
enum { RING_FULL, BYTES_FULL, VALUE_TOO_LARGE, VALUE_TYPE, BAD_TIME, DIRECTORY_FULL };
/* what attend() is told instead of a drop reason */
enum { NO_PLACE = -1, RETIRED = -2 };

#define NO_TAB UINT32_MAX /* the id of a Tab that the directory has no room for */
#define MAX_EXACT_INT (1LL << 53)
#define MAX_TIME 1099511627776.0 /* bounds.MAX_TIME */
#define LOOK_EVERY 1000000000LL /* ns between two looks at a full ring */

#define LIKELY(x) __builtin_expect(!!(x), 1)

typedef _Atomic uint64_t word_t;

static inline word_t *
word_at(uint8_t *base, uint64_t offset)
{
    return (word_t *)(base + offset);
}

/* --- Mapping: shared memory without a descriptor ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    uint8_t *base;
    size_t size;
    Py_ssize_t exports;
} Mapping;

static PyObject *
mapping_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    int fd;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "in:Mapping", &fd, &size))
        return NULL;
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
    {"close", (PyCFunction)mapping_close, METH_NOARGS, "Unmap; BufferError while a memoryview is in use."},
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

static PyType_Spec mapping_spec = {"taba.client._accelerator.Mapping", sizeof(Mapping), 0, Py_TPFLAGS_DEFAULT, mapping_slots};

/* --- Port: the producer's side of one ring after another ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    word_t *guard;       /* a page of its own, which the kernel clears in a forked child; 1 while this process owns the ring */
    uint64_t generation; /* of the ring; a Tab with another generation has no place in it */
    uint8_t *base;       /* of the ring; NULL without one */
    uint8_t *record_ring;
    uint8_t *byte_ring;
    uint64_t records;
    int record_shift;
    uint64_t byte_ring_bytes;
    uint64_t max_value;
    uint64_t head;      /* position of the next record */
    uint64_t tail;      /* as last read from the header */
    uint64_t byte_head; /* byte position of the next value */
    uint64_t byte_tail; /* as last read from the header */
    int64_t looked;     /* monotonic ns of the last look at a full ring */
    uint64_t before;    /* recorded into earlier rings */
    uint64_t totals[DROP_PLACES];
    uint64_t pending[DROP_PLACES]; /* of the totals, those that no header has counted */
    PyObject *mapping;
    PyObject *attend;
    size_t page;
} Port;

typedef struct {
    PyObject_HEAD
    uint64_t generation;
    uint32_t id;
    Port *port;
    PyObject *name;
    PyObject *type;
} Tab;

static void
port_forget(Port *self)
{
    self->before += self->head;
    self->head = self->tail = self->byte_head = self->byte_tail = 0;
    self->base = NULL;
    self->generation++;
    Py_CLEAR(self->mapping);
}

static void
port_count(Port *self, unsigned reason, uint64_t times)
{
    self->totals[reason] += times;
    if (self->base == NULL) {
        self->pending[reason] += times;
        return;
    }
    word_t *place = word_at(self->base, DROPS_OFFSET + 8 * reason);
    atomic_store_explicit(place, atomic_load_explicit(place, memory_order_relaxed) + times, memory_order_relaxed);
}

static PyObject *
port_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *attend;
    if (!PyArg_ParseTuple(args, "O:Port", &attend))
        return NULL;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *guard = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guard == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
#ifdef MADV_WIPEONFORK
    /* before Linux 4.14 this fails: then only children that Python forked are told apart, by the after-fork hook */
    (void)madvise(guard, page, MADV_WIPEONFORK);
#endif
    Port *self = (Port *)type->tp_alloc(type, 0);
    if (self == NULL) {
        munmap(guard, page);
        return NULL;
    }
    self->page = page;
    self->guard = guard;
    atomic_store(self->guard, 1);
    self->generation = 1; /* a new Tab has generation 0 */
    Py_INCREF(attend);
    self->attend = attend;
    return (PyObject *)self;
}

static int
port_traverse(Port *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->mapping);
    Py_VISIT(self->attend);
    return 0;
}

static int
port_clear(Port *self)
{
    port_forget(self);
    Py_CLEAR(self->attend);
    return 0;
}

static void
port_dealloc(Port *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    port_clear(self);
    munmap(self->guard, self->page);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
port_open(Port *self, PyObject *args)
{
    Mapping *mapping;
    unsigned long long record_offset, records, byte_ring_offset, byte_ring_bytes, max_value;
    PyTypeObject *mapping_type = (PyTypeObject *)PyObject_GetAttrString((PyObject *)Py_TYPE(self), "_mapping");
    if (mapping_type == NULL)
        return NULL;
    int parsed = PyArg_ParseTuple(args, "O!KKKKK:open", mapping_type, &mapping, &record_offset, &records, &byte_ring_offset, &byte_ring_bytes, &max_value);
    Py_DECREF(mapping_type);
    if (!parsed)
        return NULL;
    if (mapping->base == NULL || records == 0 || record_offset + records * 24 > mapping->size || byte_ring_offset + byte_ring_bytes > mapping->size ||
        (records & (records - 1)) || (byte_ring_bytes & (byte_ring_bytes - 1))) {
        PyErr_SetString(PyExc_ValueError, "no such ring");
        return NULL;
    }
    port_forget(self);
    Py_INCREF(mapping);
    self->mapping = (PyObject *)mapping;
    self->base = mapping->base;
    self->record_ring = mapping->base + record_offset;
    self->byte_ring = mapping->base + byte_ring_offset;
    self->records = records;
    self->record_shift = __builtin_ctzll(records);
    self->byte_ring_bytes = byte_ring_bytes;
    self->max_value = max_value;
    for (unsigned reason = 0; reason < DROP_PLACES; reason++) {
        atomic_store_explicit(word_at(self->base, DROPS_OFFSET + 8 * reason), self->pending[reason], memory_order_relaxed);
        self->pending[reason] = 0;
    }
    Py_RETURN_NONE;
}

static PyObject *
port_close(Port *self, PyObject *Py_UNUSED(ignored))
{
    port_forget(self);
    Py_RETURN_NONE;
}

static PyObject *
port_reset(Port *self, PyObject *Py_UNUSED(ignored))
{
    port_forget(self);
    self->before = 0;
    memset(self->totals, 0, sizeof self->totals);
    memset(self->pending, 0, sizeof self->pending);
    atomic_store(self->guard, 1);
    Py_RETURN_NONE;
}

static PyObject *
port_is_forked(Port *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(atomic_load_explicit(self->guard, memory_order_relaxed) == 0);
}

static PyObject *
port_count_method(Port *self, PyObject *args)
{
    unsigned int reason;
    unsigned long long times = 1;
    if (!PyArg_ParseTuple(args, "I|K:count", &reason, &times))
        return NULL;
    if (reason >= DROP_PLACES) {
        PyErr_SetString(PyExc_ValueError, "no such reason");
        return NULL;
    }
    port_count(self, reason, times);
    Py_RETURN_NONE;
}

static PyObject *
port_place(Port *self, PyObject *args)
{
    Tab *tab;
    PyObject *id;
    PyTypeObject *tab_type = (PyTypeObject *)PyObject_GetAttrString((PyObject *)Py_TYPE(self), "_tab");
    if (tab_type == NULL)
        return NULL;
    int parsed = PyArg_ParseTuple(args, "O!O:place", tab_type, &tab, &id);
    Py_DECREF(tab_type);
    if (!parsed)
        return NULL;
    unsigned long value = NO_TAB;
    if (id != Py_None) {
        value = PyLong_AsUnsignedLong(id);
        if (PyErr_Occurred())
            return NULL;
        if (value >= 1 << 24) {
            PyErr_SetString(PyExc_ValueError, "no such Tab id");
            return NULL;
        }
    }
    tab->id = (uint32_t)value;
    tab->generation = self->generation;
    Py_RETURN_NONE;
}

static PyObject *
port_has(Port *self, PyObject *tab)
{
    PyObject *tab_type = PyObject_GetAttrString((PyObject *)Py_TYPE(self), "_tab");
    if (tab_type == NULL)
        return NULL;
    int is_tab = PyObject_TypeCheck(tab, (PyTypeObject *)tab_type);
    Py_DECREF(tab_type);
    return PyBool_FromLong(is_tab && self->base != NULL && ((Tab *)tab)->generation == self->generation);
}

static PyObject *
port_totals(Port *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *totals = PyList_New(DROP_PLACES);
    for (Py_ssize_t reason = 0; totals != NULL && reason < DROP_PLACES; reason++) {
        PyObject *count = PyLong_FromUnsignedLongLong(self->totals[reason]);
        if (count == NULL)
            Py_CLEAR(totals);
        else
            PyList_SET_ITEM(totals, reason, count);
    }
    return totals;
}

static PyObject *
port_recorded(Port *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->before + self->head);
}

static PyObject *
port_position(Port *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->head);
}

static PyObject *
port_is_open(Port *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->base != NULL);
}

static PyMethodDef port_methods[] = {
    {"open", (PyCFunction)port_open, METH_VARARGS, "open(mapping, record_offset, records, byte_ring_offset, byte_ring_bytes, max_value): record into this ring."},
    {"close", (PyCFunction)port_close, METH_NOARGS, "Leave the ring."},
    {"reset", (PyCFunction)port_reset, METH_NOARGS, "Leave the ring and forget all counts: a forked child begins."},
    {"is_forked", (PyCFunction)port_is_forked, METH_NOARGS, "Whether this process is a child that the after-fork hook has not seen."},
    {"count", (PyCFunction)port_count_method, METH_VARARGS, "count(reason, times=1): count drops, in the header where there is one."},
    {"place", (PyCFunction)port_place, METH_VARARGS, "place(tab, id): the Tab's id in this ring; None where the directory is full."},
    {"has", (PyCFunction)port_has, METH_O, "Whether the Tab has been given its place in this ring."},
    {"totals", (PyCFunction)port_totals, METH_NOARGS, "Drops of this process by reason."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef port_getset[] = {
    {"recorded", (getter)port_recorded, NULL, "Events recorded by this process.", NULL},
    {"position", (getter)port_position, NULL, "The position of the next record in this ring.", NULL},
    {"is_open", (getter)port_is_open, NULL, "Whether there is a ring.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot port_slots[] = {
    {Py_tp_doc, "Port(attend): the producer's side of a ring; attend(tab, why) does what is rare."},
    {Py_tp_new, port_new},
    {Py_tp_dealloc, port_dealloc},
    {Py_tp_traverse, port_traverse},
    {Py_tp_clear, port_clear},
    {Py_tp_methods, port_methods},
    {Py_tp_getset, port_getset},
    {0, NULL},
};

static PyType_Spec port_spec = {"taba.client._accelerator.Port", sizeof(Port), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, port_slots};

/* --- values: msgpack, in place ------------------------------------------------------------------------------------------------- */

typedef struct {
    uint8_t *ring;
    uint64_t bytes; /* of the ring */
    uint64_t begin; /* byte position of the value */
    uint64_t room;  /* what is free from there on; beyond it only the length is counted */
    uint64_t most;
    uint64_t length;
} Writer;

/* All functions below return -1 when done, else the reason for the drop. */
enum { DONE = -1 };

static inline int
put(Writer *out, const void *content, uint64_t length)
{
    if (length > out->most - out->length)
        return VALUE_TOO_LARGE;
    if (out->length + length <= out->room) {
        uint64_t slot = (out->begin + out->length) & (out->bytes - 1);
        uint64_t first = out->bytes - slot;
        if (LIKELY(length <= first)) {
            memcpy(out->ring + slot, content, length);
        } else {
            memcpy(out->ring + slot, content, first);
            memcpy(out->ring, (const uint8_t *)content + first, length - first);
        }
    }
    out->length += length;
    return DONE;
}

/* a first byte and a big-endian number of `bytes` bytes */
static inline int
put_number(Writer *out, uint8_t first, uint64_t number, int bytes)
{
    uint8_t content[9] = {first};
    for (int i = 0; i < bytes; i++)
        content[1 + i] = (uint8_t)(number >> (8 * (bytes - 1 - i)));
    return put(out, content, 1 + (uint64_t)bytes);
}

static int
put_int(Writer *out, PyObject *value)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow > 0) {
        unsigned long long large = PyLong_AsUnsignedLongLong(value);
        if (PyErr_Occurred()) {
            PyErr_Clear();
            return VALUE_TYPE;
        }
        return put_number(out, 0xcf, large, 8);
    }
    if (overflow < 0)
        return VALUE_TYPE;
    uint64_t bits = (uint64_t)number;
    if (number >= 0) {
        if (number < 0x80)
            return put_number(out, (uint8_t)number, 0, 0);
        if (number <= 0xff)
            return put_number(out, 0xcc, bits, 1);
        if (number <= 0xffff)
            return put_number(out, 0xcd, bits, 2);
        if (number <= 0xffffffffLL)
            return put_number(out, 0xce, bits, 4);
        return put_number(out, 0xcf, bits, 8);
    }
    if (number >= -32)
        return put_number(out, (uint8_t)number, 0, 0);
    if (number >= -0x80)
        return put_number(out, 0xd0, bits, 1);
    if (number >= -0x8000)
        return put_number(out, 0xd1, bits, 2);
    if (number >= -0x80000000LL)
        return put_number(out, 0xd2, bits, 4);
    return put_number(out, 0xd3, bits, 8);
}

static int
put_str(Writer *out, PyObject *value)
{
    Py_ssize_t size;
    const char *content;
    if (LIKELY(PyUnicode_IS_COMPACT_ASCII(value))) {
        content = (const char *)PyUnicode_1BYTE_DATA(value);
        size = PyUnicode_GET_LENGTH(value);
    } else {
        if ((uint64_t)PyUnicode_GET_LENGTH(value) > out->most) /* before its UTF-8 is made, which the string would keep */
            return VALUE_TOO_LARGE;
        content = PyUnicode_AsUTF8AndSize(value, &size);
        if (content == NULL) { /* a surrogate alone, or no memory */
            PyErr_Clear();
            return VALUE_TYPE;
        }
    }
    uint64_t length = (uint64_t)size;
    int reason = length < 32       ? put_number(out, (uint8_t)(0xa0 | length), 0, 0)
                 : length < 0x100   ? put_number(out, 0xd9, length, 1)
                 : length < 0x10000 ? put_number(out, 0xda, length, 2)
                                    : put_number(out, 0xdb, length, 4);
    return reason == DONE ? put(out, content, length) : reason;
}

static int
put_bytes(Writer *out, PyObject *value)
{
    uint64_t length = (uint64_t)PyBytes_GET_SIZE(value);
    int reason = length < 0x100     ? put_number(out, 0xc4, length, 1)
                 : length < 0x10000 ? put_number(out, 0xc5, length, 2)
                                    : put_number(out, 0xc6, length, 4);
    return reason == DONE ? put(out, PyBytes_AS_STRING(value), length) : reason;
}

static int
put_length(Writer *out, uint64_t length, uint8_t small, uint8_t middle)
{
    if (length < 16)
        return put_number(out, (uint8_t)(small | length), 0, 0);
    if (length < 0x10000)
        return put_number(out, middle, length, 2);
    return put_number(out, middle + 1, length, 4);
}

/* None, bool, numbers, str, bytes; or -2 where the value is none of them */
static int
put_scalar(Writer *out, PyObject *value)
{
    if (PyUnicode_CheckExact(value))
        return put_str(out, value);
    if (value == Py_None)
        return put_number(out, 0xc0, 0, 0);
    if (value == Py_True || value == Py_False)
        return put_number(out, value == Py_True ? 0xc3 : 0xc2, 0, 0);
    if (PyFloat_Check(value)) { /* subclasses too: their content is read, their methods are not called */
        double number = PyFloat_AS_DOUBLE(value);
        uint64_t bits;
        memcpy(&bits, &number, 8);
        return put_number(out, 0xcb, bits, 8);
    }
    if (PyLong_Check(value))
        return put_int(out, value);
    if (PyBytes_CheckExact(value))
        return put_bytes(out, value);
    return -2;
}

static int
put_value(Writer *out, PyObject *value, int depth)
{
    int reason = put_scalar(out, value);
    if (reason != -2)
        return reason;
    int is_list = PyList_CheckExact(value), is_dict = PyDict_CheckExact(value);
    if (!is_list && !is_dict && !PyTuple_CheckExact(value))
        return VALUE_TYPE;
    if (depth == MAX_DEPTH)
        return VALUE_TOO_LARGE;
    if (is_dict) {
        if ((reason = put_length(out, (uint64_t)PyDict_Size(value), 0x80, 0xde)) != DONE)
            return reason;
        PyObject *key, *content;
        Py_ssize_t position = 0;
        while (PyDict_Next(value, &position, &key, &content)) {
            /* a key that is a tuple would come back as a list, which is no key */
            if ((reason = put_scalar(out, key)) != DONE)
                return reason == -2 ? VALUE_TYPE : reason;
            if ((reason = put_value(out, content, depth + 1)) != DONE)
                return reason;
        }
        return DONE;
    }
    Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
    if ((reason = put_length(out, (uint64_t)size, 0x90, 0xdc)) != DONE)
        return reason;
    for (Py_ssize_t i = 0; i < size; i++) {
        PyObject *item = is_list ? PyList_GET_ITEM(value, i) : PyTuple_GET_ITEM(value, i);
        if ((reason = put_value(out, item, depth + 1)) != DONE)
            return reason;
    }
    return DONE;
}

/* --- recording ----------------------------------------------------------------------------------------------------------------- */

/* 1: try again; 0: dropped and counted; -1: an exception that is not Taba's (of a signal handler) */
static int
ask(Tab *tab, int why)
{
    Port *port = tab->port;
    if (port->attend == NULL) /* the interpreter is being torn down */
        return 0;
    PyObject *answer = PyObject_CallFunction(port->attend, "Oi", tab, why);
    if (answer == NULL)
        return -1;
    int again = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return again;
}

/* After a full ring: whether it is time to look why. vDSO: no system call. */
static int
look_is_due(Port *port)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t nanoseconds = now.tv_sec * 1000000000LL + now.tv_nsec;
    if (port->looked != 0 && nanoseconds - port->looked < LOOK_EVERY)
        return 0;
    port->looked = nanoseconds;
    return 1;
}

static int
full(Tab *tab, unsigned reason)
{
    if (look_is_due(tab->port))
        return ask(tab, (int)reason);
    port_count(tab->port, reason, 1);
    return 0;
}

/* Whether a record can be written now: as ask(). */
static int
find_room(Tab *tab)
{
    Port *port = tab->port;
    for (int tries = 0; tries < 4; tries++) {
        int answer;
        if (tab->generation != port->generation || !atomic_load_explicit(port->guard, memory_order_relaxed)) {
            answer = ask(tab, NO_PLACE);
        } else if (atomic_load_explicit(word_at(port->base, RETIRED_OFFSET), memory_order_relaxed)) {
            answer = ask(tab, RETIRED);
        } else if (tab->id == NO_TAB) {
            port_count(port, DIRECTORY_FULL, 1);
            return 0;
        } else {
            /* acquire: the Agent has read what it released before it is written over */
            port->tail = atomic_load_explicit(word_at(port->base, TAIL_OFFSET), memory_order_acquire);
            if (port->head - port->tail < port->records)
                return 1;
            answer = full(tab, RING_FULL);
        }
        if (answer != 1)
            return answer;
    }
    port_count(port, RING_FULL, 1);
    return 0;
}

static inline int
has_room(Tab *tab)
{
    Port *port = tab->port;
    if (LIKELY(tab->generation == port->generation && port->head - port->tail < port->records && tab->id != NO_TAB &&
               atomic_load_explicit(port->guard, memory_order_relaxed) &&
               !atomic_load_explicit(word_at(port->base, RETIRED_OFFSET), memory_order_relaxed)))
        return 1;
    return find_room(tab);
}

static inline void
commit(Tab *tab, double time, uint64_t value, uint64_t flags)
{
    Port *port = tab->port;
    uint8_t *record = port->record_ring + (port->head & (port->records - 1)) * 24;
    uint64_t lap = ((port->head >> port->record_shift) + 1) & 0xffffffff;
    memcpy(record, &time, 8);
    memcpy(record + 8, &value, 8);
    /* release: whoever sees this word sees the time, the value and the bytes before it */
    atomic_store_explicit(word_at(record, 16), tab->id | flags << 24 | lap << 32, memory_order_release);
    port->head++;
}

static inline PyObject *
answer(int outcome)
{
    if (outcome < 0)
        return NULL;
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

/* 1 and the time, or 0: after a counted drop, or with an exception */
static inline int
time_of(Tab *tab, PyObject *given, double *time)
{
    if (LIKELY(given == NULL || given == Py_None)) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        *time = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
        return 1;
    }
    double seconds = -1;
    PyObject *number = NULL;
    if (!PyFloat_Check(given) && !PyLong_Check(given)) {
        number = as_number(given);
        if (number == NULL && PyErr_Occurred())
            return 0;
        given = number;
    }
    if (given == NULL) {
    } else if (PyFloat_Check(given)) {
        seconds = PyFloat_AS_DOUBLE(given);
    } else if (PyLong_Check(given) && !PyBool_Check(given)) {
        seconds = PyLong_AsDouble(given);
        if (PyErr_Occurred()) {
            PyErr_Clear();
            seconds = -1;
        }
    }
    Py_XDECREF(number);
    if (!(seconds >= 0 && seconds <= MAX_TIME)) { /* or not a number */
        port_count(tab->port, BAD_TIME, 1);
        return 0;
    }
    *time = seconds;
    return 1;
}

static inline PyObject *
record_number(Tab *tab, double value, PyObject *given)
{
    double time;
    if (!LIKELY(time_of(tab, given, &time)))
        return answer(PyErr_Occurred() ? -1 : 0);
    int room = has_room(tab);
    if (!LIKELY(room == 1))
        return answer(room);
    uint64_t bits;
    memcpy(&bits, &value, 8);
    commit(tab, time, bits, 0);
    Py_RETURN_NONE;
}

static PyObject *
record_bytes(Tab *tab, PyObject *value, PyObject *given)
{
    double time;
    if (!LIKELY(time_of(tab, given, &time)))
        return answer(PyErr_Occurred() ? -1 : 0);
    Port *port = tab->port;
    for (int tries = 0; tries < 3; tries++) {
        int room = has_room(tab);
        if (room != 1)
            return answer(room);
        Writer out = {port->byte_ring, port->byte_ring_bytes, port->byte_head, 0, port->max_value, 0};
        for (int reads = 0; reads < 2; reads++) {
            uint64_t used = port->byte_head - port->byte_tail;
            out.room = used <= port->byte_ring_bytes ? port->byte_ring_bytes - used : 0;
            out.length = 0;
            int reason = put_value(&out, value, 0);
            if (reason != DONE) {
                port_count(port, (unsigned)reason, 1);
                Py_RETURN_NONE;
            }
            if (LIKELY(out.length <= out.room)) {
                commit(tab, time, out.length << 40 | (out.begin & ((1ULL << 40) - 1)), FLAG_BYTES);
                port->byte_head += out.length;
                Py_RETURN_NONE;
            }
            port->byte_tail = atomic_load_explicit(word_at(port->base, BYTE_TAIL_OFFSET), memory_order_acquire);
        }
        int again = full(tab, BYTES_FULL);
        if (again != 1)
            return answer(again);
    }
    port_count(port, BYTES_FULL, 1);
    Py_RETURN_NONE;
}

/* Whether it is of a type of its own that has numbers to give; bool is a built-in. */
static inline int
says_number(PyObject *value)
{
    PyNumberMethods *methods = Py_TYPE(value)->tp_as_number;
    return methods != NULL && (methods->nb_index != NULL || methods->nb_float != NULL) && !PyBool_Check(value);
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
    } else if (!PyUnicode_CheckExact(value) && says_number(value)) {
        PyObject *number = as_number(value);
        if (number == NULL) {
            if (PyErr_Occurred())
                return NULL;
            port_count(tab->port, VALUE_TYPE, 1);
            Py_RETURN_NONE;
        }
        PyObject *outcome = record_value(tab, number, given);
        Py_DECREF(number);
        return outcome;
    }
    return record_bytes(tab, value, given);
}

/* --- Tabs ---------------------------------------------------------------------------------------------------------------------- */

/* One value and `time`, each by place or by name; 0 after a TypeError. */
static int
arguments(const char *method, const char *first, PyObject *const *args, Py_ssize_t count, PyObject *names, PyObject **value, PyObject **time)
{
    PyObject *found[2] = {NULL, NULL};
    if (count > 2) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most 2 arguments", method);
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
            PyErr_Format(PyExc_TypeError, which < 0 ? "%s() got an unexpected keyword argument '%U'" : "%s() got '%U' twice", method, name);
            return 0;
        }
        found[which] = args[count + i];
    }
    *value = found[0];
    *time = found[1];
    return 1;
}

#define TAKE_ARGUMENTS(method, first)                                                                                                   \
    PyObject *value = count == 1 ? args[0] : NULL, *time = NULL;                                                                        \
    if (!LIKELY(count <= 1 && names == NULL) && !arguments(method, first, args, count, names, &value, &time))                          \
        return NULL;

#define REQUIRE_VALUE(method, first)                                                                                                    \
    if (value == NULL) {                                                                                                                \
        PyErr_SetString(PyExc_TypeError, method "() takes a " first);                                                                   \
        return NULL;                                                                                                                    \
    }

static PyObject *
tab_record(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    TAKE_ARGUMENTS("record", "value")
    REQUIRE_VALUE("record", "value")
    return record_value(self, value, time);
}

static PyObject *
tab_observe(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    TAKE_ARGUMENTS("observe", "value")
    REQUIRE_VALUE("observe", "value")
    return record_value(self, value, time);
}

static PyObject *
tab_set(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    TAKE_ARGUMENTS("set", "value")
    REQUIRE_VALUE("set", "value")
    return record_value(self, value, time);
}

static PyObject *
tab_inc(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    TAKE_ARGUMENTS("inc", "n")
    return value == NULL ? record_number(self, 1.0, time) : record_value(self, value, time);
}

static PyObject *
tab_dec(Tab *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    TAKE_ARGUMENTS("dec", "n")
    if (value == NULL)
        return record_number(self, -1.0, time);
    if (PyFloat_Check(value))
        return record_number(self, -PyFloat_AS_DOUBLE(value), time);
    if (PyLong_Check(value) && !PyBool_Check(value)) {
        PyObject *negative = PyLong_Type.tp_as_number->nb_negative(value); /* int's own, whatever the subclass */
        if (negative == NULL)
            return NULL;
        PyObject *outcome = record_value(self, negative, time);
        Py_DECREF(negative);
        return outcome;
    }
    PyObject *number = says_number(value) ? as_number(value) : NULL;
    if (number != NULL) {
        PyObject *negative = PyNumber_Negative(number);
        Py_DECREF(number);
        if (negative == NULL)
            return NULL;
        PyObject *outcome = record_value(self, negative, time);
        Py_DECREF(negative);
        return outcome;
    }
    if (PyErr_Occurred())
        return NULL;
    port_count(self->port, VALUE_TYPE, 1);
    Py_RETURN_NONE;
}

static PyObject *
tab_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *port, *name, *tab_type;
    PyObject *port_type = PyObject_GetAttrString((PyObject *)type, "_port");
    if (port_type == NULL)
        return NULL;
    int parsed = PyArg_ParseTuple(args, "O!UU:Tab", port_type, &port, &name, &tab_type);
    Py_DECREF(port_type);
    if (!parsed)
        return NULL;
    Tab *self = (Tab *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->id = NO_TAB;
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
    return 0;
}

static void
tab_dealloc(Tab *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
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

static PyGetSetDef tab_getset[] = {
    {"name", (getter)tab_name, NULL, "The canonical name.", NULL},
    {"type", (getter)tab_type, NULL, "The Type.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define METHOD(name, doc) {#name, (PyCFunction)(void (*)(void))tab_##name, METH_FASTCALL | METH_KEYWORDS, doc}
#define RECORD METHOD(record, "record(value, time=None): record one Event; time in Unix seconds, now if None.")

static PyMethodDef tab_methods[] = {RECORD, {NULL, NULL, 0, NULL}};
static PyMethodDef counter_methods[] = {RECORD, METHOD(inc, "inc(n=1, time=None): count n."), {NULL, NULL, 0, NULL}};
static PyMethodDef percentile_methods[] = {RECORD, METHOD(observe, "observe(value, time=None): record one value."), {NULL, NULL, 0, NULL}};
static PyMethodDef gauge_methods[] = {RECORD, METHOD(set, "set(value, time=None): the value from now on."), {NULL, NULL, 0, NULL}};
static PyMethodDef updown_methods[] = {
    RECORD,
    METHOD(inc, "inc(n=1, time=None): n more."),
    METHOD(dec, "dec(n=1, time=None): n fewer."),
    {NULL, NULL, 0, NULL},
};

static const struct {
    const char *name, *full_name, *doc;
    PyMethodDef *methods;
} tab_kinds[] = {
    {"Tab", "taba.client._accelerator.Tab", "A named series of any Type.", tab_methods},
    {"Counter", "taba.client._accelerator.Counter", "Counts.", counter_methods},
    {"Percentile", "taba.client._accelerator.Percentile", "Percentiles of values.", percentile_methods},
    {"Gauge", "taba.client._accelerator.Gauge", "The last value.", gauge_methods},
    {"UpDown", "taba.client._accelerator.UpDown", "A number that goes up and down.", updown_methods},
};

/* --- the module ---------------------------------------------------------------------------------------------------------------- */

static int
add_tabs(PyObject *module, PyObject *port)
{
    PyObject *base = NULL;
    for (size_t i = 0; i < sizeof tab_kinds / sizeof *tab_kinds; i++) {
        PyType_Slot slots[] = {
            {Py_tp_doc, (void *)tab_kinds[i].doc},
            {Py_tp_methods, tab_kinds[i].methods},
            {Py_tp_new, tab_new},
            {Py_tp_dealloc, tab_dealloc},
            {Py_tp_traverse, tab_traverse},
            {Py_tp_repr, tab_repr},
            {Py_tp_getset, tab_getset},
            {0, NULL},
        };
        unsigned flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | (base == NULL ? Py_TPFLAGS_BASETYPE : 0);
        PyType_Spec spec = {tab_kinds[i].full_name, sizeof(Tab), 0, flags, slots};
        PyObject *bases = base == NULL ? NULL : PyTuple_Pack(1, base);
        if (base != NULL && bases == NULL)
            return -1;
        PyObject *type = PyType_FromModuleAndSpec(module, &spec, bases);
        Py_XDECREF(bases);
        if (type == NULL)
            return -1;
        int failed = PyModule_AddObjectRef(module, tab_kinds[i].name, type) < 0 || PyObject_SetAttrString(type, "_port", port) < 0;
        if (base == NULL) {
            base = type; /* borrowed: the module holds it */
            failed = failed || PyObject_SetAttrString(port, "_tab", type) < 0;
        }
        Py_DECREF(type);
        if (failed)
            return -1;
    }
    return 0;
}

static int
module_exec(PyObject *module)
{
    PyObject *mapping = PyType_FromModuleAndSpec(module, &mapping_spec, NULL);
    PyObject *port = mapping == NULL ? NULL : PyType_FromModuleAndSpec(module, &port_spec, NULL);
    int failed = port == NULL || PyModule_AddObjectRef(module, "Mapping", mapping) < 0 || PyModule_AddObjectRef(module, "Port", port) < 0 ||
                 PyObject_SetAttrString(port, "_mapping", mapping) < 0 || add_tabs(module, port) < 0 ||
                 PyModule_AddIntConstant(module, "MAX_DEPTH", MAX_DEPTH) < 0 || PyModule_AddIntConstant(module, "DROPS_OFFSET", DROPS_OFFSET) < 0 ||
                 PyModule_AddIntConstant(module, "TAIL_OFFSET", TAIL_OFFSET) < 0 ||
                 PyModule_AddIntConstant(module, "BYTE_TAIL_OFFSET", BYTE_TAIL_OFFSET) < 0 ||
                 PyModule_AddIntConstant(module, "RETIRED_OFFSET", RETIRED_OFFSET) < 0 ||
                 PyModule_AddIntConstant(module, "DROP_PLACES", DROP_PLACES) < 0;
    Py_XDECREF(mapping);
    Py_XDECREF(port);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "taba.client._accelerator",
    .m_doc = "The C accelerator of the ring's producer.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__accelerator(void)
{
    return PyModuleDef_Init(&module_definition);
}
