/* The codes of values, as taba/codes.py says, for the parts in C that fold States.

   numpy's logarithm decides where a bin ends, and may differ from any other in its last bits: a value that lies so near the end of a bin
   that they could decide is said to be UNSURE, and left to it. Of all others the code is the same. */

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

static struct {
    double log, share;   /* of the middle of each step, and 1 / it */
} middles[STEPS];
static double bins_in_e; /* in a binade's log there are this many bins, for each of it */

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
static inline int32_t code_of(double value) {
    uint64_t bits, mantissa;
    memcpy(&bits, &value, 8);
    int32_t key, sign = -(int32_t)(bits >> 63);
    uint32_t exponent = (uint32_t)(bits >> 52) & 0x7ff;
    if (SELDOM(exponent - 1 >= 0x7fe)) {
        if (exponent != 0) return UNSURE;
        if (bits << 1 == 0) return 0;
        key = -MAX_KEY;  /* so little that it is in the least of bins */
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
        if (SELDOM(fabs(key - number - 0.5) > 0.5 - SURE)) {
            if (fabs(value) != 1.0) return UNSURE;
            key = 0;  /* its logarithm is 0 everywhere */
        }
        if (SELDOM(key > MAX_KEY)) key = MAX_KEY;
        if (SELDOM(key < -MAX_KEY)) key = -MAX_KEY;
    }
    return ((key + BIAS) ^ sign) - sign;
}

#endif
