"""`sgd`: gradient descent, with heavy-ball momentum if asked to."""

from __future__ import annotations

from adam_tx.links.heavy_ball import scale_by_heavy_ball
from adam_tx.optimizers._compose import Decay, Link, NonNegative, StorageLike, chain, optimizer, scale_by_learning_rate


@optimizer
def sgd(
    learning_rate: NonNegative,
    momentum: Decay | None = None,
    nesterov: bool = False,
    accumulator_dtype: StorageLike | None = None,
    *,
    dampening: Decay = 0.0,
) -> Link:
    """Gradient descent, with heavy-ball momentum if asked to.

    With g the gradient and the trace from zero::

        trace <- momentum · trace + (1 - dampening) · g        g itself at the first update
        update = -learning_rate · (trace, or g + momentum · trace if nesterov)

    Args: see `help(adam_tx.optimizers)`, and
      momentum: decay of the trace, in [0, 1); None for no trace.
      nesterov: look one step ahead.
      dampening: in [0, 1).
      accumulator_dtype: what the trace is stored in; None for float32 or wider.

    Returns:
      A `Link`, with the arguments of `optax.sgd`.

    Reference: Sutskever et al., 2013; torch/optim/sgd.py in PyTorch 2.13.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.sgd(0.1)
    >>> grad = jnp.array([2.0])
    >>> tx.update(grad, tx.init(grad))[0]
    Array([-0.2], dtype=float32)
    """
    step = scale_by_learning_rate(learning_rate)
    if momentum is None:
        return chain(step)
    return chain(scale_by_heavy_ball(momentum, dampening=dampening, nesterov=nesterov, dtype=accumulator_dtype), step)
