"""The installed prometheus_client, whose values are recorded as well: `from taba.compat.prometheus_client import Counter`.

All of it is theirs (taba/compat/values.py has what becomes what). Metrics that were made before this module was imported record nothing:
import it first, or start the program by `taba-run --compat prometheus`.
"""

from __future__ import annotations

from typing import Any

try:
    import prometheus_client as _theirs
    from prometheus_client import metrics as _metrics
    from prometheus_client import multiprocess as _multiprocess
    from prometheus_client import values as _values
except ImportError as error:
    raise ImportError(f"taba.compat.prometheus_client takes the package prometheus_client: {error}", name=error.name) from None

from taba.compat.values import install

install(_values, _metrics, _multiprocess)

__all__ = list(_theirs.__all__)


def __getattr__(name: str) -> Any:
    return getattr(_theirs, name)
