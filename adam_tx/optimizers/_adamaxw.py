"""`adamaxw`: AdaMax with decoupled weight decay, times the learning rate as in `adamw`."""

from __future__ import annotations

from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.max_norm import scale_by_max_norm
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adamaxw(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-4,
    mask: Mask = None,
    *,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """AdaMax with decoupled weight decay, times the learning rate as in `adamw`.

    Args: see `help(adam_tx.optimizers)`, and
      eps: added to |g| before the maximum.

    Returns:
      A `Link`, a drop-in for `optax.adamaxw`. Its `update` needs `params`.

    Reference: Loshchilov & Hutter, 2019 (https://arxiv.org/abs/1711.05101).

    >>> import adam_tx
    >>> list(adam_tx.adamaxw(1e-3).links)[3:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    return chain(
        scale_by_momentum(b1, dtype=mu_dtype),
        scale_by_max_norm(b2, eps_stored=eps, dtype=nu_dtype),
        bias_correction(b1),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
