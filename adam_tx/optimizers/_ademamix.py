"""`ademamix`: Adam with a second, much slower momentum beside the first."""

from __future__ import annotations

from adam_tx._parallel import parallel
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.rms import scale_by_rms
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def ademamix(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    b3: Decay = 0.9999,
    alpha: NonNegative = 5.0,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StorageLike | None = None,
    weight_decay: NonNegative = 0.0,
    mask: Mask = None,
    *,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam with a second, much slower momentum beside the first.

    With nu, t and g as in `adam`, two momenta from zero::

        fast <- b1 · fast + (1 - b1) · g
        slow <- b3 · slow + (1 - b3) · g
        u = (fast / (1 - b1^t) + alpha · slow) / (sqrt(nu / (1 - b2^t) + eps_root) + eps)
        update = -learning_rate · (u + weight_decay · params)

    Args: see `help(adam_tx.optimizers)`, and
      b3: decay of the slow momentum, in [0, 1); the paper warms it up.
      alpha: weight of the slow momentum; the paper warms it up.

    Returns:
      A `Link`, with the arguments of `optax.contrib.ademamix`. Its `update` needs `params`.

    Reference: Pagliardini et al., 2024 (https://arxiv.org/abs/2409.03137).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.ademamix(1.0)
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad), grad)[0]  # -(1 + alpha (1 - b3))
    Array([-1.0005], dtype=float32)
    """
    fast = scale_by_momentum(b1, debias=True, dtype=mu_dtype)
    slow = scale_by_momentum(b3, dtype=mu_dtype)
    return chain(
        parallel(("fast", fast), ("slow", slow), weights=(1.0, alpha)),
        scale_by_rms(b2, eps, eps_root=eps_root, debias=True, dtype=nu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
