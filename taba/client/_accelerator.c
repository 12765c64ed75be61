/* The C accelerator of the ring's producer: the same records as taba/client/pure.py, in a few nanoseconds.

   _layout.h has the numbers, _producer.h the algorithm, _values.h the values that are no float. With these Python meets them: _mapping.h
   has the memory, _port.h the ring and its Tabs' places, _recording.h one record, _tabs.h what applications call; _metering.h what
   middlewares record of a request by, _total.h what prometheus_client's values count by. Here they become a module, of one piece: all are
   one translation unit.

   State is the Port's, one per interpreter; types are the module's. There is no global state. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#define FORM 1 /* of what Python gives it and gets: see taba/parts.py */

#include "../_part.h"
#include "_layout.h"
#include "_producer.h"
#include "_values.h"

#if PY_VERSION_HEX >= 0x030D0000
#define IS_FINALIZING() Py_IsFinalizing()
#else
#define IS_FINALIZING() _Py_IsFinalizing()
#endif

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

#include "_mapping.h"
#include "_port.h"
#include "_recording.h"
#include "_tabs.h"
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
    if (PyModule_AddIntConstant(module, "FORM", FORM) < 0)
        return -1;
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
    OF_EACH_INTERPRETER
    WITH_THE_GIL /* it is the lock of the ring; a build without it takes the pure-Python ring */
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
