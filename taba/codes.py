"""Codes: the logarithmic bins in which values are counted, and the values that stand for them.

1. A finite value v other than 0 lies in the bin `key` = ⌈log_γ |v|⌉ of its sign; its estimate is off by at most ACCURACY (relative).
2. A bin's *code* carries sign and key in an int16, in the order of the values: 0 for zero, ±(key + 16,384) else.

After Masson, Rim, Lee: DDSketch, VLDB 2019.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

ACCURACY = 0.01  # relative error of a quantile
MAX_KEY = 16_383  # magnitudes beyond 10^±141 count as that; so sign and key fit in an int16

_ALPHA = 0.00995  # a little finer than promised, for the rounding of logarithms
_LOG_GAMMA = math.log((1 + _ALPHA) / (1 - _ALPHA))
_MIDDLE = 1 - _ALPHA  # 2 / (γ + 1): from a bin's edge away from zero to the estimate
_BIAS = MAX_KEY + 1


def codes_of(values: Floats) -> Ints:
    """The codes of finite `values`."""
    scaled = np.abs(values)
    with np.errstate(divide="ignore"):  # log(0) is -inf, and the sign of zero takes it away again
        np.log(scaled, out=scaled)
    scaled *= 1 / _LOG_GAMMA
    np.ceil(scaled, out=scaled)
    np.minimum(np.maximum(scaled, -MAX_KEY, out=scaled), MAX_KEY, out=scaled)  # np.clip is Python around it, and most arrays are small
    scaled += _BIAS
    np.copysign(scaled, values, out=scaled)
    codes = scaled.astype(np.int64)
    zero = values == 0
    if np.count_nonzero(zero):
        codes[zero] = 0
    return codes


def estimates_of(codes: Ints) -> Floats:
    """The values that stand for `codes`."""
    return np.sign(codes) * _edges(codes) * _MIDDLE


def uppers_of(codes: Ints) -> Floats:
    """The greatest value that each of `codes` counts: every value in its bin, and in those before it, is at most this."""
    return np.sign(codes) * _edges(codes + (codes < 0))  # below zero, a bin's upper edge is that of the next key towards zero


def _edges(codes: Ints) -> Floats:
    edges: Floats = np.exp((np.abs(codes) - _BIAS) * _LOG_GAMMA)
    return edges
