/* What is done for each ordinary bucket of a cycle: `plan`, `judge`, `gather` and `write` of plain.py, which says what they take and give. Where
   anything is out of the ordinary, `plan` and `judge` return None, and Fold decides; they may do so where Python would go on. */

#include "../../_heap.h"
#include "../../_part.h"
#include "_dealing.h"
#include "_judging.h"
#include "_planning.h"

#define FORM 7 /* of what Python gives it and gets: see taba/parts.py */

static PyMethodDef methods[] = {
    FAST("plan", plan, plan_doc),
    FAST("judge", judge, judge_doc),
    {"gather", gather, METH_O, gather_doc},
    FAST("write", write_all, write_doc),
    FAST("keep_heap", keep_heap, keep_heap_doc),
    {NULL, NULL, 0, NULL},
};

MAKE_PART(_plain, "taba.server.fold._plain", make_words, OF_ONE_INTERPRETER, "What is done for each ordinary bucket of a cycle.")
