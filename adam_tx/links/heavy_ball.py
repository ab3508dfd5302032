"""`scale_by_heavy_ball`: the decaying sum of the gradient, SGD's momentum."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from adam_tx._core.numerics import scalar
from adam_tx.links._declare import Decay, Now, Rule, Slot, StorageLike, as_storage, link


@link(slots={"trace": Slot("gradient", role="trace")})
def scale_by_heavy_ball(
    decay: Decay = 0.9, *, dampening: Decay = 0.0, nesterov: bool = False, dtype: StorageLike | None = None
) -> Rule:
    """Replace the updates by their decaying sum: Polyak's momentum.

    With u the incoming updates and the trace from zero::

        trace <- decay · trace + (1 - dampening) · u    u itself at the first update
        u     <- trace                                  plain
        u     <- u + decay · trace                      nesterov

    Args:
      decay: in [0, 1).
      dampening: in [0, 1); 0 is a sum, `decay` the average of `scale_by_momentum`
        but for its start.
      nesterov: emit the trace of one step ahead.
      dtype: what the trace is stored in; None for float32 or wider.

    Returns:
      A `Link` with state `(count, trace)`.

    Raises:
      ValueError: a number out of range.

    Reference: Sutskever et al., On the Importance of Initialization and Momentum,
    2013; torch/optim/sgd.py in PyTorch 2.13.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.scale_by_heavy_ball(0.5)
    >>> _, state = tx.update(jnp.array([2.0]), tx.init(jnp.zeros(1)))
    >>> tx.update(jnp.array([3.0]), state)[0]
    Array([4.], dtype=float32)
    """
    undamped = isinstance(dampening, int | float) and dampening == 0.0

    def rule(now: Now, updates: Array, trace: Array) -> tuple[Array, Array]:
        incoming = 1.0 if undamped else jnp.where(now.count == 0, 1.0, now.dampening.step)
        trace = trace * scalar(now.decay.value, trace) + updates * scalar(incoming, updates)
        return (updates + trace * scalar(now.decay.value, trace) if nesterov else trace), trace

    emitted = "u + decay·trace" if nesterov else "trace"
    as_storage("trace", dtype).check("trace", "gradient", decay)
    return Rule(rule, formula=f"trace = decay·trace + (1 - dampening)·u; {emitted}", dtype=dtype)
