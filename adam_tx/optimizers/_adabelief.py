"""`adabelief`: Adam that divides by how far the gradient is from its average."""

from __future__ import annotations

from adam_tx.links.belief_rms import scale_by_belief_rms
from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adabelief(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-16,
    eps_root: NonNegative = 1e-16,
    *,
    nesterov: bool = False,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam that divides by how far the gradient is from its average.

    With mu, t and g as in `adam`, nu from zero::

        nu <- b2 · nu + (1 - b2) · |g - mu|² + eps_root
        update = -learning_rate · mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t)) + eps)

    Args: see `help(adam_tx.optimizers)`, and
      eps_root: added to nu at every update and kept in it, in units of the gradient squared.
      nesterov: use the look-ahead momentum, with which nu is not concerned.

    Returns:
      A `Link`, a drop-in for `optax.adabelief`.

    Reference: Zhuang et al., 2020 (https://arxiv.org/abs/2010.07468). The official
    code rectifies as `radam` does by default; Optax and this do not.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adabelief(1.0)
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-1.1111112], dtype=float32)
    """
    belief = scale_by_belief_rms(
        b2, eps, eps_stored=eps_root, debias=True, look_ahead=b1 if nesterov else None, dtype=nu_dtype
    )
    return chain(
        scale_by_momentum(b1, dtype=mu_dtype),
        belief,
        *([] if nesterov else [bias_correction(b1)]),
        scale_by_learning_rate(learning_rate),
    )
