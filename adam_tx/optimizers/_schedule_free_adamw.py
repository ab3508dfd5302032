"""`schedule_free_adamw`: AdamW whose momentum is an average of its weights, which needs no schedule."""

from __future__ import annotations

from adam_tx.links.rms import scale_by_rms
from adam_tx.links.schedule_free import step_schedule_free
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer


@optimizer
def schedule_free_adamw(
    learning_rate: NonNegative = 0.0025,
    warmup_steps: int | None = None,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    state_dtype: StorageLike | None = None,
    *,
    r: NonNegative = 0.0,
    mask: Mask = None,
    nu_dtype: StorageLike | None = None,
) -> Link:
    """AdamW whose momentum is an average of its weights, so that it needs no schedule.

    With g the gradient at the parameters y, nu debiased, and c the weight that
    `step_schedule_free` gives to the newest z in the average x::

        nu <- b2 · nu + (1 - b2) · |g|²
        z  <- z - rate · (g / (sqrt(nu) + eps) + weight_decay · y)
        x  <- (1 - c) · x + c · z
        y   = (1 - b1) · z + b1 · x

    x is to be evaluated: `adam_tx.schedule_free_weights(params, state)`. The steps are those
    of the authors' `schedulefree`; Optax's rise from zero, one update later.

    Args: see `help(adam_tx.optimizers)`, and
      warmup_steps: the number of updates in which the rate rises; None for none.
      b1: how much of x is in y, above 0 and below 1.
      weight_lr_power, r: the powers of the rate and of the count in c.
      state_dtype: what z is stored in.

    Returns:
      A `Link` with the arguments of `optax.contrib.schedule_free_adamw`. Its `update`
      needs `params`.

    Reference: Defazio et al., The Road Less Scheduled, 2024
    (https://arxiv.org/abs/2405.15682); schedulefree/adamw_schedulefree.py.

    >>> import adam_tx
    >>> list(adam_tx.schedule_free_adamw().links)
    ['scale_by_rms', 'add_decayed_weights', 'step_schedule_free']
    """
    return chain(
        scale_by_rms(b2, eps, debias=True, dtype=nu_dtype),
        add_decayed_weights(weight_decay, mask),
        step_schedule_free(
            learning_rate,
            b1,
            warmup_steps=0 if warmup_steps is None else warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            dtype=state_dtype,
        ),
    )
