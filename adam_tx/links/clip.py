"""`clip_by_rms` and `clip_by_norm`: bound the size of each tensor of the updates."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import root, scalar, square
from adam_tx._core.rule import Reduction
from adam_tx.links._declare import Now, Positive, Rule, link, mean, total


@link
def clip_by_rms(threshold: Positive = 1.0) -> Rule:
    """Scale each tensor of the updates down to a root mean square of at most `threshold`.

    With n the number of elements of the tensor u::

        u <- u / max(1, ||u|| / (sqrt(n) · threshold))

    `optax.clip_by_block_rms` with finite derivatives at zero.

    Args:
      threshold: above 0, in units of the updates.

    Returns:
      A `Link` that keeps nothing. Not leafwise.

    Raises:
      ValueError: a threshold that is not positive.

    Reference: Shazeer & Stern, Adafactor, 2018, section 6 (https://arxiv.org/abs/1804.04235).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.clip_by_rms(1.0)
    >>> tx.update(jnp.array([3.0, 3.0]), tx.init(jnp.zeros(2)))[0]
    Array([1., 1.], dtype=float32)
    """
    return _clip("threshold", mean(square_of_updates), "u / max(1, rms(u) / threshold)")


@link
def clip_by_norm(max_norm: Positive = 1.0) -> Rule:
    """Scale each tensor of the updates down to a norm of at most `max_norm`.

    With u the tensor::

        u <- u / max(1, ||u|| / max_norm)

    `optax.clip_by_global_norm` measures all tensors at once instead.

    Args:
      max_norm: above 0, in units of the updates.

    Returns:
      A `Link` that keeps nothing. Not leafwise.

    Raises:
      ValueError: a norm that is not positive.

    Reference: Pascanu, Mikolov & Bengio, On the Difficulty of Training Recurrent
    Neural Networks, 2013 (https://arxiv.org/abs/1211.5063).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.clip_by_norm(1.0)
    >>> tx.update(jnp.array([3.0, -4.0]), tx.init(jnp.zeros(2)))[0]
    Array([ 0.6, -0.8], dtype=float32)
    """
    return _clip("max_norm", total(square_of_updates), "u / max(1, ||u|| / max_norm)")


def square_of_updates(updates: Array) -> Array:
    """|u|²."""
    return square(updates)


def _clip(limit: str, size: Reduction, formula: str) -> Rule:
    def rule(now: Now, updates: Array, size: Array) -> Array:
        return updates * scalar(1.0 / jnp.maximum(root(size) / getattr(now, limit), 1.0), updates)

    return Rule(rule, formula=formula, statistics={"size": size}, changes_gradient=True)
