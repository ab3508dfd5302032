"""`adamax`: Adam with a decaying maximum in place of the root mean square."""

from __future__ import annotations

from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.max_norm import scale_by_max_norm
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adamax(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam with a decaying maximum in place of the root mean square.

    With mu, t and g as in `adam`, nu from zero::

        nu <- max(b2 · nu, |g| + eps)
        update = -learning_rate · mu / (1 - b1^t) / nu

    Keras adds epsilon outside the maximum: `scale_by_max_norm(b2, eps, eps_stored=0)`.

    Args: see `help(adam_tx.optimizers)`, and
      eps: added to |g| before the maximum, and so kept in the state; at least 0.

    Returns:
      A `Link`, a drop-in for `optax.adamax`.

    Reference: Kingma & Ba, Adam, 2015, section 7.1 (https://arxiv.org/abs/1412.6980).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adamax(0.1)
    >>> grad = jnp.array([2.0, -3.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.1,  0.1], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1, dtype=mu_dtype),
        scale_by_max_norm(b2, eps_stored=eps, dtype=nu_dtype),
        bias_correction(b1),
        scale_by_learning_rate(learning_rate),
    )
