"""`scale_by_delayed_rms`: divide by the root mean square of earlier gradients, ADOPT's denominator."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from adam_tx._core.numerics import Scalar, abs_sq, ema, is_complex, root_and_divide_clamped, scalar
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, as_storage, link


def fourth_root(count: ArrayLike) -> Array:
    """The bound of an update as ADOPT grows it, a schedule of the number of earlier updates.

    >>> import adam_tx
    >>> adam_tx.fourth_root(16)
    Array(2., dtype=float32)
    """
    return jnp.asarray(count).astype(jnp.result_type(float)) ** 0.25


@link(slots={"nu": Slot("square")})
def scale_by_delayed_rms(
    decay: Decay = 0.9999,
    eps: NonNegative = 1e-6,
    *,
    clip: NonNegative | None = fourth_root,
    dtype: StorageLike | None = None,
) -> Rule:
    """Divide the updates by the root mean square of the gradients *before* this one: ADOPT's denominator.

    With g the gradient, u the incoming updates and t the number of earlier updates::

        u  <- clip(u / max(sqrt(nu), eps), ±clip(t))     zero at the first update
        nu <- nu + (1 - decay) · (|g|² - nu)             |g|² at the first update

    Args:
      decay: in [0, 1).
      eps: the least denominator, in units of the gradient; at least 0.
      clip: largest size of an element of an update; None for no limit.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, nu)`, which reads the gradient.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Taniguchi et al., ADOPT, 2024 (https://arxiv.org/abs/2411.02853).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_delayed_rms()
    >>> grad = jnp.array([3.0])
    >>> updates, state = tx.update(grad, tx.init(grad), grad=grad)
    >>> updates, tx.update(grad / 4, state, grad=grad / 4)[0]
    (Array([0.], dtype=float32), Array([0.25], dtype=float32))
    """
    as_storage("nu", dtype).check("nu", "square", decay)

    def rule(now: Now, updates: Array, grad: Array, nu: Array) -> tuple[Array, Array]:
        first, square = now.count == 0, abs_sq(grad)
        out = root_and_divide_clamped(updates, jnp.where(first, jnp.ones_like(nu), nu), now.eps)
        if clip is not None:
            out = _clip(out, scalar(now.clip, nu))
        out = jnp.where(first, jnp.zeros_like(out), out)
        return out, jnp.where(first, square, ema(nu, square, now.decay.step))

    return Rule(rule, formula="u / max(sqrt(v), eps), clipped; then v += (1 - decay)(|g|² - v)", dtype=dtype)


def _clip(u: Array, limit: Scalar) -> Array:
    if is_complex(u):
        return lax.complex(jnp.clip(u.real, -limit, limit), jnp.clip(u.imag, -limit, limit))
    return jnp.clip(u, -limit, limit)
