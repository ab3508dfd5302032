"""`adagrad`: divide the gradient by the root of the sum of its squares so far."""

from __future__ import annotations

from adam_tx._core.hyperparams import fixed
from adam_tx.links.summed_rms import scale_by_summed_rms
from adam_tx.optimizers._compose import Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adagrad(
    learning_rate: NonNegative,
    initial_accumulator_value: float = 0.1,
    eps: NonNegative = 1e-7,
    *,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Divide the gradient by the root of the sum of its squares so far.

    With g the gradient and nu from `initial_accumulator_value`::

        nu <- nu + |g|²
        update = -learning_rate · g / sqrt(nu + eps)

    PyTorch adds epsilon outside the root: `scale_by_summed_rms(eps)`.

    Args: see `help(adam_tx.optimizers)`, and
      initial_accumulator_value: what nu starts from.
      eps: added inside the root, in units of the gradient squared; at least 0.

    Returns:
      A `Link`, a drop-in for `optax.adagrad`.

    Reference: Duchi, Hazan & Singer, 2011 (https://jmlr.org/papers/v12/duchi11a.html).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.adagrad(0.1, initial_accumulator_value=9.0)
    >>> grad = jnp.array([4.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.08000001], dtype=float32)
    """
    fixed("adagrad: initial_accumulator_value", initial_accumulator_value)
    return chain(
        scale_by_summed_rms(0.0, eps_root=eps, initial=initial_accumulator_value, dtype=nu_dtype),
        scale_by_learning_rate(learning_rate),
    )
