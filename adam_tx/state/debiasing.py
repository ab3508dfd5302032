"""The debiasing weight of an average after a number of updates, `1 - Π decay`, as two numbers whose sum it is."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from adam_tx.state.arrays import Array

Decay = float | Callable[[jax.Array], object]
"""A number, or a schedule of the number of earlier updates."""
_AT_ONCE = 2**20  # values of a schedule


def weight_after(decay: Decay, count: int) -> Array:
    """1 - Π decay over the first `count` updates, as two numbers of float64."""
    with np.errstate(divide="ignore"):
        log_product = _log_product(decay, count)
    return as_pair(np.asarray([-np.expm1(log_product), 0.0]), np.float64)


def _log_product(decay: Decay, count: int) -> np.longdouble:
    if not count:
        return np.longdouble(0)
    if not callable(decay):
        return np.longdouble(count) * np.log1p(-np.longdouble(1.0 - decay))

    def complement(n: jax.Array) -> jax.Array:
        return 1.0 - jnp.asarray(decay(n))

    complements = jax.jit(jax.vmap(complement))
    total = np.longdouble(0)
    for start in range(0, count, _AT_ONCE):
        steps = jnp.arange(start, min(start + _AT_ONCE, count), dtype=jnp.int32)
        total += np.sum(np.log1p(-np.asarray(complements(steps), np.longdouble)))
    return total


def exact_pair(product: Array) -> Array:
    """1 - product as two numbers of its dtype, from which the product can be had to the last bit."""
    first = 1 - product
    return np.asarray([first, (1 - first) - product], product.dtype)


def product_of(pair: Array) -> Array:
    """The product of which this is the exact pair."""
    return np.asarray((1 - pair[0]) - pair[1], pair.dtype)


def as_pair(weight: Array, dtype: DTypeLike) -> Array:
    """Two numbers of this dtype whose sum is that of two wider ones; as they are, if they are of this dtype already."""
    if np.array_equal(weight, weight.astype(dtype)):
        return weight.astype(dtype)
    first = (weight[0] + weight[1]).astype(dtype)
    rest = (weight[0] - first) + weight[1]  # of which nothing is rounded away before this dtype does it
    return np.asarray([first, rest.astype(dtype)])
