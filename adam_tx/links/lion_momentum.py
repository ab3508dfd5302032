"""`scale_by_lion_momentum`: an average that is kept with one decay and read with another, Lion's."""

from __future__ import annotations

from jax import Array

from adam_tx._core.numerics import ema
from adam_tx.links._declare import Decay, Now, Rule, Slot, StorageLike, link


@link(slots={"mu": Slot("gradient", decay="b2")})
def scale_by_lion_momentum(b1: Decay = 0.9, b2: Decay = 0.99, *, dtype: StorageLike | None = None) -> Rule:
    """Replace the updates by an average of them that is read with another decay than it is kept with.

    With u the incoming updates and mu from zero::

        u  <- b1 · mu + (1 - b1) · u
        mu <- b2 · mu + (1 - b2) · u                   with the incoming u

    Lion emits the sign of it: `optax.scale_by_sign()` follows.

    Args:
      b1: decay with which mu is read, in [0, 1).
      b2: decay with which mu is kept, in [0, 1).
      dtype: what mu is stored in; None for float32, or wider where the parameter is.

    Returns:
      A `Link` with state `(count, mu)`.

    Raises:
      ValueError: a decay outside [0, 1), or a b2 too close to one for `dtype`.

    Reference: Chen et al., Lion, 2023 (https://arxiv.org/abs/2302.06675).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_lion_momentum(0.5, 0.75)
    >>> _, state = tx.update(jnp.array([4.0]), tx.init(jnp.zeros(1)))
    >>> tx.update(jnp.array([3.0]), state)[0]  # half of 1, which was kept, and half of 3
    Array([2.], dtype=float32)
    """

    def rule(now: Now, updates: Array, mu: Array) -> tuple[Array, Array]:
        return ema(mu, updates, now.b1.step), ema(mu, updates, now.b2.step)

    return Rule(rule, formula="b1·mu + (1 - b1)·u; mu += (1 - b2)(u - mu)", dtype=dtype)
