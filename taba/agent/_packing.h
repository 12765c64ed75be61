/* What msgpack writes; with `to` NULL only how long it is. */

#ifndef TABA_AGENT_PACKING_H
#define TABA_AGENT_PACKING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

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

#endif
