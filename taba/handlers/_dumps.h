/* What the parts in C that fold States share: numbers in as few bytes as they need, sums, and frames.

   A number is read where its width code says, and a sum made in the order in which numpy makes it, so that both give the same bytes. Where a
   number lies is for the caller to bound. */

#ifndef TABA_HANDLERS_DUMPS_H
#define TABA_HANDLERS_DUMPS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

#define FRAME_BYTES 6    /* before what the store keeps: the version and the age */
#define MAX_CODE 32767   /* of a value's bin */
#define MAX_BINS 2048    /* of a sketch, per sign */
#define MAX_START ((INT64_C(1) << 33) - 1)
#define MAX_TALLY UINT32_MAX
#define MAX_AHEAD 3600
#define DAY 86400

static int64_t load_int(const uint8_t *from, int code, int is_signed) {
    switch (code) {
    case 0: return is_signed ? (int64_t)(int8_t)from[0] : (int64_t)from[0];
    case 1: { uint16_t found; memcpy(&found, from, 2); return is_signed ? (int64_t)(int16_t)found : (int64_t)found; }
    case 2: { uint32_t found; memcpy(&found, from, 4); return is_signed ? (int64_t)(int32_t)found : (int64_t)found; }
    default: { int64_t found; memcpy(&found, from, 8); return found; }
    }
}

static double load_number(const uint8_t *from, int code) {
    double found;
    if (code < 3) return (double)load_int(from, code, 1);
    memcpy(&found, from, 8);
    return found;
}

static void store_int(uint8_t *to, int code, int64_t item) {
    memcpy(to, &item, (size_t)1 << code);  /* little-endian: see is_little_endian */
}

static void store_number(uint8_t *to, int code, double item) {
    if (code < 3) store_int(to, code, (int64_t)item);
    else memcpy(to, &item, 8);
}

static Py_ssize_t aligned(Py_ssize_t end, int code) {
    Py_ssize_t least = ((Py_ssize_t)1 << code) - 1;
    return (end + least) & ~least;
}

static int count_code(uint64_t most) {
    return most < (1u << 8) ? 0 : most < (1u << 16) ? 1 : most < (UINT64_C(1) << 32) ? 2 : 3;
}

/* numpy's: so that sums are the same to the last bit */
static double pairwise(const double *items, Py_ssize_t count) {
    if (count < 8) {
        double sum = -0.0;
        for (Py_ssize_t place = 0; place < count; place++) sum += items[place];
        return sum;
    }
    if (count <= 128) {
        double part[8];
        Py_ssize_t place;
        for (int lane = 0; lane < 8; lane++) part[lane] = items[lane];
        for (place = 8; place < count - count % 8; place += 8)
            for (int lane = 0; lane < 8; lane++) part[lane] += items[place + lane];
        double sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
        for (; place < count; place++) sum += items[place];
        return sum;
    }
    Py_ssize_t half = count / 2;
    half -= half % 8;
    return pairwise(items, half) + pairwise(items + half, count - half);
}

static double summed(const double *items, Py_ssize_t count) {
    return count > 1 ? items[0] + pairwise(items + 1, count - 1) : items[0];
}

/* The dump in `content`, behind a frame that says this version, unless that is 0; NULL where there is none. */
static const uint8_t *unframed(PyObject *content, int version, Py_ssize_t *length) {
    if (!PyBytes_Check(content)) return NULL;
    const uint8_t *dump = (const uint8_t *)PyBytes_AS_STRING(content);
    *length = PyBytes_GET_SIZE(content);
    if (version == 0) return dump;
    if (*length <= FRAME_BYTES || (dump[0] | dump[1] << 8) != version) return NULL;
    *length -= FRAME_BYTES;
    return dump + FRAME_BYTES;
}

/* Whether this machine writes numbers as dumps have them; if not, there is an ImportError. */
static int is_little_endian(void) {
    const uint16_t one = 1;
    if (*(const uint8_t *)&one == 1) return 1;
    PyErr_SetString(PyExc_ImportError, "dumps are little-endian, and this machine is not");
    return 0;
}

#endif
