"""`stable_adamw`: AdamW that takes a smaller step for a tensor whose gradient exceeds its usual size."""

from __future__ import annotations

from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.rms import scale_by_rms
from adam_tx.links.surprise import scale_by_surprise
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def stable_adamw(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-6,
    weight_decay: NonNegative = 1e-2,
    mask: Mask = None,
    *,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """AdamW that takes a smaller step for a tensor whose gradient exceeds its usual size.

    With u Adam's direction, v its debiased second moment, of a tensor::

        rate = learning_rate / max(1, sqrt(mean of |g|² / max(v, eps²)))
        update = -rate · (u + weight_decay · params)

    The official code keeps the moments debiased; here they are Adam's.

    Args: see `help(adam_tx.optimizers)`.

    Returns:
      A `Link`. Its `update` needs `params`.

    Reference: Wortsman et al., 2023 (https://arxiv.org/abs/2304.13013).

    >>> import adam_tx
    >>> list(adam_tx.stable_adamw(1e-3).links["scale_by_surprise"].links)
    ['scale_by_rms', 'add_decayed_weights']
    """
    rms = scale_by_rms(b2, eps, debias=True, dtype=nu_dtype)
    return chain(
        scale_by_momentum(b1, debias=True, dtype=mu_dtype),
        scale_by_surprise(rms, add_decayed_weights(weight_decay, mask), eps=eps),
        scale_by_learning_rate(learning_rate),
    )
