"""`scale_by_rectified_rms`: divide by the root mean square once there is enough of it, RAdam's rectification."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from adam_tx._core.hyperparams import DecayNow
from adam_tx._core.numerics import abs_sq, ema, root_and_divide, scalar
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, link


@link(slots={"nu": Slot("square", decay="decay", eps="eps", eps_root="eps_root")}, debiases=("decay",))
def scale_by_rectified_rms(
    decay: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_root: NonNegative = 0.0,
    debias: bool = False,
    threshold: NonNegative = 5.0,
    degenerate: bool = True,
    dtype: StorageLike | None = None,
) -> Rule:
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
      decay: in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      debias: undo the start from zero before the root is taken.
      threshold: the least rho at which updates are divided.
      degenerate: whether updates pass as they are before that, instead of being held back.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, weight, nu)`, which reads the gradient.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Liu et al., On the Variance of the Adaptive Learning Rate and Beyond,
    2020 (https://arxiv.org/abs/1908.03265).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_rectified_rms()
    >>> grad = jnp.array([3.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]  # too early to divide
    Array([3.], dtype=float32)
    """

    def rule(now: Now, updates: Array, grad: Array, nu: Array) -> tuple[Array, Array]:
        rectify, enough = _rectification(now.decay, now.count, now.threshold)
        factor = rectify if debias else rectify * jnp.sqrt(now.decay.weight)
        nu = ema(nu, abs_sq(grad), now.decay.step)
        v = nu * now.decay.unbias if debias else nu
        rectified = root_and_divide(updates, v, now.eps, now.eps_root) * scalar(factor, updates)
        return jnp.where(enough, rectified, updates if degenerate else jnp.zeros_like(updates)), nu

    v = "v / (1 - Π decay)" if debias else "v"
    formula = f"v += (1 - decay)(|g|² - v); r · u / (sqrt({v} + eps_root) + eps) once rho >= threshold"
    return Rule(rule, formula=formula, debias=["decay"], dtype=dtype)


def _rectification(decay: DecayNow, count: Array, threshold: Any) -> tuple[Array, Array]:
    """RAdam's r at this update, and whether rho has reached the threshold."""
    t = (count + 1).astype(decay.weight.dtype)
    rho_inf = 2.0 / decay.step - 1.0
    rho = rho_inf - 2.0 * t * (1.0 - decay.weight) / decay.weight
    enough = rho >= threshold
    safe = jnp.where(enough, rho, rho_inf)
    ratio = (safe - 4.0) * (safe - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * safe)
    return jnp.sqrt(jnp.where(enough, ratio, 1.0)), enough
