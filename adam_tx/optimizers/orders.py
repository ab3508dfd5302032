"""Optimizers that order Adam's links differently, leave some out or add one."""

from typing import Any

import optax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx.bias_correction import bias_correction
from adam_tx.chain import Link, chain
from adam_tx.extremes import scale_by_rss
from adam_tx.first_moment import scale_by_heavy_ball, scale_by_momentum
from adam_tx.learning_rate import scale_by_learning_rate
from adam_tx.parallel import parallel
from adam_tx.readouts import scale_by_delayed_rms
from adam_tx.second_moment import scale_by_rms, scale_by_stddev
from adam_tx.weight_decay import add_decayed_weights


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    *,
    dampening: ScalarOrSchedule = 0.0,
) -> Link:
    """Gradient descent with heavy-ball momentum.

    With g the gradient and the trace from zero::

        trace <- momentum · trace + (1 - dampening) · g        g itself at the first update
        update = -learning_rate · (trace, or g + momentum · trace if nesterov)

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      momentum: decay of the trace, in [0, 1); None for no trace.
      nesterov: look one step ahead.
      dampening: in [0, 1).

    Returns:
      A `Link`, with the arguments of `optax.sgd`.

    Raises:
      ValueError: a number out of range.

    Reference: Sutskever et al., 2013; torch/optim/sgd.py in PyTorch 2.13.

    >>> import jax.numpy as jnp
    >>> tx = sgd(0.1)
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.2], dtype=float32)
    """
    step = scale_by_learning_rate(learning_rate)
    if momentum is None:
        return chain(step)
    return chain(scale_by_heavy_ball(momentum, dampening=dampening, nesterov=nesterov), step)


def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
) -> Link:
    """Divide the gradient by its running root mean square, then let it gather momentum.

    With g the gradient, nu, mean and trace from zero::

        nu    <- decay · nu + (1 - decay) · |g|²               less |mean|² if centered
        u      = g / sqrt(nu + eps)                            eps_in_sqrt: Optax, Keras
        u      = g / (sqrt(nu) + eps)                          else: PyTorch
        trace <- momentum · trace - learning_rate · u
        update = trace, or momentum · trace - learning_rate · u if nesterov

    The learning rate stands before the momentum, as in Optax and Keras.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      decay: of nu, in [0, 1).
      eps: at least 0.
      eps_in_sqrt: whether eps is added inside the root.
      centered: divide by the standard deviation instead.
      momentum: decay of the trace, in [0, 1); None for no trace.
      nesterov: look one step ahead.

    Returns:
      A `Link`, with the arguments of `optax.rmsprop`.

    Raises:
      ValueError: a number out of range.

    Reference: Tieleman & Hinton, 2012; Graves, 2013 (https://arxiv.org/abs/1308.0850).

    >>> import jax.numpy as jnp
    >>> tx = rmsprop(0.1, decay=0.75)
    >>> grad = jnp.array([3.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.2], dtype=float32)
    """
    outside, inside = (0.0, eps) if eps_in_sqrt else (eps, 0.0)
    scale = scale_by_stddev if centered else scale_by_rms
    return chain(
        scale(decay, outside, eps_root=inside),
        scale_by_learning_rate(learning_rate),
        *([] if momentum is None else [scale_by_heavy_ball(momentum, nesterov=nesterov)]),
    )


def adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: float = 0.1,
    eps: ScalarOrSchedule = 1e-7,
) -> Link:
    """Divide the gradient by the root of the sum of its squares so far.

    With g the gradient and nu from `initial_accumulator_value`::

        nu <- nu + |g|²
        update = -learning_rate · g / sqrt(nu + eps)

    PyTorch adds epsilon outside the root: `scale_by_rss(eps)`.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      initial_accumulator_value: what nu starts from.
      eps: added inside the root, in units of the gradient squared; at least 0.

    Returns:
      A `Link`, a drop-in for `optax.adagrad`.

    Raises:
      ValueError: a number out of range.

    Reference: Duchi, Hazan & Singer, 2011 (https://jmlr.org/papers/v12/duchi11a.html).

    >>> import jax.numpy as jnp
    >>> tx = adagrad(0.1, initial_accumulator_value=9.0)
    >>> grad = jnp.array([4.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.08000001], dtype=float32)
    """
    return chain(
        scale_by_rss(0.0, eps_root=eps, initial=initial_accumulator_value),
        scale_by_learning_rate(learning_rate),
    )


def laprop(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-15,
) -> Link:
    """Adam in the other order: first divided by the root mean square, then averaged.

    With g the gradient, t the number of this update, mu and nu from zero::

        nu <- b2 · nu + (1 - b2) · |g|²
        mu <- b1 · mu + (1 - b1) · g / (sqrt(nu / (1 - b2^t)) + eps)
        update = -learning_rate · mu / (1 - b1^t)

    The official code keeps the learning rate inside the average, so that changes of
    it fade in; for a constant rate the two are the same.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the debiased root, in units of the gradient; at least 0.

    Returns:
      A `Link`.

    Raises:
      ValueError: a number out of range.

    Reference: Ziyin, Wang & Ueda, LaProp, 2020 (https://arxiv.org/abs/2002.04839).

    >>> list(laprop(1e-3).description.links)[:3]
    ['scale_by_rms', 'scale_by_momentum', 'bias_correction']
    """
    return chain(
        scale_by_rms(b2, eps, debias=True),
        scale_by_momentum(b1),
        bias_correction(b1),
        scale_by_learning_rate(learning_rate),
    )


def adopt(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-6,
    mu_dtype: DTypeLike | None = None,
) -> Link:
    """Divide by the second moment of earlier gradients, then average: converges for any b2.

    With g the gradient and t the number of earlier updates; the first update only
    sets nu to |g|²::

        mu <- b1 · mu + (1 - b1) · clip(g / max(sqrt(nu), eps), ±t^(1/4))
        update = -learning_rate · mu
        nu <- b2 · nu + (1 - b2) · |g|²

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: the least denominator, in units of the gradient; at least 0.
      mu_dtype: what mu is stored in; None for float32 or wider.

    Returns:
      A `Link`, with the rule and arguments of `optax.contrib.adopt`.

    Raises:
      ValueError: a number out of range.

    Reference: Taniguchi et al., ADOPT, 2024 (https://arxiv.org/abs/2411.02853).

    >>> list(adopt(1e-3).description.links)[:2]
    ['scale_by_delayed_rms', 'scale_by_momentum']
    """
    return chain(
        scale_by_delayed_rms(b2, eps),
        scale_by_momentum(b1, dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


def ademamix(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> Link:
    """Adam with a second, much slower momentum beside the first.

    With nu, t and g as in `adam`, two momenta from zero::

        fast <- b1 · fast + (1 - b1) · g
        slow <- b3 · slow + (1 - b3) · g
        u = (fast / (1 - b1^t) + alpha · slow) / (sqrt(nu / (1 - b2^t) + eps_root) + eps)
        update = -learning_rate · (u + weight_decay · params)

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of the fast momentum, in [0, 1).
      b2: decay of nu, in [0, 1).
      b3: decay of the slow momentum, in [0, 1); the paper warms it up.
      alpha: weight of the slow momentum; the paper warms it up.
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      mu_dtype: what the momenta are stored in; None for float32 or wider.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.

    Returns:
      A `Link`, with the arguments of `optax.contrib.ademamix`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Pagliardini et al., 2024 (https://arxiv.org/abs/2409.03137).

    >>> import jax.numpy as jnp
    >>> tx = ademamix(1.0)
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad), grad)[0]  # -(1 + alpha (1 - b3))
    Array([-1.0005], dtype=float32)
    """
    fast = scale_by_momentum(b1, debias=True, dtype=mu_dtype)
    slow = scale_by_momentum(b3, dtype=mu_dtype)
    return chain(
        parallel(("fast", fast), ("slow", slow), weights=(1.0, alpha)),
        scale_by_rms(b2, eps, eps_root=eps_root, debias=True),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def lion(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Any = None,
) -> Link:
    """The sign of a momentum that is kept with one decay and read with another.

    With g the gradient and mu from zero::

        u  = sign(b1 · mu + (1 - b1) · g)
        mu <- b2 · mu + (1 - b2) · g
        update = -learning_rate · (u + weight_decay · params)

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay with which mu is read, in [0, 1).
      b2: decay with which mu is kept, in [0, 1).
      mu_dtype: what mu is stored in; None for float32 or wider.
      weight_decay: at least 0; Keras has none by default.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.

    Returns:
      A `Link`, a drop-in for `optax.lion`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Chen et al., Lion, 2023 (https://arxiv.org/abs/2302.06675).

    >>> import jax.numpy as jnp
    >>> tx = lion(0.1, weight_decay=0.0)
    >>> grad = jnp.array([2.0, -3.0])
    >>> tx.update(grad, tx.init(grad), grad)[0]
    Array([-0.1,  0.1], dtype=float32)
    """
    return chain(
        scale_by_momentum(b2, read=b1, dtype=mu_dtype),
        optax.scale_by_sign(),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
