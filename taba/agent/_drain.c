/* The Agent's drain, where numpy would go over the same events several times: records are counted by Tab, put in order, and written as
   batches. `taba/agent/gathering.py`, `taba/agent/encoding.py` and `taba/agent/reader.py` say what for, and do without it the same in numpy.

   1. Records were read into this process's own memory: nobody changes them here. What is in them is hostile all the same: every size,
      every number of a Tab and every place is checked before it is used.
   2. What is not plain (flags, Tabs that nobody knows) is said to be so and left to Python.
   3. Nothing here keeps anything, reads a ring or gives up the GIL. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "_checksum.h"

#if PY_BIG_ENDIAN
#error "records are little-endian"
#endif

#define FORM 3 /* of what Python gives it and gets: see taba/parts.py */
#define RECORD_BYTES 24
#define FIELDS_AHEAD 12 /* columns */
#define AHEAD 8 /* words in a line of the cache */
#define FETCH_LINE(array, at) __builtin_prefetch((const void *)((uintptr_t)(array) + 8 * (at)), 1)
#define MAX_RECORDS (1u << 30)

typedef struct {
    double time;
    uint64_t value;
    uint32_t tab; /* and flags above */
    uint32_t lap;
} Record;

_Static_assert(sizeof(Record) == RECORD_BYTES, "the layout of a record");

enum { ODD = -1 }; /* what `count` gives instead of a number of Tabs */

/* A buffer as an array of `size` bytes each, aligned for them. */
static int
get_array(PyObject *object, Py_buffer *view, Py_ssize_t size, size_t alignment, int flags)
{
    if (PyObject_GetBuffer(object, view, flags) < 0)
        return -1;
    if (view->len % size != 0 || (uintptr_t)view->buf % alignment != 0) {
        PyBuffer_Release(view);
        PyErr_SetString(PyExc_ValueError, "an array of another size, or that is not aligned");
        return -1;
    }
    return 0;
}

static int
get_records(PyObject *object, Py_buffer *view)
{
    if (get_array(object, view, RECORD_BYTES, _Alignof(Record), PyBUF_SIMPLE) < 0)
        return -1;
    if (view->len / RECORD_BYTES >= MAX_RECORDS) {
        PyBuffer_Release(view);
        PyErr_SetString(PyExc_ValueError, "too many records at once");
        return -1;
    }
    return 0;
}

PyDoc_STRVAR(leading_doc,
             "leading(records, lap)\n--\n\n"
             "(How many records from the first have this lap, where the last that has it ends.)");

static PyObject *
leading(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "leading(records, lap)");
        return NULL;
    }
    unsigned long lap = PyLong_AsUnsignedLong(args[1]);
    if (lap == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    Py_buffer view;
    if (get_records(args[0], &view) < 0)
        return NULL;
    const Record *records = view.buf;
    Py_ssize_t total = view.len / RECORD_BYTES, first = 0;
    while (first < total && records[first].lap == lap)
        first++;
    Py_ssize_t last = total;
    while (last > first && records[last - 1].lap != lap)
        last--;
    PyBuffer_Release(&view);
    return Py_BuildValue("nn", first, last);
}

static int
by_number(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

/* The Tabs that were counted, in order, and how often each; the counts are zero again. -1 with an exception. `most`: so many at the most. */
static Py_ssize_t
take_counts(const Record *records, Py_ssize_t total, uint32_t *counts, Py_ssize_t known, uint32_t *tabs, int64_t *many, Py_ssize_t most)
{
    Py_ssize_t found = 0;
    if (known <= 8 * total) {
        for (Py_ssize_t tab = 0; tab < known; tab++)
            if (counts[tab] != 0) {
                if (found == most) {
                    memset(counts, 0, (size_t)known * sizeof *counts);
                    PyErr_SetString(PyExc_ValueError, "counts that were not zero");
                    return -1;
                }
                tabs[found] = (uint32_t)tab;
                many[found++] = counts[tab];
                counts[tab] = 0;
            }
        return found;
    }
    uint64_t *seen = PyMem_Malloc((size_t)total * sizeof(uint64_t) + 1); /* many names, few events: only those that there are */
    if (seen == NULL) {
        for (Py_ssize_t at = 0; at < total; at++)
            counts[records[at].tab] = 0;
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t at = 0; at < total; at++) {
        uint32_t tab = records[at].tab;
        if (counts[tab] != 0) {
            seen[found++] = (uint64_t)tab << 32 | counts[tab];
            counts[tab] = 0;
        }
    }
    qsort(seen, (size_t)found, sizeof(uint64_t), by_number);
    for (Py_ssize_t at = 0; at < found; at++) {
        tabs[at] = (uint32_t)(seen[at] >> 32);
        many[at] = (int64_t)(seen[at] & UINT32_MAX);
    }
    PyMem_Free(seen);
    return found;
}

PyDoc_STRVAR(count_doc,
             "count(records, pieces, known, counts, tabs, many)\n--\n\n"
             "How many Tabs have a record here: these in order in `tabs` (uint32), and how many records of each in `many` (int64).\n\n"
             "`pieces`: (number of records, their lap), of all records one after the other; a lap of None is not looked at. -1 where a\n"
             "record has another, or flags, or a Tab that is not below `known`. `counts` (uint32) are zeros, and are again.");

static PyObject *
count(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 6 || !PyTuple_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "count(records, pieces, known, counts, tabs, many)");
        return NULL;
    }
    Py_ssize_t known = PyLong_AsSsize_t(args[2]), found = 0;
    if (known == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer records_view, counts_view, tabs_view, many_view;
    if (get_records(args[0], &records_view) < 0)
        return NULL;
    if (get_array(args[3], &counts_view, 4, 4, PyBUF_WRITABLE) < 0)
        goto no_counts;
    if (get_array(args[4], &tabs_view, 4, 4, PyBUF_WRITABLE) < 0)
        goto no_tabs;
    if (get_array(args[5], &many_view, 8, 8, PyBUF_WRITABLE) < 0)
        goto no_many;
    const Record *records = records_view.buf;
    uint32_t *counts = counts_view.buf;
    Py_ssize_t total = records_view.len / RECORD_BYTES, at = 0;
    Py_ssize_t most = total < known ? total : known;
    if (known < 0 || known > counts_view.len / 4 || most > tabs_view.len / 4 || most > many_view.len / 8) {
        PyErr_SetString(PyExc_ValueError, "no room for so many Tabs");
        goto done;
    }
    for (Py_ssize_t place = 0; place < PyTuple_GET_SIZE(args[1]); place++) {
        PyObject *piece = PyTuple_GET_ITEM(args[1], place);
        if (!PyTuple_Check(piece) || PyTuple_GET_SIZE(piece) != 2) {
            PyErr_SetString(PyExc_TypeError, "pieces are pairs");
            goto undo;
        }
        Py_ssize_t length = PyLong_AsSsize_t(PyTuple_GET_ITEM(piece, 0));
        PyObject *said = PyTuple_GET_ITEM(piece, 1);
        unsigned long lap = said == Py_None ? 0 : PyLong_AsUnsignedLong(said);
        if (PyErr_Occurred())
            goto undo;
        if (length < 0 || length > total - at) {
            PyErr_SetString(PyExc_ValueError, "pieces of more records than there are");
            goto undo;
        }
        Py_ssize_t end = at + length;
        if (said == Py_None) {
            for (; at < end && records[at].tab < known; at++)
                counts[records[at].tab]++;
        }
        else {
            for (; at < end && records[at].lap == lap && records[at].tab < known; at++)
                counts[records[at].tab]++;
        }
        if (at < end) {
            found = ODD;
            goto undo;
        }
    }
    if (at < total) {
        PyErr_SetString(PyExc_ValueError, "pieces of fewer records than there are");
        goto undo;
    }
    found = take_counts(records, total, counts, known, tabs_view.buf, many_view.buf, most);
    goto done;
undo:
    while (at > 0)
        counts[records[--at].tab] = 0;
done:
    PyBuffer_Release(&many_view);
no_many:
    PyBuffer_Release(&tabs_view);
no_tabs:
    PyBuffer_Release(&counts_view);
no_counts:
    PyBuffer_Release(&records_view);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(found);
}

PyDoc_STRVAR(place_doc,
             "place(records, tabs, starts, cursors, times, values, where)\n--\n\n"
             "Put the times and values of the records in order: those of each of `tabs` (uint32) from its one of `starts` (int64) on.\n\n"
             "`cursors` (int64) has room for every Tab; what is in it means nothing. `where` (int64): where each record went, or None.");

static PyObject *
place(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 7) {
        PyErr_SetString(PyExc_TypeError, "place(records, tabs, starts, cursors, times, values, where)");
        return NULL;
    }
    static const struct { Py_ssize_t size; int flags; } kinds[] = {
        {RECORD_BYTES, PyBUF_SIMPLE}, {4, PyBUF_SIMPLE}, {8, PyBUF_SIMPLE}, {8, PyBUF_WRITABLE},
        {8, PyBUF_WRITABLE}, {8, PyBUF_WRITABLE}, {8, PyBUF_WRITABLE},
    };
    Py_buffer views[7];
    Py_ssize_t had = 0, wanted = args[6] == Py_None ? 6 : 7;
    for (; had < wanted; had++) {
        size_t alignment = kinds[had].size == 4 ? 4 : 8;
        if (get_array(args[had], &views[had], kinds[had].size, alignment, kinds[had].flags) < 0)
            goto done;
    }
    const Record *records = views[0].buf;
    const uint32_t *tabs = views[1].buf;
    const int64_t *starts = views[2].buf;
    int64_t *cursors = views[3].buf, *where = wanted == 7 ? views[6].buf : NULL;
    double *times = views[4].buf;
    uint64_t *values = views[5].buf;
    Py_ssize_t total = views[0].len / RECORD_BYTES, columns = views[1].len / 4;
    uint64_t known = (uint64_t)views[3].len / 8, room = (uint64_t)views[4].len / 8;
    if (columns != views[2].len / 8 || views[5].len != views[4].len || (where != NULL && views[6].len / 8 < total)) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    for (Py_ssize_t column = 0; column < columns; column++) {
        if (tabs[column] >= known || starts[column] < 0) {
            PyErr_SetString(PyExc_ValueError, "a Tab beyond all");
            goto done;
        }
        cursors[tabs[column]] = starts[column];
    }
    for (Py_ssize_t at = 0; at < total; at++) {
        uint32_t tab = records[at].tab;
        if (tab >= known) {
            PyErr_SetString(PyExc_ValueError, "a Tab that was not counted");
            goto done;
        }
        uint64_t to = (uint64_t)cursors[tab];
        if (to >= room) { /* of a Tab that is not among them, too: whatever stands there */
            PyErr_SetString(PyExc_ValueError, "more records than were counted");
            goto done;
        }
        cursors[tab] = (int64_t)(to + 1);
        FETCH_LINE(times, to + AHEAD); /* of its column, the next line: nobody else knows that it will be written to */
        FETCH_LINE(values, to + AHEAD);
        times[to] = records[at].time;
        values[to] = records[at].value;
        if (where != NULL)
            where[at] = (int64_t)to;
    }
done:
    while (had > 0)
        PyBuffer_Release(&views[--had]);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

/* --- batches -------------------------------------------------------------------------------------------------------------------- */

enum { TYPE, COLUMNS, FIELDS, COUNTS, TIMES, VALUES, IS_LISTED, STANDS_FOR, EDGE, UNTIL, PLACES }; /* of a Section */
enum { MAX_SECTIONS = 65536 };
static const int parts_of[] = {FIELDS, COUNTS, TIMES, VALUES, STANDS_FOR, UNTIL};
enum { ITS_FIELDS, ITS_COUNTS, ITS_TIMES, ITS_VALUES, ITS_STANDS_FOR, ITS_UNTIL, PARTS };

typedef struct {
    PyObject *type; /* borrowed of the Section */
    const char *word;
    Py_ssize_t letters;
    uint64_t columns, edge;
    bool is_listed;
    Py_buffer parts[PARTS];
} Section;

typedef struct {
    Py_ssize_t first, after;
    uint64_t columns, weight, events, lengths[PARTS];
    uint64_t inside; /* bytes of what stands in its bin */
} Run;

static void
release_sections(Section *sections, Py_ssize_t total)
{
    for (Py_ssize_t at = 0; at < total; at++)
        for (int part = 0; part < PARTS; part++)
            PyBuffer_Release(&sections[at].parts[part]);
    PyMem_Free(sections);
}

static int
read_section(PyObject *object, Section *section)
{
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != PLACES) {
        PyErr_SetString(PyExc_TypeError, "no Section");
        return -1;
    }
    section->type = PyTuple_GET_ITEM(object, TYPE);
    section->word = PyUnicode_AsUTF8AndSize(section->type, &section->letters);
    if (section->word == NULL)
        return -1;
    section->columns = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(object, COLUMNS));
    section->edge = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(object, EDGE));
    int is_listed = PyObject_IsTrue(PyTuple_GET_ITEM(object, IS_LISTED));
    if (is_listed < 0 || PyErr_Occurred())
        return -1;
    section->is_listed = is_listed;
    if (section->columns > UINT32_MAX || section->letters > 255) {
        PyErr_SetString(PyExc_ValueError, "a Section beyond all bounds");
        return -1;
    }
    for (int part = 0; part < PARTS; part++)
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(object, parts_of[part]), &section->parts[part], PyBUF_SIMPLE) < 0) {
            while (part > 0)
                PyBuffer_Release(&section->parts[--part]);
            return -1;
        }
    return 0;
}

static bool
is_one_kind(const Section *one, const Section *other)
{
    return one->is_listed == other->is_listed && (one->parts[ITS_STANDS_FOR].len > 0) == (other->parts[ITS_STANDS_FOR].len > 0) &&
           one->edge == other->edge && one->letters == other->letters && memcmp(one->word, other->word, (size_t)one->letters) == 0;
}

static uint64_t
sum_uint32s(const Py_buffer *view)
{
    const unsigned char *bytes = view->buf;
    uint64_t sum = 0;
    for (Py_ssize_t at = 0; at + 4 <= view->len; at += 4) {
        uint32_t number;
        memcpy(&number, bytes + at, 4);
        sum += number;
    }
    return sum;
}

/* --- what msgpack writes; with `to` NULL only how long it is --- */

static size_t
put_big(unsigned char *to, unsigned char first, uint64_t number, int bytes)
{
    if (to != NULL) {
        *to++ = first;
        for (int at = bytes - 1; at >= 0; at--)
            *to++ = (unsigned char)(number >> (8 * at));
    }
    return (size_t)bytes + 1;
}

static size_t
put_number(unsigned char *to, uint64_t number)
{
    if (number < 128)
        return put_big(to, (unsigned char)number, 0, 0);
    if (number < 256)
        return put_big(to, 0xcc, number, 1);
    if (number < 65536)
        return put_big(to, 0xcd, number, 2);
    return number <= UINT32_MAX ? put_big(to, 0xce, number, 4) : put_big(to, 0xcf, number, 8);
}

static size_t
put_bin(unsigned char *to, uint64_t length)
{
    if (length < 256)
        return put_big(to, 0xc4, length, 1);
    return length < 65536 ? put_big(to, 0xc5, length, 2) : put_big(to, 0xc6, length, 4);
}

static size_t
put_array(unsigned char *to, uint64_t items)
{
    if (items < 16)
        return put_big(to, (unsigned char)(0x90 | items), 0, 0);
    return items < 65536 ? put_big(to, 0xdc, items, 2) : put_big(to, 0xdd, items, 4);
}

static size_t
put_word(unsigned char *to, const char *word, size_t letters)
{
    size_t head = letters < 32 ? put_big(to, (unsigned char)(0xa0 | letters), 0, 0) : put_big(to, 0xd9, letters, 1);
    if (to != NULL)
        memcpy(to + head, word, letters);
    return head + letters;
}

static size_t
put_parts(unsigned char *to, const Section *sections, const Run *run, int part)
{
    if (to != NULL)
        for (Py_ssize_t at = run->first; at < run->after; at++) {
            const Py_buffer *view = &sections[at].parts[part];
            if (view->len > 0)
                memcpy(to, view->buf, (size_t)view->len);
            to += view->len;
        }
    return (size_t)run->lengths[part];
}

/* What stands in the bin of a run of sections of one kind. */
static size_t
put_run(unsigned char *to, const Section *sections, const Run *run)
{
    const Section *its = &sections[run->first];
    bool weighs = its->parts[ITS_STANDS_FOR].len > 0;
    size_t at = 0;
#define TO (to == NULL ? NULL : to + at)
    at += put_array(TO, its->edge ? 7 : 5 + weighs);
    at += put_word(TO, its->word, (size_t)its->letters);
    at += put_array(TO, run->columns);
    at += put_parts(TO, sections, run, ITS_FIELDS);
    at += put_bin(TO, run->lengths[ITS_COUNTS]);
    at += put_parts(TO, sections, run, ITS_COUNTS);
    at += put_bin(TO, run->lengths[ITS_TIMES]);
    at += put_parts(TO, sections, run, ITS_TIMES);
    if (its->edge) {
        at += put_bin(TO, run->lengths[ITS_UNTIL]);
        at += put_parts(TO, sections, run, ITS_UNTIL);
        at += put_array(TO, run->columns);
        at += put_parts(TO, sections, run, ITS_VALUES);
        at += put_number(TO, its->edge);
        return at;
    }
    at += its->is_listed ? put_array(TO, run->columns) : put_bin(TO, run->lengths[ITS_VALUES]);
    at += put_parts(TO, sections, run, ITS_VALUES);
    if (weighs) {
        at += put_bin(TO, run->lengths[ITS_STANDS_FOR]);
        at += put_parts(TO, sections, run, ITS_STANDS_FOR);
    }
    return at;
#undef TO
}

static size_t
put_batch(unsigned char *to, uint64_t version, const Py_buffer *stream, uint64_t bucket, uint64_t number, const Section *sections,
          const Run *runs, Py_ssize_t total, const Py_buffer *meanings)
{
    size_t at = 0;
#define TO (to == NULL ? NULL : to + at)
    at += put_array(TO, 6);
    at += put_number(TO, version);
    at += put_bin(TO, (uint64_t)stream->len);
    if (to != NULL)
        memcpy(to + at, stream->buf, (size_t)stream->len);
    at += (size_t)stream->len;
    at += put_number(TO, bucket);
    at += put_number(TO, number);
    at += put_array(TO, 2 * (uint64_t)total);
    for (Py_ssize_t run = 0; run < total; run++) {
        at += put_number(TO, runs[run].weight);
        at += put_bin(TO, runs[run].inside);
        at += to == NULL ? (size_t)runs[run].inside : put_run(TO, sections, &runs[run]);
    }
    at += put_bin(TO, (uint64_t)meanings->len);
    if (to != NULL && meanings->len > 0)
        memcpy(to + at, meanings->buf, (size_t)meanings->len);
    return at + (size_t)meanings->len;
#undef TO
}

PyDoc_STRVAR(encode_doc,
             "encode(sections, version, stream, bucket, number, meanings, bounds, room, at)\n--\n\n"
             "(events, length, checksum) of the batch of these Sections, those of one kind that follow each other as one, which is written\n"
             "from byte `at` of `room` on; where it does not end within that, nothing is written. None where they are more than one batch\n"
             "takes. The checksum is zlib's CRC-32, or None where this processor has no quick one. `room` None: its bytes stand in place of\n"
             "the length. `bounds`: columns, bytes, bytes beside each section, values in lists, bytes of these.");

static bool has_checksums;

static PyObject *
checksum_or_none(const unsigned char *content, size_t length)
{
#if HAS_CHECKSUM
    if (has_checksums)
        return PyLong_FromUnsignedLong(checksum_of(content, length));
#else
    (void)content, (void)length;
#endif
    return Py_NewRef(Py_None);
}

static PyObject *
encode(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *listed, *room, *answer = NULL, *content = NULL, *checksum = NULL;
    Py_ssize_t begin;
    unsigned long long version, bucket, number, most_columns, most_bytes, beside, most_values, most_listed;
    Py_buffer stream, meanings;
    if (!PyArg_ParseTuple(args, "O!Ky*KKy*(KKKKK)On", &PyList_Type, &listed, &version, &stream, &bucket, &number, &meanings, &most_columns,
                          &most_bytes, &beside, &most_values, &most_listed, &room, &begin))
        return NULL;
    Py_ssize_t total = PyList_GET_SIZE(listed), had = 0, runs = 0;
    Section *sections = NULL;
    Run *found = NULL;
    if (total > MAX_SECTIONS) { /* each has a column at least: they are more than one batch takes, which whoever asks cuts */
        answer = Py_NewRef(Py_None);
        goto done;
    }
    if (most_bytes > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "beyond all bounds");
        goto done;
    }
    sections = PyMem_Calloc((size_t)total + 1, sizeof(Section));
    found = PyMem_Calloc((size_t)total + 1, sizeof(Run));
    if (sections == NULL || found == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (; had < total; had++)
        if (read_section(PyList_GET_ITEM(listed, had), &sections[had]) < 0)
            goto done;
    uint64_t columns = 0, size = 0, values = 0, bytes = 0, events = 0;
    for (Py_ssize_t at = 0; at < total; at++) {
        const Section *section = &sections[at];
        if (at == 0 || !is_one_kind(&sections[at - 1], section)) {
            found[runs].first = at;
            runs++;
            size += beside;
        }
        Run *run = &found[runs - 1];
        run->after = at + 1;
        run->columns += section->columns;
        columns += section->columns;
        for (int part = 0; part < PARTS; part++) {
            run->lengths[part] += (uint64_t)section->parts[part].len;
            size += (uint64_t)section->parts[part].len;
        }
        uint64_t rows = (uint64_t)section->parts[ITS_TIMES].len / 8;
        bool weighs = section->parts[ITS_STANDS_FOR].len > 0;
        uint64_t weight = section->edge ? sum_uint32s(&section->parts[ITS_COUNTS])
                          : weighs      ? sum_uint32s(&section->parts[ITS_STANDS_FOR])
                                        : rows;
        run->weight += weight;
        events += section->edge ? weight : rows;
        if (section->is_listed) {
            values += rows;
            bytes += (uint64_t)section->parts[ITS_VALUES].len;
        }
    }
    if (columns > most_columns || size + (uint64_t)meanings.len > most_bytes || values > most_values || bytes > most_listed) {
        answer = Py_NewRef(Py_None);
        goto done;
    }
    for (Py_ssize_t run = 0; run < runs; run++)
        found[run].inside = put_run(NULL, sections, &found[run]);
    size_t length = put_batch(NULL, version, &stream, bucket, number, sections, found, runs, &meanings);
    unsigned char *to = NULL;
    Py_buffer view = {0};
    if (room == Py_None) {
        content = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
        if (content == NULL)
            goto done;
        to = (unsigned char *)PyBytes_AS_STRING(content);
    }
    else {
        if (PyObject_GetBuffer(room, &view, PyBUF_WRITABLE) < 0)
            goto done;
        if (begin < 0 || begin > view.len) {
            PyBuffer_Release(&view);
            PyErr_SetString(PyExc_ValueError, "beyond the room");
            goto done;
        }
        content = PyLong_FromSize_t(length);
        if (length <= (size_t)(view.len - begin))
            to = (unsigned char *)view.buf + begin;
    }
    if (to != NULL) {
        put_batch(to, version, &stream, bucket, number, sections, found, runs, &meanings);
        checksum = checksum_or_none(to, length); /* while it is in the cache */
    }
    else
        checksum = Py_NewRef(Py_None);
    PyBuffer_Release(&view);
    if (content != NULL && checksum != NULL)
        answer = Py_BuildValue("KOO", (unsigned long long)events, content, checksum);
done:
    Py_XDECREF(content);
    Py_XDECREF(checksum);
    if (sections != NULL)
        release_sections(sections, had);
    PyMem_Free(found);
    PyBuffer_Release(&stream);
    PyBuffer_Release(&meanings);
    return answer;
}

PyDoc_STRVAR(join_bins_doc,
             "join_bins(contents, start, end)\n--\n\n"
             "The msgpack of these bytes of a list, each as a bin, one after the other.");

static PyObject *
join_bins(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *listed;
    Py_ssize_t start, end;
    if (!PyArg_ParseTuple(args, "O!nn", &PyList_Type, &listed, &start, &end))
        return NULL;
    if (start < 0 || start > end || end > PyList_GET_SIZE(listed)) {
        PyErr_SetString(PyExc_ValueError, "beyond the list");
        return NULL;
    }
    size_t length = 0;
    for (Py_ssize_t at = start; at < end; at++) {
        PyObject *one = PyList_GET_ITEM(listed, at);
        if (!PyBytes_Check(one) || PyBytes_GET_SIZE(one) > INT32_MAX) {
            PyErr_SetString(PyExc_TypeError, "no bytes, or too many");
            return NULL;
        }
        length += put_bin(NULL, (uint64_t)PyBytes_GET_SIZE(one)) + (size_t)PyBytes_GET_SIZE(one);
    }
    PyObject *joined = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (joined == NULL)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(joined);
    for (Py_ssize_t at = start; at < end; at++) {
        PyObject *one = PyList_GET_ITEM(listed, at);
        to += put_bin(to, (uint64_t)PyBytes_GET_SIZE(one));
        memcpy(to, PyBytes_AS_STRING(one), (size_t)PyBytes_GET_SIZE(one));
        to += PyBytes_GET_SIZE(one);
    }
    return joined;
}

PyDoc_STRVAR(checksum_doc,
             "checksum(content)\n--\n\n"
             "zlib's CRC-32 of these bytes, or None where this processor has no quick one.");

static PyObject *
checksum(PyObject *module, PyObject *content)
{
    (void)module;
    Py_buffer view;
    if (PyObject_GetBuffer(content, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *found = checksum_or_none(view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return found;
}

/* --- fields --- */

typedef struct {
    PyObject *names, *clients; /* borrowed: lists */
    const uint8_t *is_overflow;
    const int64_t *of;
    const uint32_t *numbers;
    Py_ssize_t tabs; /* that `is_overflow` has */
} Columns;

typedef struct {
    const char *name, *client;
    size_t name_bytes, client_bytes;
} Field;

/* The field of the column `at`, without its head. */
static int
get_field(const Columns *columns, int64_t at, Field *field)
{
    int64_t of = columns->of[at];
    uint32_t number = columns->numbers[at];
    if (of < 0 || of >= PyList_GET_SIZE(columns->clients) || number >= PyList_GET_SIZE(columns->names) || number >= columns->tabs) {
        PyErr_SetString(PyExc_ValueError, "no such field");
        return -1;
    }
    PyObject *name = PyList_GET_ITEM(columns->names, number), *both = PyList_GET_ITEM(columns->clients, (Py_ssize_t)of);
    PyObject *client = PyTuple_Check(both) && PyTuple_GET_SIZE(both) == 2 ? PyTuple_GET_ITEM(both, columns->is_overflow[number] ? 1 : 0) : NULL;
    if (client == NULL || !PyBytes_Check(client) || !PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "names are text, and Clients pairs of bytes");
        return -1;
    }
    Py_ssize_t letters = PyUnicode_GET_LENGTH(name);
    field->name = PyUnicode_IS_COMPACT_ASCII(name) ? PyUnicode_DATA(name) : PyUnicode_AsUTF8AndSize(name, &letters);
    if (field->name == NULL)
        return -1;
    field->name_bytes = (size_t)letters;
    field->client = PyBytes_AS_STRING(client);
    field->client_bytes = (size_t)PyBytes_GET_SIZE(client);
    if (field->name_bytes + field->client_bytes >= INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "a field beyond all bounds");
        return -1;
    }
    return 0;
}

/* Names lie anywhere: those of columns further on are on their way meanwhile. */
static void
fetch_field(const Columns *columns, int64_t at)
{
    uint32_t number = columns->numbers[at];
    if (number < PyList_GET_SIZE(columns->names)) {
        const char *later = (const char *)PyList_GET_ITEM(columns->names, number);
        __builtin_prefetch(later);
        __builtin_prefetch(later + 64);
    }
}

PyDoc_STRVAR(join_fields_doc,
             "join_fields(names, clients, is_overflow, of, numbers, edges)\n--\n\n"
             "The fields of columns from each of `edges` (int64) to the next, each as a bin, one after the other: the name at a column's one\n"
             "of `numbers` (uint32), NUL, and of the pair at its one, `of` (int64), of `clients` the second where `is_overflow` (bool) has\n"
             "that number, else the first. A list of bytes.");

static PyObject *
join_fields(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *names, *clients, *given[4], *found = NULL;
    static const Py_ssize_t sizes[] = {1, 8, 4, 8};
    Field *fields = NULL;
    Py_buffer views[4];
    int had = 0;
    if (!PyArg_ParseTuple(args, "O!O!OOOO", &PyList_Type, &names, &PyList_Type, &clients, &given[0], &given[1], &given[2], &given[3]))
        return NULL;
    for (; had < 4; had++)
        if (get_array(given[had], &views[had], sizes[had], (size_t)sizes[had], PyBUF_SIMPLE) < 0)
            goto done;
    const Columns its = {names, clients, views[0].buf, views[1].buf, views[2].buf, views[0].len};
    const int64_t *edges = views[3].buf;
    Py_ssize_t columns = views[1].len / 8, last = views[3].len / 8 - 1;
    if (columns != views[2].len / 4 || last < 0) {
        PyErr_SetString(PyExc_ValueError, "arrays of other sizes");
        goto done;
    }
    fields = PyMem_New(Field, (size_t)columns + 1);
    if (fields == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (int64_t at = 0; at < columns; at++) {
        if (at + FIELDS_AHEAD < columns)
            fetch_field(&its, at + FIELDS_AHEAD);
        if (get_field(&its, at, &fields[at]) < 0)
            goto done;
    }
    found = PyList_New(last);
    for (Py_ssize_t run = 0; found != NULL && run < last; run++) {
        int64_t start = edges[run], end = edges[run + 1];
        size_t length = 0;
        if (start < 0 || start > end || end > columns) {
            PyErr_SetString(PyExc_ValueError, "edges beyond the columns");
            Py_CLEAR(found);
            break;
        }
        for (int64_t at = start; at < end; at++) {
            size_t inside = fields[at].name_bytes + 1 + fields[at].client_bytes;
            length += put_bin(NULL, inside) + inside;
        }
        PyObject *joined = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
        if (joined == NULL) {
            Py_CLEAR(found);
            break;
        }
        PyList_SET_ITEM(found, run, joined);
        unsigned char *to = (unsigned char *)PyBytes_AS_STRING(joined);
        for (int64_t at = start; at < end; at++) {
            const Field *field = &fields[at];
            to += put_bin(to, field->name_bytes + 1 + field->client_bytes);
            memcpy(to, field->name, field->name_bytes);
            to += field->name_bytes;
            *to++ = 0;
            memcpy(to, field->client, field->client_bytes);
            to += field->client_bytes;
        }
    }
done:
    while (had > 0)
        PyBuffer_Release(&views[--had]);
    PyMem_Free(fields);
    return found;
}

static PyMethodDef methods[] = {
    {"leading", (PyCFunction)(void (*)(void))leading, METH_FASTCALL, leading_doc},
    {"count", (PyCFunction)(void (*)(void))count, METH_FASTCALL, count_doc},
    {"place", (PyCFunction)(void (*)(void))place, METH_FASTCALL, place_doc},
    {"encode", encode, METH_VARARGS, encode_doc},
    {"checksum", checksum, METH_O, checksum_doc},
    {"join_fields", join_fields, METH_VARARGS, join_fields_doc},
    {"join_bins", join_bins, METH_VARARGS, join_bins_doc},
    {NULL, NULL, 0, NULL},
};

static int
set_form(PyObject *module)
{
#if HAS_CHECKSUM
    has_checksums = begin_checksums();
#endif
    return PyModule_AddIntConstant(module, "FORM", FORM);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, set_form},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "taba.agent._drain",
    .m_doc = "The Agent's drain: records counted, put in order, and written as batches.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__drain(void)
{
    return PyModuleDef_Init(&module_definition);
}
