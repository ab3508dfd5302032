"""`cautious`: any optimizer, without the elements of its steps that go uphill."""

from __future__ import annotations

import optax

from adam_tx._chain import chain
from adam_tx._core.hyperparams import Positive
from adam_tx._link import Link, as_part, implementation_in, link_of, optimizer
from adam_tx.links.caution import scale_by_caution


@optimizer
def cautious(optimizer: optax.GradientTransformation, floor: Positive = 1e-3) -> Link:
    """Any optimizer, without the elements of its steps that go uphill.

    With u the optimizer's update and g the gradient::

        kept = 1 where u and g have opposite signs, else 0
        update = u · kept / max(mean of kept over the tensor, floor)

    Weight decay is part of what is judged here. The official C-AdamW judges Adam's
    direction alone: there `scale_by_caution()` stands before the decay.

    Args: see `help(adam_tx.optimizers)`, and
      optimizer: any transformation whose updates are ready for `optax.apply_updates`.
      floor: the least share of kept elements to make up for, above 0.

    Returns:
      A `Link`.

    Raises:
      ValueError: a floor that is not positive.

    Reference: Liang et al., Cautious Optimizers, 2024 (https://arxiv.org/abs/2411.16085).

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.cautious(adam_tx.sgd(1.0, momentum=0.5))
    >>> _, state = tx.update(jnp.array([2.0, 2.0]), tx.init(jnp.zeros(2)))
    >>> tx.update(jnp.array([-0.5, 1.0]), state)[0]  # the first would still go by the last gradient
    Array([-0., -4.], dtype=float32)
    """
    step = as_part(implementation_in(optimizer))  # judged by the gradient as it came, whatever it makes of that
    return chain(link_of(step), scale_by_caution(floor, step=True))
