"""Adam with another denominator: what the momentum is divided by is swapped, the rest is Adam's chain."""

from typing import Any

from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx.bias_correction import bias_correction
from adam_tx.chain import Link, chain
from adam_tx.extremes import scale_by_max_norm, scale_by_max_rms
from adam_tx.first_moment import scale_by_momentum
from adam_tx.learning_rate import scale_by_learning_rate
from adam_tx.readouts import scale_by_atan2, scale_by_rectified_rms
from adam_tx.second_moment import scale_by_belief, scale_by_yogi_rms
from adam_tx.weight_decay import add_decayed_weights


def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    max_of: str = "debiased",
) -> Link:
    """Adam that divides by the largest second moment so far.

    With mu, nu, t and g as in `adam`::

        nu_max <- max(nu_max, nu / (1 - b2^t))         max_of="debiased", as Optax
        nu_max <- max(nu_max, nu)                      max_of="raw", as PyTorch and Keras
        update = -learning_rate · mu / (1 - b1^t) / (sqrt(nu_max [/ (1 - b2^t) if raw] + eps_root) + eps)

    The two states cannot be converted into each other.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      mu_dtype: what mu is stored in; None for float32 or wider.
      max_of: "debiased" or "raw".

    Returns:
      A `Link`, a drop-in for `optax.amsgrad`.

    Raises:
      ValueError: a number out of range.

    Reference: Reddi, Kale & Kumar, 2018 (https://arxiv.org/abs/1904.09237).

    >>> list(amsgrad(1e-3).description.links)
    ['scale_by_momentum', 'scale_by_max_rms', 'bias_correction', 'scale_by_learning_rate']
    """
    return chain(
        scale_by_momentum(b1, dtype=mu_dtype),
        scale_by_max_rms(b2, eps, eps_root=eps_root, debias=True, max_of=max_of),
        bias_correction(b1),
        scale_by_learning_rate(learning_rate),
    )


def adamax(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
) -> Link:
    """Adam with a decaying maximum in place of the root mean square.

    With mu, t and g as in `adam`, nu from zero::

        nu <- max(b2 · nu, |g| + eps)
        update = -learning_rate · mu / (1 - b1^t) / nu

    Keras adds epsilon outside the maximum: `scale_by_max_norm(b2, eps, eps_stored=0)`.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added to |g| before the maximum, and so kept in the state; at least 0.

    Returns:
      A `Link`, a drop-in for `optax.adamax`.

    Raises:
      ValueError: a number out of range.

    Reference: Kingma & Ba, Adam, 2015, section 7.1 (https://arxiv.org/abs/1412.6980).

    >>> import jax.numpy as jnp
    >>> tx = adamax(0.1)
    >>> grad = jnp.array([2.0, -3.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.1,  0.1], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_max_norm(b2, eps_stored=eps),
        bias_correction(b1),
        scale_by_learning_rate(learning_rate),
    )


def adamaxw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
) -> Link:
    """AdaMax with decoupled weight decay, times the learning rate as in `adamw`.

    Args:
      learning_rate: as in `adamax`, and so are b1, b2 and eps:
      b1: decay of mu.
      b2: decay of nu.
      eps: added to |g| before the maximum.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.

    Returns:
      A `Link`, a drop-in for `optax.adamaxw`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Loshchilov & Hutter, 2019 (https://arxiv.org/abs/1711.05101).

    >>> list(adamaxw(1e-3).description.links)[3:]
    ['add_decayed_weights', 'scale_by_learning_rate']
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_max_norm(b2, eps_stored=eps),
        bias_correction(b1),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
) -> Link:
    """Adam that divides by how far the gradient is from its average.

    With mu, t and g as in `adam`, nu from zero::

        nu <- b2 · nu + (1 - b2) · |g - mu|² + eps_root
        update = -learning_rate · mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t)) + eps)

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added to nu at every update and kept in it, in units of the gradient squared.

    Returns:
      A `Link`, a drop-in for `optax.adabelief`.

    Raises:
      ValueError: a number out of range.

    Reference: Zhuang et al., 2020 (https://arxiv.org/abs/2010.07468). The official
    code rectifies as `radam` does by default; Optax and this do not.

    >>> import jax.numpy as jnp
    >>> tx = adabelief(1.0)
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-1.1111112], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_belief(b2, eps, eps_stored=eps_root, debias=True),
        bias_correction(b1),
        scale_by_learning_rate(learning_rate),
    )


def yogi(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-3,
) -> Link:
    """Adam whose second moment moves by steps of the squared gradient's size.

    With mu, t and g as in `adam`, nu from 1e-6::

        nu <- nu + (1 - b2) · sign(|g|² - nu) · |g|²
        update = -learning_rate · mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t)) + eps)

    Optax starts mu, too, from 1e-6; here it starts from zero, as in the paper.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.

    Returns:
      A `Link`, with the arguments of `optax.yogi`.

    Raises:
      ValueError: a number out of range.

    Reference: Zaheer et al., 2018 (https://papers.nips.cc/paper/8186).

    >>> list(yogi(1e-3).description.links)[1]
    'scale_by_yogi_rms'
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_yogi_rms(b2, eps, debias=True),
        bias_correction(b1),
        scale_by_learning_rate(learning_rate),
    )


def radam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    threshold: float = 5.0,
    *,
    degenerate: bool = True,
) -> Link:
    """Adam that divides only once its second moment has seen enough, and rectifies it then.

    The chain of `adam` with `scale_by_rectified_rms`, whose docstring has rho and r;
    until rho reaches the threshold, from update 6 on for b2 = 0.999, the update is
    -learning_rate · mu / (1 - b1^t), or zero if not `degenerate`, as in the official
    code, which then also adds epsilon to the raw root.

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the debiased root (Optax), in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      threshold: the least rho at which updates are divided: 5 in Optax and PyTorch, 4 in the paper.
      degenerate: whether there are updates before that.

    Returns:
      A `Link`, a drop-in for `optax.radam`.

    Raises:
      ValueError: a number out of range.

    Reference: Liu et al., 2020 (https://arxiv.org/abs/1908.03265).

    >>> import jax.numpy as jnp
    >>> tx = radam(0.1)
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.2], dtype=float32)
    """
    return chain(
        scale_by_momentum(b1),
        scale_by_rectified_rms(b2, eps, eps_root=eps_root, debias=True, threshold=threshold, degenerate=degenerate),
        bias_correction(b1),
        scale_by_learning_rate(learning_rate),
    )


def adam_atan2(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    a: ScalarOrSchedule = 1.27,
    b: ScalarOrSchedule = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> Link:
    """Adam without epsilon: the division is an arctangent of two arguments.

    With mu, nu, t and g as in `adam`::

        u = a · atan2(mu / (1 - b1^t), b · sqrt(nu / (1 - b2^t)))
        update = -learning_rate · (u + weight_decay · params)

    Args:
      learning_rate: at least 0; like every hyperparameter a number, a 0-d array or a schedule.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      a: factor of the arctangent; 1.27 makes the first step about the learning rate.
      b: factor of the root.
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True decay.

    Returns:
      A `Link`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Everett et al., 2024 (https://arxiv.org/abs/2407.05872).

    >>> list(adam_atan2(1e-3).description.links)[:2]
    ['scale_by_momentum', 'scale_by_atan2']
    """
    return chain(
        scale_by_momentum(b1, debias=True),
        scale_by_atan2(b2, a=a, b=b, debias=True),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
