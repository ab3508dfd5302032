"""`radam`: Adam that starts as plain momentum, until its second moment is reliable."""

from __future__ import annotations

from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.rectified_rms import scale_by_rectified_rms
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def radam(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    threshold: NonNegative = 5.0,
    *,
    nesterov: bool = False,
    degenerate: bool = True,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Adam that starts as plain momentum, until its second moment is reliable.

    The chain of `adam` with `scale_by_rectified_rms`, whose docstring has rho and r;
    until rho reaches the threshold, from update 6 on for b2 = 0.999, the update is
    -learning_rate · mu / (1 - b1^t), or zero if not `degenerate`, as in the official
    code, which then also adds epsilon to the raw root.

    Args: see `help(adam_tx.optimizers)`, and
      threshold: the least rho at which updates are divided: 5 in Optax and PyTorch, 4 in the paper.
      degenerate: whether there are updates before that.
      nesterov: use the look-ahead momentum.

    Returns:
      A `Link`, a drop-in for `optax.radam`.

    Reference: Liu et al., 2020 (https://arxiv.org/abs/1908.03265).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.radam(0.1)
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.2], dtype=float32)
    """
    rectified = scale_by_rectified_rms(
        b2, eps, eps_root=eps_root, debias=True, threshold=threshold, degenerate=degenerate, dtype=nu_dtype
    )
    return chain(
        scale_by_momentum(b1, nesterov=nesterov, debias=nesterov, dtype=mu_dtype),
        rectified,
        *([] if nesterov else [bias_correction(b1)]),
        scale_by_learning_rate(learning_rate),
    )
