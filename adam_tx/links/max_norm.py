"""`scale_by_max_norm`: divide by a decaying maximum of the gradient's size, AdaMax's denominator."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import divide, scalar
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, as_storage, link


@link(slots={"nu": Slot("square", role="nu_inf")})
def scale_by_max_norm(
    decay: Decay = 0.999, eps: NonNegative = 0.0, *, eps_stored: NonNegative = 1e-8, dtype: StorageLike | None = None
) -> Rule:
    """Divide the updates by a decaying maximum of the gradient's size: AdaMax's denominator.

    With g the gradient and nu from zero::

        nu <- max(decay · nu, |g| + eps_stored)
        u  <- u / (nu + eps)

    It needs no bias correction of its own.

    Args:
      decay: in [0, 1).
      eps: added to the maximum (Keras), in units of the gradient; at least 0.
      eps_stored: added to |g| before the maximum, and so kept in it (PyTorch, Optax).
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, nu)`, which reads the gradient.

    Raises:
      ValueError: a number out of range.

    Reference: Kingma & Ba, Adam, 2015, section 7.1 (https://arxiv.org/abs/1412.6980).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_max_norm(eps_stored=0.0)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([ 1., -1.], dtype=float32)
    """

    def rule(now: Now, updates: Array, grad: Array, nu: Array) -> tuple[Array, Array]:
        size = jnp.abs(grad) + scalar(now.eps_stored, nu)
        nu = jnp.maximum(nu * scalar(now.decay.value, nu), size)
        return divide(updates, nu, now.eps), nu

    bare = isinstance(eps_stored, int | float) and eps_stored == 0.0
    roles = {} if bare else {"nu": "nu_inf_of_stored_eps"}
    as_storage("nu", dtype).check("nu", "square", decay)
    return Rule(rule, formula="v = max(decay · v, |g| + eps_stored); u / (v + eps)", dtype=dtype, roles=roles)
