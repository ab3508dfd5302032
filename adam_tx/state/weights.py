"""The debiasing weight of an average after a number of updates."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adam_tx._core.leafwise import Leafwise

_AT_ONCE = 2**20  # values of a schedule


def after(link: Leafwise, decay: str, count: int, dtype: Any) -> np.ndarray[Any, Any]:
    """1 - Π decay over the first `count` updates, as the two numbers that a state keeps.

    Raises:
      ValueError: a decay that is not known outside a compiled program.
    """
    if isinstance(link.hyperparams[decay], Tracer):
        raise ValueError(f"{decay} of {link.name} is injected, so it cannot be computed from the count.")
    step: Any = link.hyperparams_at(jnp.zeros((), jnp.int32))[decay].step
    if callable(link.hyperparams[decay]) and not isinstance(link.hyperparams[decay], jax.Array):
        steps = jax.jit(jax.vmap(lambda n: link.hyperparams_at(n)[decay].step))
        parts = (jnp.arange(k, min(k + _AT_ONCE, count), dtype=jnp.int32) for k in range(0, count, _AT_ONCE))
        with np.errstate(divide="ignore"):
            total = sum((np.sum(np.log1p(-np.asarray(steps(part), np.longdouble))) for part in parts), np.longdouble(0))
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            total = np.longdouble(count) * np.log1p(-np.longdouble(float(step))) if count else np.longdouble(0)
    return pair(np.asarray([-np.expm1(total), 0.0]), dtype)


def exact_pair(product: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """1 - product as two numbers of its dtype, from which the product can be had to the last bit."""
    first = 1 - product
    return np.asarray([first, (1 - first) - product], product.dtype)


def pair(weight: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    """Two numbers of this dtype whose sum is that of two wider ones; as they are, if they are of this dtype already."""
    if np.array_equal(weight, weight.astype(dtype)):
        return weight.astype(dtype)
    whole = weight[0] + weight[1]
    first = whole.astype(dtype)
    return np.asarray([first, (whole - first).astype(dtype)])
