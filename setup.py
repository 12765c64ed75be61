"""The one thing that setup.cfg cannot say: the optional parts in C."""

import os
import sysconfig
from glob import glob

from setuptools import Extension, setup

# a product and a sum are rounded one by one, as numpy's are: on ARM64 a compiler that may would make one step of both, and other bits
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-fno-semantic-interposition")
SHARED = ("taba", "taba/batch")  # whose headers others include


def part(module: str) -> Extension:
    """`module`, of a file in C and the headers beside it. Without a compiler Python does the same, with the same layouts, more slowly."""
    source = module.replace(".", "/") + ".c"
    headers = [header for folder in {*SHARED, os.path.dirname(source)} for header in glob(f"{folder}/*.h")]
    return Extension(module, sources=[source], depends=["setup.py", *sorted(headers)], extra_compile_args=list(FLAGS), optional=True)


PARTS = [
    part("taba.client._accelerator"),
    part("taba.server.ask._writing"),
    part("taba.agent._drain"),
    part("taba.batch._entries"),
    part("taba.batch._sections"),
    part("taba.handlers._fresh"),
    part("taba.handlers._latest"),
    part("taba.handlers._rows"),
    part("taba.handlers._spreads"),
    part("taba.server.fold._plain"),
    part("taba.shard.servers._wire"),
]

# a build without the GIL uses what is written in Python: these parts rely on the GIL
setup(
    ext_modules=[] if sysconfig.get_config_var("Py_GIL_DISABLED") else PARTS,
    options={"build_ext": {"parallel": os.cpu_count()}},
)
