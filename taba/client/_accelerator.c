/* The C accelerator of the ring's producer: the same records as taba/client/pure.py, in a few nanoseconds.

   _layout.h has the numbers, _producer.h the algorithm, _values.h the values that are no float; here they meet Python. _metering.h has
   what middlewares record of a request by, _total.h what prometheus_client's values count by.

   1. Nothing here gives up the GIL between the reservation and the commit of a record, or calls Python in between: records come from
      one producer at a time, and an exception never finds one half written.
   2. What is rare is Python's: a Tab without a place in the ring, a ring that is full, retired or the parent's. `attend` decides: None
      to try again, or the reason for the drop.
   3. State is the Port's, one per interpreter; types are the module's. There is no global state. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#include "_layout.h"
#include "_producer.h"
#include "_values.h"

#if PY_VERSION_HEX >= 0x030D0000
#define IS_FINALIZING() Py_IsFinalizing()
#else
#define IS_FINALIZING() _Py_IsFinalizing()
#endif

#define NO_TAB UINT32_MAX   /* the id of a Tab that the directory has no room for */
#define MAX_TRIES 4         /* a look at the ring after each; more means that somebody fills it as fast as it is drained */
#define CACHED_LABELS 64    /* sets of labels that a Tab finds again at once; a power of two */
#define MAX_CACHED_LABELS 8 /* labels in such a set; a Tab has one or two */

#define READ_EVERY 1000000000LL /* ns between two readings of what set_function() was given */

/* what attend() is told where it is no reason for a drop: port.NO_PLACE, port.RETIRED, port.DUE */
enum { NO_PLACE = -1, RETIRED = -2, DUE = -4 };
/* what became of a look for room where it is no reason for a drop */
enum { ROOM = -1, RAISED = -2 };

typedef struct {
    PyTypeObject *mapping, *port, *tab, *gauge, *meter, *exchange, *step, *reply;
    PyObject *timer, *track, *exceptions; /* of taba.client.timing */
} State;

/* The module's state, from one of its types or a subclass; NULL with an exception once the module was taken apart. */
static State *
state_of(PyTypeObject *type)
{
    for (; type != NULL; type = type->tp_base) {
        State *state = NULL;
        if (type->tp_flags & Py_TPFLAGS_HEAPTYPE && ((PyHeapTypeObject *)type)->ht_module != NULL)
            state = PyType_GetModuleState(type);
        if (state != NULL && state->exceptions != NULL)
            return state;
    }
    PyErr_SetString(PyExc_RuntimeError, "the interpreter ends");
    return NULL;
}

/* --- Mapping: shared memory without a descriptor ------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    uint8_t *base;
    size_t size;
    Py_ssize_t exports; /* views of it, and Ports that record into it */
} Mapping;

static PyObject *
mapping_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    int fd;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "in:Mapping", &fd, &size))
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

/* --- Port: the producer's side of one ring after another ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    word_t *guard;       /* a page of its own, which the kernel clears in a forked child; 1 while this process owns the ring */
    uint64_t generation; /* of the ring; a Tab with another generation has no place in it */
    uint64_t life;       /* of the process: a forked child's is another */
    int is_orphan;       /* a forked child has left its parent's ring; attend() has not heard of it */
    int is_reading;      /* there are functions to read: each record looks whether it is time */
    int64_t read_at;     /* monotonic ns of the last reading */
    Producer ring;
    Mapping *mapping;
    PyObject *attend;
    PyObject *label;
    PyObject *follow;
    size_t page;
} Port;

typedef struct {
    PyObject *names; /* the labels' keys, as the call has them; NULL in an empty place */
    PyObject *values[MAX_CACHED_LABELS];
    PyObject *tab;
} Labelled;

typedef struct {
    PyObject_HEAD
    uint64_t generation;
    uint32_t id;
    int is_healing;    /* its values are summed: what finds the ring full is owed, and a new ring begins with the sum */
    int is_kept;       /* `net` is kept: one that heals keeps the sum, a Gauge the last number */
    clockid_t clock;   /* of events without a time */
    uint64_t cell;     /* where in the ring its cell lies, while `generation` is the ring's; 0 without one */
    uint64_t net_life; /* the process whose sum `net` is */
    double net;
    Port *port;
    PyObject *name;
    PyObject *type;
    Labelled *labelled; /* CACHED_LABELS places, once labels() was called */
} Tab;

static void
port_leave(Port *self)
{
    Mapping *mapping = self->mapping;
    producer_leave(&self->ring);
    self->generation++;
    self->mapping = NULL;
    if (mapping != NULL) {
        mapping->exports--;
        Py_DECREF(mapping);
    }
}

/* The producer; a forked child that notices here that it is one has left its parent's ring, whose counts stay the parent's. */
static Producer *
port_ring(Port *self)
{
    if (!LIKELY(atomic_load_explicit(self->guard, memory_order_relaxed))) {
        port_leave(self);
        producer_forget(&self->ring);
        self->life++;
        self->is_orphan = 1;
        atomic_store_explicit(self->guard, 1, memory_order_relaxed);
    }
    return &self->ring;
}

static PyObject *
port_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *attend, *label, *follow;
    if (!PyArg_ParseTuple(args, "OOO:Port", &attend, &label, &follow))
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
    self->generation = self->life = 1; /* a new Tab has 0 of both */
    Py_INCREF(attend);
    self->attend = attend;
    Py_INCREF(label);
    self->label = label;
    Py_INCREF(follow);
    self->follow = follow;
    return (PyObject *)self;
}

static int
port_traverse(Port *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->attend);
    Py_VISIT(self->label);
    Py_VISIT(self->follow);
    return 0; /* a mapping refers to nothing */
}

static int
port_clear(Port *self)
{
    Py_CLEAR(self->attend);
    Py_CLEAR(self->label);
    Py_CLEAR(self->follow);
    return 0;
}

static void
port_dealloc(Port *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    port_leave(self);
    port_clear(self);
    munmap((void *)self->guard, self->page);
    type->tp_free(self);
    Py_DECREF(type);
}

/* While there are functions to read: what is known of the tail is a hint, and with this one each record goes by find_room(). */
static inline void
port_look_each_time(Port *self)
{
    if (self->is_reading)
        self->ring.tail = self->ring.head - self->ring.records;
}

/* Whether a second has gone since the functions were read; then they are, now. */
static int
port_reading_is_due(Port *self)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now); /* vDSO: no system call */
    int64_t nanoseconds = now.tv_sec * 1000000000LL + now.tv_nsec;
    if (self->read_at != 0 && nanoseconds - self->read_at < READ_EVERY)
        return 0;
    self->read_at = nanoseconds;
    return 1;
}

static PyObject *
port_read_often(Port *self, PyObject *given)
{
    self->is_reading = PyObject_IsTrue(given) == 1;
    (void)port_ring(self);
    (void)port_reading_is_due(self); /* what is given is read by whoever gives it */
    port_look_each_time(self);
    Py_RETURN_NONE;
}

static PyObject *
port_open(Port *self, PyObject *args)
{
    PyObject *given;
    unsigned long long counts = DROPS_OFFSET;
    if (!PyArg_ParseTuple(args, "O|K:open", &given, &counts))
        return NULL;
    State *state = state_of(Py_TYPE(self));
    if (state == NULL)
        return NULL;
    if (!PyObject_TypeCheck(given, state->mapping)) {
        PyErr_SetString(PyExc_TypeError, "open() takes a Mapping");
        return NULL;
    }
    Mapping *mapping = (Mapping *)given;
    if (mapping->base == NULL || !is_segment_size(mapping->size)) {
        PyErr_SetString(PyExc_ValueError, "no ring has this size, or its mapping is closed");
        return NULL;
    }
    int is_slot = counts >= SLOTS_OFFSET && counts <= HEADER_BYTES - SLOT_BYTES && (counts - SLOTS_OFFSET) % SLOT_BYTES == 0;
    if (mapping->size == HEADER_BYTES ? !is_slot : counts != DROPS_OFFSET) {
        PyErr_SetString(PyExc_ValueError, "no counts lie there");
        return NULL;
    }
    Producer *ring = port_ring(self);
    port_leave(self);
    Py_INCREF(mapping);
    mapping->exports++;
    self->mapping = mapping;
    producer_enter(ring, mapping->base, mapping->size, counts);
    port_look_each_time(self);
    Py_RETURN_NONE;
}

static PyObject *
port_close(Port *self, PyObject *Py_UNUSED(ignored))
{
    (void)port_ring(self);
    port_leave(self);
    Py_RETURN_NONE;
}

static PyObject *
port_reset(Port *self, PyObject *Py_UNUSED(ignored))
{
    port_leave(self);
    if (!self->is_orphan) { /* else what is counted is the child's already */
        producer_forget(&self->ring);
        self->life++;
    }
    self->is_orphan = 0;
    atomic_store(self->guard, 1);
    Py_RETURN_NONE;
}

static PyObject *
port_is_forked(Port *self, PyObject *Py_UNUSED(ignored))
{
    (void)port_ring(self);
    return PyBool_FromLong(self->is_orphan);
}

static PyObject *
port_count(Port *self, PyObject *args)
{
    unsigned int reason;
    unsigned long long times = 1;
    if (!PyArg_ParseTuple(args, "I|K:count", &reason, &times))
        return NULL;
    if (reason >= MAX_DROP_REASONS) {
        PyErr_SetString(PyExc_ValueError, "no such reason");
        return NULL;
    }
    producer_count(port_ring(self), reason, times);
    Py_RETURN_NONE;
}

/* The Tab that Python gave, of this Port; NULL after an exception. */
static Tab *
port_tab(Port *self, PyObject *given)
{
    State *state = state_of(Py_TYPE(self));
    if (state == NULL)
        return NULL;
    if (!PyObject_TypeCheck(given, state->tab) || ((Tab *)given)->port != self) {
        PyErr_SetString(PyExc_TypeError, "takes a Tab of this Port");
        return NULL;
    }
    return (Tab *)given;
}

/* What this process keeps of a Tab: of a healing one the sum of what it recorded, of a Gauge the last value (0 where it is no number). */
static double *
tab_net(Tab *self)
{
    if (self->net_life != self->port->life) {
        self->net_life = self->port->life;
        self->net = 0;
    }
    return &self->net;
}

static void
tab_keep(Tab *self, double value)
{
    double *net = tab_net(self);
    if (!self->is_healing)
        *net = isfinite(value) ? value : 0;
    else if (isfinite(value))
        *net += value;
}

/* One step, as seen from Python: a signal handler finds the Tab in the ring and in its directory, or in neither. */
static PyObject *
port_enter(Port *self, PyObject *args)
{
    PyObject *given;
    const char *entry;
    Py_ssize_t length;
    unsigned long id, position;
    int has_cell;
    if (!PyArg_ParseTuple(args, "Oky#kp:enter", &given, &id, &entry, &length, &position, &has_cell))
        return NULL;
    Tab *tab = port_tab(self, given);
    if (tab == NULL)
        return NULL;
    Producer *ring = port_ring(self);
    uint64_t room = ring->records * 32 / 8 - HEADER_BYTES; /* of the directory */
    if (ring->records == 0 || id >= 1UL << TAB_BITS || position % 8 || position > room || (uint64_t)length > room - position ||
        length < ENTRY_BYTES + (has_cell ? CELL_BYTES : 0)) {
        PyErr_SetString(PyExc_ValueError, "no such place in the directory");
        return NULL;
    }
    uint64_t begin = HEADER_BYTES + position;
    memcpy(ring->base + begin, entry, (size_t)length);
    if (has_cell) {
        uint64_t bits;
        memcpy(&bits, tab_net(tab), 8);
        atomic_store_explicit(word_at(ring->base, begin + ENTRY_BYTES + OWED_OFFSET), bits, memory_order_relaxed);
    }
    atomic_store_explicit(word_at(ring->base, DIRECTORY_USED_OFFSET), position + (uint64_t)length, memory_order_release);
    /* release: whoever sees this count finds the entries whole */
    atomic_store_explicit(word_at(ring->base, DIRECTORY_COUNT_OFFSET), id + 1, memory_order_release);
    tab->id = (uint32_t)id;
    tab->cell = has_cell ? begin + ENTRY_BYTES : 0;
    tab->generation = self->generation;
    Py_RETURN_NONE;
}

static PyObject *
port_refuse(Port *self, PyObject *given)
{
    Tab *tab = port_tab(self, given);
    if (tab == NULL)
        return NULL;
    if (port_ring(self)->records == 0) {
        PyErr_SetString(PyExc_ValueError, "there is no ring");
        return NULL;
    }
    tab->id = NO_TAB;
    tab->cell = 0;
    tab->generation = self->generation;
    Py_RETURN_NONE;
}

static PyObject *
port_has(Port *self, PyObject *given)
{
    Tab *tab = port_tab(self, given);
    if (tab == NULL)
        return NULL;
    return PyBool_FromLong(port_ring(self)->records != 0 && tab->generation == self->generation);
}

static PyObject *
port_totals(Port *self, PyObject *Py_UNUSED(ignored))
{
    Producer *ring = port_ring(self);
    PyObject *totals = PyList_New(MAX_DROP_REASONS);
    for (Py_ssize_t reason = 0; totals != NULL && reason < MAX_DROP_REASONS; reason++) {
        PyObject *count = PyLong_FromUnsignedLongLong(ring->totals[reason]);
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
    Producer *ring = port_ring(self);
    return PyLong_FromUnsignedLongLong(ring->before + ring->head);
}

static PyObject *
port_position(Port *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(port_ring(self)->head);
}

static PyObject *
port_is_open(Port *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(port_ring(self)->records != 0);
}

static PyMethodDef port_methods[] = {
    {"open", (PyCFunction)port_open, METH_VARARGS,
     "open(mapping, counts): record into this ring, whose counts lie at `counts`; into one without records, count only."},
    {"close", (PyCFunction)port_close, METH_NOARGS, "Leave the ring."},
    {"reset", (PyCFunction)port_reset, METH_NOARGS, "Leave the ring and forget all counts: a forked child begins."},
    {"is_forked", (PyCFunction)port_is_forked, METH_NOARGS, "Whether this process is a child that reset() has not heard of."},
    {"count", (PyCFunction)port_count, METH_VARARGS, "count(reason, times=1): count drops, in the header where there is one."},
    {"enter", (PyCFunction)port_enter, METH_VARARGS, "enter(tab, id, entry, position, has_cell): publish the Tab's entry, and give it its place."},
    {"refuse", (PyCFunction)port_refuse, METH_O, "refuse(tab): the directory has no room for it."},
    {"has", (PyCFunction)port_has, METH_O, "Whether the Tab has been given its place in this ring, or been refused one."},
    {"read_often", (PyCFunction)port_read_often, METH_O, "Whether there are functions to read: attend(tab, DUE), once a second."},
    {"totals", (PyCFunction)port_totals, METH_NOARGS, "Drops of this process by reason."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef port_getset[] = {
    {"recorded", (getter)port_recorded, NULL, "Events recorded by this process.", NULL},
    {"position", (getter)port_position, NULL, "The position of the next record in this ring.", NULL},
    {"is_open", (getter)port_is_open, NULL, "Whether there is a ring that takes records.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot port_slots[] = {
    {Py_tp_doc, "Port(attend, label, follow): the producer's side of a ring; attend(tab, why) does what is rare, label(tab, labels) gives Tabs, "
                "follow(tab, function) keeps what set_function() is given."},
    {Py_tp_new, port_new},
    {Py_tp_dealloc, port_dealloc},
    {Py_tp_traverse, port_traverse},
    {Py_tp_clear, port_clear},
    {Py_tp_methods, port_methods},
    {Py_tp_getset, port_getset},
    {0, NULL},
};

static PyType_Spec port_spec = {
    "taba.client._accelerator.Port", sizeof(Port), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, port_slots,
};

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
tab_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *port, *name, *tab_type;
    int is_coarse, is_healing;
    State *state = state_of(type);
    if (state == NULL || !PyArg_ParseTuple(args, "O!UUpp:Tab", state->port, &port, &name, &tab_type, &is_coarse, &is_healing))
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

static PyGetSetDef tab_getset[] = {
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

#include "_metering.h"
#include "_total.h"

/* --- the module ---------------------------------------------------------------------------------------------------------------- */

/* ns that a read of the clock takes: the least of some rounds, for this thread may lose the processor in any of them. */
static int64_t
cost_of(clockid_t clock)
{
    enum { ROUNDS = 8, READS = 32 };
    int64_t least = INT64_MAX;
    struct timespec begin, end, now;
    for (int round = 0; round < ROUNDS; round++) {
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (int read = 0; read < READS; read++)
            clock_gettime(clock, &now);
        clock_gettime(CLOCK_MONOTONIC, &end);
        int64_t taken = (end.tv_sec - begin.tv_sec) * 1000000000LL + end.tv_nsec - begin.tv_nsec;
        least = taken < least ? taken : least;
    }
    return least;
}

/* Whether the coarse clock is worth its coarseness: where it is a system call it costs as much as the exact one. */
static int
is_coarse_sound(void)
{
    struct timespec resolution;
    if (clock_getres(CLOCK_REALTIME_COARSE, &resolution) < 0 || resolution.tv_sec > 0 || resolution.tv_nsec > 20000000)
        return 0;
    return 2 * cost_of(CLOCK_REALTIME) >= 3 * cost_of(CLOCK_REALTIME_COARSE);
}

static int
add_type(PyObject *module, const char *name, PyType_Spec *spec, PyTypeObject *base, PyTypeObject **kept)
{
    PyObject *bases = base == NULL ? NULL : PyTuple_Pack(1, base);
    if (base != NULL && bases == NULL)
        return -1;
    PyObject *type = PyType_FromModuleAndSpec(module, spec, bases);
    Py_XDECREF(bases);
    if (type == NULL)
        return -1;
    if (PyModule_AddObjectRef(module, name, type) < 0) {
        Py_DECREF(type);
        return -1;
    }
    if (kept != NULL)
        *kept = (PyTypeObject *)type;
    else
        Py_DECREF(type);
    return 0;
}

/* the numbers that this was compiled with, for the test that compares them */
static int
add_layout(PyObject *module)
{
#define NUMBER_ITEM(name, value) {#name, value},
    static const struct {
        const char *name;
        long long value;
    } numbers[] = {LAYOUT(NUMBER_ITEM){"MAX_EXACT_INT", MAX_EXACT_INT}, {"MAX_TIME", (long long)MAX_TIME}};
#define REASON_ITEM(name, text) text,
    static const char *const reasons[] = {REASONS(REASON_ITEM)};
    PyObject *layout = PyDict_New(), *names = PyTuple_New(REASONS_KNOWN);
    int failed = layout == NULL || names == NULL;
    for (size_t i = 0; !failed && i < sizeof numbers / sizeof *numbers; i++) {
        PyObject *value = PyLong_FromLongLong(numbers[i].value);
        failed = value == NULL || PyDict_SetItemString(layout, numbers[i].name, value) < 0;
        Py_XDECREF(value);
    }
    for (Py_ssize_t i = 0; !failed && i < REASONS_KNOWN; i++) {
        PyObject *name = PyUnicode_FromString(reasons[i]);
        failed = name == NULL;
        if (!failed)
            PyTuple_SET_ITEM(names, i, name);
    }
    failed = failed || PyModule_AddObjectRef(module, "LAYOUT", layout) < 0 || PyModule_AddObjectRef(module, "REASONS", names) < 0;
    Py_XDECREF(layout);
    Py_XDECREF(names);
    return failed ? -1 : 0;
}

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    PyObject *timing = PyImport_ImportModule("taba.client.timing");
    if (timing == NULL)
        return -1;
    state->timer = PyObject_GetAttrString(timing, "Timer");
    state->track = state->timer == NULL ? NULL : PyObject_GetAttrString(timing, "Track");
    state->exceptions = state->track == NULL ? NULL : PyObject_GetAttrString(timing, "Exceptions");
    Py_DECREF(timing);
    if (state->exceptions == NULL || add_type(module, "Mapping", &mapping_spec, NULL, &state->mapping) < 0 ||
        add_type(module, "Port", &port_spec, NULL, &state->port) < 0 || add_type(module, "Tab", &tab_spec, NULL, &state->tab) < 0)
        return -1;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        PyType_Slot slots[] = {
            {Py_tp_doc, (void *)kinds[i].doc}, {Py_tp_methods, kinds[i].methods}, {Py_tp_traverse, tab_traverse}, {Py_tp_clear, tab_clear},
            {Py_tp_dealloc, tab_dealloc},      {0, NULL},
        };
        unsigned flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE;
        PyType_Spec spec = {kinds[i].full_name, sizeof(Tab), 0, flags, slots};
        int is_gauge = kinds[i].methods == gauge_methods;
        if (add_type(module, kinds[i].name, &spec, state->tab, is_gauge ? &state->gauge : NULL) < 0)
            return -1;
    }
    if (add_type(module, "Meter", &meter_spec, NULL, &state->meter) < 0 ||
        add_type(module, "Exchange", &exchange_spec, NULL, &state->exchange) < 0 ||
        add_type(module, "Step", &step_spec, NULL, &state->step) < 0 || add_type(module, "Reply", &reply_spec, NULL, &state->reply) < 0)
        return -1;
    if (add_type(module, "Total", &total_spec, NULL, NULL) < 0)
        return -1;
    PyObject *coarse = is_coarse_sound() ? Py_True : Py_False;
    return PyModule_AddObjectRef(module, "IS_COARSE_SOUND", coarse) < 0 ? -1 : add_layout(module);
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->mapping);
    Py_VISIT(state->port);
    Py_VISIT(state->tab);
    Py_VISIT(state->gauge);
    Py_VISIT(state->meter);
    Py_VISIT(state->exchange);
    Py_VISIT(state->step);
    Py_VISIT(state->reply);
    Py_VISIT(state->timer);
    Py_VISIT(state->track);
    Py_VISIT(state->exceptions);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->mapping);
    Py_CLEAR(state->port);
    Py_CLEAR(state->tab);
    Py_CLEAR(state->gauge);
    Py_CLEAR(state->meter);
    Py_CLEAR(state->exchange);
    Py_CLEAR(state->step);
    Py_CLEAR(state->reply);
    Py_CLEAR(state->timer);
    Py_CLEAR(state->track);
    Py_CLEAR(state->exceptions);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_USED}, /* the GIL is the lock of the ring; a build without it takes the pure-Python ring */
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "taba.client._accelerator",
    .m_doc = "The C accelerator of the ring's producer.",
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC
PyInit__accelerator(void)
{
    return PyModuleDef_Init(&module_definition);
}
