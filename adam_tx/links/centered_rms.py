"""`scale_by_centered_rms`: divide by the running standard deviation of the gradient."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import abs_sq, ema, root_and_divide, scalar
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, as_storage, fixed, link


@link(
    slots={
        "mean": Slot("gradient", decay="decay", role="mean"),
        "nu": Slot("square", decay="decay", eps="eps", eps_root="eps_root"),
    },
    debiases=("decay",),
)
def scale_by_centered_rms(
    decay: Decay = 0.99,
    eps: NonNegative = 1e-8,
    *,
    eps_root: NonNegative = 0.0,
    debias: bool = False,
    initial: float = 0.0,
    dtype: StorageLike | None = None,
) -> Rule:
    """Divide the updates by the running standard deviation of the gradient: centred RMSprop.

    With g the gradient, mean from zero, nu from `initial`::

        mean <- mean + (1 - decay) · (g - mean)
        nu   <- nu + (1 - decay) · (|g|² - nu)
        v     = nu - |mean|²                           of both over 1 - Π decay if debias
        u    <- u / (sqrt(v + eps_root) + eps)

    Rounding can make nu - |mean|² negative where the gradient does not vary; it
    counts as zero there, where PyTorch, Keras and Optax take the root of it.

    Args:
      decay: in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      debias: undo the start from zero of mean and nu first.
      initial: what nu starts from, in units of the gradient squared.
      dtype: what mean and nu are stored in: a dtype, or None for float32 or wider.

    Returns:
      A `Link` with state `(count, weight, mean, nu)`, which reads the gradient.

    Raises:
      ValueError: a number out of range.
      TypeError: a `dtype` that rounds at random, of which the difference would be noise.

    Reference: Graves, Generating Sequences With Recurrent Neural Networks, 2013,
    section 4.2 (https://arxiv.org/abs/1308.0850).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_centered_rms(0.5)
    >>> grad = jnp.array([3.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]  # half of 9 less the square of half of 3
    Array([2.], dtype=float32)
    """
    fixed("initial", initial)

    if as_storage("nu", dtype).at_random:
        raise TypeError(
            f"scale_by_centered_rms: dtype cannot be {dtype!r}: nu - |mean|² is a small difference, of which rounding "
            "at random leaves noise, and zero to divide by. Use a dtype or None."
        )

    def rule(now: Now, updates: Array, grad: Array, mean: Array, nu: Array) -> tuple[Array, Array, Array]:
        mean = ema(mean, grad, now.decay.step)
        nu = ema(nu, abs_sq(grad), now.decay.step)
        expected, of_square = mean, nu
        if debias:
            expected, of_square = mean * scalar(now.decay.unbias, mean), nu * now.decay.unbias
        v = jnp.maximum(of_square - abs_sq(expected), 0.0)
        return root_and_divide(updates, v, now.eps, now.eps_root), mean, nu

    formula = "v = nu - |mean|², running averages of |g|² and g; u / (sqrt(v + eps_root) + eps)"
    return Rule(rule, formula=formula, debias=["decay"] if debias else [], dtype=dtype, start={"nu": initial})
