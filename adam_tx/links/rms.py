"""`scale_by_rms`: divide by the running root mean square of the gradient."""

from __future__ import annotations

from jax import Array

from adam_tx._core.numerics import abs_sq, ema, root_and_divide
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, fixed, link


@link(slots={"nu": Slot("square", decay="decay", eps="eps", eps_root="eps_root")}, debiases=("decay",))
def scale_by_rms(
    decay: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_root: NonNegative = 0.0,
    debias: bool = False,
    initial: float = 0.0,
    dtype: StorageLike | None = None,
) -> Rule:
    """Divide the updates by the root mean square of the raw gradient.

    With g the gradient that entered the chain, u the incoming updates and nu from `initial`::

        nu <- nu + (1 - decay) · (|g|² - nu)
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- u / (sqrt(v + eps_root) + eps)

    `debias` decides what epsilon is compared with: the debiased root, as in the
    paper's Algorithm 1, PyTorch and Optax, or the raw one, as in Keras and TF1,
    where `bias_correction(b1, b2)` follows.

    Args:
      decay: of nu, in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_root: added inside the root, in units of the gradient squared; at least 0.
      debias: undo the start from zero before the root is taken.
      initial: what nu starts from, in units of the gradient squared.
      dtype: what nu is stored in; None for float32, or float64 where the parameter is.

    Returns:
      A `Link` with state `(count, weight, nu)`. It reads the gradient: `adam_tx.chain`
      passes it, elsewhere call `update(..., grad=g)`.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.
      TypeError: `update` without `grad`.

    Reference: Tieleman & Hinton, RMSprop, 2012; Kingma & Ba, Adam, 2015
    (https://arxiv.org/abs/1412.6980).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_rms(0.75)
    >>> grad = jnp.array([3.0, -4.0])
    >>> tx.update(grad, tx.init(grad), grad=grad)[0]  # nu is a quarter of the square
    Array([ 2., -2.], dtype=float32)
    """
    fixed("initial", initial)

    def rule(now: Now, updates: Array, grad: Array, nu: Array) -> tuple[Array, Array]:
        nu = ema(nu, abs_sq(grad), now.decay.step)
        v = nu * now.decay.unbias if debias else nu
        return root_and_divide(updates, v, now.eps, now.eps_root), nu

    v = "v / (1 - Π decay)" if debias else "v"
    formula = f"v += (1 - decay)(|g|² - v); u / (sqrt({v} + eps_root) + eps)"
    debiased = ["decay"] if debias else []
    return Rule(rule, formula=formula, debias=debiased, dtype=dtype, correctable=True, start={"nu": initial})
