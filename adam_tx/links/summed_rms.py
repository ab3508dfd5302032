"""`scale_by_summed_rms`: divide by the root of the sum of squares of all gradients, Adagrad's denominator."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import abs_sq, root_and_divide
from adam_tx._core.storage import Storage
from adam_tx.links._declare import NonNegative, Now, Rule, Slot, StorageLike, as_storage, fixed, link


@link(slots={"nu": Slot("square", role="sum_of_squares")})
def scale_by_summed_rms(
    eps: NonNegative = 1e-10, *, eps_root: NonNegative = 0.0, initial: float = 0.0, dtype: StorageLike | None = None
) -> Rule:
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
      A `Link` with state `(count, nu)`, which reads the gradient.

    Raises:
      ValueError: a number out of range.

    Reference: Duchi, Hazan & Singer, Adaptive Subgradient Methods, 2011
    (https://jmlr.org/papers/v12/duchi11a.html).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_summed_rms(initial=9.0)
    >>> grad = jnp.array([4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]
    Array([0.8], dtype=float32)
    """
    fixed("initial", initial)

    def rule(now: Now, updates: Array, grad: Array, nu: Array) -> tuple[Array, Array]:
        nu = nu + abs_sq(grad)
        return root_and_divide(updates, nu, now.eps, now.eps_root), nu

    if as_storage("nu", dtype).is_narrow:
        stored_as = repr(dtype) if isinstance(dtype, Storage) else jnp.dtype(dtype).name
        raise ValueError(
            f"scale_by_summed_rms: nu cannot be stored as {stored_as}: rounded to nearest, a sum soon stops "
            "growing. Use adam_tx.storage.StochasticBFloat16() or float32."
        )
    return Rule(rule, formula="v += |g|²; u / (sqrt(v + eps_root) + eps)", dtype=dtype, start={"nu": initial})
