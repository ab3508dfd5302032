"""`scale_by_momentum`: the running average of the gradient, Adam's first moment."""

from __future__ import annotations

from jax import Array

from adam_tx._core.numerics import ema, scalar
from adam_tx.links._declare import Decay, Now, Rule, Slot, StorageLike, link


@link(slots={"mu": Slot("gradient", decay="decay")}, debiases=("decay", "read"))
def scale_by_momentum(
    decay: Decay = 0.9,
    *,
    nesterov: bool = False,
    read: Decay | None = None,
    debias: bool = False,
    dtype: StorageLike | None = None,
) -> Rule:
    """Replace the updates by their exponential moving average.

    With u the incoming updates, mu from zero and d the decay, d' that of the next update::

        mu <- mu + (1 - d) · (u - mu)
        u  <- mu                                       plain
        u  <- d' · mu + (1 - d) · u                    nesterov: the average of one step ahead

    `debias` divides mu by its weight 1 - Π d; of a look-ahead it divides mu by the
    weight after the next update and u by today's (Dozat's NAdam as Optax writes it).
    Without it, follow with `bias_correction`.

    Args:
      decay: d, in [0, 1).
      nesterov: emit the look-ahead average.
      read: another decay with which to look ahead, and to debias, instead of d: NAdam
        with a schedule that only the read-out follows (PyTorch, Keras). With `nesterov` only.
      debias: undo the start from zero here.
      dtype: what mu is stored in; None for float32, or wider where the parameter is.

    Returns:
      A `Link` with state `(count, weight, weight_read, mu)`.

    Raises:
      ValueError: a decay outside [0, 1), or one too close to one for `dtype`; `read` without `nesterov`.

    Reference: Kingma & Ba, Adam, 2015 (https://arxiv.org/abs/1412.6980); Dozat,
    Incorporating Nesterov Momentum into Adam, 2016.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_momentum(0.9)
    >>> grad = jnp.array([1.0, -2.0])
    >>> updates, state = tx.update(grad, tx.init(grad))
    >>> updates
    Array([ 0.1, -0.2], dtype=float32)
    """
    reading = "decay" if read is None else "read"
    if read is not None and not nesterov:
        raise ValueError("scale_by_momentum: read is the decay of a look-ahead; give nesterov=True, or leave it out.")

    def plain(now: Now, updates: Array, mu: Array) -> tuple[Array, Array]:
        mu = ema(mu, updates, now.decay.step)
        return mu * scalar(now.decay.unbias, mu) if debias else mu, mu

    def look_ahead(now: Now, updates: Array, mu: Array) -> tuple[Array, Array]:
        mu = ema(mu, updates, now.decay.step)
        today, following = getattr(now, reading), getattr(now.next, reading)
        of_mu, of_updates = following.value, today.step
        if debias:
            of_mu, of_updates = of_mu / following.weight, of_updates / today.weight
        return mu * scalar(of_mu, mu) + updates * scalar(of_updates, updates), mu

    emitted = f"{reading}·mu + (1 - {reading})·u" if nesterov else "mu"
    formula = f"mu += (1 - decay)(u - mu); {emitted}" + (", debiased" if debias else "")
    rule = look_ahead if nesterov else plain
    debiased = [reading] if debias else []
    roles = {"weight_read": "weight_mu_read"}
    return Rule(rule, formula=formula, debias=debiased, dtype=dtype, roles=roles, correctable=not debias)
