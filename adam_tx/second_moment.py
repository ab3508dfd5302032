"""The second moment as a moving average, to divide the updates by its root.

Each link here is one rule on the core in `_preconditioner.py`.
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


class ScaleByRmsState(NamedTuple):
    """State of links with one second moment: `nu`, real, has the shapes of the parameters."""

    count: jax.Array
    log_decay: LogDecay
    nu: Any


class ScaleByStddevState(NamedTuple):
    """State of `scale_by_stddev`: `mean` and `nu` average the gradient and its square."""

    count: jax.Array
    log_decay: LogDecay
    mean: Any
    nu: Any


def scale_by_rms(
    decay: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_root: ScalarOrSchedule = 0.0,
    debias: bool = False,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by the root mean square of the raw gradient.

    With g the gradient that entered the chain, u the incoming updates and nu from zero::

        nu <- nu + (1 - decay) · (|g|² - nu)
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- u / (sqrt(v + eps_root) + eps)

    `debias` decides what epsilon is compared with: the debiased root, as in the
    paper's Algorithm 1, PyTorch and Optax, or the raw one, as in Keras and TF1,
    where `bias_correction(b1, b2)` follows.

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      debias: undo the start from zero before the root is taken.
      dtype: what nu is stored in; None for float32, or float64 where the parameter
        is. Arithmetic is not affected.

    Returns:
      A `Link` with state `ScaleByRmsState`. It reads the gradient: `adam_tx.chain`
      passes it, elsewhere call `update(..., grad=g)`.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.
      TypeError: `update` without `grad`.

    Reference: Tieleman & Hinton, RMSprop, 2012; Kingma & Ba, Adam, 2015
    (https://arxiv.org/abs/1412.6980).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_rms(0.75)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]  # nu is a quarter of the square
    Array([ 2., -2.], dtype=float32)
    """

    def rule_at(now: Now) -> Rule:
        def rule(u: Leaf, g: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            nu = _numerics.ema(nu, _numerics.abs_sq(g), now.decay.weight)
            return now.divide(u, nu), nu

        return rule

    return preconditioner(
        "scale_by_rms",
        ScaleByRmsState,
        rule_at,
        formula="v += (1 - decay)(|g|² - v); u / (sqrt(v̂ + eps_root) + eps)",
        hyperparams={"decay": decay, "eps": eps, "eps_root": eps_root, "debias": debias, "dtype": dtype},
    )


def scale_by_stddev(
    decay: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_root: ScalarOrSchedule = 0.0,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by the running standard deviation of the gradient: centred RMSprop.

    With g the gradient, mean and nu from zero::

        mean <- mean + (1 - decay) · (g - mean)
        nu   <- nu + (1 - decay) · (|g|² - nu)
        u    <- u / (sqrt(nu - |mean|² + eps_root) + eps)

    Rounding can make nu - |mean|² negative where the gradient does not vary; it
    counts as zero there, where PyTorch, Keras and Optax take the root of it.

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      dtype: what mean and nu are stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByStddevState`, which reads the gradient.

    Raises:
      ValueError: a number out of range.

    Reference: Graves, Generating Sequences With Recurrent Neural Networks, 2013,
    section 4.2 (https://arxiv.org/abs/1308.0850).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_stddev(0.5)
    >>> grad = jnp.array([3.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]  # half of 9 less the square of half of 3
    Array([2.], dtype=float32)
    """

    def rule_at(now: Now) -> Rule:
        def rule(u: Leaf, g: Leaf, mean: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            mean = _numerics.ema(mean, g, now.decay.weight)
            nu = _numerics.ema(nu, _numerics.abs_sq(g), now.decay.weight)
            return now.divide(u, jnp.maximum(nu - _numerics.abs_sq(mean), 0.0)), mean, nu

        return rule

    return preconditioner(
        "scale_by_stddev",
        ScaleByStddevState,
        rule_at,
        formula="v = nu - |mean|², running averages of |g|² and g; u / (sqrt(v + eps_root) + eps)",
        hyperparams={"decay": decay, "eps": eps, "eps_root": eps_root, "dtype": dtype},
        complex_slots=("mean",),
    )


def scale_by_belief(
    decay: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    *,
    eps_stored: ScalarOrSchedule = 1e-16,
    debias: bool = False,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by how far the gradient is from what was expected: AdaBelief's denominator.

    What is expected is what comes in, so a momentum stands before this link. With
    u the incoming updates, g the gradient and nu from zero::

        nu <- nu + (1 - decay) · (|g - u|² - nu) + eps_stored
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- u / (sqrt(v) + eps)

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      eps: added outside the root, in units of the gradient; at least 0.
      eps_stored: added to nu at every update and kept in it, in units of the gradient squared.
      debias: undo the start from zero before the root is taken.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByRmsState`, which reads the gradient.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Zhuang et al., AdaBelief, 2020 (https://arxiv.org/abs/2010.07468).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_belief(0.0)
    >>> tx.update(jnp.array([6.0]), tx.init(jnp.zeros(1)), grad=jnp.array([3.0]))[0]
    Array([2.], dtype=float32)
    """

    def rule_at(now: Now) -> Rule:
        def rule(u: Leaf, g: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            nu = _numerics.ema(nu, _numerics.abs_sq(g - u), now.decay.weight)
            nu = nu + _numerics.scalar(now.values["eps_stored"], nu)
            return now.divide(u, nu), nu

        return rule

    return preconditioner(
        "scale_by_belief",
        ScaleByRmsState,
        rule_at,
        formula="v += (1 - decay)(|g - u|² - v) + eps_stored; u / (sqrt(v̂) + eps)",
        hyperparams={"decay": decay, "eps": eps, "eps_stored": eps_stored, "debias": debias, "dtype": dtype},
    )


def scale_by_yogi_rms(
    decay: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-3,
    *,
    eps_root: ScalarOrSchedule = 0.0,
    debias: bool = False,
    initial: float = 1e-6,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by a root mean square that moves by a step of the square's size: Yogi's denominator.

    With g the gradient and nu from `initial`::

        nu <- nu + (1 - decay) · sign(|g|² - nu) · |g|²
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- u / (sqrt(v + eps_root) + eps)

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      debias: undo the start before the root is taken.
      initial: what nu starts from.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByRmsState`, which reads the gradient.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Zaheer et al., Adaptive Methods for Nonconvex Optimization, 2018
    (https://papers.nips.cc/paper/8186).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_yogi_rms(0.75, eps=0.0, initial=0.0)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([ 2., -2.], dtype=float32)
    """

    def rule_at(now: Now) -> Rule:
        def rule(u: Leaf, g: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            square = _numerics.abs_sq(g)
            nu = nu + _numerics.scalar(now.decay.weight, nu) * jnp.sign(square - nu) * square
            return now.divide(u, nu), nu

        return rule

    return preconditioner(
        "scale_by_yogi_rms",
        ScaleByRmsState,
        rule_at,
        formula="v += (1 - decay) sign(|g|² - v) |g|²; u / (sqrt(v̂ + eps_root) + eps)",
        hyperparams={
            "decay": decay,
            "eps": eps,
            "eps_root": eps_root,
            "debias": debias,
            "initial": initial,
            "dtype": dtype,
        },
    )
