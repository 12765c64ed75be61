"""The one thing that setup.cfg cannot say: the optional parts in C."""

import sysconfig

from setuptools import Extension, setup

# a product and a sum are rounded one by one, as numpy's are: on ARM64 a compiler that may would make one step of both, and other bits
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-fno-semantic-interposition")
HEADERS = ("exchange", "layout", "mapping", "metering", "port", "producer", "recording", "reply", "tabs", "total", "values")

DRAIN = [f"taba/agent/_{name}.h" for name in ("checksum", "columns", "encoding", "joining", "looking", "packing", "publishing", "records")]
PLAIN = [f"taba/server/fold/_{name}.h" for name in ("dealing", "forms", "judging", "planning")]
SPREADS = [f"taba/handlers/_{name}.h" for name in ("binned", "codes", "dumps", "folds", "spread_blocks", "spread_states", "spread_spills")]


def part(module: str, *headers: str) -> Extension:
    """`module`, of a file in C and its headers. Without a compiler Python does the same, with the same layouts, more slowly."""
    source, read = module.replace(".", "/") + ".c", ["setup.py", "taba/_part.h", *headers]
    return Extension(module, sources=[source], depends=read, extra_compile_args=list(FLAGS), optional=True)


PARTS = [
    part("taba.client._accelerator", *(f"taba/client/_{name}.h" for name in HEADERS)),
    part("taba.server.ask._writing"),
    part("taba.agent._drain", "taba/_arrays.h", "taba/batch/_named.h", *DRAIN),
    part("taba.batch._entries", "taba/batch/_bytes.h", "taba/batch/_named.h"),
    part("taba.batch._sections", "taba/batch/_bytes.h", "taba/batch/_named.h"),
    part("taba.handlers._fresh", "taba/_arrays.h"),
    part("taba.handlers._latest", "taba/handlers/_codes.h", "taba/handlers/_dumps.h", "taba/handlers/_folds.h"),
    part("taba.handlers._rows", *(f"taba/handlers/_{name}.h" for name in ("binned", "codes", "dumps", "folds"))),
    part("taba.handlers._spreads", *SPREADS),
    part("taba.server.fold._plain", "taba/batch/_named.h", *PLAIN),
    part("taba.shard.servers._wire"),
]

# a build without the GIL uses what is written in Python: these parts rely on the GIL
setup(ext_modules=[] if sysconfig.get_config_var("Py_GIL_DISABLED") else PARTS)
