"""Decay to the start: parameters are pulled to where they were when the state was made."""

from __future__ import annotations

from jax import Array

from adam_tx._core.masks import Mask
from adam_tx._core.numerics import scalar
from adam_tx.links._declare import NonNegative, Now, Rule, Slot, StorageLike, link

_START = Slot("params", role="start")


@link(slots={"start": _START})
def add_decay_to_start(weight_decay: NonNegative, mask: Mask = None, *, dtype: StorageLike | None = None) -> Rule:
    """Add what a parameter is away from its start, times the weight decay, to the updates.

    Before the learning rate it is to the start what AdamW's decay is to zero, multiplied by
    that rate; in front of a chain it is L2-SP::

        u <- u + weight_decay · (params - start)

    Args:
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True are
        pulled, and only of these a start is kept.
      dtype: what the start is stored in; None for float32 or wider. bfloat16 holds the start
        of bfloat16 parameters exactly.

    Returns:
      A `Link` with state `(count, start)`, where start is a copy of the parameters that
      `init` was given. Its `update` needs `params`.

    Raises:
      ValueError: a negative number; a mask of another tree, or one that marks a leaf of which
        no start was kept; `update` without params.

    Reference: Li, Grandvalet & Davoine, Explicit Inductive Bias for Transfer Learning with
    Convolutional Networks, 2018 (https://arxiv.org/abs/1802.01483). Kauldron's `decay_to_init` is this.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.add_decay_to_start(0.5)
    >>> state = tx.init(jnp.array([2.0]))
    >>> tx.update(jnp.zeros(1), state, jnp.array([3.0]))[0]
    Array([0.5], dtype=float32)
    """

    def rule(now: Now, updates: Array, params: Array, start: Array) -> tuple[Array, Array]:
        return updates + (params - start) * scalar(now.weight_decay, params), start

    formula = "u + weight_decay · (params - start)"
    return Rule(
        rule, formula=formula, dtype=dtype, mask=mask, marked_only=True, changes_gradient=True, passes_gradient=True
    )


@link(slots={"start": _START})
def decay_to_start(
    weight_decay: NonNegative, mask: Mask = None, *, times: NonNegative = 1.0, dtype: StorageLike | None = None
) -> Rule:
    """Pull the parameters to their start by the weight decay times `times`, and nothing else.

    It stands after the learning rate, where updates are steps, as `decay_weights` does::

        u <- u - times · weight_decay · (params - start)

    A part `times · weight_decay` of the way back is gone at each step, whatever the gradient
    is. Give the learning rate as `times` for a decay that goes with it.

    Args:
      weight_decay: at least 0.
      mask: tree of booleans, or a function from params to one; only leaves marked True are
        pulled, and only of these a start is kept.
      times: what the decay is multiplied by, at least 0.
      dtype: what the start is stored in, as for `add_decay_to_start`.

    Returns, Raises: those of `add_decay_to_start`.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.chain(adam_tx.adam(1e-3), adam_tx.decay_to_start(0.1, times=1e-3))
    >>> state = tx.init(jnp.array([2.0]))
    >>> tx.update(jnp.zeros(1), state, jnp.array([3.0]))[0]
    Array([-0.0001], dtype=float32)
    """

    def rule(now: Now, updates: Array, params: Array, start: Array) -> tuple[Array, Array]:
        return updates - (params - start) * scalar(now.weight_decay * now.times, params), start

    formula = "u - times · weight_decay · (params - start)"
    return Rule(rule, formula=formula, dtype=dtype, mask=mask, marked_only=True, passes_gradient=True)
