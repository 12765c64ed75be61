"""The one thing that setup.cfg cannot say: the optional C accelerator of the client."""

import sysconfig

from setuptools import Extension, setup

HEADERS = ("exchange", "layout", "mapping", "metering", "port", "producer", "recording", "reply", "tabs", "total", "values")

accelerator = Extension(
    "taba.client._accelerator",
    sources=["taba/client/_accelerator.c"],
    depends=["setup.py", *(f"taba/client/_{name}.h" for name in HEADERS)],
    extra_compile_args=["-std=c11", "-O3", "-fvisibility=hidden", "-fno-semantic-interposition"],
    optional=True,  # without a compiler the pure-Python ring works, with the same layout
)

# a build without the GIL uses the pure-Python ring with its lock: the accelerator relies on the GIL
setup(ext_modules=[] if sysconfig.get_config_var("Py_GIL_DISABLED") else [accelerator])
