/* Sections of a batch of which nothing is amiss, of floats or of lists, taken apart in one pass over their bytes.

   1. What is here is done a second time: taba/batch/reading.py takes any section apart, says what is wrong with it, and does all that this
      leaves alone. Both find the same (tests/test_sections.py).
   2. Every byte is a stranger's: it is read only where the section's own length says that it lies. Whatever is out of the ordinary, a Client
      that may be none too, makes the whole None. Whether a Tab may be one is not asked here: of each that there is the caller asks once. */

#include "../_part.h"
#include "_bytes.h"
#include "_listed.h"
#include "_named.h"

#define FORM 6 /* of what Python gives it and gets: see taba/parts.py */
#define MOST_CLIENT 200
#define MOST_TYPE 64
#define MOST_EVENTS (UINT64_C(1) << 32) /* of a section that is taken apart here: sums of counts stay far from what a word holds */
#define FEW_TABS 8                      /* so many are compared one by one; more are looked up */
#define STREAM_BYTES 16
#define BATCH_ITEMS 6

static int is_client_char(uint8_t one) {
    return (one >= 'a' && one <= 'z') || (one >= 'A' && one <= 'Z') || (one >= '-' && one <= ':') || one == '_' || one == '@' || one == '+';
}

/* Whether this may be a client id in a batch: as taba.names.check_sender. */
static int is_client(const uint8_t *text, Py_ssize_t size) {
    if (size < 1 || size > MOST_CLIENT) return 0;
    for (Py_ssize_t place = 0; place < size; place++)
        if (!is_client_char(text[place])) return 0;
    if (text[0] == '_') return size == 9 && memcmp(text, "_overflow", 9) == 0;
    return size < 5 || memcmp(text, "taba.", 5) != 0;
}

/* The number of this Tab among `tabs`, a list, of which `known` are the same as a dict where there are many; -1 with an exception. */
static Py_ssize_t number_of(PyObject *tabs, PyObject **known, const uint8_t *text, Py_ssize_t size) {
    Py_ssize_t count = PyList_GET_SIZE(tabs), found = -1;
    if (count <= FEW_TABS) {
        for (Py_ssize_t at = 0; at < count; at++) {
            PyObject *other = PyList_GET_ITEM(tabs, at);
            if (PyBytes_GET_SIZE(other) == size && memcmp(PyBytes_AS_STRING(other), text, (size_t)size) == 0) return at;
        }
    }
    PyObject *name = PyBytes_FromStringAndSize((const char *)text, size);
    if (name == NULL) return -1;
    if (count >= FEW_TABS && *known == NULL) {
        if ((*known = PyDict_New()) == NULL) goto done;
        for (Py_ssize_t at = 0; at < count; at++) {
            PyObject *number = PyLong_FromSsize_t(at);
            int is_kept = number != NULL && PyDict_SetItem(*known, PyList_GET_ITEM(tabs, at), number) == 0;
            Py_XDECREF(number);
            if (!is_kept) goto done;
        }
    }
    if (*known != NULL) {
        PyObject *number = PyDict_GetItemWithError(*known, name);
        if (number != NULL) found = PyLong_AsSsize_t(number);
        if (number != NULL || PyErr_Occurred()) goto done;
        number = PyLong_FromSsize_t(count);
        int is_kept = number != NULL && PyDict_SetItem(*known, name, number) == 0;
        Py_XDECREF(number);
        if (!is_kept) goto done;
    }
    if (PyList_Append(tabs, name) == 0) found = count;
done:
    Py_DECREF(name);
    return found;
}

/* What a section has: see `read`. `tabs` and `of_tab` go together. */
struct section {
    PyObject *type, *fields, *counts, *times, *values, *tabs, *places;
    uint64_t *of_tab, events;
    Py_ssize_t columns;
};

static void clear_section(struct section *section) {
    Py_CLEAR(section->type);
    Py_CLEAR(section->fields);
    Py_CLEAR(section->counts);
    Py_CLEAR(section->times);
    Py_CLEAR(section->values);
    Py_CLEAR(section->tabs);
    Py_CLEAR(section->places);
    PyMem_Free(section->of_tab);
    section->of_tab = NULL;
}

/* Take the fields of as many columns as there are. 1, or 0 where one is out of the ordinary, or -1 with an exception. */
static int take_fields(Bytes *from, struct section *found) {
    PyObject *known = NULL;
    const uint8_t *start, *tab = NULL;
    Py_ssize_t size, tab_size = -1, place = -1;
    int done = -1;
    for (Py_ssize_t at = 0; at < found->columns; at++) {
        if (!take_bin(from, &start, &size)) {
            done = 0;
            goto end;
        }
        PyObject *field = PyBytes_FromStringAndSize((const char *)start, size);
        if (field == NULL) goto end;
        PyList_SET_ITEM(found->fields, at, field);
        const uint8_t *nul = size ? memchr(start, 0, (size_t)size) : NULL;
        if (nul == NULL || !is_client(nul + 1, size - (nul - start) - 1)) {
            done = 0;
            goto end;
        }
        if (tab_size != nul - start || memcmp(tab, start, (size_t)tab_size) != 0) {
            tab = start;
            tab_size = nul - start;
            place = number_of(found->tabs, &known, tab, tab_size);
            if (place < 0) goto end;
        }
        const int32_t own = (int32_t)place;
        memcpy(PyBytes_AS_STRING(found->places) + at * (Py_ssize_t)sizeof own, &own, sizeof own);
    }
    done = 1;
end:
    Py_XDECREF(known);
    return done;
}

/* Take a section of at most so many columns. As above; what is found so far is the caller's to clear. */
static int take_section(Bytes from, Py_ssize_t most, struct section *found) {
    const uint8_t *start;
    Py_ssize_t size;
    if (take_array(&from) != 5 || !take_text(&from, &start, &size) || size > MOST_TYPE) return 0;
    if ((found->type = PyUnicode_DecodeUTF8((const char *)start, size, NULL)) == NULL) {
        PyErr_Clear();
        return 0;
    }
    Py_ssize_t columns = found->columns = take_array(&from);
    if (columns < 1 || columns > most || columns > from.end - from.at) return 0;
    found->fields = PyList_New(columns);
    found->counts = PyTuple_New(columns);
    found->tabs = PyList_New(0);
    found->places = PyBytes_FromStringAndSize(NULL, columns * (Py_ssize_t)sizeof(int32_t));
    if (found->fields == NULL || found->counts == NULL || found->tabs == NULL || found->places == NULL) return -1;
    int done = take_fields(&from, found);
    if (done <= 0) return done;
    if (!take_bin(&from, &start, &size) || size != 4 * columns) return 0;
    found->of_tab = PyMem_Calloc((size_t)PyList_GET_SIZE(found->tabs), sizeof *found->of_tab);
    if (found->of_tab == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t at = 0; at < columns; at++) {
        const uint8_t *its = start + 4 * at;
        uint32_t count = (uint32_t)its[0] | (uint32_t)its[1] << 8 | (uint32_t)its[2] << 16 | (uint32_t)its[3] << 24;
        if (!count) return 0;
        found->events += count;
        int32_t own;
        memcpy(&own, PyBytes_AS_STRING(found->places) + at * (Py_ssize_t)sizeof own, sizeof own);
        found->of_tab[own] += count;
        PyObject *one = PyLong_FromUnsignedLong(count);
        if (one == NULL) return -1;
        PyTuple_SET_ITEM(found->counts, at, one);
    }
    const uint8_t *times, *values;
    Py_ssize_t times_size, values_size;
    if (found->events >= MOST_EVENTS || !take_bin(&from, &times, &times_size) || !take_bin(&from, &values, &values_size) || from.at != from.end)
        return 0;
    if ((uint64_t)times_size != 8 * found->events || values_size != times_size) return 0;
    found->times = PyBytes_FromStringAndSize((const char *)times, times_size);
    found->values = PyBytes_FromStringAndSize((const char *)values, values_size);
    return found->times == NULL || found->values == NULL ? -1 : 1;
}

PyDoc_STRVAR(read_doc,
"read(packed, most) -> (type, fields, counts, times, values, tabs, moved, places) | None\n\n"
"What a section of at most so many columns has: its Type as text, a list of its fields, a tuple of how many rows each has, times and values\n"
"as bytes, a list of its Tabs as bytes, each once, a list of how many rows each of these has, and for each column which of them is its own\n"
"(bytes of int32).\n"
"None where anything is out of the ordinary.");

static PyObject *read_section(PyObject *module, PyObject *const *given, Py_ssize_t number) {
    (void)module;
    if (number != 2 || !PyBytes_CheckExact(given[0])) {
        PyErr_SetString(PyExc_TypeError, "read takes the bytes of a section, and how many columns it may have");
        return NULL;
    }
    Py_ssize_t most = PyLong_AsSsize_t(given[1]);
    if (most == -1 && PyErr_Occurred()) return NULL;
    Bytes from = {.at = (const uint8_t *)PyBytes_AS_STRING(given[0])};
    from.end = from.at + PyBytes_GET_SIZE(given[0]);
    struct section found = {0};
    PyObject *result = NULL, *moved = NULL;
    int done = take_section(from, most, &found);
    if (done > 0 && (moved = PyList_New(PyList_GET_SIZE(found.tabs))) != NULL) {
        for (Py_ssize_t at = 0; at < PyList_GET_SIZE(moved); at++) {
            PyObject *one = PyLong_FromUnsignedLongLong(found.of_tab[at]);
            if (one == NULL) goto end;
            PyList_SET_ITEM(moved, at, one);
        }
        result = Py_BuildValue("(OOOOOOOO)", found.type, found.fields, found.counts, found.times, found.values, found.tabs, moved, found.places);
    } else if (done == 0) {
        result = Py_NewRef(Py_None);
    }
end:
    Py_XDECREF(moved);
    clear_section(&found);
    return result;
}

/* What is to be known of batches beside their bytes: see `read_batch`. */
struct reading {
    PyObject *types, *names, *bad, *block_form, *column_form, *packed_form;
    Py_ssize_t columns, object_bytes, most_name, unread; /* the last: bytes of names that may still be read in one go */
    Py_ssize_t most_number, value_bytes, item_bytes;     /* of a count; of a value; that an item of a list is charged with */
    uint64_t made;
};

/* What a call that refuses names raised: 0 where it is one of those, else -1. */
static int refused(PyObject *bad) {
    if (!PyErr_ExceptionMatches(bad)) return -1;
    PyErr_Clear();
    return 0;
}

/* Have the names of Tabs be Tabs. As `take_fields`. */
static int name_tabs(struct reading *reading, PyObject *tabs) {
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(tabs); at++) {
        PyObject *name = PyList_GET_ITEM(tabs, at);
        reading->unread -= PyBytes_GET_SIZE(name);
        if (PyBytes_GET_SIZE(name) > reading->most_name || reading->unread <= 0) return 0; /* in steps */
        PyObject *tab = PyObject_GetItem(reading->names, name);
        if (tab == NULL) return refused(reading->bad);
        PyList_SetItem(tabs, at, tab);
    }
    return 1;
}

/* Have `column` be one of these of a section of lists, whose times and values these are, and which stands for `weight` where that is some.
   As above. */
static int listed_column(struct reading *reading, const struct section *found, Py_ssize_t at, const uint8_t *times, uint32_t count,
                         Bytes values, PyObject *weight, PyObject **column) {
    const Py_ssize_t size = values.end - values.at;
    if (size > reading->value_bytes) return 0;
    PyObject *its;
    Py_ssize_t objects = count;
    if (weight != Py_None && count == 1 && is_row(values)) {
        PyObject *content = PyBytes_FromStringAndSize((const char *)values.at, size), *one = PyLong_FromLong(1);
        PyObject *given[2] = {content, one};
        its = content == NULL || one == NULL ? NULL : PyObject_Vectorcall(reading->packed_form, given, 2, NULL);
        Py_XDECREF(content);
        Py_XDECREF(one);
        objects = ROW_OBJECTS;
    } else {
        its = take_values(values, count);
    }
    if (its == NULL) return PyErr_Occurred() ? -1 : 0;
    reading->made += (uint64_t)reading->item_bytes * (uint64_t)objects;
    int32_t own;
    memcpy(&own, PyBytes_AS_STRING(found->places) + at * (Py_ssize_t)sizeof own, sizeof own);
    PyObject *items[6] = {client_of(PyList_GET_ITEM(found->fields, at)), Py_NewRef(PyList_GET_ITEM(found->tabs, own)), Py_NewRef(found->type),
                          PyBytes_FromStringAndSize((const char *)times, 8 * (Py_ssize_t)count), its, Py_NewRef(weight)};
    *column = named(reading->column_form, 6, items);
    return *column == NULL ? -1 : 1;
}

/* Have `columns` be those of a section of lists, which is charged already but for them. As above. */
static int columns_of(struct reading *reading, Bytes from, uint64_t events, PyObject **columns) {
    struct section found = {0};
    PyObject *checked, *made = NULL;
    const uint8_t *start, *counts, *times, *weights = NULL;
    Py_ssize_t size, times_size, items = take_array(&from);
    uint64_t all = 0, stands = 0;
    int done = 0;
    if ((items != 5 && items != 6) || !take_text(&from, &start, &size) || size > MOST_TYPE) return 0;
    if ((found.type = PyUnicode_DecodeUTF8((const char *)start, size, NULL)) == NULL) {
        PyErr_Clear();
        return 0;
    }
    Py_ssize_t number = found.columns = take_array(&from);
    if (number < 1 || number > reading->columns || number > from.end - from.at) goto end;
    done = -1;
    found.fields = PyList_New(number);
    found.tabs = PyList_New(0);
    found.places = PyBytes_FromStringAndSize(NULL, number * (Py_ssize_t)sizeof(int32_t));
    if (found.fields == NULL || found.tabs == NULL || found.places == NULL || (done = take_fields(&from, &found)) <= 0) goto end;
    done = 0;
    if (!take_bin(&from, &counts, &size) || size != 4 * number || !take_bin(&from, &times, &times_size)) goto end;
    if (take_array(&from) != number) goto end;
    Bytes values = from;
    for (Py_ssize_t at = 0; at < number; at++)
        if (!take_bin(&from, &start, &size)) goto end;
    if (items == 6 && (!take_bin(&from, &weights, &size) || size != 4 * number)) goto end;
    if (from.at != from.end) goto end;
    for (Py_ssize_t at = 0; at < number; at++) {
        uint32_t count = uint32_at(counts, at), weight = weights == NULL ? count : uint32_at(weights, at);
        if (!count || count > (uint64_t)reading->most_number || weight > (uint64_t)reading->most_number) goto end;
        all += count;
        stands += weight;
    }
    if ((uint64_t)times_size != 8 * all || stands != events) goto end;
    if ((checked = PyObject_GetItem(reading->types, found.type)) == NULL) {
        done = refused(reading->bad);
        goto end;
    }
    Py_DECREF(checked);
    if ((done = name_tabs(reading, found.tabs)) <= 0) goto end;
    done = -1;
    if ((made = PyList_New(number)) == NULL) goto end;
    for (Py_ssize_t at = 0; at < number; at++) {
        uint32_t count = uint32_at(counts, at);
        PyObject *column = NULL, *weight = weights == NULL ? Py_NewRef(Py_None) : PyLong_FromUnsignedLong(uint32_at(weights, at));
        take_bin(&values, &start, &size);
        done = weight == NULL ? -1 : listed_column(reading, &found, at, times, count, (Bytes){start, start + size}, weight, &column);
        Py_XDECREF(weight);
        if (done <= 0) goto end;
        PyList_SET_ITEM(made, at, column);
        times += 8 * (Py_ssize_t)count;
    }
    reading->columns -= number;
    reading->made += (uint64_t)reading->object_bytes * (uint64_t)(number - 1);
    *columns = Py_NewRef(made);
end:
    Py_XDECREF(made);
    clear_section(&found);
    return done;
}

/* Have `block` be that of a section. As `take_fields`. */
static int block_of(struct reading *reading, Bytes from, uint64_t events, PyObject **block) {
    struct section found = {0};
    PyObject *moved = NULL;
    reading->made += (uint64_t)(reading->object_bytes + (from.end - from.at));
    int done = take_section(from, reading->columns, &found);
    if (done > 0 && found.events != events) done = 0;
    if (done <= 0) goto end;
    PyObject *checked = PyObject_GetItem(reading->types, found.type);
    if (checked == NULL) {
        done = refused(reading->bad);
        goto end;
    }
    Py_DECREF(checked);
    if ((done = name_tabs(reading, found.tabs)) <= 0) goto end;
    done = -1;
    if ((moved = PyDict_New()) == NULL) goto end;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(found.tabs); at++) {
        PyObject *rows = PyLong_FromUnsignedLongLong(found.of_tab[at]);
        int is_kept = rows != NULL && PyDict_SetItem(moved, PyList_GET_ITEM(found.tabs, at), rows) == 0;
        Py_XDECREF(rows);
        if (!is_kept) goto end;
    }
    reading->columns -= found.columns;
    reading->made += (uint64_t)reading->object_bytes * (uint64_t)(found.columns - 1);
    PyObject *items[7] = {Py_NewRef(found.type),   Py_NewRef(found.fields), Py_NewRef(found.counts), Py_NewRef(found.times),
                          Py_NewRef(found.values), Py_NewRef(moved),        Py_NewRef(found.places)};
    *block = named(reading->block_form, 7, items);
    done = *block == NULL ? -1 : 1;
end:
    Py_XDECREF(moved);
    clear_section(&found);
    return done;
}

PyDoc_STRVAR(read_batch_doc,
"read_batch(content, versions, bounds, names, forms) -> Batch | (Batch, columns) | None\n\n"
"The batch in `content` where it is of one of these versions, all its sections are such as `read` takes, or have lists of values that hold no\n"
"others, or of absolutes, and it has no meanings; None where anything is out of the ordinary, or would be read in steps. Where it has other\n"
"sections as well, each of these is its bytes and how many Events it says that it has, and beside the batch stands how many columns they may\n"
"have. `bounds`: bytes of a batch, its columns, its events, bytes of names, and of sections of lists, that are read in one go, bytes that a\n"
"column is charged with, buckets, bytes of a name that is remembered, bytes of a value, bytes that one is charged with; `names`: what by []\n"
"raises for no Type, what so makes a Tab of its bytes, and what these raise for others; `forms`: Batch, Columns, Block, Column and Packed.");

static PyObject *read_batch(PyObject *module, PyObject *const *given, Py_ssize_t number) {
    (void)module;
    if (number != 5 || !PyBytes_CheckExact(given[0]) || !PyTuple_CheckExact(given[3]) || PyTuple_GET_SIZE(given[3]) != 3 ||
        !PyTuple_CheckExact(given[4]) || PyTuple_GET_SIZE(given[4]) != 5) {
        PyErr_SetString(PyExc_TypeError, "read_batch takes the bytes of a batch, versions, bounds, three names and five forms");
        return NULL;
    }
    PyObject *names = given[3], *forms = given[4], *parts = NULL, *batch = NULL;
    Py_ssize_t most[9];
    for (int at = 0; at < 9; at++)
        if ((most[at] = bound(given[2], at)) == -1 && PyErr_Occurred()) return NULL;
    struct reading reading = {
        .types = PyTuple_GET_ITEM(names, 0), .names = PyTuple_GET_ITEM(names, 1), .bad = PyTuple_GET_ITEM(names, 2),
        .block_form = PyTuple_GET_ITEM(forms, 2), .column_form = PyTuple_GET_ITEM(forms, 3), .packed_form = PyTuple_GET_ITEM(forms, 4),
        .columns = most[1], .object_bytes = most[4], .most_name = most[6], .unread = most[3],
        .most_number = most[0], .value_bytes = most[7], .item_bytes = most[8],
    };
    Bytes from = {.at = (const uint8_t *)PyBytes_AS_STRING(given[0])};
    from.end = from.at + PyBytes_GET_SIZE(given[0]);
    uint64_t version, bucket, its_number, total = 0;
    Py_ssize_t others = 0; /* bytes of sections of other values than floats */
    int is_left = 0;       /* one of them is not read here */
    const uint8_t *stream, *start;
    Py_ssize_t stream_size, size, items;
    if (from.end - from.at > most[0] || take_array(&from) != BATCH_ITEMS || !take_number(&from, &version)) Py_RETURN_NONE;
    int is_read = is_one_of(version, given[1]);
    if (is_read < 0) return NULL;
    if (!is_read || !take_bin(&from, &stream, &stream_size) || stream_size != STREAM_BYTES || !take_number(&from, &bucket) ||
        bucket >= (uint64_t)most[5] || !take_number(&from, &its_number) || its_number < 1 || its_number > INT64_MAX)
        Py_RETURN_NONE;
    if ((items = take_array(&from)) < 0 || items % 2 || items > 2 * most[1]) Py_RETURN_NONE;
    if ((parts = PyList_New(0)) == NULL) return NULL;
    for (Py_ssize_t at = 0; at < items; at += 2) {
        uint64_t events;
        PyObject *block = NULL;
        if (!take_number(&from, &events) || !take_bin(&from, &start, &size) || events > (uint64_t)most[2] ||
            (total += events) > (uint64_t)most[2])
            goto none;
        int done = block_of(&reading, (Bytes){start, start + size}, events, &block);
        if (done == 0 && (others += size + 1) > most[3]) goto none; /* in steps */
        if (done == 0) {
            const struct reading before = reading;
            done = columns_of(&reading, (Bytes){start, start + size}, events, &block);
            if (done == 0) {
                reading = before; /* whatever was charged of it is charged where it is read */
                is_left = 1;
            }
        }
        if (done == 0 && (block = Py_BuildValue("(y#K)", (const char *)start, size, (unsigned long long)events)) != NULL) done = 1;
        int is_kept = done > 0 && PyList_Append(parts, block) == 0;
        Py_XDECREF(block);
        if (!is_kept) goto end;
    }
    if (!take_bin(&from, &start, &size) || size || from.at != from.end) goto none;
    PyObject *columns = PyObject_CallOneArg(PyTuple_GET_ITEM(forms, 1), parts);
    if (columns == NULL) goto end;
    PyObject *made[7] = {PyBytes_FromStringAndSize((const char *)stream, stream_size), PyLong_FromUnsignedLongLong(bucket),
                         PyLong_FromUnsignedLongLong(its_number), columns, PyTuple_New(0), PyLong_FromLong(0),
                         PyLong_FromUnsignedLongLong(reading.made)};
    batch = named(PyTuple_GET_ITEM(forms, 0), 7, made);
    if (is_left && batch != NULL) batch = Py_BuildValue("(Nn)", batch, reading.columns);
    goto end;
none:
    batch = Py_NewRef(Py_None);
end:
    Py_XDECREF(parts);
    return batch;
}

static PyMethodDef methods[] = {
    FAST("read", read_section, read_doc),
    FAST("read_batch", read_batch, read_batch_doc),
    {NULL, NULL, 0, NULL},
};

MAKE_PART(_sections, "taba.batch._sections", begin_nothing, OF_EACH_INTERPRETER, "Sections of which nothing is amiss, taken apart.")
