"""`adam`: Adam as the paper's Algorithm 1, PyTorch and Optax have it."""

from __future__ import annotations

from adam_tx import schedules
from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.rms import scale_by_rms
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adam(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StorageLike | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam as the paper's Algorithm 1, PyTorch and Optax have it.

    With t the number of this update, g its gradient, mu and nu from zero::

        mu <- b1 · mu + (1 - b1) · g
        nu <- b2 · nu + (1 - b2) · |g|²
        update = -learning_rate · (mu / (1 - b1^t)) / (sqrt(nu / (1 - b2^t) + eps_root) + eps)

    With `nesterov` (Dozat's NAdam in Optax's form) the first factor is
    `b1 · mu / (1 - b1^(t+1)) + (1 - b1) · g / (1 - b1^t)`. Keras adds epsilon to the
    uncorrected root instead: see `adam_tx.interop.keras`.

    Args: see `help(adam_tx.optimizers)`, and
      nesterov: use the look-ahead momentum.

    Returns:
      A `Link`, a drop-in for `optax.adam`.

    Raises:
      ValueError: a number out of range; a 16-bit moment whose decay is too close to one.

    Reference: Kingma & Ba, Adam, 2015 (https://arxiv.org/abs/1412.6980).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adam(1e-3)
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([0.5, -0.1]), tx.init(params), params)
    >>> updates
    Array([-0.001,  0.001], dtype=float32)
    """
    return chain(
        *adam_direction(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


def adam_direction(
    b1: Decay,
    b2: Decay,
    eps: NonNegative,
    eps_root: NonNegative,
    mu_dtype: StorageLike | None,
    nu_dtype: StorageLike | None,
    *,
    nesterov: bool = False,
    momentum_decay: float | None = None,
) -> tuple[Link, ...]:
    """The links before the learning rate, which all Adams with the paper's epsilon share."""
    rms = scale_by_rms(b2, eps, eps_root=eps_root, debias=True, dtype=nu_dtype)
    if not nesterov:
        return scale_by_momentum(b1, dtype=mu_dtype), rms, bias_correction(b1)
    read = None if momentum_decay is None else schedules.nadam_decay(b1, momentum_decay)
    return scale_by_momentum(b1, nesterov=True, read=read, debias=True, dtype=mu_dtype), rms
