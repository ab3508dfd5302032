"""Adam and its look-ahead and weight decay: momentum, root mean square, bias correction."""

from collections.abc import Callable
from typing import Any

from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _hyperparams
from adam_tx._optax import add_decayed_weights, scale_by_learning_rate
from adam_tx.bias_correction import bias_correction
from adam_tx.chain import Link, chain
from adam_tx.first_moment import scale_by_momentum
from adam_tx.second_moment import scale_by_rms


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
    nu_dtype: DTypeLike | None = None,
) -> Link:
    """Adam with Nesterov's look-ahead, in Optax's form: `adam(nesterov=True)`.

    The first factor of the update is `b1' · mu / (1 - Π b1 · b1') + (1 - b1) · g / (1 - Π b1)`
    with b1' the next update's decay. With a schedule for b1 this is Dozat's own
    form, whose decays grow as b1 · (1 - 0.96^(t / 250) / 2).

    Args, Returns, Raises: those of `adam`, a drop-in for `optax.nadam`.

    Reference: Dozat, Incorporating Nesterov Momentum into Adam, 2016.

    >>> import jax.numpy as jnp
    >>> tx = nadam(1.0)
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-1.4736842], dtype=float32)
    """
    return adam(learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=True, nu_dtype=nu_dtype)


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
    nu_dtype: DTypeLike | None = None,
) -> Link:
    """NAdam with decoupled weight decay: `adamw(nesterov=True)`.

    Args, Returns, Raises: those of `adamw`, a drop-in for `optax.nadamw`.

    Reference: Dozat, 2016; Loshchilov & Hutter, 2019.

    >>> nadamw(1e-3).description.links["add_decayed_weights"].description.hyperparams["weight_decay"]
    0.0001
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=True, nu_dtype=nu_dtype)


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
    for name, value in {"b1": b1, "b2": b2}.items():
        _hyperparams.decay(name, value)  # refused by the name it has here, not the link's
    rms = scale_by_rms(b2, eps, eps_root=eps_root, debias=True, dtype=nu_dtype)
    if nesterov:
        return scale_by_momentum(b1, nesterov=True, debias=True, dtype=mu_dtype), rms
    return scale_by_momentum(b1, dtype=mu_dtype), rms, bias_correction(b1)
