/* What the parts in C that fold States share: numbers in as few bytes as they need, and sums.

   A number is read where its width code says, and a sum made in the order in which numpy makes it, so that both give the same bytes. Where a
   number lies is for the caller to bound. */

#ifndef TABA_HANDLERS_DUMPS_H
#define TABA_HANDLERS_DUMPS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
/* gcc's analyzer follows a loop a few times, and takes for never written what the loops below write of an array; the bytes are compared
   with those of arrays by tests */
#pragma GCC diagnostic ignored "-Wanalyzer-use-of-uninitialized-value"
#endif

#define MAX_CODE 32767   /* of a value's bin */
#define MAX_BINS 2048    /* of a sketch, per sign */
#define MAX_START ((INT64_C(1) << 33) - 1)
#define MAX_TALLY UINT32_MAX
#define MAX_AHEAD 3600
#define DAY 86400

/* `count` numbers, one after the other: a loop for each width, which compilers make wide. */
static inline void load_ints(const uint8_t *from, int code, int64_t *to, Py_ssize_t count) {
    uint16_t two;
    uint32_t four;
    switch (code) {
    case 0: for (Py_ssize_t place = 0; place < count; place++) to[place] = from[place]; break;
    case 1: for (Py_ssize_t place = 0; place < count; place++) { memcpy(&two, from + 2 * place, 2); to[place] = two; } break;
    case 2: for (Py_ssize_t place = 0; place < count; place++) { memcpy(&four, from + 4 * place, 4); to[place] = four; } break;
    default: memcpy(to, from, (size_t)count * 8);
    }
}

static inline void load_numbers(const uint8_t *from, int code, double *to, Py_ssize_t count) {
    int16_t two;
    int32_t four;
    switch (code) {
    case 0: for (Py_ssize_t place = 0; place < count; place++) to[place] = (int8_t)from[place]; break;
    case 1: for (Py_ssize_t place = 0; place < count; place++) { memcpy(&two, from + 2 * place, 2); to[place] = two; } break;
    case 2: for (Py_ssize_t place = 0; place < count; place++) { memcpy(&four, from + 4 * place, 4); to[place] = four; } break;
    default: memcpy(to, from, (size_t)count * 8);
    }
}

static inline void store_ints(uint8_t *to, int code, const int64_t *from, Py_ssize_t count) {
    uint16_t two;
    uint32_t four;
    switch (code) {
    case 0: for (Py_ssize_t place = 0; place < count; place++) to[place] = (uint8_t)from[place]; break;
    case 1: for (Py_ssize_t place = 0; place < count; place++) { two = (uint16_t)from[place]; memcpy(to + 2 * place, &two, 2); } break;
    case 2: for (Py_ssize_t place = 0; place < count; place++) { four = (uint32_t)from[place]; memcpy(to + 4 * place, &four, 4); } break;
    default: memcpy(to, from, (size_t)count * 8);
    }
}

/* Of numbers that are whole, and fit, unless the code is that of 8 bytes. */
static inline void store_numbers(uint8_t *to, int code, const double *from, Py_ssize_t count) {
    int16_t two;
    int32_t four;
    switch (code) {
    case 0: for (Py_ssize_t place = 0; place < count; place++) to[place] = (uint8_t)(int8_t)from[place]; break;
    case 1: for (Py_ssize_t place = 0; place < count; place++) { two = (int16_t)from[place]; memcpy(to + 2 * place, &two, 2); } break;
    case 2: for (Py_ssize_t place = 0; place < count; place++) { four = (int32_t)from[place]; memcpy(to + 4 * place, &four, 4); } break;
    default: memcpy(to, from, (size_t)count * 8);
    }
}

/* The narrowest of these codes that takes this number too; a step that calls nothing, where `rint` is a function of the C library. */
static inline int wider_code(int code, double number) {
    double size = fabs(number);
    if (code == 3 || !(size < 2147483648.0) || (double)(int32_t)size != size) return 3;  /* NaN too */
    int own = size < 128.0 ? 0 : size < 32768.0 ? 1 : 2;
    return own > code ? own : code;
}

/* `span` / `width` of a multiple of it, of at most 2^33: dividing integers takes longer than all else that is written of a slot. */
static inline int64_t slots_in(int64_t span, double share) {
    return (int64_t)((double)span * share + 0.5);
}

static inline Py_ssize_t aligned(Py_ssize_t end, int code) {
    Py_ssize_t least = ((Py_ssize_t)1 << code) - 1;
    return (end + least) & ~least;
}

static inline int count_code(uint64_t most) {
    return most < (1u << 8) ? 0 : most < (1u << 16) ? 1 : most < (UINT64_C(1) << 32) ? 2 : 3;
}

/* numpy's: so that sums are the same to the last bit */
static inline double pairwise(const double *items, Py_ssize_t count) {
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

static inline double summed(const double *items, Py_ssize_t count) {
    return count > 1 ? items[0] + pairwise(items + 1, count - 1) : items[0];
}

#define LANES 4  /* in which so many are looked at side by side */

/* What numbers lie between; `are_finite` where each is. */
typedef struct {
    double low, high;
    int are_finite;
} Extent;

/* Of one number at least. */
static inline Extent extent_of(const double *items, Py_ssize_t count) {
    double low[LANES], high[LANES], odd[LANES];
    Py_ssize_t place = 0;
    for (int lane = 0; lane < LANES; lane++) {
        low[lane] = high[lane] = items[0];
        odd[lane] = 0.0;
    }
#ifdef __SSE2__  /* what is less, and what is greater, as C has it, in one step of two; compilers do not find that */
    __m128d least[2], most[2], odds[2];
    for (int half = 0; half < 2; half++) {
        least[half] = most[half] = _mm_set1_pd(items[0]);
        odds[half] = _mm_setzero_pd();
    }
    for (; place + LANES <= count; place += LANES)
        for (int half = 0; half < 2; half++) {
            __m128d two = _mm_loadu_pd(items + place + 2 * half);
            least[half] = _mm_min_pd(two, least[half]);
            most[half] = _mm_max_pd(two, most[half]);
            odds[half] = _mm_add_pd(odds[half], _mm_sub_pd(two, two));
        }
    for (int half = 0; half < 2; half++) {
        _mm_storeu_pd(low + 2 * half, least[half]);
        _mm_storeu_pd(high + 2 * half, most[half]);
        _mm_storeu_pd(odd + 2 * half, odds[half]);
    }
#else
    for (; place + LANES <= count; place += LANES)
        for (int lane = 0; lane < LANES; lane++) {
            double item = items[place + lane];
            low[lane] = item < low[lane] ? item : low[lane];
            high[lane] = item > high[lane] ? item : high[lane];
            odd[lane] += item - item; /* NaN where it is NaN or infinite, which no comparison tells of */
        }
#endif
    for (; place < count; place++) {
        low[0] = items[place] < low[0] ? items[place] : low[0];
        high[0] = items[place] > high[0] ? items[place] : high[0];
        odd[0] += items[place] - items[place];
    }
    for (int lane = 1; lane < LANES; lane++) {
        low[0] = low[lane] < low[0] ? low[lane] : low[0];
        high[0] = high[lane] > high[0] ? high[lane] : high[0];
        odd[0] += odd[lane];
    }
    return (Extent){low[0], high[0], odd[0] == 0.0};
}

/* Whether this machine writes numbers as dumps have them; if not, there is an ImportError. */
static inline int check_byte_order(void) {
    const uint16_t one = 1;
    if (*(const uint8_t *)&one == 1) return 0;
    PyErr_SetString(PyExc_ImportError, "dumps are little-endian, and this machine is not");
    return -1;
}

#endif
