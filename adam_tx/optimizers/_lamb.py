"""`lamb`: AdamW whose step for each tensor is as long as the tensor, times the learning rate."""

from __future__ import annotations

from adam_tx.links.trust_ratio import scale_by_trust_ratio
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._adam import adam_direction
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def lamb(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    eps_root: NonNegative = 0.0,
    weight_decay: NonNegative = 0.0,
    mask: Mask = None,
    *,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """AdamW whose step for each tensor is as long as the tensor, times the learning rate.

    With u Adam's direction, p a tensor of the parameters::

        r = u + weight_decay · p
        update = -learning_rate · r · ||p|| / ||r||            the ratio 1 where a norm is 0

    Not leafwise: the rule of an element depends on its whole tensor. Keras leaves
    the decay out of the ratio.

    Args: see `help(adam_tx.optimizers)`.

    Returns:
      A `Link`, a drop-in for `optax.lamb`. Its `update` needs `params`.

    Reference: You et al., LAMB, 2020 (https://arxiv.org/abs/1904.00962).

    >>> import adam_tx
    >>> list(adam_tx.lamb(1e-3).links)[-2:]
    ['scale_by_trust_ratio', 'scale_by_learning_rate']
    """
    return chain(
        *adam_direction(b1, b2, eps, eps_root, mu_dtype, nu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )
