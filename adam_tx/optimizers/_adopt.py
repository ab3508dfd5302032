"""`adopt`: divide by the root mean square of earlier gradients, then average: converges for any b2."""

from __future__ import annotations

from adam_tx.links.delayed_rms import fourth_root, scale_by_delayed_rms
from adam_tx.links.momentum import scale_by_momentum
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def adopt(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    b2: Decay = 0.9999,
    eps: NonNegative = 1e-6,
    mu_dtype: StorageLike | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: NonNegative = fourth_root,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """Divide by the root mean square of earlier gradients, then average: converges for any b2.

    With g the gradient and t the number of earlier updates; the first update only
    sets nu to |g|²::

        mu <- b1 · mu + (1 - b1) · clip(g / max(sqrt(nu), eps), ±t^(1/4))
        update = -learning_rate · mu
        nu <- b2 · nu + (1 - b2) · |g|²

    Args: see `help(adam_tx.optimizers)`, and
      eps: the least denominator, in units of the gradient; at least 0.
      nesterov: use the look-ahead momentum.
      use_clipping: whether to bound the elements of an update.
      clip_value_fn: the bound as a function of the number of earlier updates, as a float.

    Returns:
      A `Link`, with the rule and arguments of `optax.contrib.adopt`.

    Reference: Taniguchi et al., ADOPT, 2024 (https://arxiv.org/abs/2411.02853).

    >>> import adam_tx
    >>> list(adam_tx.adopt(1e-3).links)[:2]
    ['scale_by_delayed_rms', 'scale_by_momentum']
    """
    return chain(
        scale_by_delayed_rms(b2, eps, clip=clip_value_fn if use_clipping else None, dtype=nu_dtype),
        scale_by_momentum(b1, nesterov=nesterov, dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )
