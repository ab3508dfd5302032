"""`adam_mini`: AdamW with one second moment for each block of parameters that belong together."""

from __future__ import annotations

from adam_tx.links.bias_correction import bias_correction
from adam_tx.links.block_rms import BlockOf, output_unit, scale_by_block_rms
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adam_mini(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    mask: Mask = None,
    *,
    block: BlockOf = output_unit,
    mu_dtype: StorageLike | None = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """AdamW with one second moment for each block of parameters that belong together.

    With mu, t and g as in `adam`, nu one number a block::

        nu <- b2 · nu + (1 - b2) · mean of |g|² over the block
        u = mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t)) + eps)
        update = -learning_rate · (u + weight_decay · params)

    A block is by default an output of a kernel laid out as in Flax, outputs last, and
    a single element of a vector. The official code, for kernels with outputs first,
    also takes a head of a query or key as one block, and a tensor it does not know.

    Args: see `help(adam_tx.optimizers)`, and
      block: `(path, shape) -> shape of a block`, as in `scale_by_block_rms`.

    Returns:
      A `Link`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; a block that does not divide its leaf; `update` without params.

    Reference: Zhang et al., Adam-mini, 2024 (https://arxiv.org/abs/2406.16793).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> adam_tx.adam_mini(1e-3).init(jnp.zeros((50, 20)))["scale_by_block_rms"].nu.shape
    (1, 20)
    """
    return chain(
        scale_by_momentum(b1, dtype=mu_dtype),
        scale_by_block_rms(b2, eps, block=block, debias=True, dtype=nu_dtype),
        bias_correction(b1),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
