/* The codes of values, as taba/codes.py says, for the parts in C that fold States.

   numpy's logarithm decides where a bin ends, and may differ from any other in its last bits: a value that lies so near the end of a bin
   that they could decide is said to be UNSURE, and left to it. Of all others the code is the same.

   Nearly all are found without a logarithm: a step of a binade is narrower than a bin, so in each lies the end of one at the most. Where
   it lies, and the code before it, is kept by exponent and step; what is too near to it is reckoned. */

#ifndef TABA_HANDLERS_CODES_H
#define TABA_HANDLERS_CODES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAX_KEY 16383
#define BIAS (MAX_KEY + 1)
#define ALPHA 0.00995
#define STEPS 256        /* of a binade: the logarithm of the middle of each is known, and three terms of a series lead from there */
#define SURE 1e-8        /* of a bin: a thousand times what the series and numpy's last bits can differ by */
#define UNSURE INT32_MIN
#define EXPONENTS 2048
#define FINE_BITS 6      /* of the mantissa, which say in which of a binade's steps a value lies: 1.6 % at the most, where a bin is 2 % wide */
#define OFF_BITS (52 - FINE_BITS)
#define NO_END ((UINT64_C(1) << (OFF_BITS + 1)) - 1)  /* farther on than a value of the step lies */
#define NEAR (UINT64_C(1) << 20)                      /* of 2^-52 of a binade: SURE of a bin, about */

static struct {
    double log, share;   /* of the middle of each step, and 1 / it */
} middles[STEPS];
static double bins_in_e; /* in a binade's log there are this many bins, for each of it */
/* Of each step of a binade the code at its begin, and how far on the bin ends, or NO_END; 0 where nobody asked yet. Of a megabyte those pages
   are there in which values lie. */
static uint64_t bin_ends[EXPONENTS << FINE_BITS];

static inline void begin_codes(void) {
    for (int step = 0; step < STEPS; step++) {
        double middle = 1.0 + (step + 0.5) / STEPS;
        middles[step].log = log(middle);
        middles[step].share = 1.0 / middle;
    }
    bins_in_e = 1.0 / log((1.0 + ALPHA) / (1.0 - ALPHA));
}

#if defined(__GNUC__)
#define SELDOM(condition) __builtin_expect(!!(condition), 0)
#else
#define SELDOM(condition) (condition)
#endif

/* UNSURE also for what is not finite. */
static inline int32_t reckoned_code_of(double value) {
    uint64_t bits, mantissa;
    memcpy(&bits, &value, 8);
    int32_t key, sign = -(int32_t)(bits >> 63);
    uint32_t exponent = (uint32_t)(bits >> 52) & 0x7ff;
    if (SELDOM(exponent - 1 >= 0x7fe)) {
        if (exponent != 0) return UNSURE;
        if (bits << 1 == 0) return 0;
        key = -MAX_KEY;  /* so little that it is in the least of bins */
    } else if (fabs(value) == 1.0) {
        key = 0;  /* its logarithm is 0 everywhere */
    } else {
        mantissa = (bits & (UINT64_MAX >> 12)) | UINT64_C(0x3ff) << 52;
        double of_one;
        memcpy(&of_one, &mantissa, 8);
        size_t step = (size_t)(mantissa >> 44) & (STEPS - 1);
        double off = of_one * middles[step].share - 1.0;
        double natural = ((int32_t)exponent - 1023) * 0.69314718055994530942 + (middles[step].log + off * (1.0 - off * (0.5 - off * (1.0 / 3.0))));
        double number = natural * bins_in_e;
        key = (int32_t)number;
        key += number > key;
        if (SELDOM(fabs(key - number - 0.5) > 0.5 - SURE)) return UNSURE;
        if (SELDOM(key > MAX_KEY)) key = MAX_KEY;
        if (SELDOM(key < -MAX_KEY)) key = -MAX_KEY;
    }
    return ((key + BIAS) ^ sign) - sign;
}

/* Where bins end in the steps of this binade, of normal numbers. */
static void find_ends(uint32_t exponent) {
    const double one = ldexp(1.0, (int)exponent - 1023);
    for (uint32_t step = 0; step < 1u << FINE_BITS; step++) {
        double begin = 1.0 + ldexp((double)step, -FINE_BITS), number = log(begin * one) * bins_in_e, key = ceil(number), end = (double)NO_END;
        if (fabs(number - rint(number)) < 1e-6) key = rint(number);  /* it begins where a bin ends, or nearly */
        if (key < -MAX_KEY) key = -MAX_KEY;
        else if (key >= MAX_KEY) key = MAX_KEY;
        else end = fmax(0.0, rint(ldexp(exp(key / bins_in_e) / one - begin, 52)));
        uint64_t found = end < (double)NO_END ? (uint64_t)end : NO_END;
        bin_ends[exponent << FINE_BITS | step] = (uint64_t)(key + BIAS) << (OFF_BITS + 1) | found;
    }
}

/* The same, reckoned where that is not known yet, or it lies near the end of a bin. */
static int32_t seldom_code_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    uint32_t exponent = (uint32_t)(bits >> 52) & 0x7ff;
    if (value == 1.0) return BIAS;  /* what counts most often adds */
    if (exponent - 1 < 0x7fe && bin_ends[exponent << FINE_BITS] == 0) find_ends(exponent);
    return reckoned_code_of(value);
}

/* UNSURE also for what is not finite. */
static inline int32_t code_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    int32_t sign = -(int32_t)(bits >> 63);
    uint64_t its = bin_ends[bits >> OFF_BITS & ((EXPONENTS << FINE_BITS) - 1)];
    uint64_t off = bits & ((UINT64_C(1) << OFF_BITS) - 1), end = its & NO_END;
    if (SELDOM(its == 0 || off - end + NEAR <= 2 * NEAR)) return seldom_code_of(value);
    int32_t code = (int32_t)(its >> (OFF_BITS + 1)) + (off > end);
    return (code ^ sign) - sign;
}

#endif
