"""`laprop`: Adam in the other order: first divided by the root mean square, then averaged."""

from __future__ import annotations

from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.rms import scale_by_rms
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def laprop(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-15,
    *,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam in the other order: first divided by the root mean square, then averaged.

    With g the gradient, t the number of this update, mu and nu from zero::

        nu <- b2 · nu + (1 - b2) · |g|²
        mu <- b1 · mu + (1 - b1) · g / (sqrt(nu / (1 - b2^t)) + eps)
        update = -learning_rate · mu / (1 - b1^t)

    The official code keeps the learning rate inside the average, so that changes of
    it fade in; for a constant rate the two are the same.

    Args: see `help(adam_tx.optimizers)`.

    Returns:
      A `Link`.

    Reference: Ziyin, Wang & Ueda, LaProp, 2020 (https://arxiv.org/abs/2002.04839).

    >>> import adam_tx
    >>> list(adam_tx.laprop(1e-3).links)[:3]
    ['scale_by_rms', 'scale_by_momentum', 'bias_correction']
    """
    return chain(
        scale_by_rms(b2, eps, debias=True, dtype=nu_dtype),
        scale_by_momentum(b1, dtype=mu_dtype),
        bias_correction(b1),
        scale_by_learning_rate(learning_rate),
    )
