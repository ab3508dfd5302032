"""`yogi`: Adam whose second moment goes up or down by a fixed share of the squared gradient."""

from __future__ import annotations

from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.yogi_rms import scale_by_yogi_rms
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def yogi(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-3,
    *,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam whose second moment goes up or down by a fixed share of the squared gradient.

    With mu, t and g as in `adam`, nu from 1e-6::

        nu <- nu + (1 - b2) · sign(|g|² - nu) · |g|²
        update = -learning_rate · mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t)) + eps)

    Optax starts mu, too, from 1e-6; here it starts from zero, as in the paper.

    Args: see `help(adam_tx.optimizers)`.

    Returns:
      A `Link`, with the arguments of `optax.yogi`.

    Reference: Zaheer et al., 2018 (https://papers.nips.cc/paper/8186).

    >>> import adam_tx
    >>> list(adam_tx.yogi(1e-3).links)[1]
    'scale_by_yogi_rms'
    """
    return chain(
        scale_by_momentum(b1, dtype=mu_dtype),
        scale_by_yogi_rms(b2, eps, debias=True, dtype=nu_dtype),
        bias_correction(b1),
        scale_by_learning_rate(learning_rate),
    )
