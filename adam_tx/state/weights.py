"""The debiasing weight of an average after a number of updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_AT_ONCE = 2**20  # values of a schedule


def of_decay(decay: Any, count: int) -> np.ndarray[Any, Any]:
    """1 - Π decay over the first `count` updates, of a number or a schedule, as two numbers of float64."""
    with np.errstate(divide="ignore"):
        if callable(decay):
            steps = jax.jit(jax.vmap(lambda n: 1.0 - jnp.asarray(decay(n))))
            parts = (jnp.arange(k, min(k + _AT_ONCE, count), dtype=jnp.int32) for k in range(0, count, _AT_ONCE))
            total = sum((np.sum(np.log1p(-np.asarray(steps(part), np.longdouble))) for part in parts), np.longdouble(0))
        else:
            total = np.longdouble(count) * np.log1p(-np.longdouble(1.0 - float(decay))) if count else np.longdouble(0)
    return pair(np.asarray([-np.expm1(total), 0.0]), np.dtype(np.float64))


def exact_pair(product: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """1 - product as two numbers of its dtype, from which the product can be had to the last bit."""
    first = 1 - product
    return np.asarray([first, (1 - first) - product], product.dtype)


def pair(weight: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Two numbers of this dtype whose sum is that of two wider ones; as they are, if they are of this dtype already."""
    if np.array_equal(weight, weight.astype(dtype)):
        return weight.astype(dtype)
    first = (weight[0] + weight[1]).astype(dtype)
    rest = (weight[0] - first) + weight[1]  # of which nothing is rounded away before this dtype does it
    return np.asarray([first, rest.astype(dtype)])
