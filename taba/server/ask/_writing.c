/* JSON of what answers show, written in one go: what json.dumps(shown(value), ensure_ascii=False, allow_nan=False) gives.

   1. Only exact built-in types are looked into here. Whatever else there is, `shown` makes plain, and that is written then.
   2. What is written is UTF-8, in one growing piece of memory. No Python is called on the way, but for whole numbers and `shown`.
   3. The same fraction often stands in an answer several times, and its shortest digits take longer to find than all else: the last
      few are remembered.
   4. A container may not change while it is gone through: nothing called here has it, except `shown`, so its items are held. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../../_part.h"

#define FORM 1 /* of what Python gives it and gets: see taba/parts.py */
#define FIRST_ROOM 4096
#define REMEMBERED 16    /* fractions; a power of two */
#define MOST_DIGITS 25   /* -1.7976931348623157e+308 and its end */
#define MOST_WHOLE 9223372036854775808.0 /* 2^63: a float from there on is an estimate, and shown as one */

typedef struct {
    uint64_t bits;
    unsigned char size; /* 0: none */
    char text[MOST_DIGITS];
} Fraction;

typedef struct {
    char *text;
    Py_ssize_t size, room;
    PyObject *shown; /* borrowed */
    int is_ascii;
    Fraction fractions[REMEMBERED];
} Writer;

static int
grow(Writer *writer, Py_ssize_t more)
{
    Py_ssize_t room = writer->room;
    if (more > PY_SSIZE_T_MAX / 4 - writer->size) {
        PyErr_NoMemory();
        return -1;
    }
    while (room < writer->size + more) room *= 2;
    char *text = PyMem_Realloc(writer->text, (size_t)room);
    if (text == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    writer->text = text;
    writer->room = room;
    return 0;
}

static inline int
put(Writer *writer, const char *text, Py_ssize_t size)
{
    if (writer->size + size > writer->room && grow(writer, size) < 0) return -1;
    memcpy(writer->text + writer->size, text, (size_t)size);
    writer->size += size;
    return 0;
}

static int
put_text(Writer *writer, PyObject *value)
{
    static const char HEX[] = "0123456789abcdef";
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size); /* UnicodeEncodeError: half a character, which no answer can send */
    if (text == NULL) return -1;
    if (size > PY_SSIZE_T_MAX / 8) {
        PyErr_NoMemory();
        return -1;
    }
    if (!PyUnicode_IS_ASCII(value)) writer->is_ascii = 0;
    Py_ssize_t most = 6 * size + 2; /* \u001f for each, and quotes */
    if (writer->size + most > writer->room && grow(writer, most) < 0) return -1;
    char *at = writer->text + writer->size;
    *at++ = '"';
    for (Py_ssize_t place = 0; place < size; place++) {
        unsigned char character = (unsigned char)text[place];
        if (character >= 0x20 && character != '"' && character != '\\') {
            *at++ = (char)character;
            continue;
        }
        *at++ = '\\';
        switch (character) {
        case '"': *at++ = '"'; break;
        case '\\': *at++ = '\\'; break;
        case '\n': *at++ = 'n'; break;
        case '\r': *at++ = 'r'; break;
        case '\t': *at++ = 't'; break;
        case '\f': *at++ = 'f'; break;
        case '\b': *at++ = 'b'; break;
        default:
            *at++ = 'u';
            *at++ = '0';
            *at++ = '0';
            *at++ = HEX[character >> 4];
            *at++ = HEX[character & 15];
        }
    }
    *at++ = '"';
    writer->size = at - writer->text;
    return 0;
}

static int
put_whole(Writer *writer, long long value)
{
    char digits[24], *at = digits + sizeof digits;
    unsigned long long left = value < 0 ? 0ULL - (unsigned long long)value : (unsigned long long)value;
    do {
        *--at = (char)('0' + left % 10);
        left /= 10;
    } while (left);
    if (value < 0) *--at = '-';
    return put(writer, at, digits + sizeof digits - at);
}

static int
put_int(Writer *writer, PyObject *value)
{
    int is_large;
    long long small = PyLong_AsLongLongAndOverflow(value, &is_large);
    if (small == -1 && PyErr_Occurred()) return -1;
    if (!is_large) return put_whole(writer, small);
    PyObject *text = PyLong_Type.tp_repr(value); /* ValueError: more digits than Python writes */
    if (text == NULL) return -1;
    Py_ssize_t size;
    const char *digits = PyUnicode_AsUTF8AndSize(text, &size);
    int done = digits == NULL ? -1 : put(writer, digits, size);
    Py_DECREF(text);
    return done;
}

static int
put_float(Writer *writer, double value)
{
    if (!isfinite(value)) return put(writer, "null", 4);
    if (value > -MOST_WHOLE && value < MOST_WHOLE && value == floor(value)) return put_whole(writer, (long long)value);
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    Fraction *fraction = &writer->fractions[bits * 0x9E3779B97F4A7C15ULL >> 60];
    if (!fraction->size || fraction->bits != bits) {
        char *text = PyOS_double_to_string(value, 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
        if (text == NULL) return -1;
        size_t size = strlen(text);
        if (size >= MOST_DIGITS) {
            int done = put(writer, text, (Py_ssize_t)size);
            PyMem_Free(text);
            return done;
        }
        memcpy(fraction->text, text, size);
        fraction->bits = bits;
        fraction->size = (unsigned char)size;
        PyMem_Free(text);
    }
    return put(writer, fraction->text, fraction->size);
}

static int put_value(Writer *writer, PyObject *value, int is_plain);

/* What is none of the types that are known here: what `shown` makes of it, which is. */
static int
put_odd(Writer *writer, PyObject *value)
{
    PyObject *plain = PyObject_CallOneArg(writer->shown, value);
    if (plain == NULL) return -1;
    int done = put_value(writer, plain, 1);
    Py_DECREF(plain);
    return done;
}

static int
has_text_keys(PyObject *value, int is_plain)
{
    Py_ssize_t place = 0;
    PyObject *key, *item;
    while (PyDict_Next(value, &place, &key, &item))
        if (!PyUnicode_CheckExact(key) && !(is_plain && PyUnicode_Check(key))) return 0;
    return 1;
}

static int
put_dict(Writer *writer, PyObject *value, int is_plain)
{
    Py_ssize_t place = 0, size = PyDict_GET_SIZE(value);
    PyObject *key, *item;
    int is_first = 1;
    if (put(writer, "{", 1) < 0) return -1;
    while (PyDict_Next(value, &place, &key, &item)) {
        if (!PyUnicode_Check(key)) goto changed; /* what `shown` asked for its text has put another in */
        if (!is_plain && PyUnicode_GET_LENGTH(key) && PyUnicode_READ_CHAR(key, 0) == '_') continue;
        if (!is_first && put(writer, ", ", 2) < 0) return -1;
        is_first = 0;
        Py_INCREF(item);
        int done = put_text(writer, key) < 0 || put(writer, ": ", 2) < 0 ? -1 : put_value(writer, item, is_plain);
        Py_DECREF(item);
        if (done < 0) return -1;
        if (PyDict_GET_SIZE(value) != size) goto changed;
    }
    return put(writer, "}", 1);
changed:
    PyErr_SetString(PyExc_RuntimeError, "a dictionary changed while it was written");
    return -1;
}

static int
put_items(Writer *writer, PyObject *value, int is_plain)
{
    if (put(writer, "[", 1) < 0) return -1;
    for (Py_ssize_t place = 0; place < PySequence_Fast_GET_SIZE(value); place++) {
        PyObject *item = PySequence_Fast_GET_ITEM(value, place);
        if (place && put(writer, ", ", 2) < 0) return -1;
        Py_INCREF(item);
        int done = put_value(writer, item, is_plain);
        Py_DECREF(item);
        if (done < 0) return -1;
    }
    return put(writer, "]", 1);
}

/* `is_plain`: `shown` has made it, and left out what is hidden; it is not asked again. */
static int
put_value(Writer *writer, PyObject *value, int is_plain)
{
    if (PyFloat_CheckExact(value) || (is_plain && PyFloat_Check(value))) return put_float(writer, PyFloat_AS_DOUBLE(value));
    if (value == Py_None) return put(writer, "null", 4);
    if (value == Py_True) return put(writer, "true", 4);
    if (value == Py_False) return put(writer, "false", 5);
    if (PyLong_CheckExact(value) || (is_plain && PyLong_Check(value))) return put_int(writer, value);
    if (PyUnicode_CheckExact(value) || (is_plain && PyUnicode_Check(value))) return put_text(writer, value);
    int is_dict = PyDict_CheckExact(value), is_list = PyList_CheckExact(value) || PyTuple_CheckExact(value);
    if (is_dict ? !has_text_keys(value, is_plain) : !is_list) {
        if (is_plain) {
            PyErr_Format(PyExc_TypeError, "%s is nothing that is shown", Py_TYPE(value)->tp_name);
            return -1;
        }
        return put_odd(writer, value);
    }
    if (Py_EnterRecursiveCall(" while an answer is written")) return -1;
    int done = is_dict ? put_dict(writer, value, is_plain) : put_items(writer, value, is_plain);
    Py_LeaveRecursiveCall();
    return done;
}

static PyObject *
write_json(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "write() takes a value and what makes others plain");
        return NULL;
    }
    Writer writer = {.text = PyMem_Malloc(FIRST_ROOM), .room = FIRST_ROOM, .shown = arguments[1], .is_ascii = 1};
    if (writer.text == NULL) return PyErr_NoMemory();
    PyObject *found = NULL;
    if (put_value(&writer, arguments[0], 0) == 0) {
        if (writer.is_ascii) {
            found = PyUnicode_New(writer.size, 127);
            if (found != NULL) memcpy(PyUnicode_1BYTE_DATA(found), writer.text, (size_t)writer.size);
        } else {
            found = PyUnicode_DecodeUTF8(writer.text, writer.size, "strict");
        }
    }
    PyMem_Free(writer.text);
    return found;
}

static PyMethodDef methods[] = {
    FAST("write", write_json, "write(value, shown): JSON of what is shown of it; `shown` makes what is not plain so."),
    {NULL, NULL, 0, NULL},
};

MAKE_PART(_writing, "taba.server.ask._writing", begin_nothing, OF_EACH_INTERPRETER, "JSON of what answers show.")
