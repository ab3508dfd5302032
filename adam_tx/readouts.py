"""Other ways to divide by the moving average of squares: delayed, rectified, through the arctangent.

What accumulates is that of `scale_by_rms`, on the core in `_preconditioner.py`;
what differs is when it is read and how it divides.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from optax import ScalarOrSchedule

from adam_tx import _hyperparams, _numerics
from adam_tx._numerics import Scalar
from adam_tx._preconditioner import Leaf, Now, Rule, preconditioner
from adam_tx.chain import Link
from adam_tx.second_moment import ScaleByRmsState


def scale_by_delayed_rms(
    decay: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-6,
    *,
    clip: Callable[[jax.Array], jax.Array] | None = lambda count: count**0.25,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by the root mean square of the gradients *before* this one: ADOPT's denominator.

    With g the gradient, u the incoming updates and t the number of earlier updates::

        u  <- clip(u / max(sqrt(nu), eps), ±clip(t))     zero at the first update
        nu <- nu + (1 - decay) · (|g|² - nu)             |g|² at the first update

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      eps: the least denominator, in units of the gradient; at least 0.
      clip: largest size of an update as a function of t, as a float; None for no limit.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByRmsState`, which reads the gradient.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Taniguchi et al., ADOPT, 2024 (https://arxiv.org/abs/2411.02853).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_delayed_rms()
    >>> grad = jnp.array([3.0])
    >>> updates, state = tx.update(grad, tx.init(grad), grad=grad)
    >>> updates, tx.update(grad / 4, state, grad=grad / 4)[0]
    (Array([0.], dtype=float32), Array([0.25], dtype=float32))
    """

    def rule_at(now: Now) -> Rule:
        first = now.count == 0
        limit = None if clip is None else clip(now.count.astype(now.weight.dtype))

        def rule(u: Leaf, g: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            square = _numerics.abs_sq(g)
            out = now.divide(u, jnp.where(first, jnp.ones_like(nu), nu))
            if limit is not None:
                out = _clip(out, _numerics.scalar(limit, nu))
            out = jnp.where(first, jnp.zeros_like(out), out)
            return out, jnp.where(first, square, _numerics.ema(nu, square, now.decay.weight))

        return rule

    return preconditioner(
        "scale_by_delayed_rms",
        ScaleByRmsState,
        rule_at,
        formula="u / max(sqrt(v), eps), clipped; then v += (1 - decay)(|g|² - v)",
        hyperparams={"decay": decay, "eps": eps, "dtype": dtype},
        combine=_numerics.root_and_divide_clamped,
    )


def scale_by_rectified_rms(
    decay: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_root: ScalarOrSchedule = 0.0,
    debias: bool = False,
    threshold: float = 5.0,
    degenerate: bool = True,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by the root mean square once there is enough of it: RAdam's rectification.

    With t the number of this update, w = 1 - Π decay, nu and v as in `scale_by_rms`::

        rho_inf = 2 / (1 - decay) - 1
        rho     = rho_inf - 2 · t · (1 - w) / w
        r       = sqrt((rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho))
        u      <- r · u / (sqrt(v + eps_root) + eps)   if rho >= threshold
        u      <- u if degenerate, else 0              before

    With `debias` epsilon is compared with the debiased root (Optax), without it with
    the raw root, r · sqrt(w) correcting the quotient (PyTorch). The paper rectifies
    from rho > 4, PyTorch and Optax from 5; the official code emits nothing before 5.

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      debias: undo the start from zero before the root is taken.
      threshold: the least rho at which updates are divided.
      degenerate: whether updates pass as they are before that, instead of being held back.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByRmsState`, which reads the gradient.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Liu et al., On the Variance of the Adaptive Learning Rate and Beyond,
    2020 (https://arxiv.org/abs/1908.03265).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_rectified_rms()
    >>> grad = jnp.array([3.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]  # too early to divide
    Array([3.], dtype=float32)
    """
    _hyperparams.fixed("threshold", threshold)

    def rule_at(now: Now) -> Rule:
        rectify, enough = _rectification(now, threshold)
        factor = rectify if debias else rectify * jnp.sqrt(now.weight)

        def rule(u: Leaf, g: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            nu = _numerics.ema(nu, _numerics.abs_sq(g), now.decay.weight)
            rectified = now.divide(u, nu) * _numerics.scalar(factor, u)
            return jnp.where(enough, rectified, u if degenerate else jnp.zeros_like(u)), nu

        return rule

    return preconditioner(
        "scale_by_rectified_rms",
        ScaleByRmsState,
        rule_at,
        formula="v += (1 - decay)(|g|² - v); r · u / (sqrt(v̂ + eps_root) + eps) once rho >= threshold",
        hyperparams={
            "decay": decay,
            "eps": eps,
            "eps_root": eps_root,
            "debias": debias,
            "threshold": threshold,
            "degenerate": degenerate,
            "dtype": dtype,
        },
    )


def scale_by_atan2(
    decay: ScalarOrSchedule = 0.99,
    *,
    a: ScalarOrSchedule = 1.27,
    b: ScalarOrSchedule = 1.0,
    debias: bool = False,
    dtype: DTypeLike | None = None,
) -> Link:
    """Divide the updates by the root mean square through the arctangent, which needs no epsilon.

    With g the gradient, u the incoming updates and nu from zero::

        nu <- nu + (1 - decay) · (|g|² - nu)
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- a · atan2(u, b · sqrt(v))

    The update is bounded by a · pi / 2 and does not depend on the gradient's scale.
    The incoming updates must be debiased as well: `scale_by_momentum(debias=True)`.

    Args:
      decay: in [0, 1): number, 0-d array or schedule of the number of earlier updates.
      a: factor of the arctangent; 1.27, about 4 / pi, makes a first step of one.
      b: factor of the root.
      debias: undo the start from zero before the root is taken.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `ScaleByRmsState`, which reads the gradient. Of a complex
      leaf the modulus is turned, the direction kept.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Everett et al., Scaling Exponents Across Parameterizations and
    Optimizers, 2024 (https://arxiv.org/abs/2407.05872).

    >>> import jax.numpy as jnp
    >>> tx = scale_by_atan2(a=4 / jnp.pi, debias=True)
    >>> grad = jnp.array([3.0, -4.0, 0.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([ 1., -1.,  0.], dtype=float32)
    """

    def rule_at(now: Now) -> Rule:
        def rule(u: Leaf, g: Leaf, nu: Leaf) -> tuple[Leaf, ...]:
            nu = _numerics.ema(nu, _numerics.abs_sq(g), now.decay.weight)
            scale_a, scale_b = (_numerics.scalar(now.values[key], nu) for key in ("a", "b"))
            v = nu / _numerics.scalar(now.weight, nu) if debias else nu
            return _atan2(u, v * (scale_b * scale_b), scale_a), nu

        return rule

    return preconditioner(
        "scale_by_atan2",
        ScaleByRmsState,
        rule_at,
        formula="v += (1 - decay)(|g|² - v); a · atan2(u, b · sqrt(v̂))",
        hyperparams={"decay": decay, "a": a, "b": b, "debias": debias, "dtype": dtype},
    )


def _clip(u: Leaf, limit: Leaf) -> Leaf:
    if _numerics.is_complex(u):
        return lax.complex(jnp.clip(u.real, -limit, limit), jnp.clip(u.imag, -limit, limit))
    return jnp.clip(u, -limit, limit)


def _rectification(now: Now, threshold: float) -> tuple[jax.Array, jax.Array]:
    """RAdam's r at this update, and whether rho has reached the threshold."""
    t = (now.count + 1).astype(now.weight.dtype)
    rho_inf = 2.0 / _numerics.scalar(now.decay.weight, now.weight) - 1.0
    rho = rho_inf - 2.0 * t * (1.0 - now.weight) / now.weight
    enough = rho >= threshold
    safe = jnp.where(enough, rho, rho_inf)
    ratio = (safe - 4.0) * (safe - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * safe)
    return jnp.sqrt(jnp.where(enough, ratio, 1.0)), enough


def _atan2(u: Leaf, v: Leaf, a: Scalar) -> Leaf:
    """`a · atan2(u, sqrt(v))`, zero and with finite derivatives where nothing has accumulated."""
    untouched = v == 0
    root = jnp.sqrt(jnp.where(untouched, 1.0, v))
    if not _numerics.is_complex(u):
        return jnp.where(untouched, 0.0, a * jnp.arctan2(u, root))
    size = jnp.sqrt(jnp.where(untouched, 1.0, _numerics.abs_sq(u)))
    turned = jnp.where(untouched, 0.0, a * jnp.arctan2(size, root) / size)
    return lax.complex(u.real * turned, u.imag * turned)
