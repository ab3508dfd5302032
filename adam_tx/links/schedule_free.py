"""`step_schedule_free`: steps at a point between the iterates and their average, which takes a schedule's place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adam_tx._core import hyperparams, states
from adam_tx._core.boxes import boxed_like, unboxed
from adam_tx._core.leaves import is_absent
from adam_tx._core.numerics import cast, divide, power, scalar
from adam_tx.links._declare import Decay, NonNegative, Now, Rule, Slot, StorageLike, link

_NUMBERS = {"weight_sum": 0.0, "largest_rate": 0.0, "blend": 0.0}


@link(slots={"z": Slot("params")}, numbers=_NUMBERS)
def step_schedule_free(
    learning_rate: NonNegative,
    b1: Decay = 0.9,
    *,
    warmup_steps: int = 0,
    r: NonNegative = 0.0,
    weight_lr_power: NonNegative = 2.0,
    dtype: StorageLike | None = None,
) -> Rule:
    """Step at a point between the iterates and their average: schedule-free learning, the last link of a chain.

    The parameters that are trained are y. With u the incoming updates, z from the
    parameters, x their average and t from 1::

        rate = learning_rate · min(1, t / warmup_steps)
        w    = t^r · (largest rate so far)^weight_lr_power
        c    = w / (sum of all w)
        z   <- z - rate · u
        x   <- (1 - c) · x + c · z                     kept as y and z alone
        y   <- (1 - b1) · z + b1 · x                   emitted: how y moves

    x is what one evaluates and deploys: `schedule_free_weights` gives it. No momentum
    should stand before, since the average is one; weight decay stands before, at y.

    Args:
      learning_rate: at least 0; a schedule is followed, but meant to be needless.
      b1: how much of x is in y, above 0 and below 1.
      warmup_steps: the number of updates in which the rate rises.
      r: the power of t in the weights; at least 0.
      weight_lr_power: that of the rate; at least 0; 0 with r = 0 is a plain mean.
      dtype: what z is stored in; None for float32, or wider where the parameter is.

    Returns:
      A `Link` with state `(count, weight_sum, largest_rate, blend, z)`, blend the b1 of
      the last update. Its `update` needs `params`.

    Raises:
      ValueError: a number out of range; `update` without params; another link behind it,
        but `master_weights` or `stochastic_round`.

    Reference: Defazio et al., The Road Less Scheduled, 2024
    (https://arxiv.org/abs/2405.15682); schedulefree/adamw_schedulefree.py.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.step_schedule_free(1.0, 0.5)
    >>> params = jnp.zeros(1)
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jnp.ones(1), state, params)
    ...     params = params + updates
    >>> state.z, adam_tx.schedule_free_weights(params, state)  # the mean of -1 and -2
    (Array([-2.], dtype=float32), Array([-1.5], dtype=float32))
    """
    hyperparams.check_int("step_schedule_free: warmup_steps", warmup_steps, least=0)
    if isinstance(b1, int | float) and b1 == 0:
        raise ValueError(f"step_schedule_free: b1 must be above 0, got {b1}; with 0 nothing would be averaged.")

    def numbers(now: Now, weight_sum: Array, largest_rate: Array, blend: Array) -> dict[str, Array]:
        t = cast(now.count, weight_sum.dtype) + 1.0
        rate = now.learning_rate * (jnp.minimum(t / float(warmup_steps), 1.0) if warmup_steps else jnp.ones_like(t))
        largest_rate = jnp.maximum(largest_rate, rate)
        of_rate = jnp.where(now.weight_lr_power == 0, 1.0, power(largest_rate, now.weight_lr_power))
        weight = power(t, now.r) * of_rate
        weight_sum = weight_sum + weight
        blend = jnp.full_like(blend, now.b1.value)
        share = divide(weight, weight_sum, 0.0)
        return {"weight_sum": weight_sum, "largest_rate": largest_rate, "blend": blend, "share": share, "rate": rate}

    def rule(
        now: Now, updates: Array, params: Array, z: Array, share: Array, rate: Array, blend: Array
    ) -> tuple[Array, Array]:
        of_updates = rate * (blend * (1.0 - share) - 1.0)
        step = (z - params) * scalar(share, params) + updates * scalar(of_updates, updates)
        return step, z - updates * scalar(rate, updates)

    formula = "z -= rate · u; x += c(z - x); y = (1 - b1)z + b1·x; how y moves"
    return Rule(rule, formula=formula, numbers=numbers, dtype=dtype, is_step=True)


def schedule_free_weights(params: optax.Params, opt_state: optax.OptState) -> optax.Params:
    """The averaged weights that schedule-free learning leads to, to evaluate or deploy.

    Args:
      params: the tree of parameters that are trained, y; behind `master_weights` give
        `float32_weights(params, opt_state)`.
      opt_state: the state of an optimizer with `step_schedule_free` in it, at any depth.

    Returns:
      The tree of x = y + (1 - 1/b1) · (z - y), in the dtypes of the parameters; leaves
      that the link does not train are as they are.

    Raises:
      ValueError: a state of no such optimizer; parameters that it does not belong to.

    >>> import adam_tx
    >>> import jax.numpy as jnp
    >>> tx = adam_tx.schedule_free_sgd(1.0)
    >>> adam_tx.schedule_free_weights({"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}))
    {'w': Array([1.], dtype=float32)}
    """
    weights = unboxed(params)
    found = [node for node in jax.tree.leaves(unboxed(opt_state), is_leaf=_is_state) if _is_state(node)]
    if not found:
        raise ValueError("opt_state: it has no z; give that of an optimizer with adam_tx.step_schedule_free.")
    for state in found:  # one a group of parameters, with nothing in the place of the others

        def averaged(y: Any, z: Any, b1: Array = state.blend) -> Any:
            if is_absent(y) or is_absent(z):
                return y
            away = jnp.where(b1 == 0, 0.0, 1.0 - 1.0 / jnp.where(b1 == 0, 1.0, b1))
            of_y = y.astype(z.dtype)
            return (of_y + (z - of_y) * scalar(away, z)).astype(y.dtype)

        given, kept = (jax.tree.structure(tree, is_leaf=is_absent) for tree in (weights, state.z))
        if given != kept:
            raise ValueError(
                f"params and z in opt_state are different trees, {given} and {kept}; give those that belong together."
            )
        weights = jax.tree.map(averaged, weights, state.z, is_leaf=is_absent)
    return boxed_like(weights, params)


def _is_state(node: Any) -> bool:
    return isinstance(node, _STATES)


_STATES: Any = tuple(states.state_type("step_schedule_free", (*count, *_NUMBERS, "z")) for count in ((), ("count",)))
