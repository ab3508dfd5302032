"""`adafactor`: divide the gradient by a second moment kept as rows and columns; steps are relative to the weights."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from adam_tx import schedules
from adam_tx._core.hyperparams import Finite, Positive, check_int
from adam_tx.links.clip import clip_by_rms
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.links.row_column_rms import largest_axes, scale_by_row_column_rms
from adam_tx.links.weight_decay import Mask, decay_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adafactor(
    learning_rate: NonNegative | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: NonNegative = 0.8,
    decay_offset: Finite = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Positive | None = 1.0,
    momentum: Decay | None = None,
    dtype_momentum: StorageLike = jnp.float32,
    weight_decay_rate: NonNegative | None = None,
    eps: NonNegative = 1e-30,
    factored: bool = True,
    weight_decay_mask: Mask = None,
    *,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Divide the gradient by a second moment kept as rows and columns; steps are relative to the weights.

    With g the gradient of a tensor, t the number of this update, nu its factored
    second moment (`scale_by_row_column_rms`) with decay 1 - t^-decay_rate::

        u = g / sqrt(nu)                               nu averages |g|² + eps
        u = u / max(1, rms(u) / clipping_threshold)
        u = learning_rate · max(1e-3, rms(params)) · u
        update = -(EMA of u with momentum) - weight_decay_rate · params

    The decay is not multiplied by the learning rate, as in Optax. PyTorch and Keras
    factor the last two axes whatever their size and bound the rate by 1 / sqrt(t):
    see `adam_tx.interop`. The paper's own rate is the schedule min(1e-2, 1 / sqrt(t)).

    Args: see `help(adam_tx.optimizers)`, and
      learning_rate: at least 0; None for 1.
      min_dim_size_to_factor: the least size of the two largest axes to factor.
      decay_rate: the exponent of the second moment's decay, at least 0.
      multiply_by_parameter_scale: whether steps are relative to the parameters' size.
      clipping_threshold: largest root mean square of a tensor's update; None for no limit.
      momentum: decay of an average of the updates, in [0, 1); None for none.
      weight_decay_rate: at least 0; None for none.
      eps: added to |g|² and kept, in units of the gradient squared; at least 0.
      weight_decay_mask: tree of booleans, or a function from params to one; only
        leaves marked True decay.
      decay_offset: subtracted from t in the decay, which is 0 until update decay_offset + 1. To
        fine-tune with a state that has counted n updates, give n.
      dtype_momentum: what the average of the updates is stored in; float32, or wider where the parameter is.
      factored: whether to factor at all.

    Returns:
      A `Link`, with the rule of `optax.adafactor`. Its `update` needs `params`.

    Reference: Shazeer & Stern, Adafactor, 2018 (https://arxiv.org/abs/1804.04235).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adafactor(0.1)
    >>> params = jnp.array([2.0, -2.0])
    >>> tx.update(jnp.array([3.0, -4.0]), tx.init(params), params)[0]
    Array([-0.2,  0.2], dtype=float32)
    """
    check_int("min_dim_size_to_factor", min_dim_size_to_factor, least=0)

    def axes(path: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
        return largest_axes(path, shape, min_dim_size_to_factor) if factored else None

    stored = None if dtype_momentum is jnp.float32 else dtype_momentum
    decay = schedules.power_decay(decay_rate, decay_offset)
    return chain(
        scale_by_row_column_rms(decay, eps_stored=eps, axes=axes, dtype=nu_dtype),
        *([] if clipping_threshold is None else [clip_by_rms(clipping_threshold)]),
        scale_by_learning_rate(1.0 if learning_rate is None else learning_rate),
        *([optax.scale_by_param_block_rms()] if multiply_by_parameter_scale else []),
        *([] if momentum is None else [scale_by_momentum(momentum, dtype=stored)]),
        *([] if weight_decay_rate is None else [decay_weights(weight_decay_rate, weight_decay_mask)]),
    )
