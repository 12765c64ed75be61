"""What Python runs first in each process that `taba-run` started; then the sitecustomize that would have run without it."""

import os
import sys

if os.environ.get("TABA_COMPAT") == "prometheus":
    from taba.compat.importing import watch

    watch()


def _go_on() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) != here])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


_go_on()
