"""`adam_atan2`: Adam without epsilon: an arctangent takes the place of the division."""

from __future__ import annotations

from adam_tx.links.atan2 import scale_by_atan2
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adam_atan2(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    a: NonNegative = 1.27,
    b: NonNegative = 1.0,
    weight_decay: NonNegative = 0.0,
    mask: Mask = None,
    *,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam without epsilon: an arctangent takes the place of the division.

    With mu, nu, t and g as in `adam`::

        u = a · atan2(mu / (1 - b1^t), b · sqrt(nu / (1 - b2^t)))
        update = -learning_rate · (u + weight_decay · params)

    Args: see `help(adam_tx.optimizers)`, and
      a: factor of the arctangent; 1.27 makes the first step about the learning rate.
      b: factor of the root.

    Returns:
      A `Link`. Its `update` needs `params`.

    Reference: Everett et al., 2024 (https://arxiv.org/abs/2407.05872).

    >>> import adam_tx
    >>> list(adam_tx.adam_atan2(1e-3).links)[:2]
    ['scale_by_momentum', 'scale_by_atan2']
    """
    return chain(
        scale_by_momentum(b1, debias=True, dtype=mu_dtype),
        scale_by_atan2(b2, a=a, b=b, debias=True, dtype=nu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
