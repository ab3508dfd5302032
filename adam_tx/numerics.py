"""Arithmetic for rules of your own: averages, squares and divisions that are right in every dtype.

Everything is elementwise, works in the precision of the leaves that it is given, and
has finite derivatives where a gradient is zero.
"""

from adam_tx._core.numerics import *  # noqa: F403 - what is for rules is named there, once
from adam_tx._core.numerics import __all__ as __all__
from adam_tx._core.public import shows

__dir__ = shows(__all__)
