/* The producer's side of one ring after another, as taba/client/port.py has it, and what it keeps of each of its Tabs: part of _accelerator.c.

   What is rare is Python's: a Tab without a place in the ring, a ring that is full, retired or the parent's. `attend` decides: None to try
   again, or the reason for the drop. */

#ifndef TABA_PORT_H
#define TABA_PORT_H

#define NO_TAB UINT32_MAX   /* the id of a Tab that the directory has no room for */
#define CACHED_LABELS 64    /* sets of labels that a Tab finds again at once; a power of two */
#define MAX_CACHED_LABELS 8 /* labels in such a set; a Tab has one or two */
#define READ_EVERY 1000000000LL /* ns between two readings of what set_function() was given */

/* what attend() is told where it is no reason for a drop: port.NO_PLACE, port.RETIRED, port.DUE */
enum { NO_PLACE = -1, RETIRED = -2, DUE = -4 };

/* --- Port: the producer's side of one ring after another ----------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    word_t *guard;       /* a page of its own, which the kernel clears in a forked child; 1 while this process owns the ring */
    uint64_t generation; /* of the ring; a Tab with another generation has no place in it */
    uint64_t life;       /* of the process: a forked child's is another */
    double born;         /* monotonic seconds at which it was found forked; 0 where it was not */
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
        self->born = clock_seconds(CLOCK_MONOTONIC);
        self->is_orphan = 1;
        atomic_store_explicit(self->guard, 1, memory_order_relaxed);
    }
    return &self->ring;
}

static PyObject *
port_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"attend", "label", "follow", NULL};
    PyObject *attend, *label, *follow;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:Port", names, &attend, &label, &follow))
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
        self->born = clock_seconds(CLOCK_MONOTONIC);
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

#endif
