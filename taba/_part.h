/* How a part in C becomes a module of Python.

   1. It says of which form it is, FORM, which taba/parts.py compares: what was built from other sources is left alone.
   2. One that keeps nothing of its own is made for each interpreter (OF_EACH_INTERPRETER), beside others that have a GIL of their own, too.
      One with rooms or words that all its calls share is the main interpreter's: elsewhere Python refuses it (OF_ONE_INTERPRETER).
   3. None is for a Python without the GIL: setup.py builds none there, and the slot says so to whoever builds it all the same. */

#ifndef TABA_PART_H
#define TABA_PART_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_mod_multiple_interpreters
#define OF_EACH_INTERPRETER {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#define OF_ONE_INTERPRETER {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#else
#define OF_EACH_INTERPRETER
#define OF_ONE_INTERPRETER
#endif

#ifdef Py_mod_gil
#define WITH_THE_GIL {Py_mod_gil, Py_MOD_GIL_USED},
#else
#define WITH_THE_GIL
#endif

/* A function of (module, arguments, how many), for a table of methods. */
#define FAST(name, function, doc) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, doc}

static inline int begin_nothing(void) { return 0; }

/* The module `whole`, whose last name is `name`, of the table `methods`. `begin` makes ready what it needs, as Python's own: 0, or -1 with an
   exception. */
#define MAKE_PART(name, whole, begin, interpreters, about)                                                                                  \
    static int exec_part(PyObject *module) { return begin() < 0 ? -1 : PyModule_AddIntConstant(module, "FORM", FORM); }                     \
    static PyModuleDef_Slot part_slots[] = {{Py_mod_exec, exec_part}, interpreters WITH_THE_GIL{0, NULL}};                                  \
    static struct PyModuleDef part_definition = {                                                                                           \
        PyModuleDef_HEAD_INIT, .m_name = whole, .m_doc = about, .m_methods = methods, .m_slots = part_slots};                               \
    PyMODINIT_FUNC PyInit_##name(void) { return PyModuleDef_Init(&part_definition); }

#endif
