"""`scale_by_trust_ratio`: give each tensor of the updates the size of its parameters."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import root, scalar, square
from adam_tx.links._declare import NonNegative, Now, Rule, link, total
from adam_tx.links.clip import square_of_updates


@link
def scale_by_trust_ratio(
    min_norm: NonNegative = 0.0, trust_coefficient: NonNegative = 1.0, eps: NonNegative = 0.0
) -> Rule:
    """Give each tensor of the updates the size of its parameters: LAMB's and LARS's step.

    With u a tensor of the updates and p its parameters, norms of at least `min_norm`::

        u <- u · trust_coefficient · ||p|| / (||u|| + eps)        u itself where a norm is 0

    `optax.scale_by_trust_ratio` with finite derivatives where the updates are zero.

    Args:
      min_norm: the least norm of parameters and updates; at least 0.
      trust_coefficient: factor of the ratio; at least 0.
      eps: added to the norm of the updates; at least 0.

    Returns:
      A `Link` that keeps nothing. Its `update` needs `params`. Not leafwise.

    Raises:
      ValueError: a negative number; `update` without params.

    Reference: You et al., LAMB, 2020 (https://arxiv.org/abs/1904.00962).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_trust_ratio()
    >>> tx.update(jnp.array([2.0, 0.0]), tx.init(jnp.zeros(2)), jnp.array([3.0, 4.0]))[0]
    Array([5., 0.], dtype=float32)
    """

    def rule(now: Now, updates: Array, of_updates: Array, of_params: Array) -> Array:
        size, target = (jnp.maximum(root(total), now.min_norm) for total in (of_updates, of_params))
        ratio = now.trust_coefficient * target / (jnp.where(size == 0, 1.0, size) + now.eps)
        return updates * scalar(jnp.where((size == 0) | (target == 0), 1.0, ratio), updates)

    def square_of_params(params: Array) -> Array:
        return square(params)

    squares = {"of_updates": total(square_of_updates), "of_params": total(square_of_params)}
    return Rule(rule, formula="u · ||params|| / ||u||", statistics=squares)
