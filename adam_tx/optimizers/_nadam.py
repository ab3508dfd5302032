"""`nadam`: Adam with Nesterov's look-ahead, in the form of Optax, PyTorch or Keras."""

from __future__ import annotations

from adam_tx.optimizers._adam import adam_direction
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def nadam(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StorageLike | None = None,
    *,
    nesterov: bool = True,
    momentum_decay: float | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam with Nesterov's look-ahead, in the form of Optax, PyTorch or Keras.

    With mu, nu, t and g as in `adam`, m_t the look-ahead's decay at update t::

        u = m_(t+1) · mu / (1 - m_1 · … · m_(t+1)) + (1 - m_t) · g / (1 - m_1 · … · m_t)
        update = -learning_rate · u / (sqrt(nu / (1 - b2^t) + eps_root) + eps)

    m_t is b1 in Optax's form, `momentum_decay=None`; with a `momentum_decay` it is
    `b1 · (1 - 0.96^(t · momentum_decay) / 2)`, which PyTorch has with 0.004 and Keras
    with 1, while mu decays by b1. In Dozat's own form mu, too, decays by m_t: give
    `b1=schedules.nadam_decay()`.

    Args: see `help(adam_tx.optimizers)`, and
      momentum_decay: how fast m_t grows to b1, at least 0; None for m_t = b1.
      nesterov: whether to look ahead; without it this is `adam`.

    Returns:
      A `Link`, a drop-in for `optax.nadam`.

    Reference: Dozat, Incorporating Nesterov Momentum into Adam, 2016.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx, torch = adam_tx.nadam(1.0), adam_tx.nadam(1.0, momentum_decay=0.004)
    >>> grad = jnp.array([2.0])
    >>> [round(float(t.update(grad, t.init(grad))[0][0]), 4) for t in (tx, torch)]
    [-1.4737, -1.0565]
    """
    direction = adam_direction(
        b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov=nesterov, momentum_decay=momentum_decay
    )
    return chain(*direction, scale_by_learning_rate(learning_rate))
