"""`scale_by_yogi_rms`: divide by a root mean square that moves by steps of the square's size, Yogi's."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import abs_sq, root_and_divide, scalar
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, fixed, link


@link(slots={"nu": Slot("square", decay="decay", role="nu_yogi", eps="eps", eps_root="eps_root")}, debiases=("decay",))
def scale_by_yogi_rms(
    decay: Decay = 0.999,
    eps: NonNegative = 1e-3,
    *,
    eps_root: NonNegative = 0.0,
    debias: bool = False,
    initial: float = 1e-6,
    dtype: StorageLike | None = None,
) -> Rule:
    """Divide the updates by a root mean square that moves by a step of the square's size: Yogi's denominator.

    With g the gradient and nu from `initial`::

        nu <- nu + (1 - decay) · sign(|g|² - nu) · |g|²
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- u / (sqrt(v + eps_root) + eps)

    Args:
      decay: in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      debias: undo the start before the root is taken.
      initial: what nu starts from.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, weight, nu)`, which reads the gradient.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Zaheer et al., Adaptive Methods for Nonconvex Optimization, 2018
    (https://papers.nips.cc/paper/8186).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_yogi_rms(0.75, eps=0.0, initial=0.0)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([ 2., -2.], dtype=float32)
    """
    fixed("initial", initial)

    def rule(now: Now, updates: Array, grad: Array, nu: Array) -> tuple[Array, Array]:
        square = abs_sq(grad)
        nu = nu + scalar(now.decay.step, nu) * jnp.sign(square - nu) * square
        return root_and_divide(updates, nu * now.decay.unbias if debias else nu, now.eps, now.eps_root), nu

    v = "v / (1 - Π decay)" if debias else "v"
    formula = f"v += (1 - decay) sign(|g|² - v) |g|²; u / (sqrt({v} + eps_root) + eps)"
    debiased = ["decay"] if debias else []
    return Rule(rule, formula=formula, debias=debiased, dtype=dtype, correctable=True, start={"nu": initial})
