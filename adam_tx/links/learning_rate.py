"""`scale_by_learning_rate`: the step, minus the learning rate times the updates."""

from __future__ import annotations

from jax import Array

from adam_tx._core.numerics import scalar
from adam_tx.links._declare import NonNegative, Now, Rule, link


@link
def scale_by_learning_rate(learning_rate: NonNegative, *, flip_sign: bool = True) -> Rule:
    """Multiply the updates by minus the learning rate: a step downhill.

    As `optax.scale_by_learning_rate`, but its argument is checked and its state is the
    same whether the rate is constant or scheduled.

    Args:
      learning_rate: at least 0.
      flip_sign: whether to multiply by minus the rate.

    Returns:
      A `Link` with state `(count,)`.

    Raises:
      ValueError: a negative number.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_learning_rate(0.5)
    >>> tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))[0]
    Array([-1.], dtype=float32)
    """

    def rule(now: Now, updates: Array) -> Array:
        rate = -now.learning_rate if flip_sign else now.learning_rate
        return updates * scalar(rate, updates)

    sign = "-" if flip_sign else ""
    return Rule(rule, formula=f"{sign}learning_rate · u", multiplies_by="learning_rate", sign=-1 if flip_sign else 1)
