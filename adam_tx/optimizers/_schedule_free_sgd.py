"""`schedule_free_sgd`: gradient descent whose momentum is an average of its weights, which needs no schedule."""

from __future__ import annotations

from adam_tx.links.schedule_free import step_schedule_free
from adam_tx.links.weight_decay import Mask, add_decayed_weights
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer


@optimizer
def schedule_free_sgd(
    learning_rate: NonNegative = 1.0,
    warmup_steps: int | None = None,
    b1: Decay = 0.9,
    weight_decay: NonNegative | None = None,
    weight_lr_power: NonNegative = 2.0,
    state_dtype: StorageLike | None = None,
    *,
    r: NonNegative = 0.0,
    mask: Mask = None,
) -> Link:
    """Gradient descent whose momentum is an average of its weights, so that it needs no schedule.

    With g the gradient at the parameters y, and c the weight that `step_schedule_free`
    gives to the newest z in the average x::

        z  <- z - rate · (g + weight_decay · y)
        x  <- (1 - c) · x + c · z
        y   = (1 - b1) · z + b1 · x

    x is to be evaluated: `adam_tx.schedule_free_weights(params, state)`.

    Args: see `schedule_free_adamw`; a weight_decay of None is none.

    Returns:
      A `Link` with the arguments of `optax.contrib.schedule_free_sgd`. Its `update`
      needs `params`.

    Reference: Defazio et al., The Road Less Scheduled, 2024
    (https://arxiv.org/abs/2405.15682); schedulefree/sgd_schedulefree.py.

    >>> import adam_tx
    >>> list(adam_tx.schedule_free_sgd(0.1, weight_decay=0.01).links)
    ['add_decayed_weights', 'step_schedule_free']
    """
    return chain(
        add_decayed_weights(0.0 if weight_decay is None else weight_decay, mask),
        step_schedule_free(
            learning_rate,
            b1,
            warmup_steps=0 if warmup_steps is None else warmup_steps,
            r=r,
            weight_lr_power=weight_lr_power,
            dtype=state_dtype,
        ),
    )
