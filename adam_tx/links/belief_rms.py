"""`scale_by_belief_rms`: divide by how far the gradient is from what was expected, as AdaBelief does."""

from __future__ import annotations

from jax import Array

from adam_tx._core.numerics import abs_sq, ema, root_and_divide, scalar
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, link


@link(slots={"nu": Slot("square", decay="decay", role="nu_belief", eps="eps")}, debiases=("decay", "look_ahead"))
def scale_by_belief_rms(
    decay: Decay = 0.999,
    eps: NonNegative = 1e-16,
    *,
    eps_stored: NonNegative = 1e-16,
    debias: bool = False,
    look_ahead: Decay | None = None,
    dtype: StorageLike | None = None,
) -> Rule:
    """Divide the updates by how far the gradient is from what was expected: AdaBelief's denominator.

    What is expected is what comes in, so a momentum stands before this link. With
    u the incoming updates, g the gradient and nu from zero::

        nu <- nu + (1 - decay) · (|g - u|² - nu) + eps_stored
        v   = nu / (1 - Π decay)                       if debias, else nu
        u  <- u / (sqrt(v) + eps)                      of its look-ahead if `look_ahead`

    Args:
      decay: in [0, 1).
      eps: added outside the root, in units of the gradient; at least 0.
      eps_stored: added to nu at every update and kept in it, in units of the gradient squared.
      debias: undo the start from zero before the root is taken.
      look_ahead: the decay of the momentum that comes in, to divide its debiased
        look-ahead instead, as `scale_by_momentum(nesterov=True, debias=True)` emits it.
      dtype: what nu is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, weight, weight_look_ahead, nu)`, which reads the gradient.

    Raises:
      ValueError: a number out of range, or a `dtype` in which nu would never decay.

    Reference: Zhuang et al., AdaBelief, 2020 (https://arxiv.org/abs/2010.07468).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_belief_rms(0.0)
    >>> tx.update(jnp.array([6.0]), tx.init(jnp.zeros(1)), grad=jnp.array([3.0]))[0]
    Array([2.], dtype=float32)
    """

    def rule(now: Now, updates: Array, grad: Array, nu: Array) -> tuple[Array, Array]:
        nu = ema(nu, abs_sq(grad - updates), now.decay.step) + scalar(now.eps_stored, nu)
        if look_ahead is not None:
            today, following = now.look_ahead, now.next.look_ahead
            of_mu, of_grad = following.value / following.weight, today.step / today.weight
            updates = updates * scalar(of_mu, updates) + grad * scalar(of_grad, grad)
        return root_and_divide(updates, nu * now.decay.unbias if debias else nu, now.eps), nu

    v = "v / (1 - Π decay)" if debias else "v"
    formula = f"v += (1 - decay)(|g - u|² - v) + eps_stored; u / (sqrt({v}) + eps)"
    debiased = [*(["decay"] if debias else []), *([] if look_ahead is None else ["look_ahead"])]
    roles = {"weight_look_ahead": "weight_nu_look_ahead"}
    return Rule(rule, formula=formula, debias=debiased, dtype=dtype, roles=roles, correctable=True)
