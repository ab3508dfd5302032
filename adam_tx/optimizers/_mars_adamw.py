"""`mars_adamw`: AdamW of a gradient corrected by its change since the last update."""

from __future__ import annotations

from adam_tx.links.clip import clip_by_norm
from adam_tx.links.gradient_difference import add_gradient_change
from adam_tx.links.weight_decay import Mask
from adam_tx.optimizers._adamw import adamw
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer


@optimizer
def mars_adamw(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Mask = None,
    *,
    gamma: NonNegative = 0.025,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """AdamW of a gradient corrected by its change since the last update.

    With g the gradient of a tensor, previous that of the update before, zero at first::

        c = g + gamma · b1 / (1 - b1) · (g - previous)
        c = c / max(1, ||c||)
        update = that of adamw for c

    This is the approximate form: previous is not evaluated on the new batch. The
    official code leaves tensors that are no matrices to AdamW; for that, `optax.partition`.

    Args: see `help(adam_tx.optimizers)`, and
      gamma: how much of the change is added, at least 0.

    Returns:
      A `Link`. Its `update` needs `params`.

    Reference: Yuan et al., MARS, 2024 (https://arxiv.org/abs/2411.10438).

    >>> import adam_tx
    >>> list(adam_tx.mars_adamw(1e-3).links)
    ['add_gradient_change', 'clip_by_norm', 'chain']
    """
    return chain(
        add_gradient_change(gamma, b1),
        clip_by_norm(1.0),
        adamw(learning_rate, b1, b2, eps, 0.0, mu_dtype, weight_decay, mask, nu_dtype=nu_dtype),
    )
