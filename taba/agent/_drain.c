/* The Agent's drain, where numpy would go over the same events several times: records are counted by Tab, put in order, and written as
   batches, and what the outbox keeps beside these. `taba/agent/gathering.py`, `taba/agent/encoding.py` and `taba/agent/search.py` say what for, and do without it the same in numpy.

   1. Records were read into this process's own memory: nobody changes them here. What is in them is hostile all the same: every size,
      every number of a Tab and every place is checked before it is used.
   2. What is not plain (flags, Tabs that nobody knows) is said to be so and left to Python.
   3. Nothing here keeps anything or gives up the GIL, and looks alone read rings: by `pread`, as Python does. */

#include "../_heap.h"
#include "../_part.h"
#include "_columns.h"
#include "_encoding.h"
#include "_gathering.h"
#include "_joining.h"
#include "_looking.h"
#include "_publishing.h"
#include "_records.h"
#include "_sectioning.h"

#define FORM 18 /* of what Python gives it and gets: see taba/parts.py */

static PyMethodDef methods[] = {
    FAST("glance", glance, glance_doc),
    FAST("leading", leading, leading_doc),
    FAST("count", count, count_doc),
    FAST("place", place, place_doc),
    FAST("gather", gather, gather_doc),
    FAST("deal", deal, deal_doc),
    FAST("measure", measure, measure_doc),
    FAST("sum_up", sum_up, sum_up_doc),
    {"encode", encode, METH_VARARGS, encode_doc},
    {"encode_plain", encode_plain, METH_VARARGS, encode_plain_doc},
    FAST("keep_heap", keep_heap, keep_heap_doc),
    FAST("leap", leap, leap_doc),
    FAST("follow", follow, follow_doc),
    FAST("cut_sections", cut_sections, cut_sections_doc),
    FAST("cut_states", cut_states, cut_states_doc),
    {"index_group", index_group, METH_VARARGS, index_group_doc},
    {"checksum", checksum, METH_O, checksum_doc},
    {"join_fields", join_fields, METH_VARARGS, join_fields_doc},
    {NULL, NULL, 0, NULL},
};

static int
begin(void)
{
#if HAS_CHECKSUM
    has_checksums = begin_checksums();
#endif
    return 0;
}

MAKE_PART(_drain, "taba.agent._drain", begin, OF_EACH_INTERPRETER, "The Agent's drain: records counted, put in order, and written as batches.")
