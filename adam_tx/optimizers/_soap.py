"""`soap`: AdamW in the eigenbasis of the gradient's covariance, Shampoo's preconditioner."""

from __future__ import annotations

from adam_tx import schedules
from adam_tx.links.basis import AxesOf
from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.eigenbasis import in_eigenbasis, matrix_axes
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.rms import scale_by_rms
from adam_tx.links.weight_decay import Mask, decay_stepped_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def soap(
    learning_rate: NonNegative,
    b1: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 1e-2,
    mask: Mask = None,
    *,
    every: int = 10,
    shampoo_decay: Decay | None = None,
    axes: AxesOf = matrix_axes,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """AdamW in the eigenbasis of the gradient's covariance, Shampoo's preconditioner.

    With Q the eigenvectors of the running averages of g gᴴ and gᴴ g, found anew every
    `every` updates, t the number of updates without the first::

        u = -learning_rate · Q [ Adam's direction for Qᴴ g, epsilon added to the raw root ]
        update = u - learning_rate · weight_decay · (params + u)

    The first update only finds Q and is zero. A leaf with one axis, and an axis of
    more than ten thousand elements, keep their basis.

    Args: see `help(adam_tx.optimizers)`, and
      eps: added to the raw root in that basis, in units of the gradient; at least 0.
      every: the number of updates between two changes of basis.
      shampoo_decay: decay of the averages of g gᴴ, in [0, 1); None for b2.
      axes: `(path, shape) -> axes` whose basis changes, as in `in_eigenbasis`.

    Returns:
      A `Link`. Its `update` needs `params`.

    Reference: Vyas et al., SOAP, 2024 (https://arxiv.org/abs/2409.11321).

    >>> import adam_tx
    >>> list(adam_tx.soap(1e-3).links)
    ['in_eigenbasis', 'scale_by_learning_rate', 'decay_stepped_weights']
    """
    direction = chain(scale_by_momentum(b1, dtype=mu_dtype), scale_by_rms(b2, eps, dtype=nu_dtype), bias_correction())
    return chain(
        in_eigenbasis(direction, b2 if shampoo_decay is None else shampoo_decay, every=every, axes=axes),
        scale_by_learning_rate(learning_rate),
        decay_stepped_weights(weight_decay, mask, times=schedules.from_second_update(learning_rate)),
    )
