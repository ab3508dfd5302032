"""Arithmetic for rules of your own: averages, squares and divisions that are right in every dtype.

Everything is elementwise, works in the precision of the leaves that it is given, and
has finite derivatives where a gradient is zero.
"""

from adam_tx._core.numerics import (
    abs_sq,
    divide,
    ema,
    power,
    root,
    root_and_divide,
    root_and_divide_clamped,
    saturate,
    scalar,
    square,
)
from adam_tx._core.public import shows

__all__ = [
    "abs_sq",
    "divide",
    "ema",
    "power",
    "root",
    "root_and_divide",
    "root_and_divide_clamped",
    "saturate",
    "scalar",
    "square",
]
__dir__ = shows(__all__)
