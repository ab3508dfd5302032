"""`amsgrad`: Adam that divides by the largest second moment so far."""

from __future__ import annotations

from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.max_rms import scale_by_max_rms
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def amsgrad(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StorageLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    max_of: str = "debiased",
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam that divides by the largest second moment so far.

    With mu, nu, t and g as in `adam`::

        nu_max <- max(nu_max, nu / (1 - b2^t))         max_of="debiased", as Optax
        nu_max <- max(nu_max, nu)                      max_of="raw", as PyTorch and Keras
        update = -learning_rate · mu / (1 - b1^t) / (sqrt(nu_max [/ (1 - b2^t) if raw] + eps_root) + eps)

    The two states cannot be converted into each other.

    Args: see `help(adam_tx.optimizers)`, and
      max_of: "debiased" or "raw".
      bias_correction_mu: whether to undo the start from zero of mu.
      bias_correction_nu: whether to undo that of nu; the maximum is then raw in any case.

    Returns:
      A `Link`, a drop-in for `optax.amsgrad`.

    Reference: Reddi, Kale & Kumar, 2018 (https://arxiv.org/abs/1904.09237).

    >>> import adam_tx
    >>> list(adam_tx.amsgrad(1e-3).links)
    ['scale_by_momentum', 'scale_by_max_rms', 'bias_correction', 'scale_by_learning_rate']
    """
    return chain(
        scale_by_momentum(b1, dtype=mu_dtype),
        scale_by_max_rms(
            b2,
            eps,
            eps_root=eps_root,
            debias=bias_correction_nu,
            max_of=max_of if bias_correction_nu else "raw",
            dtype=nu_dtype,
        ),
        *([bias_correction(b1)] if bias_correction_mu else []),
        scale_by_learning_rate(learning_rate),
    )
