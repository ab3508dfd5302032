"""Storages: what moments are kept as between two updates, for `mu_dtype=`, `nu_dtype=` and `dtype=`.

A dtype such as `jnp.bfloat16` rounds to nearest. The storages here round at random, so
that an average does not stand still however few bits it has.
"""

from adam_tx._core.public import shows
from adam_tx._core.storage import Storage, StorageLike, Stored
from adam_tx.storage.bfloat16 import StochasticBFloat16
from adam_tx.storage.eight_bit import EightBit

__all__ = ["EightBit", "StochasticBFloat16", "Storage", "StorageLike", "Stored"]
__dir__ = shows(__all__)
