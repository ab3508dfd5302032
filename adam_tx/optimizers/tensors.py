"""Adam with fewer second moments than parameters, or with a step measured on a whole tensor."""

from typing import Any

import optax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, schedules
from adam_tx.bias_correction import bias_correction
from adam_tx.chain import Link, chain
from adam_tx.first_moment import scale_by_heavy_ball, scale_by_momentum
from adam_tx.learning_rate import scale_by_learning_rate
from adam_tx.reduced_moments import (
    BlockOf,
    largest_axes,
    output_unit,
    scale_by_block_rms,
    scale_by_factored_rms,
)
from adam_tx.second_moment import scale_by_rms
from adam_tx.tensorwise import clip_by_rms, scale_by_surprise, scale_by_trust_ratio
from adam_tx.weight_decay import add_decayed_weights, decay_weights


def lamb(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> Link:
    """AdamW whose update of each tensor has the size of that tensor, times the learning rate.

    With u Adam's direction, p a tensor of the parameters::

        r = u + weight_decay · p
        update = -learning_rate · r · ||p|| / ||r||            the ratio 1 where a norm is 0

    Not leafwise: the rule of an element depends on its whole tensor. Keras leaves
    the decay out of the ratio.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.

    Returns:
      A `Link`, a drop-in for `optax.lamb`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: You et al., LAMB, 2020 (https://arxiv.org/abs/1904.00962).

    >>> list(lamb(1e-3).description.links)[-2:]
    ['scale_by_trust_ratio', 'scale_by_learning_rate']
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_rms(b2, eps, eps_root=eps_root, debias=True),
        bias_correction(b1),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


def novograd(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.25,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
) -> Link:
    """Divide each tensor's gradient by its running norm, then let it gather momentum.

    With g the gradient of a tensor, mu from zero; nu is ||g||² at the first update::

        nu <- b2 · nu + (1 - b2) · ||g||²
        mu <- b1 · mu + g / (sqrt(nu + eps_root) + eps) + weight_decay · params
        update = -learning_rate · mu

    One second moment a tensor. The decay is gathered by the momentum, as in Optax.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1); a sum, not an average.
      b2: decay of nu, in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      weight_decay: at least 0.
      mu_dtype: what mu is stored in; None for float32 or wider.

    Returns:
      A `Link`, a drop-in for `optax.novograd`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Ginsburg et al., NovoGrad, 2019 (https://arxiv.org/abs/1905.11286).

    >>> import jax.numpy as jnp
    >>> tx = novograd(1.0, eps=0.0)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad)[0]
    Array([-0.6,  0.8], dtype=float32)
    """
    _hyperparams.decay("b2", b2)  # refused by the name it has here
    return chain(
        scale_by_block_rms(schedules.from_second_update(b2), eps, eps_root=eps_root, total=True),
        add_decayed_weights(weight_decay),
        scale_by_heavy_ball(b1, dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: float | None = 1.0,
    momentum: ScalarOrSchedule | None = None,
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-30,
    weight_decay_mask: Any = None,
) -> Link:
    """Divide the gradient by a second moment kept as rows and columns, in steps of the parameters' size.

    With g the gradient of a tensor, t the number of this update, nu its factored
    second moment (`scale_by_factored_rms`) with decay 1 - t^-decay_rate::

        u = g / sqrt(nu)                               nu averages |g|² + eps
        u = u / max(1, rms(u) / clipping_threshold)
        u = learning_rate · max(1e-3, rms(params)) · u
        update = -(EMA of u with momentum) - weight_decay_rate · params

    The decay is not multiplied by the learning rate, as in Optax. PyTorch and Keras
    factor the last two axes whatever their size and bound the rate by 1 / sqrt(t):
    see `adam_tx.interop`. The paper's own rate is the schedule min(1e-2, 1 / sqrt(t)).

    Args:
      learning_rate: at least 0; number, 0-d array or schedule; None for 1.
      min_dim_size_to_factor: the least size of the two largest axes to factor.
      decay_rate: the exponent of the second moment's decay, at least 0.
      multiply_by_parameter_scale: whether steps are relative to the parameters' size.
      clipping_threshold: largest root mean square of a tensor's update; None for no limit.
      momentum: decay of an average of the updates, in [0, 1); None for none.
      weight_decay_rate: at least 0; None for none.
      eps: added to |g|² and kept, in units of the gradient squared; at least 0.
      weight_decay_mask: tree of booleans, or a function from params to one; only
        leaves marked True decay.

    Returns:
      A `Link`, with the rule of `optax.adafactor`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Shazeer & Stern, Adafactor, 2018 (https://arxiv.org/abs/1804.04235).

    >>> import jax.numpy as jnp
    >>> tx = adafactor(0.1)
    >>> params = jnp.array([2.0, -2.0])
    >>> tx.update(jnp.array([3.0, -4.0]), tx.init(params), params)[0]
    Array([-0.2,  0.2], dtype=float32)
    """
    _hyperparams.whole("min_dim_size_to_factor", min_dim_size_to_factor, least=0)

    def axes(path: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
        return largest_axes(path, shape, min_dim_size_to_factor)

    return chain(
        scale_by_factored_rms(schedules.power_decay(decay_rate), eps_stored=eps, axes=axes),
        *([] if clipping_threshold is None else [clip_by_rms(clipping_threshold)]),
        scale_by_learning_rate(1.0 if learning_rate is None else learning_rate),
        *([optax.scale_by_param_block_rms()] if multiply_by_parameter_scale else []),
        *([] if momentum is None else [scale_by_momentum(momentum)]),
        *([] if weight_decay_rate is None else [decay_weights(weight_decay_rate, weight_decay_mask)]),
    )


def adam_mini(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    block: BlockOf = output_unit,
    mu_dtype: DTypeLike | None = None,
) -> Link:
    """AdamW with one second moment for a block of parameters that belong together.

    With mu, t and g as in `adam`, nu one number a block::

        nu <- b2 · nu + (1 - b2) · mean of |g|² over the block
        u = mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t)) + eps)
        update = -learning_rate · (u + weight_decay · params)

    A block is by default an output of a kernel laid out as in Flax, outputs last, and
    a single element of a vector. The official code, for kernels with outputs first,
    also takes a head of a query or key as one block, and a tensor it does not know.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the debiased root, in units of the gradient; at least 0.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.
      block: `(path, shape) -> shape of a block`, as in `scale_by_block_rms`.
      mu_dtype: what mu is stored in; None for float32 or wider.

    Returns:
      A `Link`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; a block that does not divide its leaf; `update` without params.

    Reference: Zhang et al., Adam-mini, 2024 (https://arxiv.org/abs/2406.16793).

    >>> import jax.numpy as jnp
    >>> adam_mini(1e-3).init(jnp.zeros((50, 20)))["scale_by_block_rms"].nu.shape
    (1, 20)
    """
    return chain(
        scale_by_momentum(b1, dtype=mu_dtype),
        scale_by_block_rms(b2, eps, block=block, debias=True),
        bias_correction(b1),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def stable_adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 1e-2,
    mask: Any = None,
    *,
    mu_dtype: DTypeLike | None = None,
) -> Link:
    """AdamW that slows down a tensor whose gradient is larger than what it averaged.

    With u Adam's direction, v its debiased second moment, of a tensor::

        rate = learning_rate / max(1, sqrt(mean of |g|² / max(v, eps²)))
        update = -rate · (u + weight_decay · params)

    The official code keeps the moments debiased; here they are Adam's.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the debiased root, in units of the gradient; at least 0.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.
      mu_dtype: what mu is stored in; None for float32 or wider.

    Returns:
      A `Link`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Wortsman et al., 2023 (https://arxiv.org/abs/2304.13013).

    >>> list(stable_adamw(1e-3).description.links["scale_by_surprise"].description.links)
    ['scale_by_rms', 'add_decayed_weights']
    """
    return chain(
        scale_by_momentum(b1, debias=True, dtype=mu_dtype),
        scale_by_surprise(scale_by_rms(b2, eps, debias=True), add_decayed_weights(weight_decay, mask), eps=eps),
        scale_by_learning_rate(learning_rate),
    )
