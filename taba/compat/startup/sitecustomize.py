"""What Python runs first in each process that `taba-run` started; then the sitecustomize that would have run without it.

Other launchers do the same with one of their own, and each goes on to whatever is on the path beside itself: of several, each runs once.
"""

import os
import sys

if os.environ.get("TABA_COMPAT") == "prometheus":
    try:
        from taba.compat.importing import watch
    except Exception as error:  # another Python than that of `taba-run`, which may be too old for it as well
        print(f"taba-run: {sys.executable}: nothing is recorded here, since Taba is not installed for it: {error}", file=sys.stderr)
    else:
        watch()


def _go_on() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    done = sys.__dict__.setdefault("_taba_run_done", {here})  # where nothing of ours need be importable: this file may be run again
    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) not in done])
    if spec is not None and spec.loader is not None:
        if spec.origin is not None:
            done.add(os.path.dirname(os.path.abspath(spec.origin)))
        spec.loader.exec_module(module_from_spec(spec))


_go_on()
