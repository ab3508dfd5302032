"""The gradient's change since the last update: as it is, and added to the gradient."""

from __future__ import annotations

from jax import Array

from adam_tx._core.numerics import scalar
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, link


@link(slots={"previous": Slot("gradient", role="previous_gradient")})
def gradient_difference(*, dtype: StorageLike | None = None) -> Rule:
    """Replace the updates by how they changed since the last update.

    With u the incoming updates and previous, from zero, those of the update before::

        u ← u - previous

    Args:
      dtype: what previous is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, previous)`.

    Reference: Xie et al., Adan, 2022 (https://arxiv.org/abs/2208.06677).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.gradient_difference()
    >>> _, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> tx.update(jnp.array([3.0]), state)[0]
    Array([1.], dtype=float32)
    """

    def rule(now: Now, updates: Array, previous: Array) -> tuple[Array, Array]:
        return updates - previous, updates

    return Rule(rule, formula="u - previous", dtype=dtype)


@link(slots={"previous": Slot("gradient", role="previous_gradient")})
def add_gradient_change(gamma: NonNegative = 0.025, b1: Decay = 0.95, *, dtype: StorageLike | None = None) -> Rule:
    """Add to the updates a multiple of how they changed: MARS's variance reduction.

    With u the incoming updates and previous, from zero, those of the update before::

        u <- u + gamma · b1 / (1 - b1) · (u - previous)

    It changes the gradient itself, so it stands in front of a chain that is to see the
    changed one: `adam_tx.chain(adam_tx.add_gradient_change(), adam_tx.adamw(1e-3))`.

    Args:
      gamma: how much of the change, at least 0.
      b1: the decay of the momentum that follows, in [0, 1).
      dtype: what previous is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, previous)`.

    Raises:
      ValueError: a number out of range.

    Reference: Yuan et al., MARS, 2024 (https://arxiv.org/abs/2411.10438).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.add_gradient_change(1.0, 0.5)
    >>> _, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> tx.update(jnp.array([3.0]), state)[0]
    Array([4.], dtype=float32)
    """

    def rule(now: Now, updates: Array, previous: Array) -> tuple[Array, Array]:
        factor = now.gamma * now.b1.value / now.b1.step
        return updates + scalar(factor, updates) * (updates - previous), updates

    return Rule(rule, formula="u + gamma · b1 / (1 - b1) · (u - previous)", dtype=dtype, changes_gradient=True)
