"""`adamw`: Adam with weight decay that does not pass through the moments."""

from __future__ import annotations

from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._adam import adam_direction
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adamw(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StorageLike | None = None,
    weight_decay: NonNegative = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam with weight decay that does not pass through the moments.

    With `adam`'s direction u, the update before the learning rate::

        update = -learning_rate · (u + weight_decay · params)

    The decay is multiplied by the learning rate, as in PyTorch, Keras and Optax;
    defaults differ: 1e-4 here and in Optax, 1e-2 in PyTorch, 4e-3 in Keras.

    Args: see `help(adam_tx.optimizers)`, and
      nesterov: use the look-ahead momentum.

    Returns:
      A `Link`, a drop-in for `optax.adamw`. Its `update` needs `params`.

    Reference: Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019
    (https://arxiv.org/abs/1711.05101).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adamw(1e-3, weight_decay=0.1)
    >>> params = jnp.array([10.0, 0.0])
    >>> tx.update(jnp.zeros(2), tx.init(params), params)[0]
    Array([-0.001, -0.   ], dtype=float32)
    """
    return chain(
        *adam_direction(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
