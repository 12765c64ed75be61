/* How many of a State's events each code has: counted in a table of all codes, all 0 between two uses. */

#ifndef TABA_HANDLERS_COUNTED_H
#define TABA_HANDLERS_COUNTED_H

#include "_codes.h"
#include "_dumps.h"

#define COUNTED_FROM 24  /* events of one State, from which on it takes less time than to look each code up among the bins */
#define ALL_CODES 65536

static uint32_t counted[ALL_CODES][LANES];  /* by code + 32,768; they take turns: where values repeat, one that was just stored is waited for */
static uint64_t marks[ALL_CODES / 8];       /* a byte of each code: 1 where anything was counted. To set it nothing is read */

/* Of which 64 codes each there is any of what was counted. */
typedef struct {
    int first, last;
} Marked;

/* Count these codes, of at least one and at most 2^32. False, and nothing was counted, where one is no code. */
static int count_codes(const int64_t *codes, Py_ssize_t count, Marked *marked) {
    int64_t least = codes[0], most = codes[0];
    for (Py_ssize_t place = 0; place < count; place++) {
        least = codes[place] < least ? codes[place] : least;
        most = codes[place] > most ? codes[place] : most;
    }
    if (least < -MAX_CODE || most > MAX_CODE) return 0;
    *marked = (Marked){(int)(least + 32768) / 64, (int)(most + 32768) / 64};
    for (Py_ssize_t place = 0; place < count; place++) {
        size_t code = (size_t)(codes[place] + 32768);
        counted[code][place % LANES]++;
        ((uint8_t *)marks)[code] = 1;
    }
    return 1;
}

/* Which of these 64 codes have any, a bit each: found in one go, as where the next one lies nobody foresees. No marks are left. */
static inline uint64_t take_marks(int group) {
    uint64_t *its = marks + 8 * group, there = 0;
    for (int word = 0; word < 8; word++) {
        there |= its[word] * UINT64_C(0x0102040810204080) >> 56 << 8 * word;  /* eight bytes that are 0 or 1 become eight bits */
        its[word] = 0;
    }
    return there;
}

/* How many this code has, by its place in the table; 0 from now on. */
static inline int64_t take_counted(size_t place) {
    int64_t sum = 0;
    for (int lane = 0; lane < LANES; lane++) {
        sum += counted[place][lane];
        counted[place][lane] = 0;
    }
    return sum;
}

#endif
