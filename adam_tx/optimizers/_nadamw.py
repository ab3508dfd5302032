"""`nadamw`: nAdam with decoupled weight decay, times the learning rate as in `adamw`."""

from __future__ import annotations

from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._adam import adam_direction
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def nadamw(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StorageLike | None = None,
    weight_decay: NonNegative = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = True,
    momentum_decay: float | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """NAdam with decoupled weight decay, times the learning rate as in `adamw`.

    Args: see `help(adam_tx.optimizers)`, and
      nesterov: whether to look ahead; without it this is `adamw`.
      momentum_decay: that of `nadam`.

    Returns:
      A `Link`, a drop-in for `optax.nadamw`.

    Reference: Dozat, 2016; Loshchilov & Hutter, 2019.

    >>> import adam_tx
    >>> adam_tx.nadamw(1e-3).links["add_decayed_weights"].hyperparams["weight_decay"]
    0.0001
    """
    direction = adam_direction(
        b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov=nesterov, momentum_decay=momentum_decay
    )
    return chain(*direction, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
