"""Schedules of decays that the family needs and Optax does not have.

Each is a function of the number of earlier updates, as all of Optax's are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
import optax

from adam_tx._core import hyperparams, numerics
from adam_tx._core.call import Call
from adam_tx._core.hyperparams import Decay, Finite, NonNegative
from adam_tx._core.public import shows

__all__ = ["from_second_update", "half_life_decay", "nadam_decay", "power_decay", "relative_step", "warmup"]
__dir__ = shows(__all__)

P = ParamSpec("P")


def _schedule(maker: Callable[P, optax.Schedule]) -> Callable[P, optax.Schedule]:
    """Check the arguments of a function that makes schedules, and let each schedule remember its call."""
    parameters = hyperparams.Parameters(maker)
    checked_maker: Callable[..., Any] = maker

    @functools.wraps(maker)
    def make(*args: P.args, **kwargs: P.kwargs) -> optax.Schedule:
        schedule = checked_maker(**parameters.bind(*args, **kwargs))
        schedule.call = Call(make, args, kwargs)
        return schedule

    return hyperparams.readable(make)


@_schedule
def nadam_decay(b1: Decay = 0.9, momentum_decay: NonNegative = 0.004) -> optax.Schedule:
    """Dozat's growing momentum: `b1 · (1 - 0.96^(t · momentum_decay) / 2)` at update t, from 1.

    Args:
      b1: what it grows to from about half, in [0, 1): number, 0-d array or schedule.
      momentum_decay: how fast; 0.004 in the paper and PyTorch, 1 in Keras.

    Reference: Dozat, Incorporating Nesterov Momentum into Adam, 2016.

    >>> import adam_tx
    >>> adam_tx.schedules.nadam_decay(0.9)(0)
    Array(0.45007348, dtype=float32)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = _update_number(count)
        grown = 1.0 - 0.5 * jnp.exp(t * (math.log(0.96) * _at(momentum_decay, count, t)))
        return grown * _at(b1, count, grown)

    return schedule


@_schedule
def power_decay(exponent: NonNegative = 0.8, offset: Finite = 0.0) -> optax.Schedule:
    """Adafactor's decay, `1 - t^-exponent` at update t, from 1: zero at first, then ever closer to one.

    Args:
      exponent: at least 0.
      offset: how many updates later t starts from 1; before that it is 1.

    Reference: Shazeer & Stern, Adafactor, 2018, section 7.2 (https://arxiv.org/abs/1804.04235).

    >>> import adam_tx
    >>> adam_tx.schedules.power_decay(0.5)(3)
    Array(0.5, dtype=float32)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        t = _update_number(count)
        late = t if isinstance(offset, float | int) and offset == 0 else jnp.maximum(t - _at(offset, count, t), 1.0)
        return 1.0 - late ** -_at(exponent, count, t)

    return schedule


@_schedule
def from_second_update(value: NonNegative) -> optax.Schedule:
    """Zero at the first update, the value from the second on.

    An average with such a decay starts from the first value that it sees.

    Args:
      value: at least 0.

    >>> import adam_tx
    >>> schedule = adam_tx.schedules.from_second_update(0.25)
    >>> float(schedule(0)), float(schedule(1))
    (0.0, 0.25)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        later = jnp.asarray(hyperparams.at(value, count), jnp.result_type(float))
        return jnp.where(jnp.asarray(count) == 0, jnp.zeros_like(later), later)

    return schedule


@_schedule
def relative_step(rate: NonNegative = 1e-2) -> optax.Schedule:
    """Adafactor's learning rate: `min(rate, 1 / sqrt(t))` at update t, from 1.

    Args:
      rate: at least 0; 1e-2 in the paper.

    Reference: Shazeer & Stern, Adafactor, 2018, section 8 (https://arxiv.org/abs/1804.04235).

    >>> import adam_tx
    >>> schedule = adam_tx.schedules.relative_step(0.3)
    >>> float(schedule(3)), float(schedule(15))
    (0.30000001192092896, 0.25)
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        bound = 1.0 / jnp.sqrt(_update_number(count))
        return jnp.minimum(_at(rate, count, bound), bound)

    return schedule


@_schedule
def half_life_decay(start: float, end: float, steps: int) -> optax.Schedule:
    """A decay whose half-life grows linearly over the first steps: AdEMAMix's warm-up of b3.

    An average with decay d halves what it holds in `log(1/2) / log(d)` updates; that
    less one is what grows, from `start`'s to `end`'s at update t = `steps`.

    Args:
      start: decay to start from, in (0, 1).
      end: decay from update `steps` on, in (0, 1).
      steps: length of the warm-up, at least 1.

    Raises:
      ValueError: a decay or a number of steps out of range.

    Reference: Pagliardini et al., AdEMAMix, 2024, appendix (https://arxiv.org/abs/2409.03137).

    >>> import adam_tx
    >>> adam_tx.schedules.half_life_decay(0.5, 0.25, 1)(0)
    Array(0.25, dtype=float32)
    """
    for name, decay in {"start": start, "end": end}.items():
        hyperparams.fixed(name, decay)
        if not 0.0 < decay < 1.0:
            raise ValueError(f"{name} must be in (0, 1), got {decay:g}.")
    hyperparams.check_int("steps", steps)
    slow = math.log(0.5) / math.log(end)
    fast = math.log(0.5) / math.log(start)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        fraction = jnp.minimum(_update_number(count) / steps, 1.0)
        return jnp.exp(math.log(0.5) / (fast + fraction * (slow - fast)))

    return schedule


@_schedule
def warmup(end: float, steps: int) -> optax.Schedule:
    """`end · min(t / steps, 1)` at update t, from 1: AdEMAMix's warm-up of alpha.

    `optax.linear_schedule(0, end, steps)` gives the first update zero; this gives it the first step.

    Args:
      end: what is reached at update `steps`, at least 0.
      steps: length of the warm-up, at least 1.

    Reference: Pagliardini et al., AdEMAMix, 2024 (https://arxiv.org/abs/2409.03137).

    >>> import adam_tx
    >>> adam_tx.schedules.warmup(8.0, 4)(0)
    Array(2., dtype=float32)
    """
    hyperparams.fixed("end", end)
    hyperparams.check_int("steps", steps)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        return end * jnp.minimum(_update_number(count) / steps, 1.0)

    return schedule


def _update_number(count: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(count).astype(jnp.result_type(float)) + 1.0


def _at(value: optax.ScalarOrSchedule, count: jax.typing.ArrayLike, like: jax.Array) -> numerics.Scalar:
    """A hyperparameter at this count, ready to meet an array."""
    return numerics.scalar(hyperparams.at(value, count), like)
