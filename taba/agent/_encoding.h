/* Sections written as a batch. */

#ifndef TABA_AGENT_ENCODING_H
#define TABA_AGENT_ENCODING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "../batch/_named.h"
#include "_checksum.h"
#include "_packing.h"

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

/* What all batches of a drain have in common. */
typedef struct {
    unsigned long long version, most_columns, most_bytes, beside, most_values, most_listed;
    Py_buffer stream;
} Common;

/* What one batch comes to. `content` is where its bytes went, NULL where there was no room for them. */
typedef struct {
    uint64_t events;
    size_t length;
    unsigned char *content;
    PyObject *made; /* bytes, where there is no room to write in */
} Written;

enum { FAILED = -1, TOO_MUCH, WRITTEN };

/* Write a batch of these Sections: into `room` of `left` bytes, or, without one, as bytes of its own. */
static int
write_batch(const Common *common, PyObject *listed, uint64_t bucket, uint64_t number, const Py_buffer *meanings, unsigned char *room, size_t left,
            Written *written)
{
    Py_ssize_t total = PyList_GET_SIZE(listed), had = 0, runs = 0;
    Section *sections = NULL;
    Run *found = NULL;
    int answer = FAILED;
    *written = (Written){0};
    if (total > MAX_SECTIONS) /* each has a column at least: they are more than one batch takes, which whoever asks cuts */
        return TOO_MUCH;
    sections = PyMem_Calloc((size_t)total + 1, sizeof(Section));
    found = PyMem_Calloc((size_t)total + 1, sizeof(Run));
    if (sections == NULL || found == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (; had < total; had++)
        if (read_section(PyList_GET_ITEM(listed, had), &sections[had]) < 0)
            goto done;
    uint64_t columns = 0, size = 0, values = 0, bytes = 0;
    for (Py_ssize_t at = 0; at < total; at++) {
        const Section *section = &sections[at];
        if (at == 0 || !is_one_kind(&sections[at - 1], section)) {
            found[runs].first = at;
            runs++;
            size += common->beside;
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
        written->events += section->edge ? weight : rows;
        if (section->is_listed) {
            values += rows;
            bytes += (uint64_t)section->parts[ITS_VALUES].len;
        }
    }
    if (columns > common->most_columns || size + (uint64_t)meanings->len > common->most_bytes || values > common->most_values ||
        bytes > common->most_listed) {
        answer = TOO_MUCH;
        goto done;
    }
    for (Py_ssize_t run = 0; run < runs; run++)
        found[run].inside = put_run(NULL, sections, &found[run]);
    written->length = put_batch(NULL, common->version, &common->stream, bucket, number, sections, found, runs, meanings);
    if (room == NULL) {
        written->made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)written->length);
        if (written->made == NULL)
            goto done;
        written->content = (unsigned char *)PyBytes_AS_STRING(written->made);
    }
    else if (written->length <= left)
        written->content = room;
    if (written->content != NULL)
        put_batch(written->content, common->version, &common->stream, bucket, number, sections, found, runs, meanings);
    answer = WRITTEN;
done:
    if (sections != NULL)
        release_sections(sections, had);
    PyMem_Free(found);
    return answer;
}

static PyObject *
encode(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *listed, *room, *answer = NULL;
    Py_ssize_t begin;
    unsigned long long bucket, number;
    Py_buffer meanings, view = {0};
    Common its;
    Written written = {0};
    if (!PyArg_ParseTuple(args, "O!Ky*KKy*(KKKKK)On", &PyList_Type, &listed, &its.version, &its.stream, &bucket, &number, &meanings,
                          &its.most_columns, &its.most_bytes, &its.beside, &its.most_values, &its.most_listed, &room, &begin))
        return NULL;
    if (its.most_bytes > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "beyond all bounds");
        goto done;
    }
    if (room != Py_None && (PyObject_GetBuffer(room, &view, PyBUF_WRITABLE) < 0))
        goto done;
    if (room != Py_None && (begin < 0 || begin > view.len)) {
        PyErr_SetString(PyExc_ValueError, "beyond the room");
        goto done;
    }
    unsigned char *to = room == Py_None ? NULL : (unsigned char *)view.buf + begin;
    int how = write_batch(&its, listed, bucket, number, &meanings, to, room == Py_None ? 0 : (size_t)(view.len - begin), &written);
    if (how == TOO_MUCH)
        answer = Py_NewRef(Py_None);
    else if (how == WRITTEN) { /* the checksum while it is in the cache */
        PyObject *checksum = written.content != NULL ? checksum_or_none(written.content, written.length) : Py_NewRef(Py_None);
        PyObject *content = written.made != NULL ? Py_NewRef(written.made) : PyLong_FromSize_t(written.length);
        if (content != NULL && checksum != NULL)
            answer = Py_BuildValue("KOO", (unsigned long long)written.events, content, checksum);
        Py_XDECREF(content);
        Py_XDECREF(checksum);
    }
done:
    Py_XDECREF(written.made);
    PyBuffer_Release(&view);
    PyBuffer_Release(&its.stream);
    PyBuffer_Release(&meanings);
    return answer;
}

PyDoc_STRVAR(encode_plain_doc,
             "encode_plain(buckets, first, packed, version, stream, numbers, created, bounds, weights, apart, room, at, id, batch)\n--\n\n"
             "(batches, where in `room` the last of them ends): of the Sections in `packed` of each of these `buckets` (a list), from the one at\n"
             "`first` on, until one is in `apart`, or more than one batch takes, or than there is room for. A batch is a `batch` of `id`\n"
             "(NamedTuples): with the next of `numbers`, of `created`, without meanings, its bytes a view of `room`, its events so many more as\n"
             "`weights` has (all three dicts by bucket). The rest as in `encode`.");

static PyObject *
encode_plain(PyObject *module, PyObject *args)
{
    (void)module;
    static const Py_buffer none = {0};
    PyObject *buckets, *packed, *numbers, *created, *weights, *apart, *room, *id, *batch, *stream, *list = NULL, *answer = NULL, *key = NULL;
    Py_ssize_t place, begin;
    Py_buffer view = {0};
    Common its = {0};
    if (!PyArg_ParseTuple(args, "O!nO!KSO!O(KKKKK)O!O!OnOO", &PyList_Type, &buckets, &place, &PyDict_Type, &packed, &its.version, &stream,
                          &PyDict_Type, &numbers, &created, &its.most_columns, &its.most_bytes, &its.beside, &its.most_values, &its.most_listed,
                          &PyDict_Type, &weights, &PyDict_Type, &apart, &room, &begin, &id, &batch))
        return NULL;
    if (PyObject_GetBuffer(stream, &its.stream, PyBUF_SIMPLE) < 0 || PyObject_GetBuffer(room, &view, PyBUF_WRITABLE) < 0)
        goto done;
    if (its.most_bytes > INT32_MAX || begin < 0 || begin > view.len || place < 0) {
        PyErr_SetString(PyExc_ValueError, "beyond all bounds, or the room");
        goto done;
    }
    key = PyBytes_FromStringAndSize(NULL, 0);
    list = PyList_New(0);
    if (key == NULL || list == NULL)
        goto done;
    for (; place < PyList_GET_SIZE(buckets); place++) {
        PyObject *bucket = PyList_GET_ITEM(buckets, place);
        PyObject *listed = PyDict_GetItemWithError(packed, bucket), *last = listed == NULL ? NULL : PyDict_GetItemWithError(numbers, bucket);
        if (listed == NULL || !PyList_Check(listed)) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "no Sections of this bucket");
            goto done;
        }
        PyObject *more = PyDict_GetItemWithError(weights, bucket);
        int is_apart = PyDict_Contains(apart, bucket);
        unsigned long long of = PyLong_AsUnsignedLongLong(bucket), number = last == NULL ? 0 : PyLong_AsUnsignedLongLong(last);
        long long beside = more == NULL ? 0 : PyLong_AsLongLong(more);
        if (PyErr_Occurred())
            goto done;
        if (is_apart)
            break;
        Written written;
        unsigned char *to = (unsigned char *)view.buf + begin;
        int how = write_batch(&its, listed, of, number + 1, &none, to, (size_t)(view.len - begin), &written);
        if (how == FAILED)
            goto done;
        if (how == TOO_MUCH || written.content == NULL)
            break;
        PyObject *names[] = {Py_NewRef(stream), Py_NewRef(bucket), PyLong_FromUnsignedLongLong(number + 1)};
        PyObject *whole = named(id, 3, names), *start = PyLong_FromSsize_t(begin), *end = PyLong_FromSsize_t(begin + (Py_ssize_t)written.length);
        PyObject *slice = start != NULL && end != NULL ? PySlice_New(start, end, NULL) : NULL;
        PyObject *items[] = {whole,
                             Py_NewRef(created),
                             PyLong_FromLongLong((long long)written.events + beside),
                             slice == NULL ? NULL : PyObject_GetItem(room, slice),
                             Py_NewRef(key),
                             checksum_or_none(to, written.length)};
        PyObject *made = named(batch, 6, items);
        Py_XDECREF(start);
        Py_XDECREF(end);
        Py_XDECREF(slice);
        if (made == NULL || PyList_Append(list, made) < 0) {
            Py_XDECREF(made);
            goto done;
        }
        Py_DECREF(made);
        begin += (Py_ssize_t)written.length;
    }
    answer = Py_BuildValue("On", list, begin);
done:
    Py_XDECREF(key);
    Py_XDECREF(list);
    PyBuffer_Release(&view);
    PyBuffer_Release(&its.stream);
    return answer;
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

#endif
