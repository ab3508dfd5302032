"""`lion`: the sign of a momentum with two decays: one to store it, one to read it."""

from __future__ import annotations

import optax

from adam_tx.links.lion_momentum import scale_by_lion_momentum
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def lion(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    mu_dtype: StorageLike | None = None,
    weight_decay: NonNegative = 1e-3,
    mask: Mask = None,
) -> Link:
    """The sign of a momentum with two decays: one to store it, one to read it.

    With g the gradient and mu from zero::

        u  = sign(b1 · mu + (1 - b1) · g)
        mu <- b2 · mu + (1 - b2) · g
        update = -learning_rate · (u + weight_decay · params)

    Args: see `help(adam_tx.optimizers)`, and
      b1: decay with which mu is read, in [0, 1).
      b2: decay with which mu is kept, in [0, 1).
      weight_decay: at least 0; Keras has none by default.

    Returns:
      A `Link`, a drop-in for `optax.lion`. Its `update` needs `params`.

    Reference: Chen et al., Lion, 2023 (https://arxiv.org/abs/2302.06675).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.lion(0.1, weight_decay=0.0)
    >>> grad = jnp.array([2.0, -3.0])
    >>> tx.update(grad, tx.init(grad), grad)[0]
    Array([-0.1,  0.1], dtype=float32)
    """
    return chain(
        scale_by_lion_momentum(b1, b2, dtype=mu_dtype),
        optax.scale_by_sign(),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
