"""Second moments that never forget, or forget a maximum: sums and extremes of the gradient's size.

Each link here is one rule on the core in `_preconditioner.py`, as in `second_moment.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _numerics
from adam_tx._preconditioner import Leaf, Now, Rule, preconditioner
from adam_tx.bias_correction import LogDecay
from adam_tx.chain import Link


class ScaleByMaxRmsState(NamedTuple):
    """State of `scale_by_max_rms`: `nu_max` is the largest `nu` so far."""

    count: jax.Array
    log_decay: LogDecay
    nu: Any
    nu_max: Any


class ScaleByRssState(NamedTuple):
    """State of `scale_by_rss`: `nu` is the sum of squares so far."""

    count: jax.Array
    nu: Any


class ScaleByMaxNormState(NamedTuple):
    """State of `scale_by_max_norm`: `nu`, in units of the gradient, is the decaying maximum."""

    count: jax.Array
    log_decay: LogDecay
    nu: Any


def scale_by_max_rms(
    decay: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_root: ScalarOrSchedule = 0.0,
    debias: bool = False,
    max_of: str = "raw",
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by the largest root mean square so far: AMSGrad's denominator.

    As `scale_by_rms`, with a running maximum of the raw or of the debiased nu::

        nu     <- nu + (1 - decay) · (|g|² - nu)
        nu_max <- max(nu_max, nu)                      max_of="raw": PyTorch, Keras
        v       = nu_max / (1 - Π decay)               if debias, else nu_max
        nu_max <- max(nu_max, nu / (1 - Π decay))      max_of="debiased": Optax
        v       = nu_max
        u      <- u / (sqrt(v + eps_root) + eps)

    The two are different optimizers, whose states cannot be converted.

    Args, Returns, Raises: those of `scale_by_rms`, with state `ScaleByMaxRmsState`,
    and `max_of`, "raw" or "debiased"; the latter needs `debias`.

    Reference: Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, 2018
    (https://arxiv.org/abs/1904.09237).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_max_rms(0.0)
    >>> grad = jnp.array([3.0, -4.0])
    >>> _, state = tx.update(grad, tx.init(grad), grad=grad)
    >>> tx.update(grad / 2, state, grad=grad / 2)[0]
    Array([ 0.5, -0.5], dtype=float32)
    """
    if max_of not in ("raw", "debiased") or (max_of == "debiased" and not debias):
        raise ValueError(f'max_of must be "raw", or "debiased" together with debias=True, got {max_of!r}.')
    debias_first = max_of == "debiased"

    def rule_at(now: Now) -> Rule:
        unbias = 1.0 / now.weight

        def rule(u: Leaf, g: Leaf, nu: Leaf, nu_max: Leaf) -> tuple[Leaf, ...]:
            nu = _numerics.ema(nu, _numerics.abs_sq(g), now.decay.weight)
            nu_max = jnp.maximum(nu_max, nu * _numerics.scalar(unbias, nu) if debias_first else nu)
            return now.divide(u, nu_max), nu, nu_max

        return rule

    return preconditioner(
        "scale_by_max_rms",
        ScaleByMaxRmsState,
        rule_at,
        formula="v = max over time of nu += (1 - decay)(|g|² - nu); u / (sqrt(v̂ + eps_root) + eps)",
        hyperparams={
            "decay": decay,
            "eps": eps,
            "eps_root": eps_root,
            "debias": debias,
            "max_of": max_of,
            "dtype": dtype,
        },
        debias=debias and not debias_first,
    )


def scale_by_rss(
    eps: ScalarOrSchedule = 1e-10,
    *,
    eps_root: ScalarOrSchedule = 0.0,
    initial: float = 0.0,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by the root of the sum of squares of all gradients: Adagrad.

    With g the gradient and nu from `initial`::

        nu <- nu + |g|²
        u  <- u / (sqrt(nu + eps_root) + eps)

    Args:
      eps: added outside the root (PyTorch), in units of the gradient; at least 0.
      eps_root: added inside the root (Keras, Optax), in units of the gradient squared; at least 0.
      initial: what nu starts from; 0 in PyTorch, 0.1 in Keras and Optax.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByRssState`, which reads the gradient.

    Raises:
      ValueError: a number out of range.

    Reference: Duchi, Hazan & Singer, Adaptive Subgradient Methods, 2011
    (https://jmlr.org/papers/v12/duchi11a.html).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_rss(initial=9.0)
    >>> grad = jnp.array([4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([0.8], dtype=float32)
    """

    def rule_at(now: Now) -> Rule:
        def rule(u: Leaf, g: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            nu = nu + _numerics.abs_sq(g)
            return now.divide(u, nu), nu

        return rule

    return preconditioner(
        "scale_by_rss",
        ScaleByRssState,
        rule_at,
        formula="v += |g|²; u / (sqrt(v + eps_root) + eps)",
        hyperparams={"eps": eps, "eps_root": eps_root, "initial": initial, "dtype": dtype},
    )


def scale_by_max_norm(
    decay: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 0.0,
    *,
    eps_stored: ScalarOrSchedule = 1e-8,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by a decaying maximum of the gradient's size: AdaMax's denominator.

    With g the gradient and nu from zero::

        nu <- max(decay · nu, |g| + eps_stored)
        u  <- u / (nu + eps)

    It needs no bias correction of its own.

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      eps: added to the maximum (Keras), in units of the gradient; at least 0.
      eps_stored: added to |g| before the maximum, and so kept in it (PyTorch, Optax).
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByMaxNormState`, which reads the gradient.

    Raises:
      ValueError: a number out of range.

    Reference: Kingma & Ba, Adam, 2015, section 7.1 (https://arxiv.org/abs/1412.6980).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_max_norm(eps_stored=0.0)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([ 1., -1.], dtype=float32)
    """

    def rule_at(now: Now) -> Rule:
        def rule(u: Leaf, g: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            size = jnp.abs(g) + _numerics.scalar(now.values["eps_stored"], nu)
            nu = jnp.maximum(nu * _numerics.scalar(now.decay.value, nu), size)
            return _numerics.divide(u, nu, now.values["eps"]), nu

        return rule

    return preconditioner(
        "scale_by_max_norm",
        ScaleByMaxNormState,
        rule_at,
        formula="v = max(decay · v, |g| + eps_stored); u / (v + eps)",
        hyperparams={"decay": decay, "eps": eps, "eps_stored": eps_stored, "dtype": dtype},
    )
