"""Undoing the start from zero: the weight that an average has put on what it saw.

An average that starts at zero has, after updates with decays d_1 … d_t, put weight
w_t = 1 - d_1 · … · d_t on the values it saw. Dividing by it makes it an average in
the true sense, whether the decays vary or not. The weight obeys

    w_t = w_(t-1) + (1 - d_t) · (1 - w_(t-1))

Summed up in float32 alone it would stand still long before it is one. So a state
keeps two numbers whose sum it is: the weight before the last update, and what that
update added. Their sum is known to more digits than one number could hold: within
2 ulp of float64 after a million updates, for every decay and under every schedule.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adam_tx._core.numerics import Scalar, scalar


def zero(dtype: jnp.dtype) -> jax.Array:
    """The weight before the first update, an array of two elements."""
    return jnp.zeros(2, dtype)


def advance(weight: jax.Array, step: Scalar) -> tuple[jax.Array, jax.Array]:
    """The weight after one more update, as what to keep and as a number.

    Args:
      weight: what was kept, of shape (2,).
      step: 1 - decay of this update.
    """
    return _advance(weight, step if isinstance(step, jax.Array) else weight.dtype.type(step))  # no equation converts it


@functools.partial(jax.jit, inline=True)  # one dispatch where nothing is compiled, and no call where something is
def _advance(weight: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    before, added = lax.split(weight, (1, 1))
    rounded = before + added
    beyond = added - (rounded - before)  # what rounding has left out of the sum
    more = scalar(step, weight) * (1.0 - rounded) + beyond
    kept = lax.concatenate([rounded, more], 0)
    return kept, read(kept)


def read(weight: Any) -> jax.Array:
    """The number that a state's weight stands for."""
    return lax.reduce_sum(weight, (0,))
