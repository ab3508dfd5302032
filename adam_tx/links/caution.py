"""`scale_by_caution`: keep only the elements of the updates that the raw gradient agrees with."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import is_complex, scalar
from adam_tx.links._declare import Now, Positive, Rule, link, mean


@link
def scale_by_caution(floor: Positive = 1e-3, *, step: bool = False) -> Rule:
    """Keep only the elements of the updates that the raw gradient agrees with, and make up for the rest.

    With g the gradient and u the incoming updates::

        kept = 1 where u and g have the same sign, else 0
        u   <- u · kept / max(mean of kept over the tensor, floor)

    Args:
      floor: the least share of kept elements to make up for, above 0.
      step: whether what comes in is a step, -learning_rate · u, so that agreement is
        the opposite sign. Of complex elements the real part of u · conj(g) decides.

    Returns:
      A `Link` that keeps nothing. It reads the gradient. Not leafwise.

    Raises:
      ValueError: a floor that is not positive.

    Reference: Liang et al., Cautious Optimizers, 2024 (https://arxiv.org/abs/2411.16085).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_caution()
    >>> grad = jnp.array([1.0, -1.0])
    >>> tx.update(jnp.array([3.0, 3.0]), tx.init(grad), grad=grad)[0]
    Array([6., 0.], dtype=float32)
    """

    def kept(updates: Array, grad: Array) -> Array:
        if is_complex(updates):
            agreement = grad.real * updates.real + grad.imag * updates.imag
        else:
            agreement = jnp.sign(grad) * jnp.sign(updates)
        return ((agreement < 0) if step else (agreement > 0)).astype(agreement.dtype)

    def rule(now: Now, updates: Array, grad: Array, share: Array) -> Array:
        return updates * scalar(kept(updates, grad) / jnp.maximum(share, now.floor), updates)

    formula = f"u · [u and {'-g' if step else 'g'} agree in sign], made up for what is left out"
    return Rule(rule, formula=formula, statistics={"share": mean(kept)})
