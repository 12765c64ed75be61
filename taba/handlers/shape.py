"""Whether a Handler has the methods that a Server will call, in the shape in which it will call them. Calls none of them."""

from __future__ import annotations

import inspect
from typing import Any

from taba.handlers.base import ArrayHandler, Handler

REQUIRED = ("new_state", "fold", "project", "aggregate")
REQUIRED_OF_ARRAYS = ("load_array", "fold_array", "dump_array", "project_array", "aggregate")
OPTIONAL = {"merge": "states", "samples": "projection", "series": "state, start, end, step", "detail": "state, now"}
OTHERS = ("render", "dump", "load", "upgrade", "prunable", "spilling", "upgrade_parts")


def check_shape(handler: Any) -> None:
    """Raises TypeError, with a sentence for the author, where a method is not written, is none, or takes other arguments."""
    is_array = isinstance(handler, ArrayHandler)
    base: type[Handler] = ArrayHandler if is_array else Handler
    required = [*(REQUIRED_OF_ARRAYS if is_array else REQUIRED), *(["spill"] if getattr(handler, "further_parts", 0) else [])]
    for name in required:
        if getattr(type(handler), name, None) is getattr(base, name, None) and name not in vars(handler):
            raise TypeError(f"Type {handler.type}: has no {name}: every {base.__name__} writes its own")
    for name in (*required, *OTHERS):
        method = getattr(handler, name, None)
        if method is None and name not in required:
            continue
        if not callable(method):
            raise TypeError(f"Type {handler.type}: {name} is no method but {method!r:.80}")
        _check_plain(handler, name, method)
    for name, arguments in OPTIONAL.items():
        method = getattr(handler, name, None)
        if method is None:
            continue
        count = len(arguments.split(","))
        if not callable(method) or not _takes(method, count):
            raise TypeError(f"Type {handler.type}: {name} takes ({arguments}), and is called with these")
        _check_plain(handler, name, method)


def _check_plain(handler: Any, name: str, method: Any) -> None:
    is_asynchronous = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
    if is_asynchronous or inspect.isgeneratorfunction(method):
        kind = "asynchronous" if is_asynchronous else "a generator"
        raise TypeError(f"Type {handler.type}: {name} is {kind}: a Handler answers at once")


def _takes(method: Any, count: int) -> bool:
    try:
        inspect.signature(method).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a function of C that does not tell
        return True
    return True
