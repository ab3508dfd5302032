"""`scale_by_atan2`: divide by the root mean square through the arctangent, without an epsilon."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from adam_tx._core.numerics import abs_sq, ema, is_complex
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, link


@link(slots={"nu": Slot("square", decay="decay")}, debiases=("decay",))
def scale_by_atan2(
    decay: Decay = 0.99,
    *,
    a: NonNegative = 1.27,
    b: NonNegative = 1.0,
    debias: bool = False,
    dtype: StorageLike | None = None,
) -> Rule:
    """Divide the updates by the root mean square through the arctangent, which needs no epsilon.

    With g the gradient, u the incoming updates and nu from zero::

        nu <- nu + (1 - decay) · (|g|² - nu)
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- a · atan2(u, b · sqrt(v))

    The update is bounded by a · pi / 2 and does not depend on the gradient's scale.
    The incoming updates must be debiased as well: `scale_by_momentum(debias=True)`.

    Args:
      decay: in [0, 1).
      a: factor of the arctangent; 1.27, about 4 / pi, makes a first step of one.
      b: factor of the root.
      debias: undo the start from zero before the root is taken.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, weight, nu)`, which reads the gradient. Of a complex
      leaf the modulus is turned, the direction kept.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Everett et al., Scaling Exponents Across Parameterizations and
    Optimizers, 2024 (https://arxiv.org/abs/2407.05872).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_atan2(a=4 / jnp.pi, debias=True)
    >>> grad = jnp.array([3.0, -4.0, 0.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([ 1., -1.,  0.], dtype=float32)
    """

    def rule(now: Now, updates: Array, grad: Array, nu: Array) -> tuple[Array, Array]:
        nu = ema(nu, abs_sq(grad), now.decay.step)
        v = nu * now.decay.unbias if debias else nu
        return _atan2(updates, v * (now.b * now.b), now.a), nu

    v = "v / (1 - Π decay)" if debias else "v"
    formula = f"v += (1 - decay)(|g|² - v); a · atan2(u, b · sqrt({v}))"
    return Rule(rule, formula=formula, debias=["decay"] if debias else [], dtype=dtype)


def _atan2(u: Array, v: Array, a: Any) -> Array:
    """`a · atan2(u, sqrt(v))`, zero and with finite derivatives where nothing has accumulated."""
    untouched = v == 0
    root = jnp.sqrt(jnp.where(untouched, 1.0, v))
    if not is_complex(u):
        return jnp.where(untouched, 0.0, a * jnp.arctan2(u, root))
    size = jnp.sqrt(jnp.where(untouched, 1.0, abs_sq(u)))
    turned = jnp.where(untouched, 0.0, a * jnp.arctan2(size, root) / size)
    return lax.complex(u.real * turned, u.imag * turned)
