/* CRC-32 as zlib has it (polynomial 0xEDB88320, least bit first), where the processor multiplies without carries; elsewhere zlib is asked.

   A message is a polynomial over two numbers, and its checksum what is left of it. Of 128 bits with n bits behind them both halves may be
   multiplied by what x^n leaves: that is as long as a checksum and a half, and is added to the bits n further on. So 64 bytes at a time go
   into the next 64, then four times 16 into one, and 16 bytes are left, whose checksum is that of all. Where the processor multiplies two
   such pairs at once, 128 bytes go into the next 128. After Gopal and others, Fast CRC
   Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009. */

#ifndef TABA_CHECKSUM_H
#define TABA_CHECKSUM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_CHECKSUM 1
#else
#define HAS_CHECKSUM 0
#endif
#if HAS_CHECKSUM && (defined(__clang__) || __GNUC__ >= 9)
#define HAS_WIDE_CHECKSUM 1
#else
#define HAS_WIDE_CHECKSUM 0
#endif

#if HAS_CHECKSUM

#define CHECKSUM_POLYNOMIAL 0xEDB88320u
static uint32_t checksum_table[256];
static uint64_t by_128_bytes[2], by_64_bytes[2], by_16_bytes[2]; /* what the halves of 16 bytes are multiplied by, for so many bytes further on */
static bool is_wide; /* two such pairs at once */

/* What x^`power` leaves, as the multiplication wants it: least bit first, in 33 bits. */
static uint64_t
left_of_power(int power)
{
    uint32_t left = 0x80000000u; /* 1 */
    while (power-- > 0)
        left = left >> 1 ^ (left & 1 ? CHECKSUM_POLYNOMIAL : 0);
    return (uint64_t)left << 1;
}

static bool
begin_checksums(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t left = byte;
        for (int bit = 0; bit < 8; bit++)
            left = left >> 1 ^ (left & 1 ? CHECKSUM_POLYNOMIAL : 0);
        checksum_table[byte] = left;
    }
    by_128_bytes[0] = left_of_power(1024 + 32), by_128_bytes[1] = left_of_power(1024 - 32);
    by_64_bytes[0] = left_of_power(512 + 32), by_64_bytes[1] = left_of_power(512 - 32);
    by_16_bytes[0] = left_of_power(128 + 32), by_16_bytes[1] = left_of_power(128 - 32);
    __builtin_cpu_init();
#if HAS_WIDE_CHECKSUM
    is_wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq");
#endif
    return __builtin_cpu_supports("pclmul");
}

static uint32_t
add_bytes(uint32_t left, const unsigned char *bytes, size_t length)
{
    for (size_t at = 0; at < length; at++)
        left = left >> 8 ^ checksum_table[(left ^ bytes[at]) & 0xFF];
    return left;
}

/* `moved`, as many bytes further on as `by` says, added to `here`. */
__attribute__((target("pclmul"))) static inline __m128i
folded_into(__m128i moved, __m128i by, __m128i here)
{
    __m128i low = _mm_clmulepi64_si128(moved, by, 0x00), high = _mm_clmulepi64_si128(moved, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), here);
}

#if HAS_WIDE_CHECKSUM

/* As `checksum_of`, of 128 bytes at least, up to the last whole 128: what 128 bytes are left, in `lanes`. Returns how many it took. */
__attribute__((target("avx2,pclmul,vpclmulqdq"))) static size_t
fold_wide(const unsigned char *bytes, size_t length, __m128i *lanes)
{
    const __m256i *blocks = (const __m256i *)bytes;
    __m256i pairs[4], by = _mm256_broadcastsi128_si256(_mm_set_epi64x((long long)by_128_bytes[1], (long long)by_128_bytes[0]));
    size_t taken = 128;
    for (int pair = 0; pair < 4; pair++)
        pairs[pair] = _mm256_loadu_si256(blocks + pair);
    pairs[0] = _mm256_xor_si256(pairs[0], _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, -1));
    for (blocks += 4; length - taken >= 128; taken += 128, blocks += 4)
        for (int pair = 0; pair < 4; pair++) {
            __m256i low = _mm256_clmulepi64_epi128(pairs[pair], by, 0x00), high = _mm256_clmulepi64_epi128(pairs[pair], by, 0x11);
            pairs[pair] = _mm256_xor_si256(_mm256_xor_si256(low, high), _mm256_loadu_si256(blocks + pair));
        }
    for (int pair = 0; pair < 4; pair++)
        _mm256_storeu_si256((__m256i *)(lanes + 2 * pair), pairs[pair]);
    return taken;
}

#endif

/* Only where `begin_checksums` said so. */
__attribute__((target("pclmul"))) static uint32_t
checksum_of(const unsigned char *bytes, size_t length)
{
    if (length < 64)
        return ~add_bytes(~0u, bytes, length);
    const __m128i *blocks = (const __m128i *)bytes;
    __m128i lanes[8], by = _mm_set_epi64x((long long)by_64_bytes[1], (long long)by_64_bytes[0]);
    int many = 4;
#if HAS_WIDE_CHECKSUM
    if (is_wide && length >= 256) {
        size_t taken = fold_wide(bytes, length, lanes);
        length -= taken, blocks += taken / 16, many = 8;
    }
#endif
    if (many == 4) {
        for (int lane = 0; lane < 4; lane++)
            lanes[lane] = _mm_loadu_si128(blocks + lane);
        lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(-1)); /* a checksum begins with ones */
        for (length -= 64, blocks += 4; length >= 64; length -= 64, blocks += 4)
            for (int lane = 0; lane < 4; lane++)
                lanes[lane] = folded_into(lanes[lane], by, _mm_loadu_si128(blocks + lane));
    }
    by = _mm_set_epi64x((long long)by_16_bytes[1], (long long)by_16_bytes[0]);
    __m128i all = lanes[0];
    for (int lane = 1; lane < many; lane++)
        all = folded_into(all, by, lanes[lane]);
    for (; length >= 16; length -= 16, blocks++)
        all = folded_into(all, by, _mm_loadu_si128(blocks));
    unsigned char rest[16];
    _mm_storeu_si128((__m128i *)rest, all);
    return ~add_bytes(add_bytes(0, rest, 16), (const unsigned char *)blocks, length);
}

#endif /* HAS_CHECKSUM */

#endif
