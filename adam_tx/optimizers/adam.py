"""Adam and its look-ahead and weight decay: momentum, root mean square, bias correction."""

from collections.abc import Callable
from typing import Any

from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, schedules
from adam_tx.bias_correction import bias_correction
from adam_tx.chain import Link, chain
from adam_tx.first_moment import scale_by_momentum
from adam_tx.learning_rate import scale_by_learning_rate
from adam_tx.second_moment import scale_by_rms
from adam_tx.weight_decay import add_decayed_weights


def adam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
) -> Link:
    """Adam as the paper's Algorithm 1, PyTorch and Optax have it.

    With t the number of this update, g its gradient, mu and nu from zero::

        mu <- b1 · mu + (1 - b1) · g
        nu <- b2 · nu + (1 - b2) · |g|²
        update = -learning_rate · (mu / (1 - b1^t)) / (sqrt(nu / (1 - b2^t) + eps_root) + eps)

    With `nesterov` (Dozat's NAdam in Optax's form) the first factor is
    `b1 · mu / (1 - b1^(t+1)) + (1 - b1) · g / (1 - b1^t)`. Keras adds epsilon to the
    uncorrected root instead: see `adam_tx.interop.keras`.

    Args:
      learning_rate: at least 0; like every hyperparameter here a number, a 0-d
        array or a schedule of the number of earlier updates.
      b1: decay of mu, in [0, 1).
      b2: decay of nu, in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      mu_dtype: what mu is stored in; None for float32, or wider where the parameter is.
      nesterov: use the look-ahead momentum.
      nu_dtype: what nu is stored in; likewise. Arithmetic is float32 or wider in any case.

    Returns:
      A `Link`, a drop-in for `optax.adam`.

    Raises:
      ValueError: a number out of range; a 16-bit moment whose decay is too close to one.

    Reference: Kingma & Ba, Adam, 2015 (https://arxiv.org/abs/1412.6980).

    >>> import jax.numpy as jnp
    >>> tx = adam(1e-3)
    >>> params = jnp.array([1.0, 2.0])
    >>> updates, state = tx.update(jnp.array([0.5, -0.1]), tx.init(params), params)
    >>> updates
    Array([-0.001,  0.001], dtype=float32)
    """
    return chain(
        *_adam_direction(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov),
        scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any | Callable[[Any], Any] | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
) -> Link:
    """Adam with weight decay that does not pass through the moments.

    With `adam`'s direction u, the update before the learning rate::

        update = -learning_rate · (u + weight_decay · params)

    The decay is multiplied by the learning rate, as in PyTorch, Keras and Optax;
    defaults differ: 1e-4 here and in Optax, 1e-2 in PyTorch, 4e-3 in Keras.

    Args:
      learning_rate: as in `adam`, and so are the other arguments of that name:
      b1: decay of mu.
      b2: decay of nu.
      eps: added outside the root.
      eps_root: added inside the root.
      mu_dtype: what mu is stored in.
      weight_decay: at least 0; number, 0-d array or schedule.
      mask: tree of booleans, or a function from params to one; only leaves marked
        True decay.
      nesterov: use the look-ahead momentum.
      nu_dtype: what nu is stored in.

    Returns:
      A `Link`, a drop-in for `optax.adamw`. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params.

    Reference: Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019
    (https://arxiv.org/abs/1711.05101).

    >>> import jax.numpy as jnp
    >>> tx = adamw(1e-3, weight_decay=0.1)
    >>> params = jnp.array([10.0, 0.0])
    >>> tx.update(jnp.zeros(2), tx.init(params), params)[0]
    Array([-0.001, -0.   ], dtype=float32)
    """
    return chain(
        *_adam_direction(b1, b2, eps, eps_root, mu_dtype, nu_dtype, nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def nadam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    momentum_decay: float | None = None,
    nu_dtype: DTypeLike | None = None,
) -> Link:
    """Adam with Nesterov's look-ahead, in the form of Optax, PyTorch or Keras.

    With mu, nu, t and g as in `adam`, m_t the look-ahead's decay at update t::

        u = m_(t+1) · mu / (1 - m_1 · … · m_(t+1)) + (1 - m_t) · g / (1 - m_1 · … · m_t)
        update = -learning_rate · u / (sqrt(nu / (1 - b2^t) + eps_root) + eps)

    m_t is b1 in Optax's form, `momentum_decay=None`; with a `momentum_decay` it is
    `b1 · (1 - 0.96^(t · momentum_decay) / 2)`, which PyTorch has with 0.004 and Keras
    with 1, while mu decays by b1. In Dozat's own form mu, too, decays by m_t: give
    `b1=schedules.nadam_decay()`.

    Args:
      learning_rate: as in `adam`, and so are the other arguments of that name:
      b1: decay of mu.
      b2: decay of nu.
      eps: added outside the root.
      eps_root: added inside the root.
      mu_dtype: what mu is stored in.
      momentum_decay: how fast m_t grows to b1, at least 0; None for m_t = b1.
      nu_dtype: what nu is stored in.

    Returns:
      A `Link`, a drop-in for `optax.nadam`.

    Raises:
      ValueError: a number out of range.

    Reference: Dozat, Incorporating Nesterov Momentum into Adam, 2016.

    >>> import jax.numpy as jnp
    >>> tx, torch = nadam(1.0), nadam(1.0, momentum_decay=0.004)
    >>> grad = jnp.array([2.0])
    >>> [round(float(t.update(grad, t.init(grad))[0][0]), 4) for t in (tx, torch)]
    [-1.4737, -1.0565]
    """
    return chain(
        *_nadam_direction(b1, b2, eps, eps_root, mu_dtype, nu_dtype, momentum_decay),
        scale_by_learning_rate(learning_rate),
    )


def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any | Callable[[Any], Any] | None = None,
    *,
    momentum_decay: float | None = None,
    nu_dtype: DTypeLike | None = None,
) -> Link:
    """NAdam with decoupled weight decay, times the learning rate as in `adamw`.

    Args, Returns, Raises: those of `adamw`, a drop-in for `optax.nadamw`, and
    `momentum_decay`, that of `nadam`.

    Reference: Dozat, 2016; Loshchilov & Hutter, 2019.

    >>> nadamw(1e-3).description.links["add_decayed_weights"].description.hyperparams["weight_decay"]
    0.0001
    """
    return chain(
        *_nadam_direction(b1, b2, eps, eps_root, mu_dtype, nu_dtype, momentum_decay),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def _adam_direction(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    eps_root: ScalarOrSchedule,
    mu_dtype: DTypeLike | None,
    nu_dtype: DTypeLike | None,
    nesterov: bool,
) -> tuple[Link, ...]:
    """The links before the learning rate, which adam and adamw share."""
    if nesterov:
        return _nadam_direction(b1, b2, eps, eps_root, mu_dtype, nu_dtype, None)
    _check_decays(b1, b2)
    rms = scale_by_rms(b2, eps, eps_root=eps_root, debias=True, dtype=nu_dtype)
    return scale_by_momentum(b1, dtype=mu_dtype), rms, bias_correction(b1)


def _nadam_direction(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    eps_root: ScalarOrSchedule,
    mu_dtype: DTypeLike | None,
    nu_dtype: DTypeLike | None,
    momentum_decay: float | None,
) -> tuple[Link, ...]:
    """The links before the learning rate, which nadam and nadamw share."""
    _check_decays(b1, b2)
    read = None if momentum_decay is None else schedules.nadam_decay(b1, momentum_decay)
    rms = scale_by_rms(b2, eps, eps_root=eps_root, debias=True, dtype=nu_dtype)
    return scale_by_momentum(b1, read=read, nesterov=True, debias=True, dtype=mu_dtype), rms


def _check_decays(b1: ScalarOrSchedule, b2: ScalarOrSchedule) -> None:
    """Refuse them by the names they have here, which are not the links'."""
    for name, value in {"b1": b1, "b2": b2}.items():
        _hyperparams.decay(name, value)
