"""`scale_by_max_rms`: divide by the largest root mean square so far, AMSGrad's denominator."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import abs_sq, ema, root_and_divide
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, as_storage, link


@link(
    slots={
        "nu": Slot("square", decay="decay", eps="eps", eps_root="eps_root"),
        "nu_max": Slot("square", role="nu_max"),
    },
    debiases=("decay",),
)
def scale_by_max_rms(
    decay: Decay = 0.999,
    eps: NonNegative = 1e-8,
    *,
    eps_root: NonNegative = 0.0,
    debias: bool = False,
    max_of: str = "raw",
    dtype: StorageLike | None = None,
) -> Rule:
    """Divide the updates by the largest root mean square so far: AMSGrad's denominator.

    As `scale_by_rms`, with a running maximum of the raw or of the debiased nu::

        nu     <- nu + (1 - decay) · (|g|² - nu)
        nu_max <- max(nu_max, nu)                      max_of="raw": PyTorch, Keras
        v       = nu_max / (1 - Π decay)               if debias, else nu_max
        nu_max <- max(nu_max, nu / (1 - Π decay))      max_of="debiased": Optax
        v       = nu_max
        u      <- u / (sqrt(v + eps_root) + eps)

    The two are different optimizers, whose states cannot be converted.

    Args, Returns, Raises: those of `scale_by_rms`, with state `(count, weight, nu, nu_max)`,
    and `max_of`, "raw" or "debiased"; the latter needs `debias`. dtype cannot be a storage
    that rounds at random: of 10,000 roundings of nu a maximum keeps the largest, which was
    26 % too large in eight bits and 5 % in bfloat16.

    Reference: Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, 2018
    (https://arxiv.org/abs/1904.09237).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_max_rms(0.0)
    >>> grad = jnp.array([3.0, -4.0])
    >>> _, state = tx.update(grad, tx.init(grad), grad=grad)
    >>> tx.update(grad / 2, state, grad=grad / 2)[0]
    Array([ 0.5, -0.5], dtype=float32)
    """
    if max_of not in ("raw", "debiased") or (max_of == "debiased" and not debias):
        raise ValueError(
            f'scale_by_max_rms: max_of must be "raw", or "debiased" together with debias=True, got {max_of!r}.'
        )
    if as_storage("nu", dtype).at_random:
        raise TypeError(
            f"scale_by_max_rms: dtype cannot be {dtype!r}: the maximum over time keeps what was rounded up at random, "
            "so it grows for ever and steps become shorter. Use a dtype or None here, and the storage for the momentum "
            "alone (mu_dtype); or an optimizer without the maximum, such as adamw."
        )
    before = max_of == "debiased"

    def rule(now: Now, updates: Array, grad: Array, nu: Array, nu_max: Array) -> tuple[Array, Array, Array]:
        nu = ema(nu, abs_sq(grad), now.decay.step)
        nu_max = jnp.maximum(nu_max, nu * now.decay.unbias if before else nu)
        v = nu_max * now.decay.unbias if debias and not before else nu_max
        return root_and_divide(updates, v, now.eps, now.eps_root), nu, nu_max

    v = "v / (1 - Π decay)" if debias else "v"
    formula = f"v = max over time of nu += (1 - decay)(|g|² - nu); u / (sqrt({v} + eps_root) + eps)"
    debiased = ["decay"] if debias else []
    roles = {"nu_max": "nu_max_of_debiased"} if before else {}
    return Rule(rule, formula=formula, debias=debiased, dtype=dtype, roles=roles, correctable=True)
